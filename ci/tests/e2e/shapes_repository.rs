//! Services whose repository has something special, taken through `ci init` and `ci run`.

use crate::harness::{Project, git};

#[test]
fn a_service_with_a_submodule_passes_after_init() {
    let project = Project::new("with-submodule");
    let origin = tempfile::tempdir().unwrap();
    git(origin.path(), &["init", "--quiet"]);
    std::fs::write(origin.path().join("name.txt"), "of the submodule").unwrap();
    git(origin.path(), &["add", "."]);
    git(origin.path(), &["commit", "--quiet", "--message", "a name"]);
    let url = origin.path().to_str().unwrap();
    let allow = "protocol.file.allow=always";
    project.git(&[
        "-c",
        allow,
        "submodule",
        "add",
        "--quiet",
        url,
        "vendor/dep",
    ]);
    project.extend_test(
        r#"assert_eq!(include_str!("../../vendor/dep/name.txt"), "of the submodule");"#,
    );
    project.format("");
    project.ci(&["init"]).run().exits(0);
    project.commit("a submodule, and the settings");
    let run = project.ci(&[]).run().exits(0);
    assert_eq!(run.report["clean"], true);
    for step in ["test", "fmt", "lint", "build", "scan", "smoke"] {
        assert_eq!(run.status(step), "passed", "{step}");
    }
}
