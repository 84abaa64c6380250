//! What programs say when the image lacks a library or certificates, and the setting that gives it to them.

use common::pins;

const NO_LIBRARY: &str = "A library that it links is not in the toolchain's container: add its Debian package (lib…-dev) to \
                          toolchain.packages in ci.toml.";

/// What a linker or build script says, and what it means.
const AT_BUILD: [(&str, &str); 6] = [
    (
        "attempted static link of dynamic object",
        "A library that it links exists only as a shared one, and an image from scratch has none.",
    ),
    (
        "Could not find directory of OpenSSL installation",
        "It wants OpenSSL to compile: add libssl-dev and pkg-config to toolchain.packages in ci.toml, or use rustls.",
    ),
    ("cannot find -l", NO_LIBRARY),
    ("unable to find library -l", NO_LIBRARY),
    ("The system library", NO_LIBRARY),
    (
        "Could not find `protoc`",
        "Add protobuf-compiler to toolchain.packages in ci.toml.",
    ),
];

/// What a service says that was started without something it needs, and what it means.
const AT_START: [(&str, &str); 8] = [
    (
        "error while loading shared libraries",
        "The base image lacks a library that the service links.",
    ),
    (
        "version `GLIBC_",
        "The base image has an older C library than the one that the service was linked with (Debian 12's).",
    ),
    (
        "no such file or directory",
        "The image has not the dynamic loader that the binary asks for: it needs glibc, and an image from scratch, or Alpine's, has none.",
    ),
    (
        "no CA certificates found",
        "The image has no CA certificates.",
    ),
    ("No CA certificates", "The image has no CA certificates."),
    (
        "unable to get local issuer certificate",
        "The image has no CA certificates.",
    ),
    ("UnknownIssuer", "The image has no CA certificates."),
    (
        "no native root CA certificates",
        "The image has no CA certificates.",
    ),
];

/// What to do when a build failed and said this, where that is known.
pub fn at_build(output: &str) -> Option<String> {
    hint(&AT_BUILD, output)
}

/// What to do when a service did not come up and said this, where that is known.
pub fn at_start(output: &str) -> Option<String> {
    hint(&AT_START, output)
}

fn hint(known: &[(&str, &str)], output: &str) -> Option<String> {
    let (_, what) = known.iter().find(|(sign, _)| output.contains(sign))?;
    Some(if what.contains("ci.toml") {
        (*what).to_owned()
    } else {
        format!(
            "{what} image.base in ci.toml names an image to put the service on, such as {} (a C library, OpenSSL, CA certificates).",
            pins::BASE_IMAGE
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_or_certificate_has_a_remedy() {
        let start = "/shop: error while loading shared libraries: libpq.so.5: cannot open shared object file";
        assert!(at_start(start).unwrap().contains("image.base"));
        let build = "error: linking with `cc` failed\n/usr/bin/ld: cannot find -lpq: No such file or directory";
        assert!(at_build(build).unwrap().contains("toolchain.packages"));
        assert_eq!(at_build("error[E0308]: mismatched types"), None);
        assert_eq!(at_start("listening on 8000"), None);
    }
}
