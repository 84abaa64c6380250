//! Reports of runs, one for every way in which a run can end, and some that are hard to show.

use super::json::{EngineReport, Prepared, Program, Report, RustReport, SCHEMA, Verdict};
use crate::model::cause::{Cause, CauseKind, Location, TestCase, TestCounts, TestStatus};
use crate::model::event::Event;
use crate::model::finding::{Finding, Severity};
use crate::model::inputs::{LastPass, Reason, Why};
use crate::model::record::{Record, StandInNote, Status, StepPart};
use crate::model::step::Step;
use common::failure::ExitCode;

const DIGEST: &str = "sha256:3f2a91c0000000000000000000000000000000000000000000000000000000ab";

/// 2026-11-27T12:00:00Z.
const START: jiff::Timestamp = jiff::Timestamp::constant(1_795_780_800, 0);

/// When a step started, in milliseconds after the start of the run, and how long it took.
fn timing(step: Step) -> (i64, u64) {
    match step {
        Step::Test => (16_000, 41_200),
        Step::Fmt => (16_000, 1900),
        Step::Lint => (16_000, 33_400),
        Step::Custom => (16_000, 2100),
        Step::Build => (16_000, 48_000),
        Step::Scan => (64_000, 13_500),
        Step::Smoke => (64_000, 7200),
        Step::Publish => (77_500, 3500),
    }
}

fn why(step: Step) -> Option<Why> {
    let reason = match step {
        Step::Fmt => return None,
        Step::Smoke | Step::Publish => Reason::Always,
        Step::Lint => Reason::Input {
            name: "the toolchain".to_owned(),
        },
        Step::Scan => Reason::Input {
            name: "the vulnerability database".to_owned(),
        },
        _ => Reason::Files {
            first: ["api/src/main.rs", "api/src/routes.rs"]
                .map(ToOwned::to_owned)
                .to_vec(),
            more: 0,
        },
    };
    Some(Why {
        since: Some(LastPass {
            commit: "9c1e5a2000000000000000000000000000000000".to_owned(),
            time: START - jiff::SignedDuration::from_hours(3),
        }),
        reasons: vec![reason],
    })
}

