//! Runs the workspace's tests.

use std::marker::PhantomData;

use generativity::Id;

use super::services::Services;
use super::workspace::{self, Hint, MESSAGES, Work};
use crate::run::execution::StepContext;
use crate::settings::Settings;
use crate::settings::cargo::Targets;
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::failure::{Failure, OrFail};

/// The last line of a step whose selection contains no test.
const NO_TEST: &str = "no test is selected";

/// Evidence that the tests passed on this run's sources.
#[derive(Debug)]
pub struct Tested<'run, K> {
    _run: Id<'run>,
    _kind: PhantomData<K>,
}

/// Runs `cargo test --workspace --locked`. In this repository, suites that need an engine, a browser or servers are behind
/// features.
///
/// # Errors
/// When a test fails or does not compile (exit code 1), or a backing service does not start (exit code 3).
pub async fn run<'run, K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'run>,
) -> Result<Tested<'run, K>, Failure> {
    let services = Services::of(step).await?;
    let settings = &step.run.settings;
    for skip in &settings.tests.expired {
        step.notice(&format!("the exception ended, the test runs: {skip}"));
    }
    let commands = Commands::new(settings)?;
    let work = Work {
        script: &commands.script(),
        env: settings.test_env(),
        services: Some(&services),
        program: None,
        writes_out: false,
        failed: "the tests failed",
        hint: Hint::Reproduce(&commands.shown()),
    };
    let done = workspace::run(step, source, work).await;
    done.map_err(|failure| match &failure.output {
        Some(output) if output.trim_end().ends_with(NO_TEST) => Failure::gate(
            "the selection in ci.toml contains no test",
        )
        .output(output.clone())
        .hint(
            "Change test.exclude, test.targets or [[test.skip]], so that at least one test runs.",
        ),
        _ => failure,
    })?;
    Ok(Tested {
        _run: source.run(),
        _kind: PhantomData,
    })
}

/// The calls of cargo.
struct Commands {
    calls: Vec<Call>,
    /// Whether `ci.toml` leaves out some tests.
    is_narrowed: bool,
}

/// A call of cargo.
struct Call {
    cargo: String,
    targets: Targets,
    /// The arguments of the test binaries.
    arguments: String,
}

impl Commands {
    fn new(settings: &Settings) -> Result<Self, Failure> {
        let tests = &settings.tests;
        let cargo = format!(
            "cargo test --workspace --locked{}{}",
            settings.cargo.features.arguments(),
            tests.selection.packages()
        );
        let mut arguments = String::new();
        for skip in &tests.skips {
            let name = shlex::try_quote(&skip.name)
                .or_environment("cannot quote the name of a test for the shell")?;
            if arguments.is_empty() {
                arguments += " --exact";
            }
            arguments += &format!(" --skip {name}");
        }
        let targets = tests.selection.targets();
        let targets = targets.unwrap_or_else(|| vec![Targets::All]);
        let call = |targets: Targets| Call {
            cargo: format!("{cargo}{}", targets.arguments()),
            targets,
            arguments: arguments.clone(),
        };
        Ok(Self {
            calls: targets.into_iter().map(call).collect(),
            is_narrowed: !tests.narrowings().is_empty(),
        })
    }

    /// The shell script. Every call runs, whether or not another fails.
    fn script(&self) -> String {
        let mut script = String::from("code=0 listed=0\n");
        for Call {
            cargo,
            targets,
            arguments,
        } in &self.calls
        {
            // Compiled separately, because the tests' output must not be mixed with cargo's JSON messages.
            if *targets != Targets::Doc {
                script += &format!("using {cargo} --no-run {MESSAGES}\n");
            }
            if self.is_narrowed {
                script += &format!(
                    "listed=$((listed + $({cargo} --quiet -- --list{arguments} 2>/dev/null | grep -c ': test$' || true)))\n"
                );
            }
        }
        if self.is_narrowed {
            script += &format!("[ \"$listed\" -gt 0 ] || {{ echo {NO_TEST:?}; exit 1; }}\n");
        }
        for call in &self.calls {
            script += &format!("{} --no-fail-fast{} || code=$?\n", call.cargo, call.after());
        }
        script + "exit \"$code\"\n"
    }

    /// The commands for a person.
    fn shown(&self) -> String {
        let shown = |call: &Call| format!("`{}{}`", call.cargo, call.after());
        let calls: Vec<_> = self.calls.iter().map(shown).collect();
        calls.join(" and ")
    }
}

impl Call {
    /// The arguments of the test binaries, after `--`.
    fn after(&self) -> String {
        if self.arguments.is_empty() {
            String::new()
        } else {
            format!(" --{}", self.arguments)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_runs_and_a_narrowed_one_needs_a_test() {
        let call = |targets, arguments: &str| Call {
            cargo: "cargo test".to_owned(),
            targets,
            arguments: arguments.to_owned(),
        };
        let all = Commands {
            calls: vec![call(Targets::All, "")],
            is_narrowed: false,
        };
        assert!(!all.script().contains("--list"), "{}", all.script());
        assert_eq!(all.shown(), "`cargo test`");
        let some = Commands {
            calls: vec![
                call(Targets::All, " --exact --skip 'a b'"),
                call(Targets::Doc, ""),
            ],
            is_narrowed: true,
        };
        let script = some.script();
        assert_eq!(script.matches("--no-run").count(), 1, "{script}");
        assert_eq!(script.matches("-- --list").count(), 2, "{script}");
        assert_eq!(script.matches("|| code=$?").count(), 2, "{script}");
        assert_eq!(
            some.shown(),
            "`cargo test -- --exact --skip 'a b'` and `cargo test`"
        );
    }
}
