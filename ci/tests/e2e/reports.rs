//! The reports, read by programs that this project did not write.

use std::path::Path;
use std::process::Command;

use ci::model::cause::TestStatus;
use ci::model::record::Record;
use ci::report::{self, Report, samples};
use common::pins;
use serde_json::{Value, json};

use crate::browser::Browser;
use crate::installed::{npm, venv};

/// What the containers of a step printed: escape sequences, markup and invalid UTF-8.
const LOG: &[u8] = b"running 3 tests\n\x1b[31mtest a ... FAILED\x1b[0m\n</pre><script>document.title = 'executed'</script>\n\xff\xfe\n";

/// The reports of a run in a directory of their own, compared with the run of the first sample.
struct Written {
    folder: tempfile::TempDir,
}

impl Written {
    fn new(report: &Report, log: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |report: &Report| {
            let previous = report::prepare(folder.path(), folder.path(), None).unwrap();
            std::fs::create_dir_all(folder.path().join("logs")).unwrap();
            for log_file in report.steps.iter().filter_map(|record| record.log.as_ref()) {
                std::fs::write(folder.path().join(log_file), log).unwrap();
            }
            let redact = ToOwned::to_owned;
            report::write(report, folder.path(), previous.as_ref(), redact).unwrap();
        };
        let (_, first) = samples::ends().remove(0);
        write(&first);
        write(report);
        Self { folder }
    }

    fn url(&self) -> String {
        format!("file://{}/report.html", self.folder.path().display())
    }
}

#[test]
fn page_of_every_run_is_accessible_in_both_colour_schemes_and_all_widths() {
    let browser = Browser::start();
    let ends = samples::ends().into_iter();
    for (name, report) in ends.chain([("hostile", samples::hostile())]) {
        let written = Written::new(&report, LOG);
        browser.open(&written.url());
        // With everything open.
        browser.run("document.querySelectorAll('details').forEach(it => it.open = true)");
        for scheme in ["light", "dark"] {
            browser.scheme(scheme);
            for (width, size) in [(1200, "wide"), (360, "narrow")] {
                browser.size(width, 800);
                browser.assert_accessible();
                browser.screenshot(&format!("report-{name}-{scheme}-{size}"));
            }
        }
        browser.assert_no_errors_or_foreign_requests(&written.url());
    }
}

#[test]
fn page_shows_foreign_text_and_never_executes_it() {
    let written = Written::new(&samples::hostile(), LOG);
    let browser = Browser::start();
    browser.open(&written.url());
    let title = browser.run("return document.title");
    assert!(title.as_str().unwrap().starts_with("Failed: "), "{title}");
    let foreign =
        "document.querySelectorAll('script, img, pre *, summary .name *, .title *').length";
    assert_eq!(
        browser.run(&format!("return {foreign}")),
        1,
        "the page's own script"
    );
    let text = browser.run("return document.body.textContent");
    let text = text.as_str().unwrap();
    for shown in [
        "tests::a␛[2J",
        "x<script>document.title = 'executed'</script>",
        "<img src=x onerror=\"document.title = 'executed'\">",
        "␛[31mtest a ... FAILED␛[0m\n</pre><script>document.title = 'executed'</script>\n\u{fffd}\u{fffd}\n",
    ] {
        assert!(text.contains(shown), "{shown} is not in: {text}");
    }
    browser.assert_no_errors_or_foreign_requests(&written.url());
}

#[test]
fn page_can_be_read_without_javascript() {
    let (_, report) = samples::ends().remove(1);
    let written = Written::new(&report, LOG);
    let browser = Browser::start();
    browser.devtools(
        "Emulation.setScriptExecutionDisabled",
        json!({ "value": true }),
    );
    browser.open(&written.url());
    // Scripts of this test can run again; that of the page has not.
    browser.devtools(
        "Emulation.setScriptExecutionDisabled",
        json!({ "value": false }),
    );
    let visible = |selector: &str| {
        let all = format!("[...document.querySelectorAll('{selector}')]");
        browser.run(&format!(
            "return {all}.filter(it => it.checkVisibility()).length"
        ))
    };
    assert_eq!(visible("input"), 0);
    assert_eq!(visible(".failure .cause"), 2);
    assert_eq!(visible("details.log summary"), 6);
    assert_eq!(visible(".times li"), 7);
}

