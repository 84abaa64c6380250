//! Renders `report.html`: the whole run as one page that needs neither a network nor JavaScript.

mod budget;
mod comparison;
mod logs;
mod timeline;
mod words;

use std::path::Path;

use askama::Template;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest as _, Sha256};

use self::budget::Budget;
use self::comparison::Comparison;
use self::logs::Log;
use self::timeline::Timeline;
use self::words::{note, state};
use super::json::Report;
use super::previous::Previous;
use super::summary::cache_summary;
use super::text::{failure_text, format_ms, shown, verdict_word};
use crate::model::cause::{Cause, TestCase, TestCounts, TestStatus};
use crate::model::finding::Finding;
use crate::model::record::{Outcome, Record, Status};
use crate::model::step::{Needs, Step};
use common::failure::{Failure, OrFail};

const STYLE: &str = include_str!("../../../templates/report.css");
const SCRIPT: &str = include_str!("../../../templates/report.js");

/// The size that a page never exceeds, in bytes.
const LIMIT: usize = 5_000_000;
/// What the page's own markup may need of it: the style, the script, and everything around foreign text.
const MARKUP: usize = 300_000;
/// At most so many bytes of the output of a test, or of the details of a cause, are shown.
const DETAIL: usize = 16 * 1024;
/// At most this many causes of a step, and failed tests, are shown with their details.
const CAUSES: usize = 100;
/// What a test's markup needs, in bytes.
const TEST_MARKUP: usize = 40;

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    style: &'static str,
    script: &'static str,
    /// The hash of the script, for the content security policy: no other script is executed.
    script_hash: String,
    report: &'a Report,
    state: &'static str,
    verdict: String,
    took: String,
    failed_steps: String,
    start: String,
    error: Option<String>,
    hint: Option<Vec<(String, bool)>>,
    facts: Vec<Fact>,
    cache: Vec<String>,
    failures: Vec<FailedStep<'a>>,
    graph: Graph<'a>,
    timeline: Timeline,
    comparison: Option<Comparison>,
    tests: Tests,
    was_scanned: bool,
    findings: Vec<&'a Finding>,
    more_findings: usize,
    logs: Vec<Log>,
}

/// A fact about the run.
struct Fact {
    name: &'static str,
    value: String,
    is_code: bool,
}

/// The steps, and which of them need which others.
struct Graph<'a> {
    lanes: Vec<Lane<'a>>,
    /// The step that needs all others.
    last: Vec<Node<'a>>,
}

/// A step that needs no other, and the steps that need it.
struct Lane<'a> {
    node: Node<'a>,
    next: Vec<Node<'a>>,
}

/// A step in the graph.
struct Node<'a> {
    record: &'a Record,
    state: &'static str,
    does: &'static str,
    took: String,
    needs: String,
    note: String,
    why: Option<String>,
}

/// A step that failed.
struct FailedStep<'a> {
    record: &'a Record,
    what: String,
    hint: Option<Vec<(String, bool)>>,
    causes: Vec<ShownCause>,
    more: usize,
}

/// A cause of a failure.
struct ShownCause {
    place: Option<String>,
    title: String,
    detail: String,
}

/// All tests, the failed ones first.
#[derive(Default)]
struct Tests {
    counts: TestCounts,
    failed: Vec<FailedTest>,
    more_failed: usize,
    suites: Vec<Suite>,
    left_out: usize,
}

/// A test that failed.
struct FailedTest {
    suite: String,
    name: String,
    place: Option<String>,
    output: String,
}

/// The other tests of a test binary.
struct Suite {
    name: String,
    tests: Vec<(String, bool)>,
}

/// Renders the page. The logs are read from `directory`.
///
/// # Errors
/// When the page cannot be rendered (exit code 3).
pub(super) fn page(
    report: &Report,
    directory: &Path,
    previous: Option<&Previous>,
) -> Result<String, Failure> {
    let mut budget = Budget::new(LIMIT - MARKUP);
    let failed = report
        .steps
        .iter()
        .filter(|record| record.status == Status::Failed);
    let failures: Vec<_> = failed
        .map(|record| FailedStep::new(record, &mut budget))
        .collect();
    let findings: Vec<_> = report.steps.iter().flat_map(|it| &it.findings).collect();
    let all_findings = findings.len();
    let findings: Vec<_> = findings
        .into_iter()
        .take_while(|finding| {
            let texts = [&finding.id, &finding.package, &finding.title];
            texts.iter().all(|text| budget.take(text)) && budget.take_bytes(600)
        })
        .collect();
    let tests = Tests::new(report, &mut budget);
    let names: Vec<_> = failures.iter().map(|it| it.record.name.name()).collect();
    Page {
        style: STYLE,
        script: SCRIPT,
        script_hash: BASE64_STANDARD.encode(Sha256::digest(SCRIPT)),
        verdict: capitalized(verdict_word(report)),
        took: format_ms(report.duration_ms),
        failed_steps: names.join(", "),
        start: time(report.start),
        state: state_of(report),
        error: report.error.as_deref().map(shown),
        hint: report.hint.as_deref().map(with_code),
        facts: facts(report),
        cache: report.cache.as_ref().map_or_else(Vec::new, |cache| {
            let text = anstream::adapter::strip_str(&cache_summary(cache)).to_string();
            let lines = text
                .lines()
                .map(|line| line.trim_start_matches("cache").trim());
            lines.map(shown).collect()
        }),
        graph: Graph::new(report),
        timeline: Timeline::new(report),
        comparison: previous.map(|previous| Comparison::new(report, previous)),
        was_scanned: report.steps.iter().any(was_scanned),
        more_findings: all_findings - findings.len(),
        logs: logs::read(report, directory, &mut budget),
        report,
        failures,
        tests,
        findings,
    }
    .render()
    .or_environment("cannot render the report's page")
}

