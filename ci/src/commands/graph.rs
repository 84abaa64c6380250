//! The pipeline's own graph, drawn from what the steps themselves say they need.

use crate::model::step::Step;
use crate::settings::Drawing;

/// The graph, as text.
#[must_use]
pub fn draw(drawing: Drawing) -> String {
    match drawing {
        Drawing::Mermaid => mermaid(),
        Drawing::Dot => dot(),
        Drawing::Json => json(),
    }
}

fn edges() -> impl Iterator<Item = (Step, Step)> {
    Step::ALL.into_iter().flat_map(|step| {
        // What a need of a need says already is left out of the picture.
        let needs = step.needs();
        needs
            .iter()
            .filter(move |need| !needs.iter().any(|other| other.needs().contains(need)))
            .map(move |need| (*need, step))
    })
}

fn mermaid() -> String {
    let mut text = String::from("graph TD\n    source([commit])\n");
    for step in Step::ALL {
        text += &format!("    {step}[\"<b>{step}</b><br/>{}\"]\n", step.does());
    }
    for step in Step::ALL.into_iter().filter(|step| step.needs().is_empty()) {
        text += &format!("    source --> {step}\n");
    }
    text += "    event{event}\n    done([success])\n";
    for (from, to) in edges() {
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

fn dot() -> String {
    let mut text = String::from("digraph ci {\n    rankdir = LR\n    node [shape = box]\n");
    for step in Step::ALL {
        text += &format!("    {step} [label = \"{step}\\n{}\"]\n", step.does());
    }
    for (from, to) in edges() {
        let note = if to == Step::Publish {
            " [label = \"push to main\"]"
        } else {
            ""
        };
        text += &format!("    {from} -> {to}{note}\n");
    }
    text + "}\n"
}

fn json() -> String {
    let steps: Vec<_> = Step::ALL
        .into_iter()
        .map(|step| serde_json::json!({ "name": step, "does": step.does(), "needs": step.needs() }))
        .collect();
    format!("{:#}\n", serde_json::json!({ "steps": steps }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_drawn() {
        for drawing in [Drawing::Mermaid, Drawing::Dot, Drawing::Json] {
            let text = draw(drawing);
            for step in Step::ALL {
                assert!(text.contains(step.name()), "{step} in {text}");
            }
        }
    }

    #[test]
    fn the_readme_shows_this_graph() {
        let readme = include_str!("../../../README.md");
        assert!(
            readme.contains(&mermaid()),
            "put the output of `ci graph` into README.md"
        );
    }
}
