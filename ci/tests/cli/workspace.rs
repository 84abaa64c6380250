//! Finding the workspace and the service, and `ci init`.

use crate::harness::{Ci, Project};
use crate::{Assertions, MISSING_ENGINE, ci, ci_in, refusing_registry};

/// A repository with a workspace in `backend` that has two binaries.
fn project_with_two_binaries(name: &str) -> Project {
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
fn finds_the_workspace_of_the_current_directory() {
    let project = project_with_two_binaries("folder");
    let several = "several packages have binaries";
    // Neither package is named `api`.
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
        .refuses(2, "nowhere is not a directory");

    project.write("backend/ci.toml", "[service]\npackage = \"web\"\n");
    // The workspace can be selected from anywhere, and the report is written into it.
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
        "the default repository is not this project's: {image}"
    );
}

#[test]
fn another_file_has_the_settings_of_another_service() {
    let project = Project::new("config");
    project.write("settings/worker.toml", "repository = \"acme/worker\"\n");
    let config = ["--config", "settings/worker.toml"];
    let run = ci(&project, &config).run().finds_no_engine();
    let image = run.report["image"].as_str().unwrap();
    assert!(image.starts_with("ghcr.io/acme/worker:"), "{image}");
    project.write("settings/worker.toml", "[image]\nuser = \"root\"\n");
    ci(&project, &config)
        .run()
        .refuses(2, "settings/worker.toml: invalid image.user `root`");
    for (name, words) in [
        ("nothing.toml", "there is no nothing.toml among the sources"),
        ("../ci.toml", "not a path in the workspace"),
    ] {
        ci(&project, &["--config", name]).run().refuses(2, words);
    }
}

