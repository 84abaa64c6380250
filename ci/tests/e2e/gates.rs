//! Each gate fails on a real defect, and says what is wrong.

use crate::harness::Project;
use crate::registry::Registry;

const USER: &str = "somebody";
const TOKEN: &str = "ghs_gates";

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

#[test]
fn a_badly_formatted_file_fails_the_format_gate_until_it_is_fixed() {
    let project = Project::new("bad-format");
    let good = project.read("api/src/main.rs");
    project.edit(
        "api/src/main.rs",
        "    println!(\"listening\");\n",
        "  println!( \"listening\" ) ;\n",
    );
    project.commit("a file that nobody formatted");
    project
        .ci(&[])
        .run()
        .exits(1)
        .only_fails("fmt")
        .says("api/src/main.rs:4")
        .says("-  println!( \"listening\" ) ;")
        .says("+    println!(\"listening\");")
        .says("ci fmt --fix");

    project
        .ci(&["fmt", "--fix"])
        .run()
        .exits(0)
        .says("formatted api/src/main.rs");
    assert_eq!(project.read("api/src/main.rs"), good);
    assert_eq!(project.git(&["status", "--short"]), "M api/src/main.rs");
    let run = project.ci(&["fmt"]).run().exits(0);
    assert_eq!(run.report["clean"], false, "what was checked is the fix");
}

#[test]
fn a_clippy_warning_fails_the_lint_gate() {
    let project = Project::new("clippy-warning");
    project.edit(
        "api/src/main.rs",
        "let _ = stream.read(&mut request);",
        "if stream.read(&mut request).is_err() == true {\n            continue;\n        }",
    );
    project.commit("what clippy warns of");
    project
        .ci(&[])
        .run()
        .exits(1)
        .only_fails("lint")
        .says("clippy::bool-comparison")
        .says("api/src/main.rs:12");
}

#[test]
fn a_failing_gate_of_the_projects_own_is_named_and_keeps_the_image_from_being_published() {
    let project = Project::new("own-gates");
    let gates = |second: &str| {
        project.write(
            "ci.toml",
            &format!(
                "[[gate]]\nname = \"sources\"\nrun = \"test -f Cargo.lock && test \\\"$WORD\\\" = 'a b'\"\n\
                 env = {{ WORD = \"a b\" }}\n[[gate]]\nname = \"second\"\nrun = \"{second}\"\n"
            ),
        );
        project.commit(second)
    };
    let sha = gates("echo it is wrong; exit 3");
    let registry = Registry::with_credential(USER, TOKEN);
    let run = project
        .ci(&["--registry", &registry.address()])
        .push_to_main(&sha, TOKEN)
        .run()
        .exits(1)
        .only_fails("custom")
        .says("the gate second failed")
        .says("it is wrong")
        .says("gate second failed with exit code 3");
    assert_eq!(run.status("smoke"), "passed");
    assert_eq!(run.status("publish"), "skipped");
    registry.is_empty();

    gates("cargo --version");
    let run = project.ci(&["custom"]).run().exits(0);
    let parts = run.step("custom")["parts"].as_array().unwrap().clone();
    let names: Vec<_> = parts.iter().map(|part| &part["name"]).collect();
    assert_eq!(names, ["sources", "second"]);
    assert!(parts.iter().all(|part| part["status"] == "passed"));
    run.says("sources, second");

    project.write("ci.toml", "");
    project.commit("no gates");
    project
        .ci(&["custom"])
        .run()
        .exits(2)
        .says("configures nothing for this command");
}

