//! What the steps were made from when they last passed, in a file of the report directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::inputs::{Inputs, LastPass, Reason, Why};
use crate::model::lockfile::Lockfile;
use crate::model::step::Step;
use common::digest::sha256;
use common::failure::{Failure, OrFail};
use common::file_tree;

/// The name of the file.
const FILE: &str = "passes.json";

/// The passes of earlier runs with this report directory.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    passes: BTreeMap<Step, (LastPass, Inputs)>,
    compiled: BTreeMap<Step, Dependencies>,
    /// The dependencies of this run.
    dependencies: Dependencies,
}

/// What decides whether the dependencies of a workspace must be compiled anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Dependencies {
    /// The digest of `Cargo.lock`.
    pub lock: String,
    /// The name of the toolchain.
    pub toolchain: String,
    /// The engine, which has the compiled dependencies.
    pub engine: String,
}

/// The content of the file. Steps with the same files share their list.
#[derive(Default, Deserialize, Serialize)]
struct Stored {
    passes: BTreeMap<Step, StoredPass>,
    files: BTreeMap<String, Arc<BTreeMap<String, String>>>,
    /// The dependencies that each step has compiled, whether or not it passed.
    #[serde(default)]
    compiled: BTreeMap<Step, Dependencies>,
}

#[derive(Deserialize, Serialize)]
struct StoredPass {
    #[serde(flatten)]
    last: LastPass,
    files: String,
    others: BTreeMap<String, String>,
    engine: String,
}

/// From so many dependencies on, compiling them takes long.
const MANY: usize = 20;

/// Whether compiling the dependencies of a `Cargo.lock` takes long. An invalid file counts as one without dependencies.
#[must_use]
pub(crate) fn has_many_dependencies(lockfile: &str) -> bool {
    let lockfile = Lockfile::parse(lockfile).unwrap_or_default();
    let packages = lockfile.packages.iter();
    packages.filter(|it| it.source.is_some()).count() >= MANY
}

impl History {
    /// Reads the passes of earlier runs, for a run with these dependencies; an unreadable file counts as none.
    #[must_use]
    pub fn load(report_dir: &Path, dependencies: Dependencies) -> Self {
        let path = report_dir.join(FILE);
        let stored: Stored = std::fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let Stored {
            passes,
            files,
            compiled,
        } = stored;
        let pass = |(step, pass): (Step, StoredPass)| {
            let inputs = Inputs {
                files: Arc::clone(files.get(&pass.files)?),
                others: pass.others,
                engine: pass.engine,
            };
            Some((step, (pass.last, inputs)))
        };
        Self {
            passes: passes.into_iter().filter_map(pass).collect(),
            compiled,
            dependencies,
            path,
        }
    }

    /// Whether an earlier run has compiled the dependencies of this run in `step`. The engine may have evicted them since.
    #[must_use]
    pub fn has_compiled(&self, step: Step) -> bool {
        self.compiled.get(&step) == Some(&self.dependencies)
    }

    /// Why a step with these inputs did not reuse an earlier result. `kept` returns the last pass that the runner's cache knows, for
    /// a report directory that is new in each run.
    #[must_use]
    pub fn why(
        &self,
        step: Step,
        inputs: Option<&Inputs>,
        kept: impl FnOnce() -> Option<(LastPass, Inputs)>,
    ) -> Why {
        if !step.definition().cacheable {
            return Why {
                since: self.passes.get(&step).map(|(last, _)| last.clone()),
                reasons: vec![Reason::Always],
            };
        }
        let last = self.passes.get(&step).cloned();
        let last = last.into_iter().chain(kept());
        let last = last.max_by_key(|(last, _)| last.time);
        let reasons = match (&last, inputs) {
            (Some((_, before)), Some(inputs)) => inputs.changes_since(before),
            _ => vec![Reason::First],
        };
        Why {
            since: last.map(|(last, _)| last),
            reasons,
        }
    }

