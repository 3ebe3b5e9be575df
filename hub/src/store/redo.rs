//! The redo log: what was acknowledged since the engine's last commit, so that an acknowledgement waits for the disk once.
//!
//! A file of one length, written over from its start after each commit of the engine: to add to it changes nothing of the file
//! system's own. A record is the log's mark (16 bytes), the length of its body (4, little-endian), the first 16 bytes of the
//! SHA-256 of both and the body, and the body: changes, one after the other. The mark is drawn anew for each commit of the
//! engine and stored in it: so what was written before that commit counts for nothing, and nothing that is stored can pass for
//! a record. The first that is not whole ends the log: nobody was told of it. Each begins a block of its own, so that writing one
//! never writes again what was acknowledged: a power cut may leave anything of what is being written.

use super::StoreError;
use super::schema::Table;
use ring::digest::{Context, SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Length of the file, in bytes.
pub(super) const BYTES: u64 = 512 * 1024;
/// Changes that it holds at most: each may cost the engine a page in memory until its next commit.
pub(super) const CHANGES_MAX: u32 = 2048;
/// Bytes of a record before its body.
const HEAD: usize = MARK + 4 + SUM;
const MARK: usize = 16;
/// Where records begin, and what the log is filled in, in bytes.
const BLOCK: usize = 4096;
const SUM: usize = 16;

/// Says which records count.
pub(super) type Mark = [u8; MARK];

/// One change of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change<'a> {
    /// A row is there with this value.
    Put(Table, &'a [u8], &'a [u8]),
    /// A row is gone.
    Delete(Table, &'a [u8]),
    /// Every row between two keys is gone, they too.
    DeleteRange(Table, &'a [u8], &'a [u8]),
}

impl Change<'_> {
    /// Appends it to a body: kind, table, lengths of both parts, the parts.
    pub(super) fn write_to(self, body: &mut Vec<u8>) {
        let (kind, table, first, second) = match self {
            Change::Put(table, key, value) => (0, table, key, value),
            Change::Delete(table, key) => (1, table, key, &[][..]),
            Change::DeleteRange(table, first, last) => (2, table, first, last),
        };
        body.extend([kind, table as u8]);
        body.extend((first.len() as u32).to_le_bytes());
        body.extend((second.len() as u32).to_le_bytes());
        body.extend(first);
        body.extend(second);
    }
}

/// The changes in a body, in order; `None` for one that no hub wrote, and nothing after it.
pub(super) fn changes(mut body: &[u8]) -> impl Iterator<Item = Option<Change<'_>>> {
    std::iter::from_fn(move || {
        (!body.is_empty()).then(|| {
            let change = change(&mut body);
            if change.is_none() {
                body = &[];
            }
            change
        })
    })
}

fn change<'a>(body: &mut &'a [u8]) -> Option<Change<'a>> {
    let mut take = |n: usize| -> Option<&'a [u8]> {
        let (taken, rest) = body.split_at_checked(n)?;
        *body = rest;
        Some(taken)
    };
    let kind = take(2)?;
    let (first, second) = (number(take(4)?)?, number(take(4)?)?);
    let (first, second) = (take(first)?, take(second)?);
    let table = *Table::ALL.get(usize::from(kind[1]))?;
    match kind[0] {
        0 => Some(Change::Put(table, first, second)),
        1 => Some(Change::Delete(table, first)),
        2 => Some(Change::DeleteRange(table, first, second)),
        _ => None,
    }
}

fn number(bytes: &[u8]) -> Option<usize> {
    Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
}

/// The open log.
#[derive(Debug)]
pub(super) struct Redo {
    file: File,
    path: PathBuf,
    mark: Mark,
    end: u64,
    changes: u32,
    sync: bool,
}

