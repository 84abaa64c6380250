//! Samples and states that are not on disk yet.

use std::collections::{BTreeMap, VecDeque};

use super::sample::Sample;

/// The maximum number of buffered samples while the disk fails: over two hours of 20 checks every 10 s, in 192 KiB.
pub(super) const MAX_PENDING: usize = 16 * 1024;

/// Samples that may not be written yet, each with the index of its check, and the newest states.
#[derive(Default)]
pub(super) struct Waiting {
    /// The number of samples that were removed; the first sample of the process has number 1.
    pub(super) before: u64,
    pub(super) samples: VecDeque<(u32, Sample)>,
    /// How many of the removed samples were never written, since the disk started to fail.
    pub(super) lost: u64,
    /// By the index of the check.
    states: BTreeMap<u32, State>,
}

/// The state of a check after a sample.
#[derive(Clone)]
pub(super) struct State {
    /// The number of the sample.
    number: u64,
    /// The time of the sample, in seconds since the epoch.
    pub(super) seconds: u32,
    pub(super) json: Box<str>,
}

impl Waiting {
    /// Adds a sample, and the state of the check after it. Drops the oldest sample if there are too many.
    pub(super) fn add(&mut self, index: u32, sample: Sample, state: Option<String>) {
        if self.samples.len() == MAX_PENDING {
            self.samples.pop_front();
            self.before += 1;
            self.lost += 1;
        }
        self.samples.push_back((index, sample));
        if let Some(json) = state {
            let state = State {
                number: self.before + self.samples.len() as u64,
                seconds: sample.seconds,
                json: json.into(),
            };
            self.states.insert(index, state);
        }
    }

    /// The samples with their numbers.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (u64, u32, Sample)> {
        (self.before + 1..)
            .zip(&self.samples)
            .map(|(number, (index, sample))| (number, *index, *sample))
    }

    /// The states that may not be written yet.
    pub(super) fn states(&self) -> Vec<(u32, State)> {
        let states = self.states.iter();
        states
            .map(|(index, state)| (*index, state.clone()))
            .collect()
    }

    /// Removes all samples up to `number`, and the states after them.
    pub(super) fn forget(&mut self, number: u64) {
        while self.before < number && self.samples.pop_front().is_some() {
            self.before += 1;
        }
        self.states.retain(|_, state| state.number > number);
    }
}
