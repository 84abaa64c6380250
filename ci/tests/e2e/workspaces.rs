//! Services in workspaces of other shapes and with other needs, which require only settings.

use dagger_sdk::ContainerWithDockerHealthcheckOpts;
use serde_json::{Value, json};

use crate::harness::{Outcome, Project};
use crate::image::Image;
use crate::provisioned::provision;
use crate::registry::Registry;

pub const IGNORED: (&str, &str) = (".gitignore", "target\n");

/// The `Cargo.toml` of a package.
pub fn package(name: &str, more: &str) -> String {
    format!("[package]\nname = \"{name}\"\nversion = \"3.1.4\"\nedition = \"2024\"\n{more}")
}

/// The source of a service that listens on `port`. `answer` is the body of a function that returns an error if the service is
/// unhealthy.
pub fn service(port: u16, answer: &str) -> String {
    format!(
        r#"use std::io::{{Read, Write}};
use std::net::TcpListener;

fn main() {{
    let listener = TcpListener::bind(("0.0.0.0", {port})).expect("the port is free");
    for stream in listener.incoming() {{
        let Ok(mut stream) = stream else {{ continue }};
        let mut request = [0; 1024];
        let read = stream.read(&mut request).unwrap_or(0);
        let answer = answer(&String::from_utf8_lossy(&request[..read]));
        if let Err(why) = &answer {{
            println!("{{why}}");
        }}
        let status = if answer.is_ok() {{ 200 }} else {{ 503 }};
        let _ =
            write!(stream, "HTTP/1.1 {{status}} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }}
}}

fn answer(request: &str) -> Result<(), String> {{
{answer}
}}
"#
    )
}

pub fn assert_passes_every_gate(run: &Outcome) {
    for step in ["test", "fmt", "lint", "build", "scan", "smoke"] {
        assert_eq!(run.status(step), "passed", "{step}");
    }
}

/// A single crate without a workspace, with another binary name, port and health path, and with additional files in the image.
fn shop_project(name: &str) -> Project {
    Project::of(
        name,
        &[
            IGNORED,
            (
                "Cargo.toml",
                &package(
                    "shop",
                    "repository = \"https://example.com/acme/shop\"\n\n[[bin]]\nname = \"serve\"\npath = \"src/serve.rs\"\n",
                ),
            ),
            (
                "Cargo.lock",
                "version = 4\n\n[[package]]\nname = \"shop\"\nversion = \"3.1.4\"\n",
            ),
            (
                "src/serve.rs",
                &service(
                    9090,
                    r#"    if !request.starts_with("GET /well?deep=1 ") {
        return Err(format!("asked for {request}"));
    }
    for (name, value) in [("MODE", "trial"), ("COLOUR", "green"), ("PORT", "9090")] {
        if std::env::var(name).as_deref() != Ok(value) {
            return Err(format!("{name} is not {value}"));
        }
    }
    match std::fs::read_to_string("/etc/shop/deep/settings.toml") {
        Ok(text) if text == "a = 1\n" => Ok(()),
        other => Err(format!("{other:?}")),
    }"#,
                ),
            ),
            ("config/deep/settings.toml", "a = 1\n"),
            ("config/run.sh", "#!/bin/sh\n"),
            (
                "ci.toml",
                r#"[service]
port = 9090
health = "/well?deep=1"

[image]
user = "1234"
env = { COLOUR = "green" }
files = { "config" = "/etc/shop", "Cargo.lock" = "/usr/share/shop/Cargo.lock" }

[smoke]
env = { MODE = "trial" }
"#,
            ),
        ],
    )
}

#[test]
fn publishes_a_single_crate_and_uses_its_image_as_a_base() {
    let project = shop_project("shop");
    project.format("");
    project.commit("formatted");
    let registry = Registry::open();
    let run = project
        .ci(&["publish", "--registry", &registry.address()])
        .run()
        .exits(0);
    assert_passes_every_gate(&run);
    assert_eq!(run.report["platform"], "linux/amd64");

    let shipped = Image::read(&project.path().join("target/ci"));
    let config = &shipped.config["config"];
    assert_eq!(config["Entrypoint"], json!(["/serve"]));
    assert_eq!(config["ExposedPorts"], json!({ "9090/tcp": {} }));
    assert_eq!(config["User"], "1234:1234");
    assert_eq!(
        config["Labels"]["org.opencontainers.image.source"],
        "https://example.com/acme/shop"
    );
    assert_eq!(
        config["Labels"]["org.opencontainers.image.version"],
        "3.1.4"
    );
    let env = config["Env"].as_array().unwrap();
    for line in ["COLOUR=green", "PORT=9090"] {
        assert!(env.contains(&line.into()), "{env:?}");
    }
    assert!(
        !env.iter()
            .any(|line| line.as_str().unwrap().starts_with("MODE")),
        "the image has a variable of the smoke test: {env:?}"
    );
    let entries = shipped.entries();
    let paths: Vec<_> = entries.keys().map(String::as_str).collect();
    assert_eq!(
        paths,
        [
            "etc",
            "etc/shop",
            "etc/shop/deep",
            "etc/shop/deep/settings.toml",
            "etc/shop/run.sh",
            "serve",
            "usr",
            "usr/share",
            "usr/share/shop",
            "usr/share/shop/Cargo.lock",
        ]
    );
    let settings = &entries["etc/shop/deep/settings.toml"];
    assert_eq!((settings.0, &settings.1[..]), (0o644, &b"a = 1\n"[..]));
    assert_eq!(entries["serve"].0, 0o755);

    // The published image is the base image of another service, which reuses its layers unchanged.
    let tag = run.report["tag"].as_str().unwrap();
    let base_image = format!("{}/{}:{tag}", registry.address(), project.repository());
    let other = Project::new("on-a-base");
    other.write(
        "ci.toml",
        &format!("[image]\nbase = \"{base_image}\"\nlibc = \"static\"\n"),
    );
    other.commit("on a base");
    let run = other.ci(&[]).run().exits(0);
    assert_passes_every_gate(&run);
    let with_digest = format!(
        "{base_image}@{}",
        registry.digest(project.repository(), tag)
    );
    let line = format!("base = \"{with_digest}\"");
    run.says(&line);
    let derived = Image::read(&other.path().join("target/ci"));
    assert_eq!(
        derived.manifest["layers"][0]["digest"],
        shipped.manifest["layers"][0]["digest"]
    );
    assert_eq!(derived.manifest["layers"].as_array().unwrap().len(), 2);
    let labels = &derived.config["config"]["Labels"];
    let digest = registry.digest(project.repository(), tag);
    assert_eq!(labels["org.opencontainers.image.base.digest"], digest);
    let env = derived.config["config"]["Env"].as_array().unwrap();
    assert!(env.contains(&"COLOUR=green".into()) && env.contains(&"PORT=8000".into()));
    assert!(!env.contains(&"PORT=9090".into()), "{env:?}");
    assert_eq!(derived.config["config"]["Entrypoint"], json!(["/api"]));

    // The suggested line with a digest gives the same image, without a notice.
    other.write("ci.toml", &format!("[image]\n{line}\nlibc = \"static\"\n"));
    other.commit("by its digest");
    let named = other.ci(&["build"]).run().exits(0);
    assert!(!named.stderr.contains("no digest"), "{}", named.stderr);
    assert_eq!(
        Image::read(&other.path().join("target/ci")).manifest["layers"],
        derived.manifest["layers"]
    );

    // There is no stand-in for a base image that the registry does not have.
    other.write(
        "ci.toml",
        &format!("[image]\nbase = \"{}/e2e/none:1\"\n", registry.address()),
    );
    other
        .ci(&["build"])
        .run()
        .exits(3)
        .only_fails("build")
        .says("cannot pull base image")
        .says("image.base");
}

#[test]
fn tests_with_postgresql_and_smoke_tests_with_redis() {
    let project = Project::of(
        "backend",
        &[
            IGNORED,
            ("README.md", "the workspace is in backend\n"),
            (
                "backend/Cargo.toml",
                "[workspace]\nmembers = [\"crates/*\"]\nresolver = \"3\"\n",
            ),
            (
                "backend/crates/store/Cargo.toml",
                &package("store", "\n[dev-dependencies]\npostgres = \"0.19\"\n"),
            ),
            (
                "backend/crates/store/src/lib.rs",
                r#"//! A store.

#[cfg(test)]
mod tests {
    #[test]
    fn the_database_counts() {
        let url = std::env::var("DATABASE_URL").expect("DATABASE_URL");
        let mut client = postgres::Client::connect(&url, postgres::NoTls).expect("a database");
        let row = client
            .query_one("SELECT count(*) FROM generate_series(1, 42)", &[])
            .expect("a count");
        assert_eq!(row.get::<_, i64>(0), 42);
    }

    #[test]
    fn the_cache_has_an_identity() {
        use std::io::{Read, Write};
        let mut cache = std::net::TcpStream::connect("cache:6379").expect("a cache");
        cache.write_all(b"INFO server\r\n").expect("a request");
        let mut answer = [0; 4096];
        let read = cache.read(&mut answer).expect("an answer");
        std::io::stderr().write_all(&answer[..read]).expect("a log");
    }
}
"#,
            ),
            ("backend/crates/web/Cargo.toml", &package("web", "")),
            (
                "backend/crates/web/src/main.rs",
                &service(
                    8000,
                    r#"    if !request.starts_with("GET /health ") {
        return Err(format!("asked for {request}"));
    }
    let mut cache = std::net::TcpStream::connect("cache:6379").map_err(|e| e.to_string())?;
    cache.write_all(b"PING\r\n").map_err(|e| e.to_string())?;
    let mut answer = [0; 7];
    cache.read_exact(&mut answer).map_err(|e| e.to_string())?;
    if &answer == b"+PONG\r\n" {
        cache.write_all(b"INFO server\r\n").map_err(|e| e.to_string())?;
        let mut answer = [0; 4096];
        let read = cache.read(&mut answer).map_err(|e| e.to_string())?;
        print!("{}", String::from_utf8_lossy(&answer[..read]));
        Ok(())
    } else {
        Err(format!("{answer:?}"))
    }"#,
                ),
            ),
            (
                "backend/ci.toml",
                r#"[services.database]
image = "docker.io/library/postgres:17.5"
port = 5432
env = { POSTGRES_USER = "shop", POSTGRES_PASSWORD = "secret", POSTGRES_DB = "orders" }

[services.cache]
image = "docker.io/library/redis:8.0"
port = 6379
steps = ["test", "smoke"]

[test]
env = { DATABASE_URL = "postgres://shop:secret@database:5432/orders" }
"#,
            ),
        ],
    );
    project.lock("backend");
    project.format("backend");
    project.commit("locked");
    let run = project.ci(&["--workspace", "backend"]);
    let run = run_with_report_in(run.into_command(), &project, "backend/target/ci").exits(0);
    assert_passes_every_gate(&run);
    let replaced: Vec<_> = run.report["stand_ins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|note| note["name"].as_str().unwrap())
        .collect();
    for name in [
        "docker.io/library/postgres:17.5",
        "docker.io/library/redis:8.0",
    ] {
        assert!(replaced.contains(&name), "{replaced:?}");
    }
    assert_eq!(
        Image::read(&project.path().join("backend/target/ci")).config["config"]["Entrypoint"],
        json!(["/web"])
    );
    // The smoke test has a cache of its own, without what the tests have stored.
    let server = |step: &str| {
        let log = project.read(&format!("backend/target/ci/logs/{step}.log"));
        let line = log
            .lines()
            .find_map(|line| line.trim().strip_prefix("run_id:").map(ToOwned::to_owned));
        line.unwrap_or_else(|| panic!("no run_id in {step}.log:\n{log}"))
    };
    assert_ne!(server("test"), server("smoke"));

    // A service that does not start is an error of the environment, not of the gate.
    project.edit(
        "backend/ci.toml",
        "POSTGRES_PASSWORD = \"secret\"",
        "POSTGRES_PASSWORD = \"\"",
    );
    let run = project.ci(&["test", "--workspace", "backend"]);
    run_with_report_in(run.into_command(), &project, "backend/target/ci")
        .exits(3)
        .only_fails("test")
        .says("service database exited with code 1")
        .says("POSTGRES_PASSWORD is not set")
        .says("services.database in ci.toml");
}

/// A server that opens its port at once, but is ready only after the third health check.
const SLOW_SERVER: &str = r#"exec perl -MIO::Socket::INET -e '
    my $server = IO::Socket::INET->new(LocalPort => 9000, Listen => 5, ReuseAddr => 1) or die;
    while (my $client = $server->accept) { print $client -e "/run/ready" ? "ready" : "starting"; close $client }'
"#;
const HEALTHCHECK: &str =
    "echo >>/run/checks; test $(wc -l </run/checks) -ge 3 && touch /run/ready";

#[test]
fn waits_for_the_healthcheck_of_a_backing_service() {
    let registry = Registry::open();
    let provisioned = provision();
    let image = |tag: &str| format!("{}/e2e/slow:{tag}", registry.address());
    provisioned.with_toolchain(async |_, container| {
        let server = container.with_entrypoint(vec!["sh", "-c", SLOW_SERVER]);
        let checked = server.with_docker_healthcheck_opts(
            vec!["sh", "-c", HEALTHCHECK],
            ContainerWithDockerHealthcheckOpts {
                interval: Some("500ms"),
                retries: Some(60),
                shell: None,
                start_interval: None,
                start_period: None,
                timeout: None,
            },
        );
        server.publish(image("unchecked")).await.unwrap();
        checked.publish(image("checked")).await.unwrap();
    });
    let project = Project::new("healthcheck");
    project.extend_test(
        r#"let mut answer = String::new();
        let mut server = std::net::TcpStream::connect("slow:9000").unwrap();
        std::io::Read::read_to_string(&mut server, &mut answer).unwrap();
        assert_eq!(answer, "ready");"#,
    );
    for (tag, code) in [("unchecked", 1), ("checked", 0)] {
        project.write(
            "ci.toml",
            &format!("[services.slow]\nimage = \"{}\"\nport = 9000\n", image(tag)),
        );
        project
            .ci(&["test", "--engine", &provisioned.engine])
            .run()
            .exits(code);
    }
}

/// Runs a command whose report is in another folder.
fn run_with_report_in(
    mut command: std::process::Command,
    project: &Project,
    folder: &str,
) -> Outcome {
    let output = command.output().unwrap();
    let report = project.path().join(folder).join("report.json");
    Outcome {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        report: std::fs::read_to_string(report)
            .map_or(Value::Null, |text| serde_json::from_str(&text).unwrap()),
    }
}

#[test]
fn builds_c_code_and_links_a_shared_library() {
    let project = Project::of(
        "native",
        &[
            IGNORED,
            (
                "Cargo.toml",
                &package("native", "\n[build-dependencies]\ncc = \"1\"\n"),
            ),
            (
                "build.rs",
                r#"//! Compiles the C code, and links zlib.

fn main() {
    println!("cargo::rerun-if-changed=src/twice.c");
    println!("cargo::rustc-link-lib=dylib=z");
    cc::Build::new().file("src/twice.c").compile("twice");
}
"#,
            ),
            (
                "src/twice.c",
                "int twice(int number) { return 2 * number; }\n",
            ),
            (
                "src/main.rs",
                &service(
                    8000,
                    r#"    if !request.starts_with("GET /health ") {
        return Err(format!("asked for {request}"));
    }
    // The base image must provide certificates for TLS clients.
    std::fs::metadata("/etc/ssl/certs/ca-certificates.crt").map_err(|e| e.to_string())?;
    // SAFETY: the signatures match those in C.
    let (doubled, version) = unsafe { (twice(21), *zlibVersion()) };
    if (doubled, version) == (42, b'1') {
        Ok(())
    } else {
        Err(format!("{doubled} {version}"))
    }
}

unsafe extern "C" {
    fn twice(number: i32) -> i32;
    fn zlibVersion() -> *const u8;"#,
                ),
            ),
            (
                "ci.toml",
                "[image]\nbase = \"docker.io/library/debian:bookworm-20251117-slim\"\n\n[toolchain]\npackages = [\"zlib1g-dev\"]\n",
            ),
        ],
    );
    project.lock("");
    project.format("");
    project.commit("locked");
    let run = project.ci(&[]).run().exits(0);
    assert_passes_every_gate(&run);
    let first = Image::read(&project.path().join("target/ci"));
    assert_eq!(
        first.config["config"]["Labels"]["org.opencontainers.image.base.name"],
        "docker.io/library/debian:bookworm-20251117-slim"
    );
    // Trivy has scanned the base image, too.
    let trivy: Value = serde_json::from_str(&project.read("target/ci/trivy.json")).unwrap();
    let kinds: Vec<_> = trivy["Results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["Type"].as_str().unwrap())
        .collect();
    assert!(
        kinds.contains(&"debian") && kinds.contains(&"rustbinary"),
        "{kinds:?}"
    );
    let again = project.ci(&["build"]).run().exits(0);
    assert_eq!(again.report["digest"], run.report["digest"]);

    // A library that is not in toolchain.packages.
    project.edit("build.rs", "dylib=z", "dylib=pq");
    project.edit(
        "src/main.rs",
        "fn zlibVersion() -> *const u8;",
        "fn PQlibVersion() -> i32;",
    );
    project.edit(
        "src/main.rs",
        "(twice(21), *zlibVersion())",
        "(twice(21), PQlibVersion().to_string().as_bytes()[0])",
    );
    project
        .ci(&["build"])
        .run()
        .exits(1)
        .only_fails("build")
        .says("unable to find library -lpq")
        .says("toolchain.packages");
    // With the package, the build passes, but the image lacks the library.
    project.edit("ci.toml", "zlib1g-dev", "libpq-dev");
    project
        .ci(&["smoke"])
        .run()
        .exits(1)
        .only_fails("smoke")
        .says("error while loading shared libraries: libpq.so.5")
        .says("image.base in ci.toml");
}

#[test]
fn rejects_a_platform_that_the_engine_cannot_build() {
    let project = Project::new("platform");
    let foreign = if cfg!(target_arch = "x86_64") {
        "linux/arm64"
    } else {
        "linux/amd64"
    };
    let run = project
        .ci(&["build", "--platform", foreign])
        .run()
        .exits(3)
        .only_fails("build")
        .says(foreign);
    assert_eq!(run.report["platform"], foreign);
    assert!(run.report["digest"].is_null());
}

#[test]
fn an_exceeded_step_limit_exits_with_124() {
    let project = Project::new("limits");
    project.edit(
        "api/src/main.rs",
        "assert!(super::answer().contains(\" 200 \"));",
        "std::thread::sleep(std::time::Duration::from_secs(600));",
    );
    project.write("ci.toml", "[limits]\ntest = \"20s\"\n");
    project
        .ci(&["test"])
        .run()
        .exits(124)
        .only_fails("test")
        .says("exceeded its time limit of 20s")
        .says("limits.test in ci.toml");
}

#[test]
fn smoke_test_limits_are_configurable() {
    let project = Project::new("gate-limits");
    project.write(
        "ci.toml",
        "[smoke]\ntries = 2\nwithin = \"1s\"\n[service]\nhealth = \"/other\"\n",
    );
    project.edit(
        "api/src/main.rs",
        "answer().as_bytes()",
        "answer().replace(\" 200 \", \" 500 \").as_bytes()",
    );
    project
        .ci(&["smoke"])
        .run()
        .exits(1)
        .only_fails("smoke")
        .says("GET /other was not answered with 200 in 2 tries within 1s");
}

#[test]
fn builds_with_the_flags_of_the_repository_and_its_own() {
    for (name, table) in [
        ("flags-build", "[build]"),
        ("flags-target", "[target.x86_64-unknown-linux-gnu]"),
        ("flags-cfg", "[target.'cfg(unix)']"),
    ] {
        let project = Project::new(name);
        project.write(
            ".cargo/config.toml",
            &format!("{table}\nrustflags = [\"--cfg\", \"of_the_repository\"]\n\n[env]\nGREETING = \"hello\"\n"),
        );
        // The service answers only if it was compiled with both flags, and the test as well.
        project.edit(
            "api/src/main.rs",
            "    println!(\"listening\");\n",
            "    if !cfg!(of_the_repository) || !cfg!(target_feature = \"crt-static\") {\n        panic!(\"a flag is missing\");\n    }\n    assert_eq!(env!(\"GREETING\"), \"hello\");\n",
        );
        project.extend_test("if !cfg!(of_the_repository) {\n            panic!(\"the flag is missing\");\n        }");
        let manifest = project.read("api/Cargo.toml");
        project.write(
            "api/Cargo.toml",
            &format!("{manifest}\n[lints.rust]\nunexpected_cfgs = {{ level = \"warn\", check-cfg = ['cfg(of_the_repository)'] }}\n"),
        );
        project.commit("flags");
        let run = project.ci(&[]).run().exits(0);
        assert_passes_every_gate(&run);
    }
}

#[test]
fn names_the_package_that_a_linker_needs() {
    let project = Project::new("linker");
    project.write(
        ".cargo/config.toml",
        "[target.x86_64-unknown-linux-gnu]\nlinker = \"clang\"\n",
    );
    project.commit("another linker");
    let run = project.ci(&[]).run().exits(1);
    for step in ["test", "build"] {
        let hint = run.step(step)["hint"].as_str().unwrap();
        let package = "Add the Debian package clang to toolchain.packages";
        assert!(hint.contains(package), "{step}: {hint}");
    }
}

#[test]
fn compiles_with_the_toolchain_of_the_repository() {
    let project = Project::new("toolchain");
    project.write(
        "rust-toolchain.toml",
        "[toolchain]\nchannel = \"1.90.0\"\nprofile = \"minimal\"\n",
    );
    project.extend_test(
        "assert!(option_env!(\"RUSTUP_TOOLCHAIN\").is_some_and(|it| it == \"1.90.0\"));",
    );
    project.commit("an older toolchain");
    let run = project
        .ci(&[])
        .run()
        .exits(0)
        .says("toolchain 1.90.0 (rust-toolchain.toml)");
    assert_passes_every_gate(&run);
    assert_eq!(
        run.report["rust"],
        json!({ "toolchain": "1.90.0", "from": "rust-toolchain.toml" })
    );
    let image = Image::read(&project.path().join("target/ci"));
    let compiler =
        image.config["config"]["Labels"]["io.github.upwind1647.infrastructure-lab.compiler"]
            .as_str()
            .unwrap();
    assert!(compiler.starts_with("rustc 1.90.0 "), "{compiler}");

    project.write("rust-toolchain.toml", "[toolchain]\nchannel = \"0.1.2\"\n");
    project.commit("a toolchain that does not exist");
    project
        .ci(&["test"])
        .run()
        .exits(3)
        .says("cannot install Rust 0.1.2 of rust-toolchain.toml");
}
