//! Services as other people write them: each goes through `ci init` and `ci`, with at most one edit of `ci.toml`.

use serde_json::json;

use crate::harness::{Outcome, Project};
use crate::image::Image;
use crate::workspaces::{IGNORED, assert_passes_every_gate, package, service};

/// A test that always passes, for services that have none.
const TEST: &str = "\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn adds() {\n        assert_eq!(1 + 1, 2);\n    }\n}\n";

/// A crate called `shop` after `ci init`. `more` are further lines of its Cargo.toml.
pub fn initialized(name: &str, more: &str, main: &str, files: &[(&str, &str)]) -> Project {
    let manifest = package("shop", more);
    let main = format!("{main}{TEST}");
    let lockfile = "version = 4\n\n[[package]]\nname = \"shop\"\nversion = \"3.1.4\"\n";
    let own = [
        IGNORED,
        ("Cargo.toml", &*manifest),
        ("Cargo.lock", lockfile),
        ("src/main.rs", &*main),
    ];
    let project = Project::of(name, &[&own, files].concat());
    project.format("");
    project.ci(&["init"]).run().exits(0);
    project.commit("ci init");
    project
}

/// Replaces commented lines of `ci.toml`, which must exist.
pub fn set(project: &Project, edits: &[(&str, &str)]) {
    for (from, to) in edits {
        project.edit("ci.toml", from, to);
    }
    project.commit("settings");
}

fn run(project: &Project) -> Outcome {
    project.ci(&[]).run()
}

/// The body of a function that answers every request.
pub const HEALTHY: &str = "    if request.is_empty() {\n        return Err(\"an empty request\".to_owned());\n    }\n    Ok(())";

#[test]
fn a_binary_with_required_features() {
    let project = initialized(
        "required-features",
        "\n[features]\nsqlite = []\npostgres = []\n\n[[bin]]\nname = \"shop\"\nrequired-features = [\"sqlite\"]\n",
        &service(8000, HEALTHY),
        &[],
    );
    assert_passes_every_gate(&run(&project).exits(0));
    set(&project, &[("features = [\"sqlite\"]", "features = []")]);
    run(&project)
        .exits(2)
        .says("binary shop of package shop requires features that are not enabled: sqlite")
        .says("Set features = [\"sqlite\"] in the table [cargo] of ci.toml");
}

#[test]
fn features_that_exclude_each_other() {
    let project = initialized(
        "exclusive-features",
        "\n[features]\ndefault = [\"ring\"]\nring = []\naws = []\n",
        &format!(
            "#[cfg(all(feature = \"ring\", feature = \"aws\"))]\ncompile_error!(\"choose one of ring and aws\");\n\n{}",
            service(8000, HEALTHY)
        ),
        &[],
    );
    assert_passes_every_gate(&run(&project).exits(0));
    set(
        &project,
        &[(
            "# all-features = false\n# default",
            "all-features = true\n# default",
        )],
    );
    run(&project).exits(1).says("choose one of ring and aws");
}

#[test]
fn a_service_with_arguments_and_files() {
    let main = service(
        8000,
        r#"    if !request.starts_with("GET /health ") {
        return Err(format!("asked for {request}"));
    }
    for path in ["/tmp/upload", "/var/lib/shop/orders"] {
        std::fs::write(path, "1").map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(())"#,
    )
    .replace(
        "fn main() {\n",
        "fn main() {\n    let arguments: Vec<String> = std::env::args().skip(1).collect();\n    \
         if arguments != [\"serve\", \"--in\", \"the shop\"] {\n        eprintln!(\"usage: shop serve --in PLACE\");\n        \
         std::process::exit(64);\n    }\n",
    );
    let project = initialized("arguments", "", &main, &[]);
    run(&project)
        .exits(1)
        .only_fails("smoke")
        .says("the service exited with code 64")
        .says("image.args");
    set(
        &project,
        &[
            (
                "# args = [\"serve\"]",
                "args = [\"serve\", \"--in\", \"the shop\"]",
            ),
            (
                "# writable = [\"/tmp\"]",
                "writable = [\"/tmp\", \"/var/lib/shop\"]",
            ),
        ],
    );
    assert_passes_every_gate(&run(&project).exits(0));
    let image = Image::read(&project.path().join("target/ci"));
    let config = &image.config["config"];
    assert_eq!(config["Entrypoint"], json!(["/shop"]));
    assert_eq!(config["Cmd"], json!(["serve", "--in", "the shop"]));
}

