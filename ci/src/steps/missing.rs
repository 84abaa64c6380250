//! Suggests settings for a library or certificates that are missing in an image, by the messages of the failed program.

use common::pins;

/// What a program or library that is missing in the toolchain's container is called there, and the Debian package that has it.
const PACKAGES: [(&str, &str); 20] = [
    ("clang", "clang"),
    ("cmake", "cmake"),
    ("crypto", "libssl-dev"),
    ("curl", "libcurl4-openssl-dev"),
    ("lld", "lld"),
    ("mold", "mold"),
    ("mysqlclient", "default-libmysqlclient-dev"),
    ("nasm", "nasm"),
    ("perl", "perl"),
    ("pq", "libpq-dev"),
    ("protoc", "protobuf-compiler"),
    ("python3", "python3"),
    ("sasl2", "libsasl2-dev"),
    ("sccache", "sccache"),
    ("sqlite3", "libsqlite3-dev"),
    ("ssl", "libssl-dev"),
    ("udev", "libudev-dev"),
    ("wasm-ld", "lld"),
    ("xml2", "libxml2-dev"),
    ("z", "zlib1g-dev"),
];

/// What surrounds the name of something that is missing, in the messages of cargo, rustc, linkers and build scripts.
const MISSING: [(&str, &str); 12] = [
    ("linker `", "` not found"),
    ("invalid linker name in argument '-fuse-ld=", "'"),
    ("cannot find 'ld.", "'"),
    ("cannot find -l", ":"),
    ("cannot find -l", "\n"),
    ("unable to find library -l", "\n"),
    ("could not execute process `", " "),
    ("could not execute process `", "`"),
    ("Could not find `", "`"),
    ("is `", "` not installed?"),
    ("The system library `", "`"),
    ("failed to find tool \"", "\""),
];

/// What to do about a registry that wants a token.
const TOKEN: &str = "The registry wants a token. Set cargo.secrets in ci.toml to the name of its variable, such as CARGO_REGISTRIES_ACME_TOKEN, \
                     and the variable to the token.";
/// What to do about a git server that refuses.
const GIT: &str =
    "The git server wants credentials. Check cargo.git-credentials and cargo.ssh-agent in ci.toml.";
/// What to do about an unknown CA.
pub(super) const UNKNOWN_CA: &str = "The server's certificate is of a CA that the container does not know. With `proxy = true` in ci.toml, it uses those in \
                                     SSL_CERT_FILE.";

/// The hint for the messages of gix and libgit2 with which a build script ends.
const READS_GIT: &str = "A build script looks for .git, which no container has. Set `commit = true` in [build] of ci.toml, so that vergen and built get the \
     commit in variables. vergen-gix and vergen-git2 only read them without `fail_on_error()`: remove it, or use vergen-gitcl.";

/// Other messages of linkers and build scripts, and their meaning.
const AT_BUILD: [(&str, &str); 11] = [
    ("require a credential-provider to be configured", TOKEN),
    ("no token found for `", TOKEN),
    ("token rejected for `", TOKEN),
    ("failed to authenticate when downloading repository", GIT),
    ("no authentication methods succeeded", GIT),
    ("fatal: Authentication failed for", GIT),
    ("Error: Could not find a git repository in", READS_GIT),
    ("Error: could not find repository ", READS_GIT),
    (
        "to use query macros online",
        "The macros of sqlx need a database or prepared queries. Commit .sqlx (`cargo sqlx prepare`) and set env = { SQLX_OFFLINE = \"true\" } in \
         the table [cargo] of ci.toml, or give a database to the steps: steps = [\"test\", \"lint\", \"build\"] and setup in [services.NAME].",
    ),
    (
        "attempted static link of dynamic object",
        "The service links a library that is only available as a shared library, which an image from scratch does not have.",
    ),
    (
        "Could not find directory of OpenSSL installation",
        "Add libssl-dev and pkg-config to toolchain.packages in ci.toml, or use rustls instead of OpenSSL.",
    ),
];

