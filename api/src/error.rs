//! Why the service did not start or had to end.

use std::{
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
};

use crate::{configuration::Problems, history::OpenError};

/// Why the service did not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings are wrong.
    #[error("{0}")]
    Settings(#[from] Problems),
    /// The certificates of private authorities cannot be read.
    #[error("SSL_CERT_FILE: {0}")]
    Authorities(String),
    /// The address to listen on is taken or not allowed.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address to listen on.
        address: SocketAddr,
        /// The system's word.
        source: io::Error,
    },
    /// The directory of the history is held by another process or cannot be written.
    #[error(transparent)]
    History(#[from] OpenError),
    /// Logging was started twice in one process.
    #[error("cannot start logging: {0}")]
    Logging(#[from] tracing_subscriber::util::TryInitError),
    /// There is no thread, or no file descriptor, to run on.
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
    /// The running server failed.
    #[error("the server failed: {0}")]
    Server(#[source] io::Error),
    /// The service that was asked for its health did not say that it has it.
    #[error("not healthy: {0}")]
    Unhealthy(String),
    /// Nobody reads what was to be said.
    #[error("cannot write: {0}")]
    Output(#[source] io::Error),
}

impl Error {
    /// 2 where the user's settings are at fault, else 1.
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

    /// Says on stderr what is wrong and gives the exit code.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        let mut stderr = io::stderr();
        // Nobody is left to tell when stderr is closed; the exit code still says it.
        let _ = match self {
            // Each line begins with its place, as editors read it.
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
    fn a_history_that_cannot_be_kept_exits_with_code_1_and_says_where_and_why() {
        let error = Error::from(OpenError {
            directory: "/data".into(),
            reason: "it is full".into(),
        });
        assert_eq!(error.exit_code(), 1);
        assert_eq!(
            error.to_string(),
            "cannot keep the history in /data: it is full"
        );
    }
}