#[test]
fn rejects_invalid_service_settings_before_any_work() {
    let project = Project::new("service-settings");
    for (file, words) in [
        ("[service]\npackage = \"web\"\n", "not in the workspace"),
        ("[service]\ncolour = 1\n", "colour"),
        ("[service]\nport = 70000\n", "port = 70000"),
        ("[image]\nbase = \"debian\"\n", "must have a version tag"),
        ("[image]\nuser = \"root\"\n", "not a numeric"),
        (
            "[image]\nfiles = { \"no/such\" = \"/x\" }\n",
            "no such file in the sources",
        ),
        ("[services.db]\nport = 1\n", "missing field `image`"),
        (
            "[services.db]\nimage = \"postgres:17\"\nport = 1\nsteps = [\"fmt\"]\n",
            "step cannot use backing services",
        ),
        (
            "[toolchain]\npackages = [\"-y\"]\n",
            "not a valid package name",
        ),
        ("[scan]\nseverity = \"terrible\"\n", "terrible"),
        (
            "[scan]\ndatabase-age = \"old\"\n",
            "invalid time limit `old`",
        ),
        ("[smoke]\ntries = 0\n", "1 to 1000"),
        ("[smoke]\nstatuses = [20]\n", "must be status codes"),
        (
            "[smoke]\nstatuses = [200]\ncheck = \"tcp\"\n",
            "has no meaning",
        ),
        ("[image]\nwritable = [\"tmp\"]\n", "not an absolute path"),
        ("[cargo]\nfeatures = [\"nonsense\"]\n", "has this feature"),
        (
            "[cargo]\nenv = { RUSTFLAGS = \"-O\" }\n",
            "every step alike",
        ),
        (
            "[test]\nexclude = [\"nobody\"]\n",
            "not a package of the workspace",
        ),
        ("[smoke]\nwithin = \"0s\"\n", "invalid time limit `0s`"),
        ("[limits]\ntest = \"never\"\n", "invalid time limit `never`"),
        ("[limits]\nlunch = \"1h\"\n", "lunch"),
        ("platform = \"windows/amd64\"\n", "unsupported platform"),
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
        .says("commit the file");
}

#[test]
fn rejects_a_ghcr_repository_without_an_owner() {
    let project = Project::new("no-owner");
    project.write("ci.toml", "repository = \"shop\"\n");
    let sha = project.commit("named");
    Ci::new(project.path(), &["--engine", MISSING_ENGINE])
        .push_to_main(&sha, "ghs_token")
        .run()
        .refuses(2, "repository shop has no owner, which ghcr.io requires")
        .says("repository in ci.toml");
}

#[test]
fn requires_a_base_image_digest_only_for_publishing() {
    let project = Project::new("base");
    let base = |name: &str| {
        project.write("ci.toml", &format!("[image]\nbase = \"{name}\"\n"));
        project.commit(name)
    };
    let registry = refusing_registry();
    let publish = ["publish", "--registry", &registry];
    let sha = base("debian:12.1");
    let on_github = || Ci::new(project.path(), &["--engine", MISSING_ENGINE]);
    let pushes = on_github().push_to_main(&sha, "ghs_token").run();
    for run in [ci(&project, &publish).run(), pushes] {
        run.refuses(
            2,
            "image.base in ci.toml has no digest: docker.io/library/debian:12.1",
        )
        .says("hint: Run `ci build` to get the line with the current digest.");
    }
    ci(&project, &["run"]).run().finds_no_engine();
    // With a digest, only the access to the registry is missing.
    base(&format!("debian:12.1@sha256:{}", "0".repeat(64)));
    ci(&project, &publish).run().exits(4).says(&format!(
        "cannot write to {registry}/upwind1647/status-api: 403 Forbidden"
    ));
}

#[test]
fn init_writes_valid_settings_and_reports_its_findings() {
    let project = project_with_two_binaries("init");
    project.git(&["remote", "add", "origin", "git@github.com:Acme/Shop.git"]);
    let init = || project.ci(&["init", "--workspace", "backend"]).run();
    init()
        .exits(0)
        .says("found    a Cargo workspace in backend with 2 packages")
        .says("found    service: binary web of package web")
        .says("the image is ghcr.io/acme/shop")
        .says("openssl-sys in Cargo.lock")
        .says("wrote    backend/ci.toml")
        .says("wrote    .github/workflows/docker-builder.yml")
        .says("to do    check service.package: web was chosen; packages with a binary: web, admin");
    let settings = project.read("backend/ci.toml");
    for line in [
        "repository = \"acme/shop\"",
        "source = \"https://github.com/Acme/Shop\"",
        "package = \"web\"",
        &format!("base = \"{}\"", common::pins::BASE_IMAGE),
    ] {
        assert!(settings.lines().any(|it| it == line), "{line}:\n{settings}");
    }
    // A run accepts the written files.
    project.commit("as init has written it");
    ci_in(&project.path().join("backend"), &[])
        .run()
        .exits(3)
        .says("no engine listens");

    // Existing files are never overwritten.
    project.write("backend/ci.toml", "# mine\n");
    init()
        .exits(0)
        .says("kept     backend/ci.toml, which already exists");
    assert_eq!(project.read("backend/ci.toml"), "# mine\n");
}

#[test]
fn init_rejects_a_workspace_without_a_binary() {
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
    // `ci init` does not need a git repository.
    Ci::new(folder.path(), &["init"])
        .run()
        .exits(2)
        .says("no package of the workspace has a binary");
    assert!(!folder.path().join("ci.toml").exists());
}

#[test]
fn refuses_a_dependency_outside_of_the_repository() {
    let project = Project::new("outside");
    let manifest = project.read("api/Cargo.toml");
    project.write(
        "api/Cargo.toml",
        &format!("{manifest}\n[dependencies]\nshared = {{ path = \"../../shared\" }}\n"),
    );
    project.commit("a dependency elsewhere");
    ci(&project, &[])
        .run()
        .refuses(
            2,
            "api/Cargo.toml depends on ../../shared, which is outside of the repository",
        )
        .says("hint: Move the package into the repository");
}
