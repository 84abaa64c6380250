# What a developer does here. Tools come at the versions below, into target/tools, when they are first needed.

tools := justfile_directory() / "target/tools"
deny := "0.20.2"
actionlint := "1.7.12"
zizmor := "1.32.0"

set positional-arguments

# List the recipes
default:
    @"{{ just_executable() }}" --list --unsorted

# The whole pipeline, as on GitHub, up to the publish
run *arguments:
    cargo run -p ci --locked -- "$@"

# Every test; those of the pipeline bring up a real engine and a real registry
test *arguments:
    cargo test --workspace --locked --features ci/e2e "$@"

# Format, lint, documentation, dependency policy and workflow checks
check: && policy workflows
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --all-features --no-deps --locked

# Licenses, bans and sources of all dependencies
policy: (_cargo "cargo-deny" deny)
    "{{ tools }}/bin/cargo-deny" --all-features --locked check --hide-inclusion-graph bans licenses sources

# Known vulnerabilities of all dependencies; apart from `check`, since it fetches the RustSec database from github.com
advisories: (_cargo "cargo-deny" deny)
    "{{ tools }}/bin/cargo-deny" --all-features --locked check advisories

# Lint the workflows, offline
workflows: _zizmor
    go run github.com/rhysd/actionlint/cmd/actionlint@v{{ actionlint }} .github/workflows/*.yml
    "{{ tools }}/zizmor-{{ zizmor }}/bin/zizmor" --offline --persona pedantic --strict-collection .github

# Stop the embedded engine
engine-down:
    cargo run -p ci --locked -- engine down

# cargo itself knows whether this version is there already
_cargo tool version:
    @cargo install --quiet --locked --root "{{ tools }}" {{ tool }}@{{ version }}

_zizmor:
    @test -x "{{ tools }}/zizmor-{{ zizmor }}/bin/zizmor" \
        || { python3 -m venv "{{ tools }}/zizmor-{{ zizmor }}" && "{{ tools }}/zizmor-{{ zizmor }}/bin/pip" install --quiet zizmor=={{ zizmor }}; }
