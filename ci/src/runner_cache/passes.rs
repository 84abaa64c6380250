//! What has passed before: a gate's outcome, by all that it depends on.
//!
//! A pass is remembered, a failure never. The key holds everything that the work gets: the toolchain image's digest, the sources that
//! the step is given, the script, its environment, what it has beside it. Nothing is left out because it should not matter.

use std::collections::BTreeMap;
use std::path::Path;

use super::cache::Cache;
use super::key::Key;
use super::pack;
use super::store::Part;
use crate::model::record::{Passed, Record, Status};
use crate::model::step::Step;
use common::failure::{Failure, OrFail};

const LOG: &str = "log";
const OUT: &str = "out";

impl Cache {
    /// What has passed with this key before, and the folder with what it has left. What is damaged is none.
    pub async fn passed_before(&self, key: &Key) -> Option<(Passed, tempfile::TempDir)> {
        let part = Part::Pass(key.step);
        let hex = key.hex();
        let entry = self.store.find(&self.of, part, &hex)?;
        let take = || -> eyre::Result<_> {
            let blob = self.store.blob(entry, &[LOG, OUT])?;
            let all = tempfile::tempdir()?;
            pack::unpack(&blob, all.path())?;
            let out = tempfile::tempdir()?;
            let left = all.path().join(OUT);
            if left.is_dir() {
                copy(&left, out.path())?;
            }
            let log = std::fs::read_to_string(all.path().join(LOG))?;
            Ok((log, out))
        };
        match tokio::task::block_in_place(take) {
            Ok((log, out)) => {
                let passed = Passed {
                    commit: entry.commit.clone(),
                    time: entry.made,
                    log,
                };
                let mut state = self.state();
                state.used.push((part, hex));
                state.before.insert(key.step, passed.clone());
                drop(state);
                Some((passed, out))
            }
            Err(why) => {
                self.ignore(&part, format!("{why:#}"));
                None
            }
        }
    }

    /// Remembers a pass, with what it has left, until the run has ended and the log is whole.
    ///
    /// # Errors
    /// When what it has left cannot be copied.
    pub fn passes(&self, key: Key, left: &Path) -> Result<(), Failure> {
        let cannot = "cannot keep what the step has left";
        let folder = tempfile::tempdir().or_environment(cannot)?;
        copy(left, &folder.path().join(OUT)).or_environment(cannot)?;
        self.state().now.insert(key.step, (key, folder));
        Ok(())
    }

    /// Packs the passes of this run.
    pub(super) fn add_passes(
        &self,
        records: &BTreeMap<Step, Record>,
        log: impl Fn(Step) -> String,
    ) {
        let passes = std::mem::take(&mut self.state().now);
        let passed = |step: &Step| {
            let record = records.get(step);
            record.is_some_and(|record| record.status == Status::Passed)
        };
        for (step, (key, folder)) in passes.into_iter().filter(|(step, _)| passed(step)) {
            let pack = || -> Result<_, Failure> {
                let cannot = "cannot pack what has passed";
                let hex = key.hex();
                std::fs::write(folder.path().join(LOG), log(step)).or_environment(cannot)?;
                let file = self.unfinished_file(&format!("pass-{step}"))?;
                let unpacked = pack::pack(folder.path(), &file).or_environment(cannot)?;
                let entry = self
                    .entry(Part::Pass(step), &hex, String::new(), &file, unpacked)
                    .or_environment(cannot)?;
                Ok((entry, file))
            };
            match tokio::task::block_in_place(pack) {
                Ok(new) => self.state().new.push(new),
                Err(failure) => self.fails("a pass is not remembered", &failure),
            }
        }
    }
}

/// Copies the files of a folder without folders in it.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