/// A program or library that a failed command did not find in the toolchain's container, by the command's output.
fn missing(output: &str) -> Option<String> {
    let between = |(before, after): &(&str, &str)| {
        let (_, rest) = output.split_once(before)?;
        let (name, _) = rest.split_once(after)?;
        let name = name.trim().rsplit('/').next()?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
        (!name.is_empty() && name.len() < 40 && name.chars().all(is_name)).then(|| name.to_owned())
    };
    MISSING.iter().find_map(between)
}

/// A variable that `env!` did not find.
fn undefined_variable(output: &str) -> Option<&str> {
    let (before, _) = output.split_once("` not defined at compile time")?;
    let (_, name) = before.rsplit_once("environment variable `")?;
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (!name.is_empty() && name.bytes().all(is_name)).then_some(name)
}

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

/// A hint for the output of a failed command of cargo, if the toolchain's container lacks something.
pub(super) fn at_build(output: &str) -> Option<String> {
    if let Some(known) = hint(&AT_BUILD, output) {
        return Some(known);
    }
    if let Some(variable) = undefined_variable(output) {
        return Some(format!(
            "The compiler gets no variables of this machine. Set {variable} in the table [cargo] of ci.toml: env = {{ {variable} = \"…\" }}."
        ));
    }
    let name = missing(output)?;
    let bare = name.strip_prefix("lib").unwrap_or(&name);
    let package = PACKAGES
        .iter()
        .find(|(known, _)| *known == name || *known == bare);
    Some(match package {
        Some((_, package)) => format!(
            "The toolchain's container has no {name}. Add the Debian package {package} to toolchain.packages in ci.toml."
        ),
        None => format!(
            "The toolchain's container has no {name}. Add the Debian package that contains it (`apt-file search {name}`) to toolchain.packages in ci.toml."
        ),
    })
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
        for (output, package) in [
            (
                "/usr/bin/ld: cannot find -lpq: No such file or directory",
                "libpq-dev",
            ),
            ("error: linker `clang` not found", "clang"),
            (
                "clang: error: invalid linker name in argument '-fuse-ld=mold'",
                "mold",
            ),
            ("collect2: fatal error: cannot find 'ld.mold'", "mold"),
            (
                "error: could not execute process `sccache rustc -vV` (never executed)",
                "sccache",
            ),
            (
                "error: could not execute process `/opt/bin/sccache` (never executed)",
                "sccache",
            ),
            (
                "thread 'main' panicked: failed to execute command: No such file\nis `cmake` not installed?",
                "cmake",
            ),
            (
                "Could not find `protoc`. If `protoc` is installed",
                "protobuf-compiler",
            ),
            (
                "The system library `libudev` required by crate",
                "libudev-dev",
            ),
            (
                "error: linker `ld.gold2` not found",
                "apt-file search ld.gold2",
            ),
        ] {
            let hint = at_build(output).unwrap();
            assert!(
                hint.contains(package) && hint.contains("toolchain.packages"),
                "{output}: {hint}"
            );
        }
        let undefined = "error: environment variable `PUBLIC_URL` not defined at compile time";
        let hint = at_build(undefined).unwrap();
        assert!(hint.contains("env = { PUBLIC_URL = "), "{hint}");
        let sqlx = "error: set `DATABASE_URL` to use query macros online, or run `cargo sqlx prepare` to update the query cache";
        assert!(at_build(sqlx).unwrap().contains("SQLX_OFFLINE"));
        for reads_git in [
            "Error: Could not find a git repository in '/work/src' or in any of its parents",
            "Error: could not find repository at '/work/src'",
        ] {
            let hint = at_build(reads_git).unwrap();
            assert!(
                hint.contains("commit = true") && hint.contains("vergen-gitcl"),
                "{hint}"
            );
        }
        assert_eq!(at_build("error[E0308]: mismatched types"), None);
        assert_eq!(at_start("listening on 8000"), None);
    }
}