    /// Records the passes of this run and the steps that have compiled its dependencies, and writes the file.
    ///
    /// # Errors
    /// When the file cannot be written (exit code 3).
    pub fn save(
        mut self,
        passes: impl IntoIterator<Item = (Step, LastPass, Inputs)>,
        compiled: impl IntoIterator<Item = Step>,
    ) -> Result<(), Failure> {
        for step in compiled {
            self.compiled.insert(step, self.dependencies.clone());
        }
        for (step, last, inputs) in passes {
            self.passes.insert(step, (last, inputs));
        }
        let mut stored = Stored {
            compiled: self.compiled,
            ..Stored::default()
        };
        for (step, (last, inputs)) in self.passes {
            let list =
                serde_json::to_vec(&*inputs.files).or_environment("cannot list the files")?;
            let files = sha256(&list);
            stored.files.insert(files.clone(), inputs.files);
            stored.passes.insert(
                step,
                StoredPass {
                    last,
                    files,
                    others: inputs.others,
                    engine: inputs.engine,
                },
            );
        }
        let text = serde_json::to_vec(&stored).or_environment("cannot serialize the passes")?;
        file_tree::write_whole(&self.path, &text)
            .or_environment(format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_of_the_workspace_are_no_dependencies() {
        let lockfile = |others: usize| {
            let own = "[[package]]\nname = \"own\"\nversion = \"1.2.3\"\n";
            let other = own.to_owned() + "source = \"registry\"\n";
            own.repeat(MANY) + &other.repeat(others)
        };
        assert!(!has_many_dependencies(&lockfile(MANY - 1)));
        assert!(has_many_dependencies(&lockfile(MANY)));
        assert!(!has_many_dependencies("damaged"));
    }

    #[test]
    fn a_pass_is_known_in_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let files = |digest: &str| Inputs {
            files: Arc::new([("a.rs".to_owned(), digest.to_owned())].into()),
            ..Inputs::default()
        };
        let last = LastPass {
            commit: "4f2a91c".to_owned(),
            time: jiff::Timestamp::UNIX_EPOCH,
        };
        let load = |lock: &str| {
            let lock = lock.to_owned();
            let dependencies = Dependencies {
                lock,
                ..Dependencies::default()
            };
            History::load(folder.path(), dependencies)
        };
        let first = load("same");
        assert_eq!(
            first.why(Step::Test, Some(&files("1")), || None).reasons,
            [Reason::First]
        );
        let passes = [Step::Test, Step::Lint].map(|step| (step, last.clone(), files("1")));
        first.save(passes, []).unwrap();
        let next = load("same");
        let why = next.why(Step::Test, Some(&files("2")), || None);
        assert_eq!(why.since, Some(last));
        assert_eq!(why.to_string(), "a.rs changed since commit 4f2a91c");
        let unchanged = next.why(Step::Lint, Some(&files("1")), || None);
        assert_eq!(unchanged.reasons, [Reason::NotCached]);
        assert_eq!(
            next.why(Step::Fmt, Some(&files("1")), || None).reasons,
            [Reason::First]
        );
        assert_eq!(
            next.why(Step::Smoke, None, || None).reasons,
            [Reason::Always]
        );
        assert!(!next.has_compiled(Step::Test));
        load("same").save([], [Step::Test]).unwrap();
        assert!(load("same").has_compiled(Step::Test));
        assert!(!load("same").has_compiled(Step::Lint));
        assert!(!load("another").has_compiled(Step::Test));
        // The other steps keep their passes.
        load("same").save([], []).unwrap();
        let text = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert_eq!(text.matches("a.rs").count(), 1, "{text}");
        std::fs::write(folder.path().join(FILE), "damaged").unwrap();
        let none = load("same");
        assert_eq!(
            none.why(Step::Test, Some(&files("1")), || None).reasons,
            [Reason::First]
        );
        let kept = |time| {
            let commit = "0123456".to_owned();
            move || Some((LastPass { commit, time }, files("3")))
        };
        let why = none.why(Step::Test, Some(&files("1")), kept(jiff::Timestamp::MIN));
        assert_eq!(why.to_string(), "a.rs changed since commit 0123456");
        let newer = next.why(Step::Test, Some(&files("2")), kept(jiff::Timestamp::MIN));
        assert_eq!(newer.to_string(), "a.rs changed since commit 4f2a91c");
    }
}
