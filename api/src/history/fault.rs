//! Why the database file cannot be used.

use std::{
    io::{self, ErrorKind},
    panic::{self, AssertUnwindSafe},
};

/// Why the file cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Another process has locked the file.
    #[error(
        "locked by another process, possibly another replica of this service on the same volume; each replica needs its own volume, \
         and a replacement can start only after its predecessor has exited"
    )]
    Locked,
    /// The content of the file is not usable.
    #[error("{0}")]
    Damaged(String),
    /// The file is of this later version of the table layout.
    #[error(
        "written by a newer version of this program: schema {found}, expected at most {supported}"
    )]
    Newer {
        /// The version of the file.
        found: u64,
        /// The version of this program.
        supported: u64,
    },
    /// An error of the operating system.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Fault {
    /// Whether the disk is full.
    pub(super) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
    }
}

impl From<redb::Error> for Fault {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Self::Locked,
            // These kinds mean that the file is not of redb, or truncated.
            redb::Error::Io(error)
                if !matches!(
                    error.kind(),
                    ErrorKind::InvalidData | ErrorKind::UnexpectedEof
                ) =>
            {
                Self::Io(error)
            }
            redb::Error::PreviousIo => Self::Io(io::Error::other(error)),
            error => Self::Damaged(error.to_string()),
        }
    }
}

/// Converts panics into errors, because redb may panic on a damaged file.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, Fault> {
    // Safe, because the file is reopened after a panic.
    panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| {
            let reason = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("redb panicked");
            Err(redb::Error::Corrupted(reason.into()))
        })
        .map_err(Fault::from)
}
