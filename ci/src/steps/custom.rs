//! The project's own gates: the commands of `[[gate]]` in `ci.toml`.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::Path;

use generativity::Id;

use super::workspace::{self, Work};
use crate::model::record::{Status, StepPart};
use crate::run::context::RunContext;
use crate::run::execution::StepContext;
use crate::settings::tables::Gate;
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::failure::{ExitCode, Failure, OrFail};

/// The file in which the script says how long each gate took: `NAME MILLISECONDS`.
const TIMES: &str = "gates";

/// All gates that `ci.toml` configures have passed on this run's sources.
#[derive(Debug)]
pub struct Gated<'run, K> {
    _run: Id<'run>,
    _kind: PhantomData<K>,
}

/// The evidence of a project that configures no gate of its own; none where it does.
#[must_use]
pub fn none<'run, K: Kind>(run: &RunContext<K>, source: &Source<'run>) -> Option<Gated<'run, K>> {
    run.settings.gates.is_empty().then(|| Gated {
        _run: source.run(),
        _kind: PhantomData,
    })
}

/// Runs all of them, one after another in one container; one that fails does not keep the others from running.
///
/// # Errors
/// When one of them fails, with the output of all (exit 1).
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
        leaves: true,
        failed: "a gate failed",
        hint: "",
    };
    let done = workspace::run(step, source, work).await;
    let left = done.map_err(|failure| failed(gates, failure))?;
    for part in passed(left.path())? {
        step.part(part);
    }
    Ok(Gated {
        _run: source.run(),
        _kind: PhantomData,
    })
}

/// What the shell does: each gate by itself, whatever the others do.
fn script(gates: &[Gate]) -> Result<String, Failure> {
    let quoted = |text: &str| {
        shlex::try_quote(text)
            .map(std::borrow::Cow::into_owned)
            .or_environment("a command of [[gate]] cannot be handed to a shell")
    };
    let mut script = String::from("mkdir /out\nbad=\n");
    for gate in gates {
        let name = &gate.name;
        let mut command = String::from("env");
        for (key, value) in &gate.env {
            command += &format!(" {key}={}", quoted(value)?);
        }
        command += &format!(" sh -c {}", quoted(&gate.run)?);
        script += &format!(
            r#"echo "gate {name}" >&2
since=$(date +%s%3N)
code=0
{command} || code=$?
echo "{name} $(($(date +%s%3N) - since))" >> /out/{TIMES}
if [ "$code" -ne 0 ]; then echo "gate {name} failed with exit code $code" >&2; bad=yes; fi
"#
        );
    }
    Ok(script + "[ -z \"$bad\" ]\n")
}

/// The failure, by the names of those that failed.
fn failed(gates: &[Gate], failure: Failure) -> Failure {
    let (ExitCode::GateFailed, Some(output)) = (failure.code, &failure.output) else {
        return failure;
    };
    let ended = |gate: &&Gate| {
        let line = format!("gate {} failed with exit code ", gate.name);
        output.lines().any(|said| said.starts_with(&line))
    };
    let failed: Vec<_> = gates.iter().filter(ended).collect();
    let message = match &failed[..] {
        [] => return failure,
        [gate] => format!("the gate {} failed", gate.name),
        gates => {
            let names: Vec<_> = gates.iter().map(|gate| &*gate.name).collect();
            format!("the gates {} failed", names.join(", "))
        }
    };
    let commands: Vec<_> = failed
        .iter()
        .map(|gate| format!("`{}`", gate.run))
        .collect();
    Failure::gate(message)
        .output(output.clone())
        .hint(format!("Run {} here.", commands.join(" and ")))
}

/// The gates that passed, each with its time.
fn passed(left: &Path) -> Result<Vec<StepPart>, Failure> {
    let times = std::fs::read_to_string(left.join(TIMES))
        .or_environment("the engine does not say how long the gates took")?;
    let parts = times.lines().filter_map(|line| {
        let (name, time) = line.split_once(' ')?;
        Some(StepPart {
            name: name.to_owned(),
            status: Status::Passed,
            duration_ms: time.parse().ok()?,
        })
    });
    Ok(parts.collect())
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

    /// Runs the script with a folder in the place of `/out`; returns whether it passed, what it said, and the times.
    fn ran(gates: &[Gate]) -> (bool, String, String) {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let script = script(gates).unwrap();
        let script = script.replace("/out", out.to_str().unwrap());
        let ran = std::process::Command::new("sh")
            .args(["-euc", &script])
            .output()
            .unwrap();
        let said = String::from_utf8(ran.stderr).unwrap();
        let times = std::fs::read_to_string(out.join(TIMES)).unwrap();
        (ran.status.success(), said, times)
    }

    #[test]
    fn runs_each_gate_though_another_fails_and_names_those_that_fail() {
        let gates = [
            gate("first", "exit 3", &[]),
            gate("second", "echo \"it is $A\" >&2", &[("A", "'b' \"c\"")]),
            gate("third", "false", &[]),
        ];
        let (passed, said, times) = ran(&gates);
        assert!(!passed);
        assert!(said.contains("gate second\nit is 'b' \"c\"\n"), "{said}");
        assert_eq!(times.lines().count(), 3, "{times}");
        let failure = failed(&gates, Failure::gate("a gate failed").output(said));
        assert_eq!(failure.to_string(), "the gates first, third failed");
        let hint = failure.hint.unwrap();
        assert_eq!(hint, "Run `exit 3` and `false` here.");

        let (passed, said, _) = ran(&gates[1..2]);
        assert!(passed, "{said}");
    }
}