#[test]
fn variables_that_are_compiled_in() {
    let main = service(8000, HEALTHY).replace(
        "fn main() {\n",
        "fn main() {\n    println!(\"at {}\", env!(\"PUBLIC_URL\"));\n",
    );
    let project = initialized("compiled-in", "", &main, &[]);
    run(&project)
        .exits(1)
        .says("environment variable `PUBLIC_URL` not defined")
        .says("env = { PUBLIC_URL = ");
    set(
        &project,
        &[(
            "# env = { SQLX_OFFLINE = \"true\" }",
            "env = { PUBLIC_URL = \"https://shop.example.com\" }",
        )],
    );
    assert_passes_every_gate(&run(&project).exits(0));
}

#[test]
fn a_service_whose_health_needs_a_login() {
    let main = service(8000, "    Err(request.len().to_string())").replace("503", "401");
    let project = initialized("login", "", &main, &[]);
    run(&project)
        .exits(1)
        .only_fails("smoke")
        .says("status 401")
        .says("change the table [smoke] in ci.toml");
    set(&project, &[("# statuses = [200]", "statuses = [204, 401]")]);
    assert_passes_every_gate(&run(&project).exits(0));
}

#[test]
fn a_service_without_http() {
    let main = r#"use std::io::Write;
use std::net::TcpListener;

fn main() {
    let listener = TcpListener::bind("0.0.0.0:8000").expect("the port is free");
    let mut open = Vec::new();
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let _ = stream.write_all(b"220 shop\r\n");
        open.push(stream);
    }
}
"#;
    let project = initialized("tcp", "", main, &[]);
    set(&project, &[("# check = \"http\"", "check = \"tcp\"")]);
    assert_passes_every_gate(&run(&project).exits(0));
    // A port that nothing listens on is not open, although the engine's tunnel accepts connections.
    set(
        &project,
        &[
            ("# port = 8000\n# The health", "port = 8001\n# The health"),
            (
                "# tries = 20\n# within = \"20s\"",
                "tries = 3\nwithin = \"2s\"",
            ),
        ],
    );
    run(&project)
        .exits(1)
        .only_fails("smoke")
        .says("port 8001 did not accept a connection in 3 tries within 2s");
}

/// The source of a function that returns a value of the cache.
const GET: &str = r#"fn get(cache: &str, key: &str) -> Result<String, String> {
    use std::io::{Read as _, Write as _};
    let mut cache = std::net::TcpStream::connect(cache).map_err(|e| format!("{cache}: {e}"))?;
    let request = format!("GET {key}\r\n");
    cache.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
    let mut answer = [0; 100];
    let read = cache.read(&mut answer).map_err(|e| e.to_string())?;
    Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
}
"#;

/// A build script that needs a prepared service, like the macros of sqlx.
fn build_script() -> String {
    format!(
        "{GET}\nfn main() {{\n    let prepared = get(\"cache:6379\", \"prepared\");\n    \
         assert!(prepared.as_ref().is_ok_and(|it| it.contains(\"by ci\")), \"{{prepared:?}}\");\n    \
         println!(\"cargo::rerun-if-changed=build.rs\");\n}}\n"
    )
}

