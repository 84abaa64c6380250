//! Why the service did not start or had to end.

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};

/// Why the service did not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A variable of the environment holds what it cannot mean.
    #[error("{name}={value:?}: expected {expected}")]
    Setting {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        expected: &'static str,
    },
    /// The address to listen on is taken or not allowed.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address to listen on.
        address: SocketAddr,
        /// The system's word.
        source: io::Error,
    },
    /// The directory of the history is held by another process or cannot be written.
    #[error("cannot keep the history in {}: {reason}", directory.display())]
    History {
        /// The directory.
        directory: PathBuf,
        /// Why.
        reason: String,
    },
    /// Logging was started twice in one process.
    #[error("cannot start logging: {0}")]
    Logging(#[from] tracing_subscriber::util::TryInitError),
    /// The running server failed.
    #[error("the server failed: {0}")]
    Server(#[source] io::Error),
}

impl Error {
    /// 2 where the user's settings are at fault, else 1.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Setting { .. } => 2,
            Self::Listen { .. } | Self::History { .. } | Self::Logging(_) | Self::Server(_) => 1,
        }
    }

    /// Says on stderr what is wrong and gives the exit code.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        // Nobody is left to tell when stderr is closed; the exit code still says it.
        let _ = writeln!(io::stderr(), "error: {self}");
        ExitCode::from(self.exit_code())
    }
}