impl Redo {
    /// Opens the log in `dir` whose mark the engine knows; makes it when the engine knows none. `sync` is whether to wait for
    /// the disk.
    ///
    /// # Errors
    /// The file system's, or that a log is missing that may hold what was acknowledged.
    pub(super) fn open(dir: &Path, mark: Option<Mark>, sync: bool) -> Result<Self, StoreError> {
        let path = dir.join("redo");
        let io = |source| StoreError::Io { path: path.clone(), source };
        let mut options = File::options();
        options.read(true).write(true).create(mark.is_none()).truncate(false).mode(0o600);
        let file = match options.open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(StoreError::NoRedo(path)),
            file => file.map_err(io)?,
        };
        if mark.is_some() && file.metadata().map_err(io)?.len() < BYTES {
            return Err(StoreError::NoRedo(path));
        }
        if mark.is_none()
            && let Ok(data) = std::fs::metadata(dir.join("data.mdb"))
            && file.metadata().map_err(io)?.uid() != data.uid()
        {
            // `doctor` may be the first to open a store after an upgrade, and run by root.
            std::os::unix::fs::fchown(&file, Some(data.uid()), Some(data.gid())).map_err(io)?;
        }
        let redo = Self { file, path, mark: mark.unwrap_or_default(), end: 0, changes: 0, sync };
        if mark.is_none() {
            redo.blank()?;
        }
        Ok(redo)
    }

    /// Fills the log with zeros: nothing in it counts any more.
    ///
    /// Written, not only made longer: so a record is put where there is room already, and its sync waits for less. In small
    /// pieces, and after the kernel has dropped what it keeps of the file: it keeps a file in pieces as large as they were read
    /// or written, and goes through all of one for each record that is added to it (50 us more of 320 with Linux 6.18).
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn blank(&self) -> Result<(), StoreError> {
        let blank = || -> std::io::Result<()> {
            let _only_advice = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
            for at in (0..BYTES).step_by(BLOCK) {
                self.file.write_all_at(&[0; BLOCK], at)?;
            }
            if self.sync {
                self.file.sync_all()?;
                self.path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())?;
            }
            Ok(())
        };
        blank().map_err(|source| StoreError::Io { path: self.path.clone(), source })
    }

    /// Whether it holds records.
    pub(super) fn is_used(&self) -> bool {
        self.end > 0
    }

    /// Whether a body with so many changes fits.
    pub(super) fn fits(&self, body: usize, changes: u32) -> bool {
        self.end + (HEAD + body) as u64 <= BYTES && self.changes + changes <= CHANGES_MAX
    }

    /// Adds a body that [fits](Self::fits): it is on the disk then.
    ///
    /// # Errors
    /// The file system's; whether the record is there is not known then, and the mark has to change.
    pub(super) fn append(&mut self, body: &[u8], changes: u32) -> Result<(), StoreError> {
        let mut record = Vec::with_capacity(HEAD + body.len());
        record.extend(self.mark);
        record.extend((body.len() as u32).to_le_bytes());
        record.extend(sum(&self.mark, body));
        record.extend(body);
        let mut written = self.file.write_all_at(&record, self.end);
        if self.sync {
            written = written.and_then(|()| self.file.sync_data());
        }
        written.map_err(|source| StoreError::Io { path: self.path.clone(), source })?;
        self.end += record.len().next_multiple_of(BLOCK) as u64;
        self.changes += changes;
        Ok(())
    }

    /// The bodies of what was added, in order: what this process knows of, or else what there is.
    ///
    /// # Errors
    /// The file system's, and that what this process knows of does not read back.
    pub(super) fn bodies(&self, known: bool) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut bytes = vec![0; if known { self.end } else { BYTES } as usize];
        let read = self.file.read_exact_at(&mut bytes, 0);
        read.map_err(|source| StoreError::Io { path: self.path.clone(), source })?;
        let mut rest = bytes.as_slice();
        let bodies = std::iter::from_fn(|| body(&self.mark, &mut rest).map(<[u8]>::to_vec)).collect();
        if known && !rest.is_empty() {
            return Err(StoreError::Corrupt { table: "redo" });
        }
        Ok(bodies)
    }

    /// A mark for the log after the engine's next commit.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(super) fn draw(&self) -> Result<Mark, StoreError> {
        let mut mark = Mark::default();
        SystemRandom::new().fill(&mut mark).map_err(|_| StoreError::Io {
            path: self.path.clone(),
            source: std::io::Error::other("no random numbers from the system"),
        })?;
        Ok(mark)
    }

    /// Where the next record goes, and its mark.
    #[cfg(test)]
    pub(super) fn place(&self) -> (usize, Mark) {
        (self.end as usize, self.mark)
    }

    /// The engine has everything, and this mark: the log is empty.
    pub(super) fn restart(&mut self, mark: Mark) {
        (self.mark, self.end, self.changes) = (mark, 0, 0);
    }
}