#[test]
fn a_database_that_is_needed_to_compile() {
    let main = service(
        8000,
        r#"    let migrated = get("cache:6379", "migrated")? + &get("cache:6379", "prepared")?;
    if request.starts_with("GET /health ") && migrated.contains("yes") && migrated.contains("by ci") {
        return Ok(());
    }
    Err(migrated)"#,
    )
    .replace(
        "fn main() {\n",
        "fn main() {\n    if std::env::args().any(|it| it == \"migrate\") {\n        \
         let mut cache = std::net::TcpStream::connect(\"cache:6379\").expect(\"a cache\");\n        \
         cache.write_all(b\"SET migrated yes\\r\\n\").expect(\"a cache\");\n        \
         let _ = cache.read(&mut [0; 5]).expect(\"an answer\");\n        return;\n    }\n",
    );
    let main = format!("{main}\n{GET}");
    let test = "#[test]\nfn reaches_the_cache_as_localhost() {\n    \
                let prepared = std::net::TcpStream::connect(\"localhost:6379\");\n    assert!(prepared.is_ok(), \"{prepared:?}\");\n}\n";
    let project = initialized(
        "database",
        "",
        &main,
        &[("build.rs", &build_script()), ("tests/cache.rs", test)],
    );
    let cache = "[services.cache]\nimage = \"docker.io/library/redis:8.0\"\nport = 6379\n\
                 steps = [\"test\", \"lint\", \"build\", \"smoke\"]\npackages = [\"redis-tools\"]\nlocalhost = true\n";
    let setup = "setup = \"redis-cli -h cache SET prepared 'by ci' && echo prepared for $USED\"\n\n[scan]\n";
    set(
        &project,
        &[
            ("[scan]\n", &format!("{cache}{setup}")),
            ("# setup = [\"migrate\"]", "setup = [\"migrate\"]"),
            (
                "# env = { RUST_LOG = \"debug\" }",
                "env = { USED = \"a smoke test\" }",
            ),
            (
                "# env = { SQLX_OFFLINE = \"true\" }",
                "env = { USED = \"cargo\" }",
            ),
        ],
    );
    let green = run(&project).exits(0);
    assert_passes_every_gate(&green);
    let log = |step: &str| project.read(&format!("target/ci/logs/{step}.log"));
    assert!(
        log("lint").contains("prepared for cargo"),
        "{}",
        log("lint")
    );
    assert!(
        log("smoke").contains("prepared for a smoke test"),
        "{}",
        log("smoke")
    );

    project.edit("ci.toml", "redis-cli -h cache", "redis-cli -h no-such-host");
    project.commit("a bad setup");
    let bad = run(&project).exits(1);
    assert_eq!(bad.status("build"), "failed");
    bad.says("the setup of service cache failed")
        .says("Check services.cache.setup in ci.toml");
}

/// A test that needs PostgreSQL, by its URL and as `localhost`.
const COUNTS: &str = r#"use postgres::{Client, NoTls};

#[test]
fn counts() {
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL");
    for url in [url.replace("@database:", "@localhost:"), url] {
        let mut client = Client::connect(&url, NoTls).expect("a database");
        let row = client.query_one("SELECT 42::BIGINT", &[]).expect("a row");
        assert_eq!(row.get::<_, i64>(0), 42);
    }
}
"#;

#[test]
fn a_database_that_init_proposes() {
    let main = service(
        8000,
        r#"    let url = std::env::var("DATABASE_URL").map_err(|error| error.to_string())?;
    let host = url.split(['@', '/']).nth(3).ok_or("a URL without a host")?;
    std::net::TcpStream::connect(host).map_err(|error| format!("{host}: {error}"))?;
    if request.starts_with("GET /health ") { Ok(()) } else { Err(request.to_owned()) }"#,
    );
    let manifest = package("shop", "\n[dev-dependencies]\npostgres = \"0.19\"\n");
    let files = [
        IGNORED,
        ("Cargo.toml", &*manifest),
        ("src/main.rs", &*main),
        ("tests/database.rs", COUNTS),
    ];
    let project = Project::of("proposed-database", &files);
    project.lock("");
    project.format("");
    project.ci(&["init"]).run().exits(0);
    project.commit("ci init");
    assert_passes_every_gate(&run(&project).exits(0));
}

#[test]
fn packages_of_the_tests_compile_nothing_again() {
    let main = format!(
        "{}\n#[cfg(test)]\nmod programs {{\n    #[test]\n    fn calculates() {{\n        \
         let bc = std::process::Command::new(\"bc\").arg(\"--version\").output();\n        \
         assert!(bc.is_ok() || !cfg!(feature = \"strict\"), \"{{bc:?}}\");\n    }}\n}}\n",
        service(8000, HEALTHY)
    );
    let project = initialized(
        "test-packages",
        "\n[features]\ndefault = [\"strict\"]\nstrict = []\n",
        &main,
        &[],
    );
    // The tests do not read the settings, so that a change of them is no change of the sources.
    set(
        &project,
        &[("[paths]\n", "[paths]\ntest = [\"**\", \"!ci.toml\"]\n")],
    );
    let first = run(&project)
        .exits(1)
        .only_fails("test")
        .says("needs its Debian package in test.packages of ci.toml");
    assert!(first.report["digest"].is_string());
    set(
        &project,
        &[("# packages = [\"curl\"]", "packages = [\"bc\"]")],
    );
    assert_passes_every_gate(&run(&project).exits(0));
    let log = project.read("target/ci/logs/test.log");
    assert!(log.contains("calculates ... ok"), "{log}");
    assert!(!log.contains("Compiling"), "{log}");
}