#[test]
fn code_that_does_not_compile_is_neither_scanned_nor_started() {
    let project = Project::new("does-not-compile");
    project.edit(
        "api/src/main.rs",
        "println!(\"listening\");",
        "let _port: u16 = \"8000\";",
    );
    project.commit("a type that does not fit");
    let run = project.ci(&[]).run().exits(1).says("E0308");
    for (step, status) in [
        ("test", "failed"),
        ("fmt", "passed"),
        ("lint", "failed"),
        ("build", "failed"),
        ("scan", "skipped"),
        ("smoke", "skipped"),
        ("publish", "skipped"),
    ] {
        assert_eq!(run.status(step), status, "{step}:\n{}", run.stderr);
    }
    assert_eq!(run.step("scan")["error"], "it needs build");
    assert!(run.report["digest"].is_null(), "{:#}", run.report);
    run.publishes_nothing();
}

/// regex 1.5.4 has CVE-2022-24713, which is HIGH, and 1.5.5 mends it.
const VULNERABLE: &str =
    r#"regex = { version = "=1.5.4", default-features = false, features = ["std"] }"#;

/// A project that depends on regex 1.5.4, with these exceptions. All of them share one name: only the first has to compile.
fn vulnerable(exceptions: Option<&str>) -> Project {
    let project = Project::new("vulnerable");
    project.depend(VULNERABLE);
    let exceptions = exceptions.map_or("vulnerabilities: []\n".to_owned(), |fields| {
        format!("vulnerabilities:\n  - id: CVE-2022-24713\n{fields}")
    });
    project.write(".trivyignore.yaml", &exceptions);
    project.commit("a dependency with an advisory");
    project
}

#[test]
fn a_dependency_with_a_high_advisory_fails_the_scan() {
    vulnerable(None)
        .ci(&[])
        .run()
        .exits(5)
        .only_fails("scan")
        .says("HIGH      CVE-2022-24713  regex 1.5.4, fixed in 1.5.5");
}

#[test]
fn a_complete_exception_lets_an_advisory_pass() {
    let project = vulnerable(Some(
        "    statement: no pattern comes from outside\n    expired_at: 2099-12-31\n",
    ));
    let run = project.ci(&["scan"]).run().exits(0);
    assert_eq!(run.status("scan"), "passed");
    assert!(
        project.read("target/ci/trivy.json").contains("1.5.4"),
        "the package was seen"
    );
}

#[test]
fn an_exception_that_has_expired_counts_no_more() {
    vulnerable(Some(
        "    statement: no pattern comes from outside\n    expired_at: 2022-12-31\n",
    ))
    .ci(&["scan"])
    .run()
    .exits(5)
    .only_fails("scan")
    .says("CVE-2022-24713");
}

#[test]
fn an_exception_without_an_end_is_refused_before_any_work() {
    let project = vulnerable(Some("    statement: no pattern comes from outside\n"));
    let run = project
        .ci(&[])
        .run()
        .exits(2)
        .says(".trivyignore.yaml")
        .says("CVE-2022-24713 has no expired_at");
    assert!(run.report.is_null(), "no run was begun: {:#}", run.report);
}

#[test]
fn findings_that_are_not_high_or_have_no_fix_pass_the_scan() {
    let project = Project::new("tolerated");
    // RUSTSEC-2019-0036 is CRITICAL and was never fixed; CVE-2021-32714 of hyper 0.14.9 is MEDIUM by GitHub's word.
    project.depend(r#"failure = { version = "=0.1.8", default-features = false }"#);
    project.commit("a dependency that nobody mends");
    project.ci(&["scan"]).run().exits(0);
    let report = project.read("target/ci/trivy.json");
    assert!(report.contains("CVE-2019-25010"), "it was found: {report}");
}

#[test]
fn an_image_without_its_dependency_list_fails_the_scan() {
    let project = Project::new("nothing-to-see");
    project.write(
        "api/strip.ld",
        "SECTIONS { /DISCARD/ : { *(.dep-v0) } } INSERT AFTER .text;\n",
    );
    project.write(
        "api/build.rs",
        r#"fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{here}/strip.ld");
}
"#,
    );
    project.commit("a linker script that throws the list away");
    project
        .ci(&["scan"])
        .run()
        .exits(1)
        .only_fails("scan")
        .says("the scan saw no packages");
}
