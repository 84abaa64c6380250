//! Each gate fails on a real defect, and says what is wrong.

use crate::harness::Project;

#[test]
fn a_healthy_project_passes_every_gate() {
    let project = Project::new("healthy");
    let run = project.ci(&[]).run().exits(0);
    for step in ["test", "fmt", "lint", "build", "scan", "smoke"] {
        assert_eq!(run.status(step), "passed", "{step}");
    }
    assert_eq!(run.status("publish"), "skipped");
}

#[test]
fn a_failing_test_fails_the_test_gate() {
    let project = Project::new("failing-test");
    project.edit(
        "api/src/main.rs",
        "contains(\" 200 \")",
        "contains(\" 500 \")",
    );
    project.commit("a test that fails");
    project
        .ci(&[])
        .run()
        .exits(1)
        .only_fails("test")
        .says("it_answers_well");
}