#[test]
fn a_workspace_that_is_adopted_step_by_step() {
    let legacy = "//! Old code.\n\n#[must_use]\npub fn is_old() -> bool {\n    return true;\n}\n\n\
                  #[test]\nfn fails() {\n    assert!(!is_old());\n}\n";
    let slow = "\n#[cfg(test)]\nmod clocks {\n    #[test]\n    fn is_fast() {\n        assert!(std::env::var_os(\"PATH\").is_none());\n    }\n    \
                #[test]\n    fn is_fast_enough() {}\n}\n";
    let project = initialized(
        "adopted",
        "\n[workspace]\nmembers = [\"legacy\"]\n",
        &format!("{}{slow}", service(8000, HEALTHY)),
        &[
            ("legacy/Cargo.toml", &package("legacy", "")),
            ("legacy/src/lib.rs", legacy),
            (
                "Cargo.lock",
                "version = 4\n\n[[package]]\nname = \"legacy\"\nversion = \"3.1.4\"\n\n[[package]]\nname = \"shop\"\nversion = \"3.1.4\"\n",
            ),
        ],
    );
    let first = run(&project).exits(1);
    assert_eq!(first.status("test"), "failed");
    assert_eq!(first.status("lint"), "failed");
    assert!(first.report["left_out"].is_null());
    set(
        &project,
        &[
            (
                "# exclude = [\"legacy\"]\n# targets = [\"lib\", \"bins\", \"tests\", \"examples\", \"benches\", \"doc\"]",
                "exclude = [\"legacy\"]",
            ),
            ("# exclude = [\"legacy\"]", "exclude = [\"legacy\"]"),
            (
                "# [[test.skip]]\n# name = \"orders::tests::is_fast\"\n# because = \"issue 17: depends on the clock\"\n# until = \"2026-12-31\"",
                "[[test.skip]]\nname = \"clocks::is_fast\"\nbecause = \"issue 17\"\nuntil = \"9999-12-31\"",
            ),
        ],
    );
    let green = run(&project).exits(0).says("left out");
    assert_passes_every_gate(&green);
    let left_out = json!([
        "test.exclude = [\"legacy\"]",
        "test.skip clocks::is_fast until 9999-12-31: issue 17",
        "lint.exclude = [\"legacy\"]",
    ]);
    assert_eq!(green.report["left_out"], left_out);
    let log = project.read("target/ci/logs/test.log");
    assert!(log.contains("clocks::is_fast_enough ... ok"), "{log}");
    let provenance = project.read("target/ci/provenance.intoto.json");
    assert!(
        provenance.contains("test.skip clocks::is_fast until"),
        "{provenance}"
    );

    set(
        &project,
        &[(
            "# A test that is skipped until a day.\n[[test",
            "targets = [\"doc\"]\n[[test",
        )],
    );
    run(&project)
        .exits(1)
        .only_fails("test")
        .says("the selection in ci.toml contains no test");
}

#[test]
fn a_token_for_a_private_registry() {
    let name = "CARGO_REGISTRIES_ACME_TOKEN";
    // Without the time, the engine could have the results of an earlier test run.
    let now = jiff::Timestamp::now();
    let script = format!(
        "// {now}\nfn main() {{\n    println!(\"cargo::rerun-if-changed=build.rs\");\n    let token = std::env::var(\"{name}\").expect(\"a token\");\n    \
         println!(\"cargo::warning=the token is {{token}}\");\n}}\n"
    );
    let project = initialized(
        "secret",
        "",
        &service(8000, HEALTHY),
        &[("build.rs", &script)],
    );
    set(&project, &[("# secrets = [", "secrets = [")]);
    run(&project).exits(2).says(
        "CARGO_REGISTRIES_ACME_TOKEN is in cargo.secrets of ci.toml, but not in the environment",
    );
    let with = |token: &str| {
        let run = project.ci(&["-v"]).env(name, token).run().exits(0);
        assert_passes_every_gate(&run);
        for text in [&run.stdout, &run.stderr] {
            assert!(!text.contains(token), "{text}");
        }
        for entry in walkdir::WalkDir::new(project.path().join("target/ci")) {
            let path = entry.unwrap().into_path();
            let content = std::fs::read(&path).unwrap_or_default();
            let found = content
                .windows(token.len())
                .any(|part| part == token.as_bytes());
            assert!(!found, "{}", path.display());
        }
        run
    };
    let first = with("acme_token-of-monday");
    assert_eq!(first.step("build")["cached"], false);
    assert!(
        project
            .read("target/ci/logs/build.log")
            .contains("the token is ***")
    );
    let second = with("acme_token-of-tuesday");
    for step in ["test", "lint", "build"] {
        assert_eq!(second.step(step)["cached"], true, "{step}");
    }
}
