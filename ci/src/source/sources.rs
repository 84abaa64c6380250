//! The sources of one run, and the part of them that each step is given.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use generativity::Id;

use super::checkout::{Checkout, Snapshot};
use super::paths::Paths;
use crate::model::step::Step;
use common::failure::{Failure, OrFail};
use common::file_tree;

/// The sources of one run.
#[derive(Debug)]
pub struct Source<'run> {
    id: Id<'run>,
    checkout: Checkout,
    snapshot: Snapshot,
    given: Mutex<BTreeMap<Option<Step>, Arc<Given>>>,
}

impl<'run> Source<'run> {
    /// The sources of the run that `guard` stands for.
    #[must_use]
    pub fn new(guard: generativity::Guard<'run>, checkout: Checkout, snapshot: Snapshot) -> Self {
        Self {
            id: guard.into(),
            checkout,
            snapshot,
            given: Mutex::default(),
        }
    }

    /// The files that `step` is given: those that `paths` says, or all.
    ///
    /// # Errors
    /// When they cannot be read (exit 3).
    pub fn given(&self, step: Step, paths: &BTreeMap<Step, Paths>) -> Result<Arc<Given>, Failure> {
        let paths = paths.get(&step);
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        // All who are given everything share it.
        let whose = paths.is_some().then_some(step);
        if let Some(there) = given.get(&whose) {
            return Ok(Arc::clone(there));
        }
        let new = Arc::new(Given::new(&self.snapshot, paths)?);
        given.insert(whose, Arc::clone(&new));
        Ok(new)
    }

    /// The run.
    pub(crate) fn run(&self) -> Id<'run> {
        self.id
    }

    /// The commit and its state.
    #[must_use]
    pub fn checkout(&self) -> &Checkout {
        &self.checkout
    }

    /// The files.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

/// The sources as a step is given them.
#[derive(Debug)]
pub struct Given {
    /// Where they lie.
    pub path: PathBuf,
    /// The digest of all of them: names, kinds, rights, content.
    pub digest: String,
    /// They lie here as long as this lives; nowhere of their own where the step is given all.
    _folder: Option<Snapshot>,
}

impl Given {
    /// What `paths` leaves of a snapshot; all of it where nothing is said.
    ///
    /// # Errors
    /// When it cannot be read or copied.
    pub fn new(snapshot: &Snapshot, paths: Option<&Paths>) -> Result<Self, Failure> {
        let cannot = "cannot look through the sources";
        let folder = match paths {
            None => None,
            Some(paths) => Some(snapshot.only(|path| paths.has(path))?),
        };
        let path = folder.as_ref().unwrap_or(snapshot).path().to_owned();
        let digest = file_tree::digest(&path).or_environment(cannot)?;
        Ok(Self {
            path,
            digest,
            _folder: folder,
        })
    }
}