fn sum(mark: &Mark, body: &[u8]) -> [u8; SUM] {
    let mut hash = Context::new(&SHA256);
    hash.update(mark);
    hash.update(&(body.len() as u32).to_le_bytes());
    hash.update(body);
    let mut sum = [0; SUM];
    sum.copy_from_slice(&hash.finish().as_ref()[..SUM]);
    sum
}

/// The next record's body, when it is whole.
fn body<'a>(mark: &Mark, rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (head, after) = rest.split_at_checked(HEAD)?;
    let (body, _) = after.split_at_checked(number(&head[MARK..MARK + 4])?)?;
    let end = (HEAD + body.len()).next_multiple_of(BLOCK);
    let whole = head[..MARK] == *mark && head[MARK + 4..] == sum(mark, body);
    whole.then(|| *rest = rest.get(end..).unwrap_or_default())?;
    Some(body)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_the_disk_holds_is_records_from_the_start(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..2000), 1..8),
            harm in proptest::collection::vec((0usize..40_000, any::<u8>()), 0..4),
            cut in proptest::option::of(0usize..40_000),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut redo = Redo::open(dir.path(), None, false).unwrap();
            let mark = redo.draw().unwrap();
            redo.restart(mark);
            for body in &bodies {
                prop_assert!(redo.fits(body.len(), 1));
                redo.append(body, 1).unwrap();
            }
            prop_assert_eq!(&redo.bodies(true).unwrap(), &bodies);
            let mut bytes = std::fs::read(&redo.path).unwrap();
            let mut whole = usize::MAX;
            for (at, byte) in harm {
                if bytes[at] != byte {
                    whole = whole.min(at);
                }
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes[cut..].fill(0);
                whole = whole.min(cut);
            }
            std::fs::write(&redo.path, &bytes).unwrap();
            let found = Redo::open(dir.path(), Some(mark), false).unwrap().bodies(false).unwrap();
            let safe = bodies.iter().enumerate().take_while(|(n, body)| n * BLOCK + HEAD + body.len() <= whole);
            prop_assert!(found.len() >= safe.count() && found == bodies[..found.len()]);
            let other = Redo::open(dir.path(), Some([7; MARK]), false).unwrap();
            prop_assert!(other.bodies(false).unwrap().is_empty());
        }

        #[test]
        fn a_body_of_anything_is_changes_or_an_end(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let read = changes(&body).count();
            prop_assert!(read <= body.len());
        }
    }

    #[test]
    fn changes_come_back_as_they_were() {
        let all = [
            Change::Put(Table::Tasks, b"key", b"value"),
            Change::Delete(Table::Live, b""),
            Change::DeleteRange(Table::Outputs, b"a", b"b"),
            Change::Put(Table::History, b"", b""),
        ];
        let mut body = Vec::new();
        all.iter().for_each(|change| change.write_to(&mut body));
        assert_eq!(changes(&body).collect::<Option<Vec<_>>>().unwrap(), all);
        body.truncate(body.len() - 1);
        assert_eq!(changes(&body).last(), Some(None));
    }

    #[test]
    fn a_log_is_made_for_the_owner_of_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let data = File::create(dir.path().join("data.mdb")).unwrap();
        if std::os::unix::fs::fchown(&data, Some(4711), Some(4712)).is_err() {
            return println!("skipped: to give files away needs root");
        }
        let redo = Redo::open(dir.path(), None, false).unwrap();
        let made = redo.file.metadata().unwrap();
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o777), (4711, 4712, 0o600));
    }

    #[test]
    fn a_log_that_is_gone_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let said = || Redo::open(dir.path(), Some([1; MARK]), false).unwrap_err().to_string();
        assert!(said().contains("redo") && said().contains("restore a backup"), "{}", said());
        std::fs::write(dir.path().join("redo"), b"short").unwrap();
        assert!(said().contains("restore a backup"), "{}", said());
    }
}