fn capitalized(text: &str) -> String {
    let (first, rest) = text.split_at(text.len().min(1));
    first.to_uppercase() + rest
}

fn time(time: jiff::Timestamp) -> String {
    time.strftime("%-d %B %Y, %H:%M:%S UTC").to_string()
}

fn facts(report: &Report) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut add = |name, value: String, is_code| {
        facts.push(Fact {
            name,
            value: shown(&value),
            is_code,
        });
    };
    let state = if report.clean {
        ""
    } else {
        " with uncommitted changes"
    };
    add("Commit", format!("{}{state}", report.commit), true);
    add("Image", report.image.clone(), true);
    match &report.digest {
        Some(digest) => add("Digest", digest.clone(), true),
        None => add("Digest", "not built".to_owned(), false),
    }
    add(
        "Published",
        match &report.publish {
            None => "no",
            Some(published) => match published.outcome {
                Outcome::Pushed => "yes",
                Outcome::AlreadyThere => "already, with the same digest",
            },
        }
        .to_owned(),
        false,
    );
    add("Event", report.event.to_string(), false);
    if let Some(platform) = &report.platform {
        add("Platform", platform.clone(), false);
    }
    if let Some(engine) = &report.engine {
        let engine = format!("{} (Dagger {})", engine.name, engine.version);
        add("Engine", engine, false);
    }
    for what in &report.left_out {
        add("Left out by ci.toml", what.clone(), false);
    }
    let commit = report.ci.commit.as_deref();
    let commit = commit.map_or(String::new(), |it| format!(" ({it:.7})"));
    add("ci", format!("{}{commit}", report.ci.version), false);
    facts
}

impl<'a> Graph<'a> {
    fn new(report: &'a Report) -> Self {
        let of = |needs: Needs| {
            let steps = report.steps.iter();
            steps
                .filter(move |record| record.name.definition().needs == needs)
                .map(|record| Node::new(record, report))
        };
        let mut on_image: Vec<_> = of(Needs::Build).collect();
        let lanes = of(Needs::Nothing).map(|node| Lane {
            next: match node.record.name {
                Step::Build => std::mem::take(&mut on_image),
                _ => Vec::new(),
            },
            node,
        });
        Self {
            lanes: lanes.collect(),
            last: of(Needs::Gates).collect(),
        }
    }
}

impl<'a> Node<'a> {
    fn new(record: &'a Record, report: &Report) -> Self {
        let has = |step: &Step| report.steps.iter().any(|record| record.name == *step);
        let needs = match record.name.definition().needs {
            Needs::Nothing => String::new(),
            Needs::Build if has(&Step::Build) => "needs build".to_owned(),
            Needs::Build => String::new(),
            Needs::Gates => "needs every gate".to_owned(),
        };
        let took = match record.start {
            Some(_) => format_ms(record.duration_ms),
            None => String::new(),
        };
        Self {
            state: state(record.status),
            does: record.name.definition().does,
            took,
            needs,
            why: record.why.as_ref().map(|why| shown(&why.to_string())),
            note: match (record.status, &record.error) {
                (Status::Skipped, Some(why)) => shown(why),
                _ => note(record),
            },
            record,
        }
    }
}

impl<'a> FailedStep<'a> {
    fn new(record: &'a Record, budget: &mut Budget) -> Self {
        let causes: Vec<_> = record
            .causes
            .iter()
            .take(CAUSES)
            .map(|cause| ShownCause {
                place: place(cause),
                title: shown(&cause.title),
                detail: budget.cut(&cause.detail, DETAIL),
            })
            .collect();
        Self {
            what: failure_text(record),
            hint: record.hint.as_deref().map(with_code),
            more: record.causes.len() - causes.len(),
            causes,
            record,
        }
    }
}

