//! What a job says of itself: JSON lines in a file of its scratch directory, which `DUNLIN_REPORT` names.
//!
//! The file is made here and stays open, so it is this one that is read, whatever the job puts in its place.

use super::secret::Redactor;
use super::sys;
use crate::clock::BootMs;
use crate::core::told;
use dunlin_wire::report::Told;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Its name.
pub(super) const NAME: &str = ".report";
/// Of a longer file only so much of its end is read, in bytes.
const READ_MAX: u64 = 32 * 1024;
/// Least time between two pieces of news, in milliseconds.
const NEWS_MS: u64 = 1_000;

/// The file, and what it said last.
pub(super) struct ReportFile {
    file: File,
    changes: Option<OwnedFd>,
    changed: bool,
    told: Told,
    told_at: Option<BootMs>,
}

impl ReportFile {
    /// Makes it in `dir`, for a job of `owner`. Where changes cannot be watched it is read at the end only.
    pub(super) fn make(dir: &Path, owner: Option<(u32, u32)>) -> io::Result<Self> {
        let path = dir.join(NAME);
        let file =
            std::fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        let changes = sys::watch_writes(&path).ok();
        Ok(Self { file, changes, changed: false, told: Told::default(), told_at: None })
    }

    pub(super) fn watch(&self) -> Option<libc::pollfd> {
        self.changes.as_ref().map(|fd| sys::input(fd.as_raw_fd()))
    }

    pub(super) fn is_due(&self) -> bool {
        self.changed
    }

    /// What it says, when that is news and the last is not too fresh.
    pub(super) fn news(&mut self, now: BootMs, secrets: &Redactor) -> Option<Told> {
        let mut events = [0; 4096];
        while let Some(Ok(Some(_))) = self.changes.as_ref().map(|fd| sys::read(fd.as_raw_fd(), &mut events)) {
            self.changed = true;
        }
        if !self.changed || self.told_at.is_some_and(|at| now < at + NEWS_MS) {
            return None;
        }
        self.changed = false;
        let told = self.read(secrets);
        if told == self.told {
            return None;
        }
        self.told_at = Some(now);
        self.told = told.clone();
        Some(told)
    }

    /// What it says now, without secrets.
    pub(super) fn read(&self, secrets: &Redactor) -> Told {
        let length = self.file.metadata().map_or(0, |meta| meta.len());
        let from = length.saturating_sub(READ_MAX);
        let mut bytes = vec![0; (length - from) as usize];
        let read = self.file.read_at(&mut bytes, from).unwrap_or(0);
        bytes.truncate(read);
        let mut redactor = secrets.fresh();
        let mut clean = redactor.push(&bytes);
        clean.extend(redactor.finish());
        let text = String::from_utf8_lossy(&clean);
        // The first line of a long file may be the rest of one.
        let skipped = usize::from(from > 0);
        let mut told = Told::default();
        text.lines().skip(skipped).for_each(|line| told::take(&mut told, line));
        told
    }
}
