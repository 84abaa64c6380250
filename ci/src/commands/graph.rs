//! `ci graph`: draws the pipeline's steps and their dependencies.

use crate::model::step::Step;
use crate::report;
use crate::settings::{Drawing, Invocation};
use crate::source::checkout::Checkout;
use crate::source::project::{self, Project};
use crate::trust::authority::GitHub;
use common::failure::{ExitCode, Failure};

/// Draws the steps of the current project, or those of every project if there is none.
///
/// # Errors
/// When `--format` is unknown (exit code 2).
pub(super) fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let steps = project_steps(invocation).unwrap_or_else(|failure| {
        tracing::debug!("no project: {failure}");
        let always = Step::all().iter().copied();
        always.filter(|step| !step.definition().optional).collect()
    });
    report::data(&draw(invocation.drawing()?, &steps));
    Ok(ExitCode::Success)
}

fn project_steps(invocation: &Invocation) -> Result<Vec<Step>, Failure> {
    let directory = invocation.directory()?;
    let root = Checkout::discover(&directory)?.root;
    let project = Project::find(&root, &project::path_below_root(&root, &directory)?)?;
    let folder = root.join(&project.folder);
    let file = invocation.read_file(&folder)?;
    // --format has the graph's format, which is not valid for a run.
    let settings = invocation.without_format().settings(
        &folder,
        &project,
        file.as_deref(),
        &GitHub::from_env(invocation.options.release_branch.as_deref()),
    )?;
    let mut steps = Step::all().to_vec();
    steps.retain(|step| settings.has(*step));
    Ok(steps)
}

fn draw(drawing: Drawing, steps: &[Step]) -> String {
    match drawing {
        Drawing::Mermaid => mermaid(steps),
        Drawing::Dot => dot(steps),
        Drawing::Json => json(steps),
    }
}

/// The steps among `steps` that `step` needs.
fn needs(step: Step, steps: &[Step]) -> Vec<Step> {
    let mut needs = step.needs();
    needs.retain(|need| steps.contains(need));
    needs
}

fn edges(steps: &[Step]) -> Vec<(Step, Step)> {
    let mut edges = Vec::new();
    for step in steps {
        let needs = needs(*step, steps);
        // Omits transitive dependencies.
        let direct = |need: &&Step| !needs.iter().any(|other| other.needs().contains(need));
        edges.extend(needs.iter().filter(direct).map(|need| (*need, *step)));
    }
    edges
}

fn mermaid(steps: &[Step]) -> String {
    let mut text = String::from("graph TD\n    source([commit])\n");
    for step in steps {
        let does = step.definition().does;
        text += &format!("    {step}[\"<b>{step}</b><br/>{does}\"]\n");
    }
    for step in steps.iter().filter(|step| step.needs().is_empty()) {
        text += &format!("    source --> {step}\n");
    }
    text += "    event{event}\n    done([success])\n";
    for (from, to) in edges(steps) {
        let to = if to == Step::Publish {
            "event"
        } else {
            to.name()
        };
        text += &format!("    {from} --> {to}\n");
    }
    text += "    event -->|pull request, local| done\n    event -->|push to main| publish\n";
    text
}

fn dot(steps: &[Step]) -> String {
    let mut text = String::from("digraph ci {\n    rankdir = LR\n    node [shape = box]\n");
    for step in steps {
        let does = step.definition().does;
        text += &format!("    {step} [label = \"{step}\\n{does}\"]\n");
    }
    for (from, to) in edges(steps) {
        let note = if to == Step::Publish {
            " [label = \"push to main\"]"
        } else {
            ""
        };
        text += &format!("    {from} -> {to}{note}\n");
    }
    text + "}\n"
}

fn json(steps: &[Step]) -> String {
    let steps: Vec<_> = steps
        .iter()
        .map(|step| {
            let (does, needs) = (step.definition().does, needs(*step, steps));
            serde_json::json!({ "name": step, "does": does, "needs": needs })
        })
        .collect();
    format!("{:#}\n", serde_json::json!({ "steps": steps }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_every_step() {
        for drawing in [Drawing::Mermaid, Drawing::Dot, Drawing::Json] {
            let text = draw(drawing, Step::all());
            for step in Step::all() {
                assert!(text.contains(step.name()), "{step} in {text}");
            }
        }
    }

    #[test]
    fn the_readme_shows_this_graph() {
        let readme = include_str!("../../../README.md");
        assert!(
            readme.contains(&mermaid(Step::all())),
            "put the output of `ci graph` into README.md"
        );
    }
}
