//! What a job says of itself: JSON lines in a file of its scratch directory, which `DUNLIN_REPORT` names.
//!
//! The file is made here and stays open, so it is this one that is read, whatever the job puts in its place.

use super::secret::Redactor;
use crate::clock::BootMs;
use crate::core::told;
use dunlin_wire::report::Told;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

/// Its name.
pub(super) const NAME: &str = ".report";
/// Of a longer file only so much of its end is read, in bytes.
const READ_MAX: u64 = 32 * 1024;
/// How often it is looked whether there is news, in milliseconds.
pub(super) const NEWS_MS: u64 = 1_000;

/// The file, and what it said last. It is looked at, not watched: to close an inotify(7) takes two ticks of the kernel, in
/// which the executor would do nothing else.
pub(super) struct ReportFile {
    file: File,
    // Length and time of the last change, when it was looked at last.
    looked: (BootMs, u64, Option<SystemTime>),
    told: Told,
}

impl ReportFile {
    /// Makes it in `dir`, for a job of `owner`.
    pub(super) fn make(dir: &Path, owner: Option<(u32, u32)>, now: BootMs) -> io::Result<Self> {
        let path = dir.join(NAME);
        let file =
            std::fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        Ok(Self { file, looked: (now, 0, None), told: Told::default() })
    }

    /// What it says, when it is time to look and that is news.
    pub(super) fn news(&mut self, now: BootMs, secrets: &Redactor) -> Option<Told> {
        let (at, length, changed) = self.looked;
        if now < at + NEWS_MS {
            return None;
        }
        let meta = self.file.metadata().ok()?;
        self.looked = (now, meta.len(), meta.modified().ok());
        if meta.len() == 0 || (length, changed) == (self.looked.1, self.looked.2) {
            return None;
        }
        let told = self.read(secrets);
        let is_news = told != self.told;
        self.told.clone_from(&told);
        is_news.then_some(told)
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
