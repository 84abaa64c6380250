//! Each gate fails on a real defect and reports the cause.

use serde_json::json;

use crate::harness::Project;
use crate::registry::Registry;
use crate::reports::assert_valid_sarif;

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
        .says("answers_with_200");
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
    project.commit("an unformatted file");
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
    assert_eq!(
        run.report["clean"], false,
        "the uncommitted fix was checked"
    );
}

#[test]
fn a_clippy_warning_fails_the_lint_gate() {
    let project = Project::new("clippy-warning");
    project.edit(
        "api/src/main.rs",
        "let _ = stream.read(&mut request);",
        "if stream.read(&mut request).is_err() == true {\n            continue;\n        }",
    );
    project.commit("code with a clippy warning");
    project
        .ci(&[])
        .run()
        .exits(1)
        .only_fails("lint")
        .says("clippy::bool-comparison")
        .says("api/src/main.rs:12");
}

#[test]
fn publishes_nothing_when_a_custom_gate_fails() {
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
        .says("gate second failed")
        .says("it is wrong")
        .says("gate second failed with exit code 3");
    assert_eq!(run.status("smoke"), "passed");
    assert_eq!(run.status("publish"), "skipped");
    registry.assert_empty();

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
fn gates_use_the_dependencies_that_clippy_has_checked() {
    // The volumes are new in each run of this test.
    let now = jiff::Timestamp::now().as_nanosecond();
    let project = Project::new(&format!("gates-after-lint-{now}"));
    project.add_dependency("itoa = \"1.0.1\"");
    let gate = "[[gate]]\nname = \"docs\"\nrun = \"cargo doc --no-deps --locked\"\n";
    let logs = |settings: &str| {
        project.write("ci.toml", &format!("{gate}{settings}"));
        project.commit("settings");
        project.ci(&["run"]).run().exits(0);
        ["lint", "custom"].map(|step| project.read(&format!("target/ci/logs/{step}.log")))
    };

    let [lint, custom] = logs("");
    assert!(lint.contains("Checking itoa"), "{lint}");
    assert!(custom.contains("Documenting api"), "{custom}");
    assert!(!custom.contains("Checking itoa"), "{custom}");

    // With other files, gates have a volume of their own.
    let [_, custom] = logs("[paths]\ncustom = [\"**\", \"!*.md\"]\n");
    assert!(custom.contains("Checking itoa"), "{custom}");
}

#[test]
fn skips_scan_and_smoke_test_when_the_build_fails() {
    let project = Project::new("does-not-compile");
    project.edit(
        "api/src/main.rs",
        "println!(\"listening\");",
        "let _port: u16 = \"8000\";",
    );
    project.commit("a type error");
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

/// regex 1.5.4 has CVE-2022-24713, which is HIGH and fixed in 1.5.5.
const VULNERABLE: &str =
    r#"regex = { version = "=1.5.4", default-features = false, features = ["std"] }"#;

/// A project that depends on regex 1.5.4, with an exception that has these fields. All of them share one name, so that only the
/// first is compiled.
fn vulnerable(exceptions: Option<&str>) -> Project {
    let project = Project::new("vulnerable");
    project.add_dependency(VULNERABLE);
    let exceptions = exceptions.map_or("vulnerabilities: []\n".to_owned(), |fields| {
        format!("vulnerabilities:\n  - id: CVE-2022-24713\n{fields}")
    });
    project.write(".trivyignore.yaml", &exceptions);
    project.commit("a dependency with an advisory");
    project
}

#[test]
fn a_dependency_with_a_high_advisory_fails_the_scan() {
    let project = vulnerable(None);
    let run = project
        .ci(&[])
        .run()
        .exits(5)
        .only_fails("scan")
        .says("HIGH      CVE-2022-24713  regex 1.5.4, fixed in 1.5.5");
    let findings = run.step("scan")["findings"].as_array().unwrap();
    assert_eq!(findings[0]["id"], "CVE-2022-24713");
    assert_eq!(findings[0]["fails"], true);
    let line = findings[0]["location"]["line"].as_u64().unwrap();
    let lockfile = project.read("Cargo.lock");
    let named = lockfile.lines().nth(usize::try_from(line).unwrap() - 1);
    assert_eq!(named, Some("name = \"regex\""));
    let log = assert_valid_sarif(&project.path().join("target/ci/trivy.sarif"));
    let results = log["runs"][0]["results"].as_array().unwrap();
    assert_eq!(results.len(), findings.len());
    let place = results
        .iter()
        .find(|result| result["ruleId"] == "CVE-2022-24713")
        .map(|result| &result["locations"][0]["physicalLocation"]);
    assert_eq!(
        place,
        Some(&json!({"artifactLocation": {"uri": "Cargo.lock"}, "region": {"startLine": line}}))
    );
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
        "the scan found the package"
    );
}

#[test]
fn ignores_an_expired_exception() {
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
fn rejects_an_exception_without_an_expiry_date_before_any_work() {
    let project = vulnerable(Some("    statement: no pattern comes from outside\n"));
    let run = project
        .ci(&[])
        .run()
        .exits(2)
        .says(".trivyignore.yaml")
        .says("CVE-2022-24713 has no expired_at");
    assert!(run.report.is_null(), "there is a report: {:#}", run.report);
}

#[test]
fn tolerates_findings_without_a_fix() {
    let project = Project::new("tolerated");
    // RUSTSEC-2019-0036 (CVE-2019-25010) is CRITICAL and was never fixed.
    project.add_dependency(r#"failure = { version = "=0.1.8", default-features = false }"#);
    project.commit("a dependency with an unfixed advisory");
    project.ci(&["scan"]).run().exits(0);
    let report = project.read("target/ci/trivy.json");
    assert!(
        report.contains("CVE-2019-25010"),
        "the finding is not reported: {report}"
    );
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
    project.commit("a linker script that removes the list");
    project
        .ci(&["scan"])
        .run()
        .exits(1)
        .only_fails("scan")
        .says("Trivy found no packages of the service");
}
