//! Reads the output of one step while it arrives.

use std::path::Path;
use std::time::Duration;

use super::cargo::Cargo;
use super::gates::Gates;
use super::libtest::Libtest;
use super::lines::Piece;
use super::paths::SourcePaths;
use super::rustfmt::Rustfmt;
use crate::model::cause::{Activity, Cause, TestCase};
use crate::model::record::StepPart;
use crate::model::step::Step;

/// The line that a command prints when it waits for another run that uses the same volume.
pub(crate) const WAITING: &str = "waiting for another run with the same cache";

/// How the commands of cargo's steps report, as a progress bar would, that they have used almost no CPU for some seconds, which
/// follow. `0` means that they use it.
pub(crate) const IDLE: &str = "ci: idle for seconds: ";

/// What the complete output of a step says.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The causes of a failure, in the order of the output.
    pub causes: Vec<Cause>,
    /// The tests.
    pub tests: Vec<TestCase>,
    /// The named parts of the step, with their results.
    pub parts: Vec<StepPart>,
}

/// Reads the output of one step while it arrives.
pub(crate) struct Reader {
    parser: Parser,
    paths: SourcePaths,
    activity: Activity,
    idle: Duration,
}

enum Parser {
    Test(Cargo, Box<Libtest>),
    Cargo(Cargo),
    Format(Rustfmt),
    Gates(Gates),
    Other,
}

impl Reader {
    /// A reader for the output of `step` on the workspace in `folder`, which is relative to the top of the working tree.
    #[must_use]
    pub(crate) fn new(step: Step, folder: &Path) -> Self {
        Self {
            parser: match step {
                Step::Test => Parser::Test(Cargo::default(), Box::default()),
                Step::Lint | Step::Build => Parser::Cargo(Cargo::default()),
                Step::Fmt => Parser::Format(Rustfmt::default()),
                Step::Custom => Parser::Gates(Gates::default()),
                Step::Scan | Step::Smoke | Step::Publish => Parser::Other,
            },
            paths: SourcePaths::new(folder),
            activity: Activity::default(),
            idle: Duration::ZERO,
        }
    }

    /// Reads a piece of output, and returns the lines that it adds to the log: none for a progress bar, several for a message in
    /// JSON. Paths in the log are those of the working tree.
    pub(crate) fn read(&mut self, piece: Piece<'_>) -> Vec<String> {
        let text = match piece {
            Piece::Line(text) => text,
            Piece::Transient(text) => {
                if let Some(idle) = text.strip_prefix(IDLE) {
                    self.idle = Duration::from_secs(idle.parse().unwrap_or_default());
                    return Vec::new();
                }
                if let Parser::Test(cargo, _) | Parser::Cargo(cargo) = &mut self.parser {
                    cargo.progress(text);
                    self.activity.crates = cargo.crates();
                }
                return Vec::new();
            }
        };
        self.idle = Duration::ZERO;
        // Cargo erases its progress bar before it prints a line.
        let text = text.trim_start_matches("\u{1b}[K");
        let paths = &self.paths;
        if let Parser::Test(cargo, _) | Parser::Cargo(cargo) = &mut self.parser
            && let Some(rendered) = cargo.message(text, paths)
        {
            return rendered;
        }
        let text = paths.shorten(text);
        match &mut self.parser {
            Parser::Test(cargo, tests) => {
                if !tests.line(&text, paths) {
                    // Cargo repeats its warnings before it runs the tests.
                    if cargo.has_rendered(&text) {
                        return Vec::new();
                    }
                    cargo.line(&text);
                }
                self.activity.tests = tests.counts();
            }
            Parser::Cargo(cargo) => cargo.line(&text),
            Parser::Format(format) => format.line(&text, paths),
            Parser::Gates(gates) => gates.line(&text),
            Parser::Other => {}
        }
        self.activity.waiting_for =
            (text == WAITING).then(|| "another run with the same cache".to_owned());
        if !text.trim().is_empty() {
            self.activity.last_line.clone_from(&text);
        }
        vec![text]
    }

    /// What the step is doing, as far as its output tells.
    #[must_use]
    pub(crate) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Whether cargo has compiled everything.
    #[must_use]
    pub(crate) fn has_compiled(&self) -> bool {
        match &self.parser {
            Parser::Test(cargo, _) | Parser::Cargo(cargo) => cargo.has_compiled(),
            Parser::Format(_) | Parser::Gates(_) | Parser::Other => false,
        }
    }

