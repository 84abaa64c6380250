//! Snapshots of the end of a run, its annotations and its reports, for every way in which a run can end.

use std::path::Path;

use super::code_quality::code_quality;
use super::ending::{ending, quiet};
use super::github::annotations;
use super::json::Report;
use super::junit::junit;
use super::places;
use super::samples::{ends, hostile};
use super::summary::summary;
use super::written;

fn without_styles(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[test]
fn end_of_a_run_matches_its_snapshot() {
    for (name, report) in ends() {
        let plain = without_styles(&ending(&report, Path::new("target/ci"), None));
        let quiet = without_styles(&quiet(&report, Path::new("target/ci")));
        let commands = annotations(&report);
        let page = summary(&report);
        insta::assert_snapshot!(
            format!("end-{name}"),
            format!(
                "{plain}\n\n--quiet:\n{quiet}\n\n--format github:\n{commands}\n\nsummary.md:\n{page}"
            )
        );
    }
}

#[test]
fn report_of_each_end_matches_its_snapshot() {
    for (name, report) in ends() {
        let text = report.text(ToOwned::to_owned).unwrap();
        insta::assert_snapshot!(format!("report-{name}"), text);
    }
}

#[test]
fn tests_of_each_end_match_their_snapshot() {
    for (name, report) in ends() {
        insta::assert_snapshot!(format!("junit-{name}"), junit(&report).unwrap());
    }
}

#[test]
fn problems_of_all_gates_match_their_snapshot() {
    for (name, report) in ends() {
        if matches!(name, "everything" | "scan") {
            let problems = code_quality(&report).unwrap();
            insta::assert_snapshot!(format!("code-quality-{name}"), problems);
        }
    }
}

#[test]
fn each_report_is_valid_against_the_schema() {
    let schema = serde_json::from_str(&Report::schema().unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let reports = ends().into_iter().map(|(_, report)| report);
    for report in reports.chain([hostile()]) {
        let text = report.text(ToOwned::to_owned).unwrap();
        let mut report = serde_json::from_str(&text).unwrap();
        validator.validate(&report).unwrap();
        report["steps"][0]["status"] = "unknown".into();
        assert!(!validator.is_valid(&report));
    }
}

#[test]
fn end_of_a_run_fits_a_small_terminal_and_ends_with_the_verdict() {
    for columns in [80, 100, 200] {
        for (name, report) in ends() {
            let text = without_styles(&ending(&report, Path::new("target/ci"), Some(columns)));
            let rows: usize = text
                .lines()
                .map(|line| line.chars().count().div_ceil(columns).max(1))
                .sum();
            assert!(rows <= 24, "{name} at {columns} columns:\n{text}");
            let last = text.lines().last().unwrap();
            let code = format!("exit code {}", report.verdict.exit_code);
            assert!(last.contains("passed") || last.contains(&code), "{last}");
        }
    }
}

#[test]
fn github_gets_at_most_ten_annotations() {
    for (name, report) in ends() {
        let text = annotations(&report);
        assert!(text.lines().count() <= 10, "{name}:\n{text}");
        assert!(text.lines().all(|line| line.starts_with("::error ")));
    }
}

#[test]
fn foreign_text_is_shown_and_never_executed() {
    let report = hostile();
    let text = without_styles(&ending(&report, Path::new("target/ci"), None));
    assert!(text.contains("tests::a␛[2J"), "{text}");
    assert!(text.contains("␛]0;title␇"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text:?}");
    let commands = annotations(&report);
    assert_eq!(commands.lines().count(), 1, "{commands}");
    assert!(commands.contains("tests::a␛[2J%0A::error::x"), "{commands}");
}

#[test]
fn clearing_keeps_only_the_report_under_another_name() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("ci");
    let prepare = || places::prepare(&directory, folder.path(), None).unwrap();
    assert!(prepare().is_none());
    let (_, report) = ends().remove(0);
    written::write(&report, &directory, None, ToOwned::to_owned).unwrap();
    for name in places::OTHERS {
        std::fs::write(directory.join(name), "").unwrap();
    }
    std::fs::create_dir(directory.join("logs")).unwrap();
    std::fs::write(directory.join("logs/test.log"), "").unwrap();
    std::fs::write(directory.join("logs/mine.txt"), "").unwrap();
    std::fs::write(directory.join("mine.txt"), "").unwrap();
    let left = || {
        let mut left: Vec<_> = walkdir::WalkDir::new(&directory)
            .into_iter()
            .map(Result::unwrap)
            .filter(|entry| entry.file_type().is_file())
            .map(|entry| {
                entry
                    .path()
                    .strip_prefix(&directory)
                    .unwrap()
                    .display()
                    .to_string()
            })
            .collect();
        left.sort_unstable();
        left
    };
    let kept = [".gitignore", "logs/mine.txt", "mine.txt", "previous.json"];
    assert!(prepare().is_some());
    assert_eq!(left(), kept);
    // The run is killed; the next one still knows the last report.
    assert!(prepare().is_some());
    assert_eq!(left(), kept);
}