fn record(step: Step, status: Status) -> Record {
    let (start, duration_ms) = timing(step);
    Record {
        status,
        start: Some(START + jiff::SignedDuration::from_millis(start)),
        duration_ms,
        cached: status == Status::Passed && step == Step::Fmt,
        why: why(step),
        log: Some(step.log()),
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

fn test(suite: &str, name: &str, status: TestStatus, output: &str) -> TestCase {
    TestCase {
        suite: suite.to_owned(),
        name: name.to_owned(),
        status,
        output: output.to_owned(),
    }
}

/// The step `test` after `tests`, of which the failed ones have `causes`.
fn tested(tests: Vec<TestCase>, causes: Vec<Cause>) -> Record {
    let test_counts = Some(TestCounts::of(&tests));
    if causes.is_empty() {
        return Record {
            test_counts,
            tests,
            ..record(Step::Test, Status::Passed)
        };
    }
    Record {
        test_counts,
        tests,
        ..failed(
            Step::Test,
            "the tests failed (exit code 101)",
            "Run `cargo test --workspace --locked` to reproduce the failure on this machine.",
            causes,
        )
    }
}

fn tests_passed() -> Vec<TestCase> {
    let passed = (1..=11).map(|n| {
        let name = format!("tests::holds_{n}");
        test("api src/main.rs", &name, TestStatus::Passed, "")
    });
    passed
        .chain([
            test(
                "api tests/http.rs",
                "needs_a_server",
                TestStatus::Ignored,
                "",
            ),
            test(
                "api doc tests",
                "api/src/lib.rs - double (line 3)",
                TestStatus::Passed,
                "",
            ),
        ])
        .collect()
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
    let causes: Vec<_> = causes.collect();
    let mut tests = tests_passed();
    tests.splice(
        0..0,
        causes.iter().map(|cause| {
            let output = format!("some output\n\nthread panicked:\n{}", cause.detail);
            test("api src/main.rs", &cause.title, TestStatus::Failed, &output)
        }),
    );
    tested(tests, causes)
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

fn findings() -> Vec<Finding> {
    vec![
        Finding {
            id: "CVE-2024-45311".to_owned(),
            severity: Severity::High,
            package: "quinn-proto".to_owned(),
            version: "0.11.6".to_owned(),
            fixed_version: Some("0.11.7".to_owned()),
            title: "A server that retries connections can panic".to_owned(),
            url: Some("https://avd.aquasec.com/nvd/cve-2024-45311".to_owned()),
            location: Some(Location {
                file: "Cargo.lock".to_owned(),
                line: 812,
                column: None,
            }),
            fails: true,
        },
        Finding {
            id: "CVE-2025-0001".to_owned(),
            severity: Severity::Critical,
            package: "libc6".to_owned(),
            version: "2.36-9".to_owned(),
            fixed_version: None,
            title: "Buffer overflow | in `printf`".to_owned(),
            url: None,
            location: None,
            fails: false,
        },
    ]
}

fn scan_failed() -> Record {
    Record {
        code: Some(ExitCode::Vulnerable),
        findings: findings(),
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
    if let Some(step) = steps.iter_mut().find(|step| step.name == Step::Test) {
        *step = tested(tests_passed(), Vec::new());
    }
    for other in others {
        match steps.iter_mut().find(|step| step.name == other.name) {
            Some(step) => *step = other,
            None => steps.push(other),
        }
    }
    steps.sort_by_key(|record| record.name);
    let passed = |steps: &[Record], need: Step| {
        let record = steps.iter().find(|record| record.name == need);
        record.is_none_or(|record| record.status == Status::Passed)
    };
    for at in 0..steps.len() {
        let step = steps[at].name;
        let mut unmet = step.needs();
        unmet.retain(|need| !passed(&steps, *need));
        if !unmet.is_empty() {
            let names: Vec<_> = unmet.iter().map(|step| step.name()).collect();
            steps[at] = Record::skipped(step, format!("it needs {}", names.join(", ")));
        } else if step == Step::Publish && steps[at].status == Status::Passed {
            steps[at] = Record::skipped(step, "only a push to main publishes".to_owned());
        }
    }
    let is_built = passed(&steps, Step::Build);
    Report {
        schema: SCHEMA,
        ci: Program {
            version: "0.1.0".to_owned(),
            commit: Some("0123456789abcdef0123456789abcdef01234567".to_owned()),
        },
        verdict: Verdict::of(code),
        commit: "4f2a91c000000000000000000000000000000000".to_owned(),
        clean: true,
        tag: "4f2a91c".to_owned(),
        image: "ghcr.io/upwind1647/status-api:4f2a91c".to_owned(),
        digest: is_built.then(|| DIGEST.to_owned()),
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
        prepared: vec![Prepared {
            what: "the embedded engine".to_owned(),
            start: START + jiff::SignedDuration::from_millis(400),
            duration_ms: 14_200,
        }],
        left_out: Vec::new(),
        stand_ins: vec![
            StandInNote::provisioned_here("docker.io/library/rust:1.95.0-bookworm", DIGEST),
            StandInNote::provisioned_here("ghcr.io/aquasecurity/trivy:0.74.0", DIGEST),
        ],
        start: START,
        duration_ms: 83_200,
        steps,
        publish: None,
        cache: None,
        error: None,
        hint: None,
    }
}

/// Every way in which a run can end.
#[must_use]
pub fn ends() -> Vec<(&'static str, Report)> {
    let gate = |record: Record| {
        let code = record.code.unwrap_or(ExitCode::GateFailed);
        report(vec![record], code)
    };
    let stopped = |code| {
        let cancelled = |step| Record {
            error: Some("cancelled".to_owned()),
            ..record(step, Status::Cancelled)
        };
        report(vec![cancelled(Step::Test), cancelled(Step::Build)], code)
    };
    let mut no_engine = report(Vec::new(), ExitCode::Environment);
    for record in &mut no_engine.steps {
        *record = Record::skipped(record.name, "the run ended before this step".to_owned());
    }
    no_engine.digest = None;
    no_engine.engine = None;
    no_engine.rust = None;
    no_engine.platform = None;
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

/// A passed run with 2,000 tests, one of whose logs has 50,000 lines, which are returned, too.
#[must_use]
pub fn large() -> (Report, String) {
    let tests = (0..2000).map(|n| {
        let (suite, name) = (
            n / 200,
            format!("module_{}::handles_the_case_number_{n}", n / 20),
        );
        let status = if n % 100 == 99 {
            TestStatus::Ignored
        } else {
            TestStatus::Passed
        };
        test(
            &format!("package tests/suite_{suite}.rs"),
            &name,
            status,
            "",
        )
    });
    let mut report = report(vec![tested(tests.collect(), Vec::new())], ExitCode::Success);
    for record in &mut report.steps {
        record.log = record.log.take().filter(|_| record.name == Step::Test);
    }
    let log = (0..50_000).map(|n| {
        format!(
            "test module_{}::handles_the_case_number_{n} ... ok\n",
            n / 20
        )
    });
    (report, log.collect())
}

/// A run whose tests print escape sequences, markup, workflow commands, and what is left of invalid UTF-8.
#[must_use]
pub fn hostile() -> Report {
    let title = "tests::a\u{1b}[2J\n::error::x<script>document.title = 'executed'</script>";
    let detail = "\u{1b}]0;title\u{7}\n::set-output name=a::b\n##[error]c\nüñ\u{fffd}</pre></details><script>document.title = 'executed'</script><img src=x onerror=\"document.title = 'executed'\">";
    let cause = cause(
        CauseKind::Test,
        title,
        Some(("api/src/ma in.rs", 11, 9)),
        detail,
    );
    let mut tests = tests_passed();
    tests.push(test("api \"<b>'&", title, TestStatus::Failed, detail));
    report(vec![tested(tests, vec![cause])], ExitCode::GateFailed)
}