    /// How long the command has printed nothing and used almost no CPU.
    #[must_use]
    pub(crate) fn idle(&self) -> Duration {
        self.idle
    }

    /// What the output so far says, as if it were complete. The reader starts anew.
    #[must_use]
    pub(crate) fn finish(&mut self) -> Found {
        match &mut self.parser {
            Parser::Test(cargo, tests) => {
                let (cases, failures) = std::mem::take(tests).finish(&self.paths);
                let mut causes = std::mem::take(cargo).finish();
                causes.extend(failures);
                Found {
                    causes,
                    tests: cases,
                    parts: Vec::new(),
                }
            }
            Parser::Cargo(cargo) => Found {
                causes: std::mem::take(cargo).finish(),
                ..Found::default()
            },
            Parser::Format(format) => Found {
                causes: std::mem::take(format).finish(),
                ..Found::default()
            },
            Parser::Gates(gates) => {
                let (causes, parts) = std::mem::take(gates).finish();
                Found {
                    causes,
                    parts,
                    ..Found::default()
                }
            }
            Parser::Other => Found::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lines::Splitter;
    use super::*;
    use crate::model::cause::{CauseKind, TestCounts, TestStatus};

    fn read(step: Step, folder: &str, output: &str) -> (Vec<String>, Found, Activity) {
        let mut reader = Reader::new(step, Path::new(folder));
        let mut splitter = Splitter::default();
        let mut log = Vec::new();
        splitter.push(output, |piece| log.extend(reader.read(piece)));
        splitter.end(|piece| log.extend(reader.read(piece)));
        let activity = reader.activity().clone();
        (log, reader.finish(), activity)
    }

    #[test]
    fn reads_a_failing_test_with_its_panic_and_place() {
        let output = "\
\u{1b}[K   Compiling api v1.2.3 (/work/src/api)
    Finished `test` profile [unoptimized + debuginfo] target(s) in 0.31s
     Running unittests src/main.rs (/work/target/debug/deps/api-0123456789abcdef)

running 3 tests
test tests::adds ... FAILED
test tests::one ... ok
test tests::slow ... ignored, needs a server

failures:

---- tests::adds stdout ----
some output

thread 'tests::adds' (42) panicked at api/src/main.rs:12:9:
assertion `left == right` failed
  left: 1
 right: 2
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace


failures:
    tests::adds

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

error: test failed, to rerun pass `-p api --bin api`
   Doc-tests api

running 1 test
test api/src/lib.rs - double (line 3) ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.20s

error: 1 target failed:
    `-p api --bin api`
";
        let (log, found, activity) = read(Step::Test, "", output);
        assert_eq!(log[0], "   Compiling api v1.2.3 (api)");
        let results: Vec<_> = found
            .tests
            .iter()
            .map(|test| (&*test.suite, &*test.name, test.status))
            .collect();
        assert_eq!(
            results,
            [
                ("api src/main.rs", "tests::adds", TestStatus::Failed),
                ("api src/main.rs", "tests::one", TestStatus::Passed),
                ("api src/main.rs", "tests::slow", TestStatus::Ignored),
                (
                    "api doc tests",
                    "api/src/lib.rs - double (line 3)",
                    TestStatus::Passed
                ),
            ]
        );
        assert!(found.tests[0].output.starts_with("some output\n"));
        let [cause] = &found.causes[..] else {
            panic!("{:?}", found.causes)
        };
        assert_eq!(cause.kind, CauseKind::Test);
        assert_eq!(cause.title, "tests::adds");
        assert_eq!(
            cause.location.as_ref().unwrap().to_string(),
            "api/src/main.rs:12:9"
        );
        assert_eq!(
            cause.detail,
            "assertion `left == right` failed\n  left: 1\n right: 2"
        );
        assert_eq!(activity.tests.run(), 3);
    }

    #[test]
    fn places_are_relative_to_the_working_tree() {
        let output = "     Running unittests src/main.rs (/work/target/debug/deps/api-01)\n\nrunning 1 test\n\
            test a ... FAILED\n\nfailures:\n\n---- a stdout ----\n\nthread 'a' panicked at src/main.rs:2:3:\nbad\n\n\
            failures:\n    a\n\ntest result: FAILED. 0 passed; 1 failed\n";
        let (_, found, _) = read(Step::Test, "backend/shop", output);
        assert_eq!(
            found.causes[0].location.as_ref().unwrap().file,
            "backend/shop/src/main.rs"
        );
    }

    #[test]
    fn reads_a_binary_that_crashed_and_one_without_libtest() {
        let output = "\
\u{20}    Running tests/crash.rs (/work/target/debug/deps/crash-01)

running 2 tests
test fine ... ok
memory allocation of 9 bytes failed
error: test failed, to rerun pass `-p api --test crash`

Caused by:
  process didn't exit successfully: `/work/target/debug/deps/crash-01` (signal: 6, SIGABRT: process abort signal)
     Running tests/own.rs (/work/target/debug/deps/own-01)
checked 12 things
     Running tests/bad.rs (/work/target/debug/deps/bad-01)
thing 3 is wrong
error: test failed, to rerun pass `-p api --test bad`

Caused by:
  process didn't exit successfully: `/work/target/debug/deps/bad-01` (exit status: 1)
";
        let (_, found, _) = read(Step::Test, "", output);
        let causes: Vec<_> = found
            .causes
            .iter()
            .map(|cause| (cause.kind, &*cause.title))
            .collect();
        assert_eq!(
            causes,
            [
                (
                    CauseKind::TestBinary,
                    "crash tests/crash.rs (signal: 6, SIGABRT: process abort signal)"
                ),
                (CauseKind::TestBinary, "bad tests/bad.rs (exit status: 1)"),
            ]
        );
        assert!(found.causes[0].detail.contains("memory allocation of 9"));
        assert!(found.causes[1].detail.contains("thing 3 is wrong"));
        let names: Vec<_> = found
            .tests
            .iter()
            .map(|test| (&*test.name, test.status))
            .collect();
        assert_eq!(
            names,
            [
                ("fine", TestStatus::Passed),
                ("own", TestStatus::Passed),
                ("bad", TestStatus::Failed),
            ]
        );
    }

    #[test]
    fn uncaptured_output_does_not_hide_a_result() {
        let output = "     Running unittests src/main.rs (/t/deps/api-01)\nrunning 2 tests\ntest a ... the test runs\nok\n\
            test b ... ok\ntest result: ok. 2 passed\n";
        let (_, found, _) = read(Step::Test, "", output);
        assert_eq!(TestCounts::of(&found.tests).passed, 2);
    }

    #[test]
    fn knows_when_cargo_has_compiled_everything() {
        let mut reader = Reader::new(Step::Test, Path::new(""));
        for (line, has_compiled) in [
            ("   Compiling api v1.2.3 (/work/src/api)", false),
            (r#"{"reason":"build-finished","success":true}"#, true),
            ("running 2 tests", true),
        ] {
            reader.read(Piece::Line(line));
            assert_eq!(reader.has_compiled(), has_compiled, "{line}");
        }
    }

    #[test]
    fn reads_errors_of_the_compiler_from_json() {
        let message = serde_json::json!({
            "package_id": "path+file:///work/src/api#1.2.3",
            "manifest_path": "/work/src/api/Cargo.toml",
            "target": {"kind": ["bin"], "crate_types": ["bin"], "name": "api", "src_path": "/work/src/api/src/main.rs",
                "edition": "2024", "doc": true, "doctest": false, "test": true},
            "message": {
                "rendered": "error[E0308]: mismatched types\n --> api/src/main.rs:3:5\n  |\n3 |     \"a\"\n\n",
                "$message_type": "diagnostic",
                "children": [],
                "code": {"code": "E0308", "explanation": null},
                "level": "error",
                "message": "mismatched types",
                "spans": [{"file_name": "api/src/main.rs", "byte_start": 1, "byte_end": 2, "line_start": 3, "line_end": 3,
                    "column_start": 5, "column_end": 8, "is_primary": true, "text": [], "label": null,
                    "suggested_replacement": null, "suggestion_applicability": null, "expansion": null}],
            }
        });
        // Cargo begins each message with its reason.
        let message = message
            .to_string()
            .replacen('{', "{\"reason\":\"compiler-message\",", 1);
        let output = format!(
            "   Compiling api v1.2.3 (/work/src/api)\n    Building [====>   ] 3/12: api\r\u{1b}[K{message}\n{message}\n\
            error: could not compile `api` (bin \"api\") due to 1 previous error\n"
        );
        let (log, found, activity) = read(Step::Lint, "", &output);
        assert_eq!(log[1], "error[E0308]: mismatched types");
        assert_eq!(log[2], " --> api/src/main.rs:3:5");
        let [cause] = &found.causes[..] else {
            panic!("{:?}", found.causes)
        };
        assert_eq!(cause.title, "mismatched types [E0308]");
        assert_eq!(
            cause.location.as_ref().unwrap().to_string(),
            "api/src/main.rs:3:5"
        );
        let crates = activity.crates.unwrap();
        assert_eq!((crates.done, crates.all), (3, 12));
        assert!(!log.iter().any(|line| line.contains("reason")), "{log:?}");
        assert!(!log.iter().any(|line| line.contains("Building")), "{log:?}");
    }

    #[test]
    fn reads_errors_of_cargo_itself() {
        let output = "   Compiling openssl-sys v0.9.0\nerror: failed to run custom build command for `openssl-sys v0.9.0`\n\n\
            Caused by:\n  process didn't exit successfully: `/work/target/debug/build/x` (exit status: 101)\n  --- stderr\n  \
            Could not find directory of OpenSSL installation\n";
        let (_, found, _) = read(Step::Build, "", output);
        let [cause] = &found.causes[..] else {
            panic!("{:?}", found.causes)
        };
        assert_eq!(
            cause.title,
            "the build script of `openssl-sys v0.9.0` failed"
        );
        assert!(cause.detail.contains("OpenSSL"), "{}", cause.detail);
    }

    #[test]
    fn reads_the_files_that_rustfmt_would_change() {
        let output = "Diff in /work/src/api/src/main.rs:1:\n // a\n-fn main() { }\n+fn main() {}\n \nDiff in /work/src/api/src/main.rs:9:\n-a\n+b\n\
            Diff in /work/src/api/build.rs:4:\n-x\n+y\n";
        let (log, found, _) = read(Step::Fmt, "", output);
        assert_eq!(log[0], "Diff in api/src/main.rs:1:");
        let causes: Vec<_> = found
            .causes
            .iter()
            .map(|cause| {
                (
                    &*cause.title,
                    cause.location.as_ref().unwrap().to_string(),
                    &*cause.detail,
                )
            })
            .collect();
        assert_eq!(
            causes,
            [
                (
                    "not formatted in 2 places",
                    "api/src/main.rs:2".to_owned(),
                    "-fn main() { }\n+fn main() {}"
                ),
                ("not formatted", "api/build.rs:4".to_owned(), "-x\n+y"),
            ]
        );
    }

    #[test]
    fn reads_syntax_errors_from_rustfmt() {
        let output = "error: expected one of `!` or `::`, found `(`\n --> /work/src/api/src/main.rs:3:4\n  |\n3 | fn\n\n";
        let (_, found, _) = read(Step::Fmt, "", output);
        assert_eq!(
            found.causes[0].location.as_ref().unwrap().to_string(),
            "api/src/main.rs:3:4"
        );
    }

    #[test]
    fn reads_the_results_of_the_projects_own_gates() {
        let output = "gate first\nfine\ngate first passed in 120 ms\ngate second\nno such filegate second failed with exit code 3 after 7 ms\n";
        let (_, found, _) = read(Step::Custom, "", output);
        let names: Vec<_> = found.parts.iter().map(|part| &*part.name).collect();
        assert_eq!(names, ["first", "second"]);
        assert_eq!(found.causes[0].title, "gate second, exit code 3");
        assert_eq!(found.causes[0].detail, "no such file");
    }

    #[test]
    fn notices_that_a_command_is_idle() {
        let mut reader = Reader::new(Step::Test, Path::new(""));
        let report = format!("{IDLE}33");
        assert!(reader.read(Piece::Transient(&report)).is_empty());
        assert_eq!(reader.idle(), Duration::from_secs(33));
        reader.read(Piece::Line("test a ... ok"));
        assert_eq!(reader.idle(), Duration::ZERO);
    }

    #[test]
    fn says_what_a_step_waits_for() {
        let mut reader = Reader::new(Step::Lint, Path::new(""));
        reader.read(Piece::Line(WAITING));
        assert!(reader.activity().waiting_for.is_some());
        reader.read(Piece::Line("   Compiling a v1"));
        assert_eq!(reader.activity().waiting_for, None);
    }
}
