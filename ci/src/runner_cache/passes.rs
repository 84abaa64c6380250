//! Steps that passed before with the same inputs.
//!
//! Only passes are cached, never failures. The key contains all inputs of a step: the toolchain image's digest, the step's
//! sources, the script, its environment and its services. No input is left out on the assumption that it does not matter.

use std::collections::BTreeMap;
use std::path::Path;

use super::cache::Cache;
use super::key::Key;
use super::pack;
use super::store::Part;
use crate::model::inputs::{Inputs, LastPass};
use crate::model::record::{PriorPass, Record, Status};
use crate::model::step::Step;
use common::failure::{Failure, OrFail};
use common::scratch;

const LOG: &str = "log";
const OUT: &str = "out";
const INPUTS: &str = "inputs.json";
/// Everything that the entry of a pass contains.
const TOPS: [&str; 3] = [LOG, OUT, INPUTS];

impl Cache {
    /// Finds an earlier pass with this key, and unpacks its output files into a directory. A damaged entry is ignored.
    pub async fn passed_before(&self, key: &Key) -> Option<(PriorPass, tempfile::TempDir)> {
        let part = Part::Pass(key.step);
        let hex = key.hex();
        let entry = self.store.find(&self.of, part, &hex)?;
        let unpack = || -> eyre::Result<_> {
            let blob = self.store.blob(entry, &TOPS)?;
            let all = scratch::folder()?;
            pack::unpack(&blob, all.path())?;
            let out = scratch::folder()?;
            let output = all.path().join(OUT);
            if output.is_dir() {
                copy(&output, out.path())?;
            }
            let log = std::fs::read_to_string(all.path().join(LOG))?;
            Ok((log, out))
        };
        match tokio::task::block_in_place(unpack) {
            Ok((log, out)) => {
                let passed = PriorPass {
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

    /// The newest pass of a step, with any key, and what the step was made from then. A damaged entry counts as none.
    #[must_use]
    pub fn last_pass(&self, step: Step) -> Option<(LastPass, Inputs)> {
        let entry = self.store.newest(&self.of, Part::Pass(step))?;
        let read = || -> eyre::Result<Inputs> {
            let blob = self.store.blob(entry, &TOPS)?;
            let all = scratch::folder()?;
            pack::unpack(&blob, all.path())?;
            let text = std::fs::read(all.path().join(INPUTS))?;
            Ok(serde_json::from_slice(&text)?)
        };
        let last = LastPass {
            commit: entry.commit.clone(),
            time: entry.made,
        };
        Some((last, tokio::task::block_in_place(read).ok()?))
    }

    /// Records a pass, its inputs and its output files until the end of the run, when the log is complete.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn record_pass(&self, key: Key, inputs: &Inputs, output: &Path) -> Result<(), Failure> {
        let cannot = "cannot copy the step's output";
        let folder = scratch::folder().or_environment(cannot)?;
        copy(output, &folder.path().join(OUT)).or_environment(cannot)?;
        let inputs = serde_json::to_vec(inputs).or_environment("cannot list the inputs")?;
        std::fs::write(folder.path().join(INPUTS), inputs).or_environment(cannot)?;
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
                let cannot = "cannot pack a passed step";
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
                Err(failure) => self.report_failure("cannot save a passed step", &failure),
            }
        }
    }
}

/// Copies the files of a directory without subdirectories.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
