//! The engine's file, kept long enough.

use super::StoreError;
use super::redo::CHANGES_MAX;
use heed::{Env, WithoutTls};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Where the first page says how long pages are, in LMDB 0.9 on 64 bits: behind the page's head, magic, version, address
/// and size of the map.
const PAGE_SIZE_AT: u64 = 40;
/// Bytes that the file is made longer by, more than it has to be.
const MORE: u64 = 8 << 20;

/// The engine's file, to keep it long enough.
pub(super) struct Data {
    file: File,
    path: PathBuf,
    page: u64,
    length: AtomicU64,
    no_room: AtomicBool,
}

impl Data {
    /// Checks its length, and makes it long enough.
    pub(super) fn open(env: &Env<WithoutTls>, path: PathBuf) -> Result<Self, StoreError> {
        let io = |source| StoreError::Io { path: path.clone(), source };
        let file = File::options().read(true).write(true).open(&path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        // Pages are as long as the system's were where the store was made, and that stays so elsewhere.
        let mut page = [0; 4];
        file.read_exact_at(&mut page, PAGE_SIZE_AT).map_err(io)?;
        let (page, length) = (u64::from(u32::from_ne_bytes(page)), AtomicU64::new(bytes));
        let data = Self { file, page, length, no_room: AtomicBool::new(true), path };
        let wanted = data.in_use(env);
        if bytes < wanted {
            return Err(StoreError::Truncated { path: data.path, bytes, wanted });
        }
        data.reach_ahead(env);
        data.file.sync_all().map_err(|source| StoreError::Io { path: data.path.clone(), source })?;
        Ok(data)
    }

    pub(super) fn in_use(&self, env: &Env<WithoutTls>) -> u64 {
        (env.info().last_page_number as u64 + 1) * self.page
    }

    /// Bytes that the file is kept longer than what is in use, at least. LMDB counts pages that a transaction took and gave
    /// back, and never writes them: were they the last, the file would end before them, as if it had been cut. And each
    /// change that the redo log holds may need pages here later, two for most.
    pub(super) fn ahead(&self) -> u64 {
        2 * u64::from(CHANGES_MAX) * self.page
    }

    /// To be called after each commit; the next one's wait for the disk makes it last.
    pub(super) fn reach_ahead(&self, env: &Env<WithoutTls>) {
        let (in_use, more) = (self.in_use(env), self.ahead() + MORE);
        if self.length.load(Relaxed) >= in_use + self.ahead() && !self.no_room.load(Relaxed) {
            return;
        }
        let set = self.file.set_len(in_use + more);
        // Taken, where the file system can: an acknowledged change must find room when the engine commits it.
        let taken = rustix::fs::fallocate(&self.file, FallocateFlags::empty(), in_use, more);
        match (set, taken) {
            // Where it cannot be taken ahead, nobody knows.
            (Ok(()), Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS)) => self.no_room.store(false, Relaxed),
            (Ok(()), Err(_)) => self.no_room.store(true, Relaxed),
            // What is there stays: this only leaves the next start a file that it may take for cut.
            (Err(error), _) => {
                self.no_room.store(true, Relaxed);
                return tracing::warn!(%error, path = %self.path.display(), "the store's file could not be made longer");
            }
        }
        self.length.store(in_use + more, Relaxed);
    }

    /// Whether the disk has room for what the engine writes at its next commit, as far as can be known.
    pub(super) fn has_room(&self) -> bool {
        !self.no_room.load(Relaxed)
    }
}
