//! The reports, read by programs that this project did not write.

use std::path::Path;
use std::process::Command;

use ci::model::cause::TestStatus;
use ci::model::record::Record;
use ci::report::{self, samples};
use common::pins;
use serde_json::{Value, json};

use crate::installed::{npm, venv};

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
        report::write(&report, folder.path(), ToOwned::to_owned).unwrap();
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
