//! The labels of an image that other commands read again.

/// The commit: its full SHA.
///
/// [OCI annotation keys](https://github.com/opencontainers/image-spec/blob/main/annotations.md#pre-defined-annotation-keys).
pub const REVISION: &str = "org.opencontainers.image.revision";
/// The compiler and its version.
pub const COMPILER: &str = "io.github.upwind1647.infrastructure-lab.compiler";
/// The linker and its version.
pub const LINKER: &str = "io.github.upwind1647.infrastructure-lab.linker";
