//! What is different from the previous run in the same directory.

use std::collections::BTreeSet;

use crate::model::cause::{CauseKind, TestStatus};
use crate::model::record::Status;
use crate::report::json::Report;
use crate::report::previous::{Previous, PreviousStep};
use crate::report::text::{format_ms, shown};

/// A step must be slower or faster by this much to be mentioned, in milliseconds, and by a tenth of its time.
const NOTABLE_MS: u64 = 1000;

/// The differences from the previous run.
pub(super) struct Comparison {
    /// The first digits of the previous run's commit.
    pub(super) commit: String,
    pub(super) passed: bool,
    pub(super) total: String,
    pub(super) groups: Vec<Group>,
}

/// Differences of one kind.
pub(super) struct Group {
    pub(super) title: &'static str,
    /// Whether the differences are bad, good or neither.
    pub(super) state: &'static str,
    pub(super) items: Vec<String>,
}

impl Comparison {
    pub(super) fn new(report: &Report, previous: &Previous) -> Self {
        let (mut slower, mut faster) = (Vec::new(), Vec::new());
        let (mut failing, mut passing) = (Vec::new(), Vec::new());
        let (mut found, mut gone) = (Vec::new(), Vec::new());
        for record in &report.steps {
            let Some(before) = previous.step(record.name) else {
                continue;
            };
            match (before.status, record.status) {
                (Status::Passed, Status::Passed) => {
                    let (then, now) = (before.duration_ms, record.duration_ms);
                    let is_notable = then.abs_diff(now) >= NOTABLE_MS.max(then / 10);
                    let cached = match (before.cached, record.cached) {
                        (true, false) => ", cached before",
                        (false, true) => ", cached now",
                        _ => "",
                    };
                    let text = format!(
                        "{}: {} → {}{cached}",
                        record.name,
                        format_ms(then),
                        format_ms(now)
                    );
                    if is_notable && now > then {
                        slower.push(text);
                    } else if is_notable {
                        faster.push(text);
                    }
                }
                (Status::Passed, Status::Failed) => failing.push(format!("step {}", record.name)),
                (Status::Failed, Status::Passed) => passing.push(format!("step {}", record.name)),
                _ => {}
            }
            // A run that was skipped or cancelled says nothing about single tests.
            if has_result(before.status) && has_result(record.status) {
                let failed: BTreeSet<_> = record
                    .tests
                    .iter()
                    .filter(|test| test.status == TestStatus::Failed)
                    .map(|test| &*test.name)
                    .collect();
                let failed_before = failed_tests(before);
                failing.extend(failed.difference(&failed_before).map(|name| shown(name)));
                let passed: BTreeSet<_> = record
                    .tests
                    .iter()
                    .filter(|test| test.status == TestStatus::Passed)
                    .map(|test| &*test.name)
                    .collect();
                passing.extend(failed_before.intersection(&passed).map(|name| shown(name)));
                let now = record.findings.iter();
                let now: BTreeSet<_> = now.map(|it| (&*it.id, &*it.package)).collect();
                let then = before.findings.iter();
                let then: BTreeSet<_> = then.map(|it| (&*it.id, &*it.package)).collect();
                let text = |(id, package): &(&str, &str)| shown(&format!("{id} in {package}"));
                found.extend(now.difference(&then).map(text));
                gone.extend(then.difference(&now).map(text));
            }
        }
        let groups = [
            ("Newly failing", "failed", failing),
            ("Passing again", "passed", passing),
            ("New vulnerabilities", "failed", found),
            ("Vulnerabilities gone", "passed", gone),
            ("Slower", "neutral", slower),
            ("Faster", "neutral", faster),
        ];
        let groups = groups.into_iter().filter(|(_, _, items)| !items.is_empty());
        Self {
            commit: previous.commit.chars().take(7).collect(),
            passed: previous.verdict.passed,
            total: format!(
                "{} → {}",
                format_ms(previous.duration_ms),
                format_ms(report.duration_ms)
            ),
            groups: groups
                .map(|(title, state, items)| Group {
                    title,
                    state,
                    items: limited(items),
                })
                .collect(),
        }
    }
}

fn has_result(status: Status) -> bool {
    matches!(status, Status::Passed | Status::Failed)
}

fn failed_tests(step: &PreviousStep) -> BTreeSet<&str> {
    let causes = step.causes.iter();
    let tests = causes.filter(|cause| cause.kind == CauseKind::Test);
    tests.map(|cause| &*cause.title).collect()
}

/// The first items, and how many there are besides.
fn limited(mut items: Vec<String>) -> Vec<String> {
    const MOST: usize = 50;
    let more = items.len().saturating_sub(MOST);
    items.truncate(MOST);
    if more > 0 {
        items.push(format!("… and {more} more"));
    }
    items
}

#[cfg(test)]
mod tests {
    use super::super::super::samples::ends;
    use super::*;

    fn report(name: &str) -> Report {
        let mut ends = ends().into_iter();
        ends.find(|(it, _)| *it == name).unwrap().1
    }

    fn previous(name: &str) -> Previous {
        let text = report(name).text(ToOwned::to_owned).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn groups(now: &Report, then: &Previous) -> Vec<(&'static str, Vec<String>)> {
        let groups = Comparison::new(now, then).groups.into_iter();
        groups.map(|group| (group.title, group.items)).collect()
    }

    #[test]
    fn names_what_fails_anew_and_what_passes_again() {
        let test = |n: u32| format!("tests::adds_{n}");
        assert_eq!(
            groups(&report("test"), &previous("passed")),
            [(
                "Newly failing",
                vec!["step test".to_owned(), test(1), test(2)]
            )]
        );
        let many = groups(&report("many-tests"), &previous("test"));
        assert_eq!(many[0].1.len(), 38);
        assert!(!many[0].1.contains(&test(2)));
        assert_eq!(
            groups(&report("passed"), &previous("scan")),
            [
                ("Passing again", vec!["step scan".to_owned()]),
                (
                    "Vulnerabilities gone",
                    vec![
                        "CVE-2024-45311 in quinn-proto".to_owned(),
                        "CVE-2025-0001 in libc6".to_owned()
                    ]
                ),
            ]
        );
        assert!(groups(&report("cancelled"), &previous("test")).is_empty());
    }

    #[test]
    fn names_steps_that_are_clearly_slower_or_faster() {
        let before = previous("passed");
        let mut now = report("passed");
        for record in &mut now.steps {
            match record.name.name() {
                "test" => record.duration_ms += 10_000,
                "lint" => record.duration_ms += 900,
                "build" => record.duration_ms -= 20_000,
                _ => {}
            }
        }
        assert_eq!(
            groups(&now, &before),
            [
                ("Slower", vec!["test: 41.2s → 51.2s".to_owned()]),
                ("Faster", vec!["build: 48.0s → 28.0s".to_owned()]),
            ]
        );
    }
}
