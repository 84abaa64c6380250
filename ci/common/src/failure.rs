//! What can go wrong, and the exit code that says so.

use std::fmt;

use serde::Serialize;

/// The exit codes of `ci`, as documented in the README.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum ExitCode {
    /// Every gate passed (and the image was published, where it was to be).
    Success = 0,
    /// A gate failed: tests, format, lint, build, smoke, or a scan that saw nothing.
    GateFailed = 1,
    /// Wrong usage or settings.
    Usage = 2,
    /// No engine, registry, network or vulnerability database.
    Environment = 3,
    /// Publishing refused: not allowed here, tag taken by another digest, no permission.
    PublishRefused = 4,
    /// A fixable vulnerability of high or critical severity.
    Vulnerable = 5,
    /// A time limit was reached.
    TimedOut = 124,
    /// Cancelled by SIGINT or SIGTERM.
    Cancelled = 130,
}

impl ExitCode {
    /// With several failures the first that applies of these is the exit code of the run.
    const PRECEDENCE: [Self; 7] = [
        Self::Cancelled,
        Self::TimedOut,
        Self::Environment,
        Self::PublishRefused,
        Self::GateFailed,
        Self::Vulnerable,
        Self::Usage,
    ];

    /// The exit code of a run in which all of `codes` happened.
    #[must_use]
    pub fn of_all(codes: impl IntoIterator<Item = Self>) -> Self {
        let codes: Vec<Self> = codes.into_iter().collect();
        Self::PRECEDENCE
            .into_iter()
            .find(|code| codes.contains(code))
            .unwrap_or(Self::Success)
    }
}

impl std::process::Termination for ExitCode {
    fn report(self) -> std::process::ExitCode {
        std::process::ExitCode::from(self as u8)
    }
}

/// A failure as the person at the terminal needs it: what, the output that matters, and what to do next.
#[derive(Debug)]
pub struct Failure {
    /// The exit code that this failure asks for.
    pub code: ExitCode,
    /// What failed, in one sentence.
    pub message: String,
    /// What the failed program said, where it said something that matters.
    pub output: Option<String>,
    /// What to do next.
    pub hint: Option<String>,
    source: Option<eyre::Report>,
}

impl Failure {
    /// A failure that ends the run with `code`.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            output: None,
            hint: None,
            source: None,
        }
    }

    /// A gate failed (exit 1).
    pub fn gate(message: impl Into<String>) -> Self {
        Self::new(ExitCode::GateFailed, message)
    }

    /// Wrong usage or settings (exit 2).
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, message)
    }

    /// The surroundings do not have what the run needs (exit 3).
    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Environment, message)
    }

    /// Publishing is not allowed (exit 4).
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ExitCode::PublishRefused, message)
    }

    /// The run was cancelled (exit 130).
    #[must_use]
    pub fn cancelled() -> Self {
        Self::new(ExitCode::Cancelled, "cancelled")
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what the failed program said.
    #[must_use]
    pub fn output(mut self, output: impl Into<String>) -> Self {
        self.output = Some(output.into());
        self
    }

    /// Adds the error behind this one.
    #[must_use]
    pub fn because(mut self, source: impl Into<eyre::Report>) -> Self {
        self.source = Some(source.into());
        self
    }
}

/// The message and the whole chain of causes, on one line.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(source) = &self.source {
            write!(f, ": {source:#}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// Turns any error into a [`Failure`] at the place that knows what was being done.
pub trait OrFail<T> {
    /// The error becomes the cause of an [`ExitCode::Environment`] failure.
    ///
    /// # Errors
    /// When `self` is one.
    fn or_environment(self, message: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Into<eyre::Report>> OrFail<T> for Result<T, E> {
    fn or_environment(self, message: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure::environment(message).because(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_order_decides_between_several_failures() {
        use ExitCode::*;
        assert_eq!(ExitCode::of_all([]), Success);
        assert_eq!(ExitCode::of_all([Vulnerable, GateFailed]), GateFailed);
        assert_eq!(
            ExitCode::of_all([GateFailed, PublishRefused]),
            PublishRefused
        );
        assert_eq!(ExitCode::of_all([PublishRefused, Environment]), Environment);
        assert_eq!(ExitCode::of_all([Environment, TimedOut]), TimedOut);
        assert_eq!(ExitCode::of_all([TimedOut, Cancelled]), Cancelled);
    }
}
