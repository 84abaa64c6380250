//! The output of a step: its log, and what it says.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::turns::Turn;
use crate::engine::telemetry::Listener;
use crate::model::cause::Activity;
use crate::model::step::Step;
use crate::output::{Found, Piece, Reader, Splitter};
use crate::report::Reporter;

/// How the engine begins an output of which it has stored only the end.
const TRUNCATED: &str = "[omitting ";

/// The output of a step so far.
pub(super) struct StepOutput {
    step: Step,
    folder: PathBuf,
    reporter: Arc<Reporter>,
    turn: Weak<Turn>,
    inner: Mutex<Inner>,
}

struct Inner {
    reader: Reader,
    log: String,
    /// What the step itself waits for, before its command runs.
    waiting_for: Option<String>,
}

impl StepOutput {
    /// The empty output of a step on the workspace in `folder`, which tells `turn` when everything is compiled.
    pub(super) fn new(
        step: Step,
        folder: &Path,
        reporter: &Arc<Reporter>,
        turn: Weak<Turn>,
    ) -> Arc<Self> {
        Arc::new(Self {
            step,
            turn,
            folder: folder.to_owned(),
            reporter: Arc::clone(reporter),
            inner: Mutex::new(Inner {
                reader: Reader::new(step, folder),
                log: String::new(),
                waiting_for: None,
            }),
        })
    }

    /// A listener that adds output as it arrives.
    pub(super) fn listener(self: &Arc<Self>) -> Listener {
        let output = Arc::clone(self);
        Arc::new(move |piece: Piece<'_>| output.read(piece))
    }

    fn read(&self, piece: Piece<'_>) {
        let mut inner = self.lock();
        inner.waiting_for = None;
        let lines = inner.reader.read(piece);
        for line in &lines {
            inner.log.push_str(line);
            inner.log.push('\n');
        }
        let activity = inner.activity();
        let has_compiled = inner.reader.has_compiled();
        drop(inner);
        if has_compiled && let Some(turn) = self.turn.upgrade() {
            turn.compiled();
        }
        for line in &lines {
            self.reporter.line_of(self.step, line);
        }
        self.reporter.activity(self.step, activity);
    }

    /// Adds the complete output of a command, if none has arrived: the engine reports no output of cached results, and reports
    /// to nobody in a session that another process has opened.
    pub(super) fn fill(&self, output: &str) {
        if output.is_empty() || !self.lock().log.is_empty() {
            return;
        }
        let mut splitter = Splitter::default();
        splitter.push(output, |piece| self.read(piece));
        splitter.end(|piece| self.read(piece));
    }

    /// Sets the output of the step's only command to what the engine has stored of it. The engine reports output while it arrives,
    /// but drops invalid UTF-8, and everything that it would report together with it. It stores only the end of a very
    /// long output of a failed command; then the reported output is better.
    pub(super) fn complete(&self, stored: &str) {
        if stored.lines().any(|line| line.starts_with(TRUNCATED)) {
            self.fill(stored);
            return;
        }
        let mut inner = self.lock();
        let mut reader = Reader::new(self.step, &self.folder);
        let mut lines = Vec::new();
        let mut splitter = Splitter::default();
        splitter.push(stored, |piece| lines.extend(reader.read(piece)));
        splitter.end(|piece| lines.extend(reader.read(piece)));
        let mut reported: HashMap<&str, usize> = HashMap::new();
        // The engine trims what it has stored.
        for line in inner.log.lines() {
            *reported.entry(line.trim()).or_default() += 1;
        }
        let is_new = |line: &&String| match reported.get_mut(line.trim()) {
            Some(count @ 1..) => {
                *count -= 1;
                false
            }
            _ => true,
        };
        let missing: Vec<_> = lines.iter().filter(is_new).collect();
        // Otherwise what was reported is better, because it has the order of both streams.
        if missing.is_empty() {
            return;
        }
        inner.log = lines.iter().map(|line| format!("{line}\n")).collect();
        inner.reader = reader;
        drop(inner);
        for line in missing {
            self.reporter.line_of(self.step, line);
        }
    }

    /// Shows what the step waits for, until this is called with `None`.
    pub(super) fn wait_for(&self, what: Option<&str>) {
        let mut inner = self.lock();
        inner.waiting_for = what.map(ToOwned::to_owned);
        let activity = inner.activity();
        drop(inner);
        self.reporter.activity(self.step, activity);
    }

    /// How long the step's command has printed nothing and used almost no CPU.
    pub(super) fn idle(&self) -> Duration {
        self.lock().reader.idle()
    }

    /// The last line of output, or an empty string.
    pub(super) fn last_line(&self) -> String {
        self.lock().reader.activity().last_line.clone()
    }

    /// The log so far.
    pub(super) fn log(&self) -> String {
        self.lock().log.clone()
    }

    /// What the output says; call this once, when it is complete.
    pub(super) fn finish(&self) -> Found {
        self.lock().reader.finish()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn activity(&self) -> Activity {
        let mut activity = self.reader.activity().clone();
        if self.waiting_for.is_some() {
            activity.waiting_for.clone_from(&self.waiting_for);
        }
        activity
    }
}
