//! Snapshots of the end of a run, its annotations and its JSON, for every way in which a run can end.

use std::path::Path;

use super::ending::{ending, quiet};
use super::github::annotations;
use super::json::{EngineReport, Report, RustReport, SCHEMA, Verdict};
use super::summary::summary;
use crate::model::cause::{Cause, CauseKind, Location, TestCounts};
use crate::model::event::Event;
use crate::model::record::{Record, StandInNote, Status, StepPart};
use crate::model::step::Step;
use common::failure::ExitCode;

const DIGEST: &str = "sha256:3f2a91c0000000000000000000000000000000000000000000000000000000ab";

fn start() -> jiff::Timestamp {
    "2026-11-27T12:00:00Z".parse().unwrap()
}

fn record(step: Step, status: Status) -> Record {
    Record {
        status,
        start: Some(start()),
        duration_ms: 1500,
        log: Some(format!("logs/{step}.log")),
        error: None,
        ..Record::skipped(step, String::new())
    }
}

fn failed(step: Step, error: &str, hint: &str, causes: Vec<Cause>) -> Record {
    Record {
        error: Some(error.to_owned()),
        hint: Some(hint.to_owned()),
        causes,
        code: Some(ExitCode::GateFailed),
        ..record(step, Status::Failed)
    }
}

fn cause(kind: CauseKind, title: &str, at: Option<(&str, u32, u32)>, detail: &str) -> Cause {
    Cause {
        kind,
        title: title.to_owned(),
        location: at.map(|(file, line, column)| Location {
            file: file.to_owned(),
            line,
            column: Some(column),
        }),
        detail: detail.to_owned(),
    }
}

fn tests_failed(number: u32) -> Record {
    let causes = (1..=number).map(|n| {
        cause(
            CauseKind::Test,
            &format!("tests::adds_{n}"),
            Some(("api/src/main.rs", 10 + n, 9)),
            "assertion `left == right` failed\n  left: 1\n right: 2",
        )
    });
    Record {
        test_counts: Some(TestCounts {
            passed: 12,
            failed: number as usize,
            ignored: 0,
        }),
        ..failed(
            Step::Test,
            "the tests failed (exit code 101)",
            "Run `cargo test --workspace --locked` to reproduce the failure on this machine.",
            causes.collect(),
        )
    }
}

fn lint_failed() -> Record {
    let detail =
        " --> api/src/main.rs:3:5\n  |\n3 |     return 1;\n  |     ^^^^^^^^ help: remove `return`";
    failed(
        Step::Lint,
        "clippy reports warnings or errors (exit code 101)",
        "Fix the warnings above; `cargo clippy --fix` can apply some fixes.",
        vec![cause(
            CauseKind::Diagnostic,
            "unneeded `return` statement [clippy::needless_return]",
            Some(("api/src/main.rs", 3, 5)),
            detail,
        )],
    )
}

fn fmt_failed() -> Record {
    failed(
        Step::Fmt,
        "some files are not formatted (exit code 1)",
        "Run `ci fmt --fix` or `cargo fmt --all`.",
        vec![Cause {
            location: Some(Location {
                file: "api/src/main.rs".to_owned(),
                line: 1,
                column: None,
            }),
            ..cause(
                CauseKind::Format,
                "not formatted",
                None,
                "-fn main() { }\n+fn main() {}",
            )
        }],
    )
}

fn custom_failed() -> Record {
    Record {
        parts: vec![StepPart {
            name: "docs".to_owned(),
            status: Status::Failed,
            duration_ms: 120,
        }],
        ..failed(
            Step::Custom,
            "gate docs failed",
            "Run `cargo doc` to reproduce the failure on this machine.",
            vec![cause(
                CauseKind::Gate,
                "gate docs, exit code 101",
                None,
                "error: unresolved link to `Foo`",
            )],
        )
    }
}

fn build_failed() -> Record {
    failed(
        Step::Build,
        "the service does not compile (exit code 101)",
        "Add libssl-dev and pkg-config to toolchain.packages in ci.toml, or use rustls instead of OpenSSL.",
        vec![cause(
            CauseKind::Diagnostic,
            "the build script of `openssl-sys v0.9.0` failed",
            None,
            "Caused by:\n  process didn't exit successfully",
        )],
    )
}

fn scan_failed() -> Record {
    Record {
        code: Some(ExitCode::Vulnerable),
        ..failed(
            Step::Scan,
            "1 fixable vulnerabilities of HIGH or worse in 40 packages",
            "Update the packages (`cargo update`) or the base image.",
            vec![cause(
                CauseKind::Vulnerability,
                "HIGH CVE-2024-45311 in quinn-proto 0.11.6, fixed in 0.11.7",
                Some(("Cargo.lock", 812, 1)),
                "A server that retries connections can panic",
            )],
        )
    }
}

fn smoke_failed() -> Record {
    failed(
        Step::Smoke,
        "the service exited with code 1",
        "Make the service answer GET /health on port 8000 with 200 within 20s.",
        vec![cause(
            CauseKind::Service,
            "the service exited with code 1",
            None,
            "listening on 0.0.0.0:8000\nthread 'main' panicked at api/src/main.rs:9:5:\nno database",
        )],
    )
}

