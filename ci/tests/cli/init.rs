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

/// A manifest with these dependencies, and a lock file with the clients of all databases, as sqlx has it.
fn depends_on(dependencies: &str) -> [(&'static str, String); 2] {
    let locked = lock(&[
        ("shop", &["sqlx"]),
        ("redis", &[]),
        ("sqlx", &["sqlx-macros", "sqlx-mysql", "sqlx-postgres"]),
        ("sqlx-macros", &[]),
        ("sqlx-mysql", &[]),
        ("sqlx-postgres", &[]),
    ]);
    let manifest = manifest(&format!("[dependencies]\n{dependencies}"));
    [("Cargo.toml", manifest), ("Cargo.lock", locked)]
}

fn proposed_with(name: &str, dependencies: &str, files: &[(&str, &str)]) -> String {
    let own = depends_on(dependencies);
    let own: Vec<_> = own.iter().map(|(path, it)| (*path, &**it)).collect();
    proposed(name, &[&own, files].concat())
}

const POSTGRES: &str = "sqlx = { version = \"1\", features = [\"postgres\"] }\n";
const MIGRATION: (&str, &str) = (
    "migrations/1_orders.sql",
    "create table orders (id bigint);\n",
);
/// A query that sqlx checks when it compiles.
const CHECKED: (&str, &str) = (
    "src/orders.rs",
    "pub fn ids() { sqlx::query!(\"select id from orders\"); }\n",
);

#[test]
fn proposes_databases_for_tests_and_smoke_test() {
    assert_proposed!(proposed_with(
        "init-databases",
        &format!("{POSTGRES}redis = \"1\"\n"),
        &[
            MIGRATION,
            (
                "src/db.rs",
                "pub fn url() { std::env::var(\"DATABASE_URL\"); }\n"
            ),
            (".env.example", "REDIS_URL=redis://:secret@localhost\n"),
        ],
    ));
}

#[test]
fn proposes_a_database_with_tables_to_compile_the_macros_of_sqlx() {
    assert_proposed!(proposed_with(
        "init-sqlx-macros",
        POSTGRES,
        &[MIGRATION, CHECKED]
    ));
}

#[test]
fn proposes_a_database_whose_tables_a_service_with_migrations_accepts() {
    let migrates = (
        "src/start.rs",
        "pub fn start() { sqlx::migrate!().run(&pool); }\n",
    );
    assert_proposed!(proposed_with(
        "init-sqlx-migrates",
        POSTGRES,
        &[MIGRATION, CHECKED, migrates]
    ));
}

#[test]
fn proposes_offline_data_of_sqlx_instead_of_a_database_to_compile() {
    let offline = (".sqlx/query-1.json", "{}");
    assert_proposed!(proposed_with(
        "init-sqlx-offline",
        POSTGRES,
        &[MIGRATION, CHECKED, offline]
    ));
}

#[test]
fn names_what_is_left_to_do_for_a_database() {
    let unknown = proposed_with("init-no-variable", "tokio-postgres = \"1\"\n", &[]);
    assert!(
        unknown.contains("to do    let the service and its tests find PostgreSQL"),
        "{unknown}"
    );
    let no_tables = proposed_with("init-no-migrations", POSTGRES, &[CHECKED]);
    assert!(
        no_tables.contains("to do    set services.database.setup in ci.toml"),
        "{no_tables}"
    );
    let sqlite = "sqlx = { version = \"1\", features = [\"sqlite\"] }\n";
    let sqlite = proposed_with("init-sqlite", sqlite, &[CHECKED]);
    assert!(sqlite.contains("cargo sqlx prepare"), "{sqlite}");
    assert!(!sqlite.contains("[services."), "{sqlite}");
}

#[test]
fn proposes_no_database_for_clients_that_nothing_uses() {
    let plain = proposed_with(
        "init-unused",
        "redis = { version = \"1\", optional = true }\nsqlx = { version = \"1\", features = [\"sqlite\"] }\n",
        &[],
    );
    for word in ["[services", "env = ", "PostgreSQL", "MySQL", "Redis"] {
        assert!(!plain.contains(word), "{word}: {plain}");
    }
}

#[test]
fn proposes_the_features_that_the_binary_requires() {
    let manifest = manifest(
        "[features]\ndefault = [\"metrics\"]\nmetrics = []\nserver = [\"postgres\"]\npostgres = [\"dep:sqlx\", \"sqlx/postgres\"]\n\n\
         [dependencies]\nsqlx = { version = \"1\", optional = true }\n\n\
         [[bin]]\nname = \"shop\"\nrequired-features = [\"metrics\", \"postgres\", \"server\"]\n",
    );
    assert_proposed!(proposed(
        "init-features",
        &[
            ("Cargo.toml", &manifest),
            ("Cargo.lock", &lock(&[("shop", &["sqlx"])]))
        ],
    ));
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
