//! The image labels that other commands read.

/// The full SHA of the commit.
///
/// [OCI annotation keys](https://github.com/opencontainers/image-spec/blob/main/annotations.md#pre-defined-annotation-keys).
pub const REVISION: &str = "org.opencontainers.image.revision";
/// The name and version of the compiler.
pub const COMPILER: &str = "io.github.upwind1647.infrastructure-lab.compiler";
/// The name and version of the linker.
pub const LINKER: &str = "io.github.upwind1647.infrastructure-lab.linker";
