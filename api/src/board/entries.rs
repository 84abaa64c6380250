//! The entries of a board. A reload of the configuration replaces checks, but the index of a name never changes, so that tasks and
//! requests can keep it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use crate::checks::Check;

/// The entries of a board with records of type `R`, by index.
#[derive(Debug)]
pub(super) struct Entries<R>(RwLock<Arc<Lists<R>>>);

/// A check with its record.
#[derive(Debug)]
pub(super) struct Entry<R> {
    pub(super) check: Arc<Check>,
    /// Shared with the entry of the same check before a reload.
    pub(super) record: Arc<Mutex<R>>,
}

#[derive(Debug)]
pub(super) struct Lists<R> {
    /// The entries of all checks since the start, by index. Those of removed checks stay, in case that they return.
    all: Vec<Arc<Entry<R>>>,
    /// The indices of the configured checks, in the order of the configuration.
    configured: Vec<usize>,
    /// The indices of the configured checks by their names.
    names: HashMap<String, usize>,
}

impl<R> Entries<R> {
    /// The entries of `checks`, each with the result of `record`.
    pub(super) fn new(checks: Vec<Check>, record: impl Fn() -> R) -> Self {
        let nothing = Lists {
            all: Vec::new(),
            configured: Vec::new(),
            names: HashMap::new(),
        };
        Self(RwLock::new(Arc::new(nothing.with(checks, record))))
    }

    /// The entry at `index`, also that of a check that was removed.
    pub(super) fn get(&self, index: usize) -> Option<Arc<Entry<R>>> {
        self.lists().all.get(index).cloned()
    }

    /// The index of the configured check called `name`.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.lists().names.get(name).copied()
    }

    /// The configured checks with their indices, in the order of the configuration.
    pub(super) fn configured(&self) -> Vec<(usize, Arc<Entry<R>>)> {
        let lists = self.lists();
        let indices = lists.configured.iter().copied();
        indices
            .filter_map(|index| Some((index, lists.all.get(index)?.clone())))
            .collect()
    }

    /// The lists with `checks` as the configured checks.
    pub(super) fn with(&self, checks: Vec<Check>, record: impl Fn() -> R) -> Lists<R> {
        self.lists().with(checks, record)
    }

    /// Replaces the lists by `lists`.
    pub(super) fn replace(&self, lists: Lists<R>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(lists);
    }

    /// The current lists.
    pub(super) fn lists(&self) -> Arc<Lists<R>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl<R> Lists<R> {
    /// The entries of all checks since the start, by index.
    pub(super) fn all(&self) -> &[Arc<Entry<R>>] {
        &self.all
    }

    /// A check keeps the record of its name; a new one gets the result of `record`.
    fn with(&self, checks: Vec<Check>, record: impl Fn() -> R) -> Self {
        let mut all = self.all.clone();
        let known: HashMap<String, usize> = all
            .iter()
            .enumerate()
            .map(|(index, entry)| (entry.check.name.clone(), index))
            .collect();
        let mut configured = Vec::with_capacity(checks.len());
        let mut names = HashMap::with_capacity(checks.len());
        for check in checks {
            let name = check.name.clone();
            let index = known.get(&name).copied().unwrap_or(all.len());
            match all.get_mut(index) {
                Some(entry) if *entry.check == check => {}
                Some(entry) => {
                    *entry = Arc::new(Entry {
                        check: Arc::new(check),
                        record: entry.record.clone(),
                    });
                }
                None => all.push(Arc::new(Entry {
                    check: Arc::new(check),
                    record: Arc::new(Mutex::new(record())),
                })),
            }
            configured.push(index);
            names.insert(name, index);
        }
        Self {
            all,
            configured,
            names,
        }
    }
}
