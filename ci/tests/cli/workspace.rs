//! Which workspace and service a run is about, and `ci init`.

use crate::harness::{Ci, Project};
use crate::{Ends, NOWHERE, ci, ci_in};

/// A repository with a workspace in `backend`, which has two programs.
fn two_programs(name: &str) -> Project {
    let package = |name: &str, more: &str| {
        format!("[package]\nname = \"{name}\"\nversion = \"1.0.0\"\nedition = \"2024\"\n{more}")
    };
    Project::of(
        name,
        &[
            (".gitignore", "target\n"),
            (
                "backend/Cargo.toml",
                "[workspace]\nmembers = [\"crates/*\"]\n",
            ),
            (
                "backend/Cargo.lock",
                "version = 4\n\n[[package]]\nname = \"openssl-sys\"\nversion = \"0.9.0\"\n",
            ),
            (
                "backend/crates/web/Cargo.toml",
                &package("web", "\n[dependencies]\naxum = \"0.8\"\n"),
            ),
            ("backend/crates/web/src/main.rs", "fn main() {}\n"),
            ("backend/crates/admin/Cargo.toml", &package("admin", "")),
            ("backend/crates/admin/src/main.rs", "fn main() {}\n"),
        ],
    )
}

#[test]
fn the_workspace_is_the_one_that_the_folder_is_in() {
    let project = two_programs("folder");
    let several = "several packages have a binary";
    // Neither is called api.
    for folder in ["backend", "backend/crates/web/src"] {
        ci(&project, &["--workspace", folder])
            .run()
            .refuses(2, several)
            .says("Set service.package in ci.toml to one of: admin, web.");
        ci_in(&project.path().join(folder), &[])
            .run()
            .refuses(2, several);
    }
    ci(&project, &[])
        .run()
        .refuses(2, "there is no Cargo.toml")
        .says("--workspace");
    ci(&project, &["--workspace", "nowhere"])
        .run()
        .refuses(2, "nowhere, which is not a directory");

    project.write("backend/ci.toml", "[service]\npackage = \"web\"\n");
    // From anywhere, and with the report where the workspace is.
    let elsewhere = tempfile::tempdir().unwrap();
    let workspace = project.path().join("backend");
    ci_in(elsewhere.path(), &[])
        .env("LAB_CI_WORKSPACE", workspace.to_str().unwrap())
        .run()
        .exits(3)
        .says("no engine listens");
    let report = std::fs::read_to_string(workspace.join("target/ci/report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let image = report["image"].as_str().unwrap();
    assert!(
        image.starts_with("ghcr.io/web:"),
        "somebody else's service is not called ours: {image}"
    );
}

#[test]
fn what_is_wrong_with_the_service_is_said_before_any_work() {
    let project = Project::new("service-settings");
    for (file, words) in [
        ("[service]\npackage = \"web\"\n", "not in the workspace"),
        ("[service]\ncolour = 1\n", "colour"),
        ("[service]\nport = 70000\n", "port = 70000"),
        ("[image]\nbase = \"debian\"\n", "no version"),
        ("[image]\nuser = \"root\"\n", "not a number"),
        (
            "[image]\nfiles = { \"no/such\" = \"/x\" }\n",
            "not among the sources",
        ),
        ("[services.db]\nport = 1\n", "missing field `image`"),
        (
            "[services.db]\nimage = \"postgres:17\"\nport = 1\nsteps = [\"build\"]\n",
            "Services are for test and smoke",
        ),
        ("[toolchain]\npackages = [\"-y\"]\n", "not a package's name"),
        ("[scan]\nseverity = \"terrible\"\n", "terrible"),
        ("[scan]\ndatabase-age = \"old\"\n", "`old` is not a time"),
        ("[smoke]\ntries = 0\n", "1 to 1000"),
        ("[smoke]\nwithin = \"0s\"\n", "`0s` is not a time"),
        ("[limits]\ntest = \"never\"\n", "`never` is not a time"),
        ("[limits]\nlunch = \"1h\"\n", "lunch"),
        ("platform = \"windows/amd64\"\n", "not a platform"),
    ] {
        project.write("ci.toml", file);
        ci(&project, &[]).run().refuses(2, words);
    }
    ci(&project, &["--platform", "linux/riscv64"])
        .run()
        .exits(2);
    std::fs::remove_file(project.path().join("ci.toml")).unwrap();
    std::fs::remove_file(project.path().join("Cargo.lock")).unwrap();
    ci(&project, &[])
        .run()
        .refuses(2, "there is no Cargo.lock")
        .says("Commit it");
}

#[test]
fn an_image_without_an_owner_is_not_for_ghcr() {
    let project = Project::new("no-owner");
    project.write("ci.toml", "repository = \"shop\"\n");
    let sha = project.commit("named");
    Ci::new(project.path(), &["--engine", NOWHERE])
        .push_to_main(&sha, "ghs_token")
        .run()
        .refuses(2, "wants an owner too")
        .says("repository in ci.toml");
}

#[test]
fn a_base_image_without_a_digest_is_for_the_gates_and_not_for_what_is_published() {
    let project = Project::new("base");
    let base = |name: &str| {
        project.write("ci.toml", &format!("[image]\nbase = \"{name}\"\n"));
        project.commit(name)
    };
    // Nobody listens there.
    let publish = ["publish", "--registry", "127.0.0.1:1"];
    let sha = base("debian:12.1");
    let on_github = || Ci::new(project.path(), &["--engine", NOWHERE]);
    let pushes = on_github().push_to_main(&sha, "ghs_token").run();
    for run in [ci(&project, &publish).run(), pushes] {
        run.refuses(
            2,
            "image.base in ci.toml has no digest: docker.io/library/debian:12.1",
        )
        .says("hint: `ci build` says which digest it has");
    }
    ci(&project, &["run"]).run().misses_the_engine();
    // With a digest only the registry is missing.
    base(&format!("debian:12.1@sha256:{}", "0".repeat(64)));
    ci(&project, &publish)
        .run()
        .exits(3)
        .says("cannot be reached");
}

#[test]
fn init_writes_settings_that_are_valid_and_says_what_it_found() {
    let project = two_programs("init");
    project.git(&["remote", "add", "origin", "git@github.com:Acme/Shop.git"]);
    let init = || project.ci(&["init", "--workspace", "backend"]).run();
    init()
        .exits(0)
        .says("found    a Cargo workspace in backend with 2 packages")
        .says("found    the service: the binary web of the package web")
        .says("the image is ghcr.io/acme/shop")
        .says("openssl-sys in Cargo.lock")
        .says("wrote    backend/ci.toml")
        .says("wrote    .github/workflows/docker-builder.yml")
        .says("to do    is web the service? Packages with a binary: web, admin");
    let settings = project.read("backend/ci.toml");
    for line in [
        "repository = \"acme/shop\"",
        "source = \"https://github.com/Acme/Shop\"",
        "package = \"web\"",
        &format!("base = \"{}\"", common::pins::BASE_IMAGE),
    ] {
        assert!(settings.lines().any(|it| it == line), "{line}:\n{settings}");
    }
    // What it has written is what a run takes.
    project.commit("as init has written it");
    ci_in(&project.path().join("backend"), &[])
        .run()
        .exits(3)
        .says("no engine listens");

    // What is there is somebody's work.
    project.write("backend/ci.toml", "# mine\n");
    init()
        .exits(0)
        .says("kept     backend/ci.toml, which is there already");
    assert_eq!(project.read("backend/ci.toml"), "# mine\n");
}

#[test]
fn init_needs_a_workspace_with_a_program() {
    let folder = tempfile::tempdir().unwrap();
    Ci::new(folder.path(), &["init"])
        .run()
        .exits(2)
        .says("there is no Cargo.toml");
    let files = [
        (
            "Cargo.toml",
            "[package]\nname = \"only-a-lib\"\nversion = \"1.0.0\"\n",
        ),
        ("Cargo.lock", "version = 4\n"),
        ("src/lib.rs", ""),
    ];
    for (path, content) in files {
        let file = folder.path().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }
    // Nor does it need git yet.
    Ci::new(folder.path(), &["init"])
        .run()
        .exits(2)
        .says("no package of the workspace has a binary");
    assert!(!folder.path().join("ci.toml").exists());
}
