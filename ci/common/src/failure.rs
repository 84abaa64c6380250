//! Failures and their exit codes.

use std::fmt;

use serde::Serialize;

/// The exit codes of `ci`, as documented in the README.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum ExitCode {
    /// Every gate passed, and the image was published if the run publishes.
    Success = 0,
    /// A gate failed: tests, format, lint, build, smoke test, or a scan that found no packages.
    GateFailed = 1,
    /// Invalid usage or settings.
    Usage = 2,
    /// The engine, registry, network or vulnerability database is unavailable.
    Environment = 3,
    /// Publishing was refused: not allowed here, the tag exists with another digest, or no permission.
    PublishRefused = 4,
    /// The scan found a fixable vulnerability of high or critical severity.
    Vulnerable = 5,
    /// A time limit was reached.
    TimedOut = 124,
    /// The run was cancelled by SIGINT or SIGTERM.
    Cancelled = 130,
}

impl ExitCode {
    /// Every exit code.
    pub const ALL: [Self; 8] = [
        Self::Success,
        Self::GateFailed,
        Self::Usage,
        Self::Environment,
        Self::PublishRefused,
        Self::Vulnerable,
        Self::TimedOut,
        Self::Cancelled,
    ];

    /// If several steps fail, the run exits with the first of these codes that occurred.
    const PRECEDENCE: [Self; 7] = [
        Self::Cancelled,
        Self::TimedOut,
        Self::Environment,
        Self::PublishRefused,
        Self::GateFailed,
        Self::Vulnerable,
        Self::Usage,
    ];

    /// Returns the exit code of a run in which all of `codes` occurred.
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

/// A failure as the user sees it: the message, the relevant output and a suggested fix.
#[derive(Debug)]
pub struct Failure {
    /// The exit code of a run that has only this failure.
    pub code: ExitCode,
    /// What failed: lower case, no full stop.
    pub message: String,
    /// The relevant output of the failed program.
    pub output: Option<String>,
    /// The suggested fix: an imperative sentence.
    pub hint: Option<String>,
    source: Option<eyre::Report>,
}

impl Failure {
    /// Creates a failure with the exit code `code`.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            output: None,
            hint: None,
            source: None,
        }
    }

    /// Creates a failure of a gate (exit code 1).
    pub fn gate(message: impl Into<String>) -> Self {
        Self::new(ExitCode::GateFailed, message)
    }

    /// Creates a failure for invalid usage or settings (exit code 2).
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, message)
    }

    /// Creates a failure for a missing engine, network, registry, file or program (exit code 3).
    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Environment, message)
    }

    /// Creates a failure for a publish that is not allowed (exit code 4).
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ExitCode::PublishRefused, message)
    }

    /// Creates the failure of a cancelled run (exit code 130).
    #[must_use]
    pub fn cancelled() -> Self {
        Self::new(ExitCode::Cancelled, "cancelled")
    }

    /// Adds a suggested fix.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the output of the failed program.
    #[must_use]
    pub fn output(mut self, output: impl Into<String>) -> Self {
        self.output = Some(output.into());
        self
    }

    /// Adds the error that caused this failure.
    #[must_use]
    pub fn because(mut self, source: impl Into<eyre::Report>) -> Self {
        self.source = Some(source.into());
        self
    }
}

/// Formats the message and the chain of causes on one line.
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

/// Converts an error into a [`Failure`] with a message about the failed operation.
pub trait OrFail<T> {
    /// Makes the error the cause of an [`ExitCode::Environment`] failure with this message.
    ///
    /// # Errors
    /// When `self` is an error.
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
    fn several_failures_exit_with_the_code_of_highest_precedence() {
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
