//! The workflow that `ci init` writes: this repository's own, which the tests run, for a workspace that installs `ci`.

use super::needs::Needs;
use crate::commands::version;
use crate::source::project::Project;
use common::pins;

/// The repository from which other workspaces install `ci`.
pub(super) const HOME: &str = env!("CARGO_PKG_REPOSITORY");
/// This repository's own workflow.
const WORKFLOW: &str = include_str!("../../../../.github/workflows/docker-builder.yml");
const FIRST_LINE: &str = "# Checks out the repository and runs `ci`. The pipeline itself is defined in ci/src/pipeline.rs only.";
/// The cache of cargo's downloads and outputs in the jobs that build `ci` from the checkout.
const CARGO_CACHE: &str = "          path: |
            ~/.cargo/registry/index
            ~/.cargo/registry/cache
            target/debug
          key: cargo-${{ runner.os }}-${{ runner.arch }}-${{ hashFiles('Cargo.lock', 'rust-toolchain.toml') }}";

/// The `ci` that the workflow installs.
pub(super) struct Installed {
    /// The full SHA; `None` if the sources of this program are gone.
    commit: Option<String>,
    is_dirty: bool,
}

impl Installed {
    /// The `ci` that is running.
    pub(super) fn this() -> Self {
        let commit = version::program().commit;
        let clean = |sha: &String| sha.trim_end_matches("-dirty").to_owned();
        Self {
            is_dirty: commit.as_ref().is_some_and(|sha| clean(sha) != *sha),
            commit: commit.as_ref().map(clean),
        }
    }

    /// The commit, or a word that a person replaces.
    fn revision(&self) -> &str {
        self.commit.as_deref().unwrap_or("COMMIT")
    }

    /// What a person must do about the commit.
    pub(super) fn task(&self) -> Option<String> {
        match &self.commit {
            None => Some(format!(
                "replace COMMIT in the workflow by the SHA of a commit of {HOME}"
            )),
            Some(sha) if self.is_dirty => Some(format!(
                "check the commit of ci in the workflow: this ci is {sha} with uncommitted changes"
            )),
            Some(_) => None,
        }
    }
}

/// The workflow for `project`, whose pushes to `branch` publish.
pub(super) fn text(project: &Project, branch: &str, needs: &Needs, ci: &Installed) -> String {
    let folder = project.folder.display().to_string();
    let (option, target) = if folder.is_empty() {
        (String::new(), "target".to_owned())
    } else {
        (format!(" --workspace {folder}"), format!("{folder}/target"))
    };
    let revision = ci.revision();
    let tool = format!("{target}/ci-tool");
    // Neither the toolchain of this repository nor what else the runner has.
    let install = format!(
        "|
          rustup toolchain install {rust} --profile minimal --no-self-update
          cargo +{rust} install --locked --root {tool} --git {HOME} --rev {revision} ci",
        rust = pins::RUST
    );
    let mut checkout = String::new();
    if needs.submodules {
        checkout += "\n          submodules: recursive";
    }
    if needs.lfs {
        checkout += "\n          lfs: true";
    }
    WORKFLOW
        .replace(
            FIRST_LINE,
            &format!("# Checks out the repository and runs `ci` ({HOME}), which is configured in ci.toml.\n# The commit of `ci` is fixed. To update it, replace {revision} everywhere."),
        )
        .replace(
            CARGO_CACHE,
            &format!("          path: {tool}\n          key: ci-${{{{ runner.os }}}}-${{{{ runner.arch }}}}-{revision}"),
        )
        .replace("Restore the cargo cache\n        id: cargo\n", "Restore the cargo cache\n")
        .replace("Restore the cargo cache\n", "Restore ci\n        id: ci\n")
        .replace("Save the cargo cache", "Save ci")
        .replace("steps.cargo.", "steps.ci.")
        .replace(
            "Build ci\n        run: cargo build -p ci --locked",
            &format!("Install ci\n        if: steps.ci.outputs.cache-hit != 'true'\n        run: {install}"),
        )
        .replace("cargo run -p ci --locked", &format!("{tool}/bin/ci run{option}"))
        .replace("runs the pull request's own `ci`", "runs the code of the pull request")
        .replace("branches: [main]", &format!("branches: [{branch}]"))
        .replace(
            "persist-credentials: false",
            &format!("persist-credentials: false{checkout}"),
        )
        .replace("path: target/", &format!("path: {target}/"))
        .replace("RUNNER_CACHE: target/", &format!("RUNNER_CACHE: {target}/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workflow(folder: &str, needs: &Needs) -> String {
        let project = Project {
            folder: folder.into(),
            ..Project::default()
        };
        let ci = Installed {
            commit: Some("0123456789".repeat(4)),
            is_dirty: false,
        };
        text(&project, "trunk", needs, &ci)
    }

    #[test]
    fn installs_ci_at_a_commit_and_caches_it() {
        let text = workflow("backend", &Needs::default());
        let sha = "0123456789".repeat(4);
        assert_eq!(
            text.matches(&format!("ci-tool --git {HOME} --rev {sha} ci\n"))
                .count(),
            2,
            "{text}"
        );
        let key = format!("key: ci-${{{{ runner.os }}}}-${{{{ runner.arch }}}}-{sha}\n");
        // Restored in both jobs, and saved in one.
        assert_eq!(text.matches(&key).count(), 3, "{text}");
        let run = "run: backend/target/ci-tool/bin/ci run --workspace backend\n";
        assert_eq!(text.matches(run).count(), 2, "{text}");
        assert_eq!(text.matches("branches: [trunk]").count(), 2);
        for path in [
            "path: backend/target/ci\n",
            "path: backend/target/runner-cache\n",
            "LAB_CI_RUNNER_CACHE: backend/target/runner-cache\n",
            "path: backend/target/ci-tool\n",
        ] {
            assert!(text.contains(path), "{path}");
        }
        for other in [
            "-p ci",
            "pipeline.rs",
            " target/",
            "cargo cache",
            "submodules",
        ] {
            assert!(!text.contains(other), "{other}: {text}");
        }
        let yaml: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        for job in ["pull-request", "main"] {
            let steps = yaml["jobs"][job]["steps"].as_array().unwrap();
            let ids: Vec<_> = steps.iter().filter(|step| step["id"] == "ci").collect();
            assert_eq!(ids.len(), 1, "{job}");
        }
    }

    #[test]
    fn checks_out_what_the_repository_needs() {
        let needs = Needs {
            submodules: true,
            lfs: true,
            ..Needs::default()
        };
        let yaml: serde_json::Value = serde_saphyr::from_str(&workflow("", &needs)).unwrap();
        for job in ["pull-request", "main"] {
            let with = &yaml["jobs"][job]["steps"][0]["with"];
            assert_eq!(with["submodules"], "recursive", "{job}");
            assert_eq!(with["lfs"], true, "{job}");
        }
    }
}
