//! What may go wrong with the store.

use super::schema::FORMAT;
use std::path::PathBuf;

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// Another hub runs on this directory.
    #[error("{0}: in use by another dunlin-hub; stop it, or choose another --data")]
    Locked(PathBuf),
    /// The engine said no.
    #[error("store: {0}")]
    Engine(heed::Error),
    /// A record does not read back. Never treated as absent.
    #[error("the store is corrupt: a record of `{table}` does not read back; restore a backup")]
    Corrupt {
        /// The table.
        table: &'static str,
    },
    /// The file is shorter than what its header says.
    #[error("{path}: the store is corrupt: {bytes} bytes where {wanted} are in use; restore a backup")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// What the header says.
        wanted: u64,
    },
    /// The redo log is missing, or is shorter than it was made.
    #[error(
        "{0}: missing or cut, and it may hold what was acknowledged last: put it back, or restore a backup"
    )]
    NoRedo(PathBuf),
    /// Nobody commits what was acknowledged.
    #[error("the store's writer stands still")]
    StandsStill,
    /// A record was written by a newer hub.
    #[error(
        "the store has a record of `{table}` in version {found}, which a newer dunlin-hub wrote: run that one, or newer"
    )]
    Record {
        /// The table.
        table: &'static str,
        /// The version found.
        found: u8,
    },
    /// It was written by a newer hub.
    #[error("the store has format {found}, this hub reads format {}: run a newer dunlin-hub", FORMAT)]
    Format {
        /// The number found.
        found: u32,
    },
}

impl StoreError {
    /// Whether there was no room: in the map or on the disk.
    pub fn is_full(&self) -> bool {
        match self {
            StoreError::Engine(heed::Error::Mdb(e)) => *e == heed::MdbError::MapFull,
            StoreError::Engine(heed::Error::Io(source)) | StoreError::Io { source, .. } => {
                matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

impl From<heed::Error> for StoreError {
    fn from(error: heed::Error) -> Self {
        StoreError::Engine(error)
    }
}
