//! Errors that end the program.

use std::{
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
};

use crate::{configuration::Problems, history::OpenError};

/// An error that ends the program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings are invalid.
    #[error("{0}")]
    Settings(#[from] Problems),
    /// The CA certificates in the file that `SSL_CERT_FILE` names cannot be read.
    #[error("SSL_CERT_FILE: {0}")]
    Authorities(String),
    /// The address to listen on is in use or not permitted.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address to listen on.
        address: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The directory of the history is locked by another process or not writable.
    #[error(transparent)]
    History(#[from] OpenError),
    /// Logging was already started in this process.
    #[error("cannot start logging: {0}")]
    Logging(#[from] tracing_subscriber::util::TryInitError),
    /// The runtime cannot be created, for example because there is no free file descriptor.
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
    /// The running server failed.
    #[error("the server failed: {0}")]
    Server(#[source] io::Error),
    /// `api healthcheck` found that the service is not healthy.
    #[error("not healthy: {0}")]
    Unhealthy(String),
    /// Standard output is closed.
    #[error("cannot write to stdout: {0}")]
    Output(#[source] io::Error),
}

impl Error {
    /// The exit code: 2 for invalid settings, otherwise 1.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Settings(_) | Self::Authorities(_) => 2,
            Self::Listen { .. }
            | Self::History(_)
            | Self::Logging(_)
            | Self::Runtime(_)
            | Self::Server(_)
            | Self::Unhealthy(_)
            | Self::Output(_) => 1,
        }
    }

    /// Prints the error to stderr and returns the exit code.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        let mut stderr = io::stderr();
        // If stderr is closed, the exit code is the only report.
        let _ = match self {
            // Each line starts with FILE:LINE:COLUMN, a format that editors recognize.
            Self::Settings(problems) => writeln!(stderr, "{problems}"),
            _ => writeln!(stderr, "error: {self}"),
        };
        ExitCode::from(self.exit_code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_why_the_history_cannot_be_stored_with_exit_code_1() {
        let error = Error::from(OpenError {
            directory: "/data".into(),
            reason: "disk full".into(),
        });
        assert_eq!(error.exit_code(), 1);
        assert_eq!(
            error.to_string(),
            "cannot store the history in /data: disk full"
        );
    }
}
