//! Runs the project's own gates: the commands of `[[gate]]` in `ci.toml`.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::Path;

use generativity::Id;

use super::workspace::{self, Hint, Work};
use crate::model::record::Status;
use crate::model::step::Step;
use crate::output::{Piece, Reader};
use crate::run::context::RunContext;
use crate::run::execution::StepContext;
use crate::settings::tables::Gate;
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::failure::{ExitCode, Failure, OrFail};

/// Evidence that all gates in `ci.toml` passed on this run's sources.
#[derive(Debug)]
pub struct Gated<'run, K> {
    _run: Id<'run>,
    _kind: PhantomData<K>,
}

/// The evidence of a project without gates of its own; `None` if it has some.
#[must_use]
pub fn without_gates<'run, K: Kind>(
    run: &RunContext<K>,
    source: &Source<'run>,
) -> Option<Gated<'run, K>> {
    run.settings.gates.is_empty().then(|| Gated {
        _run: source.run(),
        _kind: PhantomData,
    })
}

/// Runs all gates one after another in one container. After a failure the other gates still run.
///
/// # Errors
/// When a gate fails, with the output of all gates (exit code 1).
pub async fn run<'run, K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'run>,
) -> Result<Gated<'run, K>, Failure> {
    let gates = &step.run.settings.gates;
    let work = Work {
        script: &script(gates)?,
        env: BTreeMap::new(),
        services: None,
        program: None,
        writes_out: false,
        failed: "a gate failed",
        hint: Hint::Text(""),
    };
    let done = workspace::run(step, source, work).await;
    done.map_err(|failure| {
        failed(gates, failure, |commands| {
            workspace::reproduce(step, commands)
        })
    })?;
    Ok(Gated {
        _run: source.run(),
        _kind: PhantomData,
    })
}

/// The shell script that runs all gates, whether or not others fail. `output` reads the lines that it prints about each gate.
fn script(gates: &[Gate]) -> Result<String, Failure> {
    let quoted = |text: &str| {
        shlex::try_quote(text)
            .map(std::borrow::Cow::into_owned)
            .or_environment("cannot quote a command of [[gate]] for the shell")
    };
    let mut script = String::from("bad=\n");
    for gate in gates {
        let name = &gate.name;
        let mut command = String::from("env");
        for (key, value) in &gate.env {
            command += &format!(" {key}={}", quoted(value)?);
        }
        command += &format!(" sh -c {}", quoted(&gate.run)?);
        script += &format!(
            r#"echo "gate {name}"
since=$(date +%s%3N)
code=0
{command} || code=$?
took=$(($(date +%s%3N) - since))
if [ "$code" -eq 0 ]; then echo "gate {name} passed in $took ms"
else echo "gate {name} failed with exit code $code after $took ms"; bad=yes
fi
"#
        );
    }
    Ok(script + "[ -z \"$bad\" ]\n")
}

/// The failure, with the names of the failed gates, and the hint for their commands.
fn failed(gates: &[Gate], failure: Failure, hint: impl Fn(&str) -> String) -> Failure {
    let (ExitCode::GateFailed, Some(output)) = (failure.code, &failure.output) else {
        return failure;
    };
    let mut reader = Reader::new(Step::Custom, Path::new(""));
    for line in output.lines() {
        reader.read(Piece::Line(line));
    }
    let results = reader.finish().parts;
    let has_failed = |gate: &&Gate| {
        let mut failures = results.iter().filter(|it| it.status == Status::Failed);
        failures.any(|result| result.name == gate.name)
    };
    let failed: Vec<_> = gates.iter().filter(has_failed).collect();
    let message = match &failed[..] {
        [] => return failure,
        [gate] => format!("gate {} failed", gate.name),
        gates => {
            let names: Vec<_> = gates.iter().map(|gate| &*gate.name).collect();
            format!("gates {} failed", names.join(", "))
        }
    };
    let commands: Vec<_> = failed
        .iter()
        .map(|gate| format!("`{}`", gate.run))
        .collect();
    Failure::gate(message)
        .output(output.clone())
        .hint(hint(&commands.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(name: &str, run: &str, env: &[(&str, &str)]) -> Gate {
        let env = env
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()));
        Gate {
            name: name.into(),
            run: run.into(),
            packages: Vec::new(),
            env: env.collect(),
        }
    }

    /// Runs the script; returns whether it passed, and its output.
    fn run_script(gates: &[Gate]) -> (bool, String) {
        let script = format!("exec 2>&1\n{}", script(gates).unwrap());
        let output = std::process::Command::new("sh")
            .args(["-euc", &script])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.success(), text)
    }

    #[test]
    fn runs_every_gate_and_names_the_failed_ones() {
        let gates = [
            gate("first", "exit 3", &[]),
            gate("second", "echo \"it is $A\" >&2", &[("A", "'b' \"c\"")]),
            gate("third", "false", &[]),
        ];
        let (passed, output) = run_script(&gates);
        assert!(!passed);
        assert!(
            output.contains("gate second\nit is 'b' \"c\"\ngate second passed in "),
            "{output}"
        );
        let failure = failed(
            &gates,
            Failure::gate("a gate failed").output(output),
            str::to_owned,
        );
        assert_eq!(failure.to_string(), "gates first, third failed");
        let hint = failure.hint.unwrap();
        assert_eq!(hint, "`exit 3` and `false`");

        let (passed, output) = run_script(&gates[1..2]);
        assert!(passed, "{output}");
    }
}