/// Text in which backticks mark code: its parts, and whether each is code.
fn with_code(text: &str) -> Vec<(String, bool)> {
    let parts = text.split('`').enumerate();
    parts.map(|(at, part)| (shown(part), at % 2 == 1)).collect()
}

fn place(cause: &Cause) -> Option<String> {
    Some(shown(&cause.location.as_ref()?.to_string()))
}

impl Tests {
    fn any(&self) -> bool {
        self.counts.run() + self.counts.ignored > 0
    }

    fn new(report: &Report, budget: &mut Budget) -> Self {
        let Some(record) = report.steps.iter().find(|it| !it.tests.is_empty()) else {
            return Self::default();
        };
        let (failed, others): (Vec<_>, Vec<_>) = record
            .tests
            .iter()
            .partition(|test| test.status == TestStatus::Failed);
        let mut tests = Self {
            counts: TestCounts::of(&record.tests),
            more_failed: failed.len().saturating_sub(CAUSES),
            ..Self::default()
        };
        for test in failed.into_iter().take(CAUSES) {
            let is_cause = |it: &&Cause| it.title == test.name;
            let cause = record.causes.iter().find(is_cause);
            tests.failed.push(FailedTest {
                suite: shown(&test.suite),
                name: shown(&test.name),
                place: cause.and_then(place),
                output: budget.cut(&test.output, DETAIL),
            });
        }
        for test in others {
            tests.add(test, budget);
        }
        tests
    }

    fn add(&mut self, test: &TestCase, budget: &mut Budget) {
        let name = shown(&test.name);
        if !budget.take(&name) || !budget.take_bytes(TEST_MARKUP) {
            self.left_out += 1;
            return;
        }
        let suite = shown(&test.suite);
        if self.suites.last().is_none_or(|it| it.name != suite) {
            self.suites.push(Suite {
                name: suite,
                tests: Vec::new(),
            });
        }
        if let Some(suite) = self.suites.last_mut() {
            let ignored = test.status == TestStatus::Ignored;
            suite.tests.push((name, ignored));
        }
    }
}

/// Whether the record is that of a scan with a result.
fn was_scanned(record: &Record) -> bool {
    let has_result = record.status == Status::Passed || !record.findings.is_empty();
    record.name == Step::Scan && has_result
}

/// The state of the whole run.
fn state_of(report: &Report) -> &'static str {
    match verdict_word(report) {
        "passed" => "passed",
        "failed" => "failed",
        _ => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{ends, hostile, large};
    use super::*;

    fn render(report: &Report, logs: &[(Step, &str)]) -> String {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("logs")).unwrap();
        for (step, log) in logs {
            std::fs::write(folder.path().join(step.log()), log).unwrap();
        }
        page(report, folder.path(), None).unwrap()
    }

    #[test]
    fn a_large_run_fits_with_all_tests_and_log_lines() {
        let (report, log) = large();
        let page = render(&report, &[(Step::Test, &log)]);
        assert!(page.len() < LIMIT, "{}", page.len());
        assert_eq!(
            page.matches("handles_the_case_number_").count(),
            2000 + 50_000
        );
    }

    #[test]
    fn a_huge_run_is_cut_to_the_limit() {
        let (report, log) = large();
        let log = log.repeat(3);
        let mut report = report;
        let lint = report.steps.iter_mut().find(|it| it.name == Step::Lint);
        lint.unwrap().log = Some(Step::Lint.log());
        let page = render(&report, &[(Step::Test, &log), (Step::Lint, &log)]);
        assert!(page.len() < LIMIT, "{}", page.len());
        assert!(page.len() > LIMIT / 10 * 9, "{}", page.len());
        assert_eq!(page.matches(" lines left out, see logs/").count(), 2);
    }

    #[test]
    fn page_contains_what_happened() {
        for (name, report) in ends() {
            let page = render(&report, &[]);
            let verdict = capitalized(verdict_word(&report));
            assert!(
                page.contains(&format!("<h1 id=\"verdict\">{verdict}")),
                "{name}"
            );
            for record in &report.steps {
                let node = format!("node {}", state(record.status));
                assert!(page.contains(&node), "{name}: {node}");
                for cause in record.causes.iter().take(CAUSES) {
                    let title = cause.title.replace('\'', "&#39;");
                    assert!(page.contains(&title), "{name}: {title}");
                }
            }
        }
    }

    #[test]
    fn foreign_text_is_escaped() {
        let log = b"\x1b[31mred\xff <script>document.title = 'executed'</script>";
        let log = String::from_utf8_lossy(log);
        let page = render(&hostile(), &[(Step::Test, &log)]);
        let scripts = page.matches("<script>").count();
        assert_eq!(scripts, 1, "the page's own");
        assert!(page.contains("␛[31mred\u{fffd} &#60;script&#62;"), "{page}");
        assert!(!page.contains('\u{1b}'));
    }
}
