//! The sources of one run, and the part that each step reads.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use generativity::Id;

use super::checkout::Checkout;
use super::paths::Paths;
use super::snapshot::Snapshot;
use crate::model::step::Step;
use common::failure::{Failure, OrFail};
use common::file_tree;

/// The sources of one run.
#[derive(Debug)]
pub struct Source<'run> {
    id: Id<'run>,
    checkout: Checkout,
    snapshot: Snapshot,
    by_step: Mutex<BTreeMap<Option<Step>, Arc<StepSources>>>,
}

impl<'run> Source<'run> {
    /// Creates the sources of the run that `guard` identifies.
    #[must_use]
    pub fn new(guard: generativity::Guard<'run>, checkout: Checkout, snapshot: Snapshot) -> Self {
        Self {
            id: guard.into(),
            checkout,
            snapshot,
            by_step: Mutex::default(),
        }
    }

    /// Returns the files for `step`: those that `paths` includes, or all files if it has no entry for the step.
    ///
    /// # Errors
    /// When the files cannot be read (exit code 3).
    pub fn for_step(
        &self,
        step: Step,
        paths: &BTreeMap<Step, Paths>,
    ) -> Result<Arc<StepSources>, Failure> {
        let paths = paths.get(&step);
        let mut cached = self.by_step.lock().unwrap_or_else(PoisonError::into_inner);
        // Steps without `paths` share one entry.
        let key = paths.is_some().then_some(step);
        if let Some(sources) = cached.get(&key) {
            return Ok(Arc::clone(sources));
        }
        let new = Arc::new(StepSources::new(&self.snapshot, paths)?);
        cached.insert(key, Arc::clone(&new));
        Ok(new)
    }

    pub(crate) fn run(&self) -> Id<'run> {
        self.id
    }

    /// Returns the checkout that the sources come from.
    #[must_use]
    pub fn checkout(&self) -> &Checkout {
        &self.checkout
    }

    /// Returns all files, without the limits of `paths`.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

/// The sources of a step.
#[derive(Debug)]
pub struct StepSources {
    /// The directory that contains the files.
    pub path: PathBuf,
    /// The digest of the directory: see [`file_tree::digest`].
    pub digest: String,
    files: OnceLock<Arc<BTreeMap<String, String>>>,
    /// Keeps the directory; `None` if the step reads the whole snapshot.
    _folder: Option<Snapshot>,
}

impl StepSources {
    /// Selects the files of a snapshot that `paths` includes, or all files if it is `None`.
    ///
    /// # Errors
    /// When the files cannot be read or copied (exit code 3).
    pub fn new(snapshot: &Snapshot, paths: Option<&Paths>) -> Result<Self, Failure> {
        let cannot = "cannot read the sources";
        let folder = match paths {
            None => None,
            Some(paths) => Some(snapshot.filter(|path| paths.includes(path))?),
        };
        let path = folder.as_ref().unwrap_or(snapshot).path().to_owned();
        let digest = file_tree::digest(&path).or_environment(cannot)?;
        Ok(Self {
            path,
            digest,
            files: OnceLock::new(),
            _folder: folder,
        })
    }

    /// Returns the digest of each file, by its path relative to the top of the sources.
    ///
    /// # Errors
    /// When a file cannot be read (exit code 3).
    pub fn files(&self) -> Result<Arc<BTreeMap<String, String>>, Failure> {
        if let Some(files) = self.files.get() {
            return Ok(Arc::clone(files));
        }
        let files = file_tree::digests(&self.path).or_environment("cannot read the sources")?;
        Ok(Arc::clone(self.files.get_or_init(|| Arc::new(files))))
    }
}
