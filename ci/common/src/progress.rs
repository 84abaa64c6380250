//! Progress of long-running preparations. Only the `report` module prints it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Receives the progress of a long-running preparation.
pub trait Progress: Send + Sync {
    /// Called when a part begins. `what` describes it and states its usual duration.
    fn begin(&self, what: &str);
    /// Called for each line of output of the current tool. It belongs to the part `what`, or else to the one that began last.
    fn line(&self, what: Option<&str>, line: &str);
    /// Called when the part has succeeded.
    fn done(&self, what: &str, took: Duration);
    /// Called when the part has ended without success, and something else is tried.
    fn gave_up(&self, what: &str);
    /// Called with a message that the user should see immediately.
    fn notice(&self, text: &str);
}

/// Discards all progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn gave_up(&self, _: &str) {}
    fn begin(&self, _: &str) {}
    fn line(&self, _: Option<&str>, _: &str) {}
    fn done(&self, _: &str, _: Duration) {}
    fn notice(&self, _: &str) {}
}

/// Keeps only the last notice, for callers that report it in another way.
#[derive(Debug, Default)]
pub struct LastNotice(Mutex<String>);

impl LastNotice {
    /// Returns the last notice, or an empty string if there was none.
    #[must_use]
    pub fn into_text(self) -> String {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for LastNotice {
    fn gave_up(&self, _: &str) {}
    fn begin(&self, _: &str) {}
    fn line(&self, _: Option<&str>, _: &str) {}
    fn done(&self, _: &str, _: Duration) {}
    fn notice(&self, text: &str) {
        text.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Preparations one after another, while others run at the same time: each line belongs to the part that began last among these.
pub struct Branch<'a> {
    progress: &'a dyn Progress,
    open: Mutex<Vec<String>>,
}

impl<'a> Branch<'a> {
    /// A branch without any part.
    #[must_use]
    pub fn of(progress: &'a dyn Progress) -> Self {
        let open = Mutex::default();
        Self { progress, open }
    }

    fn open(&self) -> MutexGuard<'_, Vec<String>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Branch<'_> {
    fn begin(&self, what: &str) {
        self.open().push(what.to_owned());
        self.progress.begin(what);
    }

    fn line(&self, what: Option<&str>, line: &str) {
        let last = self.open().last().cloned();
        self.progress.line(what.or(last.as_deref()), line);
    }

    fn done(&self, what: &str, took: Duration) {
        self.open().retain(|open| open != what);
        self.progress.done(what, took);
    }

    fn gave_up(&self, what: &str) {
        self.open().retain(|open| open != what);
        self.progress.gave_up(what);
    }

    fn notice(&self, text: &str) {
        self.progress.notice(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps the lines with their parts.
    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl Progress for Lines {
        fn begin(&self, _: &str) {}
        fn line(&self, what: Option<&str>, line: &str) {
            let what = what.unwrap_or("?");
            let mut lines = self.0.lock().expect("no panic");
            lines.push(format!("{what}: {line}"));
        }
        fn done(&self, _: &str, _: Duration) {}
        fn gave_up(&self, _: &str) {}
        fn notice(&self, _: &str) {}
    }

    #[test]
    fn lines_of_two_branches_belong_to_their_own_parts() {
        let lines = Lines::default();
        let (engine, image) = (Branch::of(&lines), Branch::of(&lines));
        engine.line(None, "too early");
        engine.begin("engine");
        image.begin("image");
        engine.line(None, "go build");
        image.begin("packages");
        image.line(None, "apt-get");
        image.done("packages", Duration::ZERO);
        image.line(None, "debootstrap");
        assert_eq!(
            *lines.0.lock().expect("no panic"),
            [
                "?: too early",
                "engine: go build",
                "packages: apt-get",
                "image: debootstrap",
            ]
        );
    }
}