fn publish_refused() -> Record {
    Record {
        code: Some(ExitCode::PublishRefused),
        ..failed(
            Step::Publish,
            "ghcr.io/upwind1647/status-api:4f2a91c already exists with another digest",
            "Nothing was overwritten. Run `ci verify` to compare the two images.",
            vec![cause(
                CauseKind::Output,
                "last output",
                None,
                "in the registry: sha256:1\nof this run:     sha256:2",
            )],
        )
    }
}

/// A report in which each step has passed, except for `others`.
fn report(others: Vec<Record>, code: ExitCode) -> Report {
    let mut steps: Vec<_> = Step::all()
        .iter()
        .filter(|step| **step != Step::Custom)
        .map(|step| record(*step, Status::Passed))
        .collect();
    for other in others {
        match steps.iter_mut().find(|step| step.name == other.name) {
            Some(step) => *step = other,
            None => steps.push(other),
        }
    }
    Report {
        schema: SCHEMA,
        verdict: Verdict::of(code),
        commit: "4f2a91c000000000000000000000000000000000".to_owned(),
        clean: true,
        tag: "4f2a91c".to_owned(),
        image: "ghcr.io/upwind1647/status-api:4f2a91c".to_owned(),
        digest: Some(DIGEST.to_owned()),
        event: Event::Local,
        platform: Some("linux/amd64".to_owned()),
        engine: Some(EngineReport {
            name: "embedded".to_owned(),
            version: "0.21.8".to_owned(),
        }),
        rust: Some(RustReport {
            toolchain: "1.95.0".to_owned(),
            from: "ci".to_owned(),
        }),
        prepared: Vec::new(),
        stand_ins: vec![
            StandInNote::provisioned_here("docker.io/library/rust:1.95.0-bookworm", DIGEST),
            StandInNote::provisioned_here("ghcr.io/aquasecurity/trivy:0.74.0", DIGEST),
        ],
        start: start(),
        duration_ms: 83_200,
        steps,
        publish: None,
        cache: None,
        error: None,
        hint: None,
    }
}

/// Every way in which a run can end.
fn ends() -> Vec<(&'static str, Report)> {
    let gate = |record: Record| {
        let code = record.code.unwrap_or(ExitCode::GateFailed);
        report(vec![record], code)
    };
    let stopped = |code| {
        let cancelled = |step| Record {
            error: Some("cancelled".to_owned()),
            ..record(step, Status::Cancelled)
        };
        let mut report = report(vec![cancelled(Step::Test), cancelled(Step::Build)], code);
        report.digest = None;
        report
    };
    let mut no_engine = report(Vec::new(), ExitCode::Environment);
    for record in &mut no_engine.steps {
        *record = Record::skipped(record.name, "the run ended before this step".to_owned());
    }
    no_engine.digest = None;
    no_engine.engine = None;
    no_engine.rust = None;
    no_engine.stand_ins = Vec::new();
    no_engine.error = Some("no engine listens on tcp://127.0.0.1:1".to_owned());
    vec![
        ("passed", report(Vec::new(), ExitCode::Success)),
        ("test", gate(tests_failed(2))),
        ("fmt", gate(fmt_failed())),
        ("lint", gate(lint_failed())),
        ("custom", gate(custom_failed())),
        ("build", gate(build_failed())),
        ("scan", gate(scan_failed())),
        ("smoke", gate(smoke_failed())),
        ("publish", gate(publish_refused())),
        ("many-tests", gate(tests_failed(40))),
        (
            "everything",
            report(
                vec![
                    tests_failed(3),
                    fmt_failed(),
                    lint_failed(),
                    custom_failed(),
                    build_failed(),
                ],
                ExitCode::GateFailed,
            ),
        ),
        (
            "same-reason",
            report(
                vec![
                    Record {
                        name: Step::Test,
                        ..build_failed()
                    },
                    Record {
                        name: Step::Lint,
                        ..build_failed()
                    },
                    build_failed(),
                ],
                ExitCode::GateFailed,
            ),
        ),
        ("cancelled", stopped(ExitCode::Cancelled)),
        ("time-limit", stopped(ExitCode::TimedOut)),
        ("no-engine", no_engine),
    ]
}

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
    let mut record = tests_failed(1);
    record.causes[0].title = "tests::a\u{1b}[2J\n::error::x".to_owned();
    record.causes[0].detail =
        "\u{1b}]0;title\u{7}\n::set-output name=a::b\n##[error]c\nüñ\u{fffd}".to_owned();
    let report = report(vec![record], ExitCode::GateFailed);
    let text = without_styles(&ending(&report, Path::new("target/ci"), None));
    assert!(text.contains("tests::a␛[2J"), "{text}");
    assert!(text.contains("␛]0;title␇"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text:?}");
    let commands = annotations(&report);
    assert_eq!(commands.lines().count(), 1, "{commands}");
    assert!(commands.contains("tests::a␛[2J%0A::error::x"), "{commands}");
}