#[test]
fn searches_find_tests_and_log_lines_with_the_keyboard() {
    let (report, log) = samples::large();
    let written = Written::new(&report, log.as_bytes());
    let browser = Browser::start();
    browser.open(&written.url());
    let type_into = |id: &str, text: &str| {
        browser.run(&format!("document.getElementById('{id}').focus()"));
        for key in text.chars() {
            browser.press(&key.to_string());
        }
    };
    type_into("test-search", "number_123");
    let output = |id: &str| format!("document.querySelector('output[for={id}]').textContent");
    browser.wait(&format!("{} === '11 of 2000'", output("test-search")));
    let open = "document.querySelectorAll('details.suite[open]').length";
    assert_eq!(browser.run(&format!("return {open}")), 2);
    type_into("log-search", "number_4999");
    browser.wait(&format!("{} === '11 lines'", output("log-search")));
    let lines = browser.run("return document.querySelector('details.log[open] pre').textContent");
    let lines: Vec<_> = lines.as_str().unwrap().lines().map(str::trim).collect();
    assert_eq!(lines.len(), 11);
    assert_eq!(
        lines[0],
        "5000  test module_249::handles_the_case_number_4999 ... ok"
    );
    // Without the search, everything is as before.
    for _ in 0.."number_4999".len() {
        browser.press("\u{e003}");
    }
    browser.wait(&format!("{} === ''", output("log-search")));
    assert_eq!(
        browser.run("return document.querySelectorAll('details.log[open]').length"),
        0
    );
    browser.assert_no_errors_or_foreign_requests(&written.url());
}

/// Prints each test of a JUnit file: its class, its name, its result and its output.
const READ_JUNIT: &str = "
import json, sys
from junitparser import JUnitXml
def read(case):
    result = case.result[0]._tag if case.result else 'success'
    return [case.classname, case.name, result, case.system_out or '']
print(json.dumps([read(case) for suite in JUnitXml.fromfile(sys.argv[1]) for case in suite]))
";

/// The tests of a step as [`READ_JUNIT`] prints them.
fn tests(record: &Record) -> Vec<Value> {
    let result = |status| match status {
        TestStatus::Passed => "success",
        TestStatus::Failed => "failure",
        TestStatus::Ignored => "skipped",
    };
    // XML has no control characters, and readers replace line feeds in attributes.
    let shown = |text: &str| text.replace('\u{1b}', "␛").replace('\u{7}', "␇");
    let tests = record.tests.iter().map(|test| {
        json!([
            test.suite,
            shown(&test.name).replace('\n', " "),
            result(test.status),
            shown(&test.output)
        ])
    });
    tests.collect()
}

#[test]
fn junitparser_reads_every_test_of_every_run() {
    let tool = venv("junitparser", pins::JUNITPARSER, &[]);
    let ends = samples::ends().into_iter();
    for (name, report) in ends.chain([("hostile", samples::hostile())]) {
        let folder = tempfile::tempdir().unwrap();
        report::write(&report, folder.path(), None, ToOwned::to_owned).unwrap();
        let output = Command::new(tool.join("bin/python"))
            .args(["-c", READ_JUNIT])
            .arg(folder.path().join("junit.xml"))
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {errors}");
        let read: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let (errors, read): (Vec<_>, Vec<_>) = read.into_iter().partition(|it| it[2] == "error");
        let test = &report.steps[0];
        assert_eq!(read, tests(test), "{name}");
        // A step that failed although no test did, for example because nothing compiles.
        assert_eq!(!errors.is_empty(), name == "same-reason", "{name}");
    }
}

/// Asserts that a SARIF log is valid against the schema of OASIS, and returns it.
pub fn assert_valid_sarif(path: &Path) -> Value {
    let folder = npm("@microsoft/jest-sarif", pins::JEST_SARIF);
    let schema = folder.join("lib/schemas/sarif-2.1.0-rtm.5.json");
    // A stray bracket, which only JavaScript tolerates.
    let schema = std::fs::read_to_string(schema).unwrap();
    let schema = schema.replace("[a-zA-Z]{2}]?$", "[a-zA-Z]{2}$");
    let schema = serde_json::from_str(&schema).unwrap();
    let log = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    if let Err(error) = validator.validate(&log) {
        panic!("{error} at {}: {log:#}", error.instance_path());
    }
    log
}
