//! What `ci init` finds in repositories of several shapes, and what it proposes.

use crate::ci;
use crate::harness::Project;

const MAIN: (&str, &str) = ("src/main.rs", "fn main() {}\n");
const IGNORED: (&str, &str) = (".gitignore", "target\n");

/// Compares with a snapshot whose head does not repeat the files of the test.
macro_rules! assert_proposed {
    ($text:expr) => {{
        let proposed = $text;
        insta::assert_snapshot!(proposed);
    }};
}

fn manifest(more: &str) -> String {
    format!("[package]\nname = \"shop\"\nversion = \"1.0.0\"\nedition = \"2024\"\n{more}")
}

/// A lock file with these packages, each with its dependencies.
fn lock(packages: &[(&str, &[&str])]) -> String {
    let mut text = String::from("version = 4\n");
    for (name, dependencies) in packages {
        text += &format!("\n[[package]]\nname = \"{name}\"\nversion = \"1.0.0\"\n");
        text += &format!("dependencies = {dependencies:?}\n");
    }
    text
}

/// What `ci init` says, and the keys that it sets.
fn proposed(name: &str, files: &[(&str, &str)]) -> String {
    let project = Project::of(name, &[&[IGNORED, MAIN], files].concat());
    project.git(&["remote", "add", "origin", "git@github.com:Acme/shop.git"]);
    let said = ci(&project, &["init"]).run().exits(0).stderr;
    let settings = project.read("ci.toml");
    let set: Vec<_> = settings
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .collect();
    let workflow = project.read(".github/workflows/docker-builder.yml");
    let checkout: Vec<_> = workflow
        .lines()
        .skip_while(|line| !line.contains("persist-credentials"))
        .take_while(|line| !line.contains("name:"))
        .collect();
    // Which ci the tests are part of is different in each commit.
    let said: Vec<_> = said
        .lines()
        .filter(|line| !line.contains(" in the workflow"))
        .collect();
    format!(
        "{}\n\nci.toml:\n{}\n\ncheckout:\n{}\n",
        said.join("\n"),
        set.join("\n"),
        checkout.join("\n")
    )
}

#[test]
fn proposes_little_for_a_plain_service() {
    assert_proposed!(proposed(
        "init-plain",
        &[
            ("Cargo.toml", &manifest("")),
            ("Cargo.lock", &lock(&[("shop", &[])]))
        ],
    ));
}

#[test]
fn proposes_packages_for_libraries_and_generated_code() {
    assert_proposed!(proposed(
        "init-libraries",
        &[
            (
                "Cargo.toml",
                &manifest(
                    "[dependencies]\nrdkafka = \"1\"\n[build-dependencies]\ntonic-build = \"1\"\n"
                ),
            ),
            (
                "Cargo.lock",
                &lock(&[
                    ("shop", &["rdkafka", "tonic-build"]),
                    ("librocksdb-sys", &["bindgen"]),
                    ("rdkafka-sys", &["cmake", "libz-sys", "sasl2-sys"]),
                    ("sasl2-sys", &[]),
                    ("libz-sys", &[]),
                    ("openssl-sys", &[]),
                    ("tonic-build", &["prost-build"]),
                ]),
            ),
        ],
    ));
}

#[test]
fn proposes_no_packages_for_what_crates_bring_themselves() {
    assert_proposed!(proposed(
        "init-vendored",
        &[
            (
                "Cargo.toml",
                &manifest(
                    "[build-dependencies]\nprost-build = \"1\"\nprotoc-bin-vendored = \"1\"\n"
                ),
            ),
            (
                "Cargo.lock",
                &lock(&[
                    ("aws-lc-sys", &["bindgen", "cmake"]),
                    ("openssl-src", &[]),
                    ("openssl-sys", &["openssl-src"]),
                    ("prost-build", &[]),
                    ("protoc-bin-vendored", &[]),
                ]),
            ),
        ],
    ));
}

#[test]
fn names_databases_and_what_sqlx_needs() {
    let files = [
        ("Cargo.toml", &*manifest("[dependencies]\nsqlx = \"1\"\n")),
        (
            "Cargo.lock",
            &lock(&[
                ("redis", &[]),
                ("sqlx", &[]),
                ("sqlx-macros", &[]),
                ("sqlx-postgres", &[]),
            ]),
        ),
        ("migrations/1.sql", "select 1;\n"),
    ];
    assert_proposed!(proposed("init-sqlx", &files));
    let offline = [&files[..], &[(".sqlx/query-1.json", "{}")]].concat();
    let said = proposed("init-sqlx-offline", &offline);
    assert!(said.contains("found    .sqlx: "), "{said}");
    assert!(!said.contains("cargo sqlx prepare"), "{said}");
}

#[test]
fn proposes_what_the_repository_needs() {
    let lock = "version = 4\n\n[[package]]\nname = \"private\"\nversion = \"1.0.0\"\nsource = \"git+https://example.com/private.git?branch=main#0123\"\n";
    assert_proposed!(proposed(
        "init-repository",
        &[
            (
                "Cargo.toml",
                &manifest("[build-dependencies]\nvergen-gix = \"1\"\n")
            ),
            ("Cargo.lock", lock),
            (
                "build.rs",
                "fn main() { std::process::Command::new(\"git\"); }\n"
            ),
            ("rust-toolchain.toml", "[toolchain]\nchannel = \"1.85.0\"\n"),
            (
                ".gitmodules",
                "[submodule \"vendor\"]\n\tpath = vendor\n\turl = ../vendor\n"
            ),
            (".gitattributes", "*.bin filter=lfs\n"),
        ],
    ));
}
