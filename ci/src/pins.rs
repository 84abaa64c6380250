//! Every version and image that the pipeline stands on. Change them here and nowhere else.

/// Dagger: SDK, CLI and engine are one version, so that what is tested here is what runs on a runner.
pub const DAGGER: &str = "0.19.10";
/// The Rust toolchain in which everything is tested and built; also in `rust-toolchain.toml`.
pub const RUST: &str = "1.95.0";
/// Where the toolchain comes from. Not `-slim`: tests and build scripts need git, a linker and pkg-config.
pub const RUST_IMAGE: &str = "docker.io/library/rust:1.95.0-bookworm";
/// Embeds the dependency list into the binary, so that the scan has something to see.
pub const CARGO_AUDITABLE: &str = "0.7.7";
/// The scanner. Several 0.69 releases of March 2026 were compromised: never those.
pub const TRIVY: &str = "0.74.0";
/// The scanner's image.
pub const TRIVY_IMAGE: &str = "ghcr.io/aquasecurity/trivy:0.74.0";
/// Pushes an OCI layout byte for byte.
pub const CRANE: &str = "0.22.1";
/// crane's image.
pub const CRANE_IMAGE: &str = "gcr.io/go-containerregistry/crane:v0.22.1";
