//! Suggests settings for a library or certificates that are missing in an image, by the messages of the failed program.

use common::pins;

const NO_LIBRARY: &str =
    "Add the Debian package (lib…-dev) of the missing library to toolchain.packages in ci.toml.";

/// Messages of linkers and build scripts, and their meaning.
const AT_BUILD: [(&str, &str); 6] = [
    (
        "attempted static link of dynamic object",
        "The service links a library that is only available as a shared library, which an image from scratch does not have.",
    ),
    (
        "Could not find directory of OpenSSL installation",
        "Add libssl-dev and pkg-config to toolchain.packages in ci.toml, or use rustls instead of OpenSSL.",
    ),
    ("cannot find -l", NO_LIBRARY),
    ("unable to find library -l", NO_LIBRARY),
    ("The system library", NO_LIBRARY),
    (
        "Could not find `protoc`",
        "Add protobuf-compiler to toolchain.packages in ci.toml.",
    ),
];

/// Messages of services that fail to start, and their meaning.
const AT_START: [(&str, &str); 8] = [
    (
        "error while loading shared libraries",
        "The base image lacks a shared library that the service links.",
    ),
    (
        "version `GLIBC_",
        "The base image's C library is older than the toolchain's (Debian 12's).",
    ),
    (
        "no such file or directory",
        "The image lacks the binary's dynamic loader: the binary needs glibc, which neither `scratch` nor Alpine has.",
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

/// A hint for the output of a failed build, if its cause is known.
pub(super) fn at_build(output: &str) -> Option<String> {
    hint(&AT_BUILD, output)
}

/// A hint for the output of a service that failed to start, if its cause is known.
pub(super) fn at_start(output: &str) -> Option<String> {
    hint(&AT_START, output)
}

fn hint(known: &[(&str, &str)], output: &str) -> Option<String> {
    let (_, what) = known.iter().find(|(sign, _)| output.contains(sign))?;
    Some(if what.contains("ci.toml") {
        (*what).to_owned()
    } else {
        format!(
            "{what} Set image.base in ci.toml, for instance to {} (C library, OpenSSL, CA certificates).",
            pins::BASE_IMAGE
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_a_setting_for_missing_libraries_and_certificates() {
        let start = "/shop: error while loading shared libraries: libpq.so.5: cannot open shared object file";
        assert!(at_start(start).unwrap().contains("image.base"));
        let build = "error: linking with `cc` failed\n/usr/bin/ld: cannot find -lpq: No such file or directory";
        assert!(at_build(build).unwrap().contains("toolchain.packages"));
        assert_eq!(at_build("error[E0308]: mismatched types"), None);
        assert_eq!(at_start("listening on 8000"), None);
    }
}
