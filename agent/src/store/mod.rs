//! The agent's truth on disk (LMDB, by heed): accepted attempts, their outcomes and kept output, and two counters.
//!
//! A corrupt store is reported and refused, never taken for an empty one. Deliberately absent: decisions.

use crate::event::{Loaded, Record, Write};
use dunlin_wire::Fence;
use dunlin_wire::job::Stream;
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, WithoutTls};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The map's bound, in bytes. The file grows up to it.
const MAP_BYTES: usize = 256 << 20;
/// Above this no new work is accepted, so that accepted work can always end.
const RESERVE_BYTES: u64 = 64 << 20;
/// Version of every record's postcard body; the first byte of each value.
const RECORD: u8 = 1;
/// Format of the whole journal; raised when an older agent could not read it.
const FORMAT: u64 = 1;
/// Where the first page says how long pages are, in LMDB 0.9 on 64 bits: behind the page's head, magic, version, address
/// and size of the map.
const PAGE_SIZE_AT: u64 = 40;

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
    /// The engine said no.
    #[error("journal: {0}")]
    Engine(heed::Error),
    /// A record does not read back.
    #[error(
        "the journal is corrupt: a record of `{0}` does not read back. It may hold results that the hub lacks: \
         keep a copy, then move the journal directory away to start anew"
    )]
    Corrupt(&'static str),
    /// A newer agent wrote it.
    #[error(
        "the journal is of version {found}, this dunlin-agent reads {FORMAT}: run the newer one that wrote it. It may hold \
         results that the hub lacks"
    )]
    Newer {
        /// The version found.
        found: u64,
    },
}

impl From<heed::Error> for StoreError {
    fn from(error: heed::Error) -> Self {
        StoreError::Engine(error)
    }
}

type Table = Database<'static, Bytes, Bytes>;

/// The open store.
pub struct Store {
    env: Env<WithoutTls>,
    meta: Table,
    attempts: Table,
    kept: Table,
}

impl Store {
    /// Opens the journal in `dir`, or makes it.
    ///
    /// # Errors
    /// The file system's, the engine's, `Corrupt`.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|source| StoreError::Io { path: dir.to_owned(), source })?;
        let mut builder = EnvOpenOptions::new().read_txn_without_tls();
        builder.map_size(MAP_BYTES).max_dbs(3).max_readers(16);
        // SAFETY: the agent's lock file keeps every other agent out of the map; `queue` only reads.
        let env = unsafe { builder.flags(EnvFlags::empty()).open(dir) }?;
        let path = dir.join("data.mdb");
        let io = |source| StoreError::Io { path: path.clone(), source };
        let file = File::options().read(true).write(true).open(&path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        if bytes != 0 {
            // Pages are as long as the system's were where the journal was made, and that stays so elsewhere.
            let mut page = [0; 4];
            file.read_exact_at(&mut page, PAGE_SIZE_AT).map_err(io)?;
            let wanted = (env.info().last_page_number as u64 + 1) * u64::from(u32::from_ne_bytes(page));
            if bytes < wanted {
                return Err(StoreError::Corrupt("pages"));
            }
        }
        // LMDB counts pages that a transaction took and gave back, and never writes them: were they the last, the file would
        // end before them, as if it had been cut. So it is as long as it may ever be; what is not written takes no room.
        if bytes < MAP_BYTES as u64 {
            file.set_len(MAP_BYTES as u64).and_then(|()| file.sync_all()).map_err(io)?;
        }
        let txn = env.write_txn()?;
        let tables = env
            .create_databases_and_commit(txn, |opener, txn| {
                let meta = opener.create_database::<Bytes, Bytes>(txn, Some("meta"))?;
                let attempts = opener.create_database::<Bytes, Bytes>(txn, Some("attempts"))?;
                let kept = opener.create_database::<Bytes, Bytes>(txn, Some("kept"))?;
                Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit((meta, attempts, kept)))
            })?
            .unwrap_commit();
        let (meta, attempts, kept) = tables;
        let store = Self { env, meta, attempts, kept };
        store.check_format()?;
        Ok(store)
    }

    /// What was written before there was a format to say has the first.
    fn check_format(&self) -> Result<(), StoreError> {
        let mut txn = self.env.write_txn()?;
        match self.meta.get(&txn, b"format")? {
            Some(bytes) => match bytes.try_into().map(u64::from_be_bytes) {
                Ok(FORMAT) => return Ok(()),
                Ok(found) if found > FORMAT => return Err(StoreError::Newer { found }),
                _ => return Err(StoreError::Corrupt("meta")),
            },
            None => self.meta.put(&mut txn, b"format", &FORMAT.to_be_bytes())?,
        }
        Ok(txn.commit()?)
    }

    /// Everything but the output.
    ///
    /// # Errors
    /// The engine's, `Corrupt`.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let txn = self.env.read_txn()?;
        let number = |name: &str| match self.meta.get(&txn, name.as_bytes())? {
            None => Ok(0),
            Some(bytes) => bytes.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::Corrupt("meta")),
        };
        let mut loaded = Loaded {
            next_claim: number("next_claim")?,
            next_connection: number("next_connection")?,
            ..Loaded::default()
        };
        for row in self.attempts.iter(&txn)? {
            let record = decode(row?.1)?;
            loaded.attempts.insert(record.fence, record);
        }
        Ok(loaded)
    }

    /// Applies `writes` in one transaction that is on the disk when this returns.
    ///
    /// # Errors
    /// The engine's; nothing of `writes` happened then.
    pub fn commit(&self, writes: &[Write]) -> Result<(), StoreError> {
        let mut txn = self.env.write_txn()?;
        for write in writes {
            match write {
                Write::Accepted(record) => {
                    self.attempts.put(&mut txn, &record.fence.0.to_be_bytes(), &encode(record))?;
                }
                Write::Ended { record, kept } => {
                    self.attempts.put(&mut txn, &record.fence.0.to_be_bytes(), &encode(record))?;
                    for (stream, bytes) in Stream::BOTH.into_iter().zip(kept) {
                        if !bytes.is_empty() {
                            self.kept.put(&mut txn, &kept_key(record.fence, stream), bytes)?;
                        }
                    }
                }
                Write::Forget(fence) => {
                    self.attempts.delete(&mut txn, &fence.0.to_be_bytes())?;
                    for stream in Stream::BOTH {
                        self.kept.delete(&mut txn, &kept_key(*fence, stream))?;
                    }
                }
                Write::Claims(next) => self.meta.put(&mut txn, b"next_claim", &next.to_be_bytes())?,
                Write::Connections(next) => {
                    self.meta.put(&mut txn, b"next_connection", &next.to_be_bytes())?
                }
            }
        }
        crate::fault::point("before_commit");
        txn.commit()?;
        crate::fault::point("after_commit");
        Ok(())
    }

    /// An attempt on disk.
    ///
    /// # Errors
    /// The engine's, `Corrupt`.
    pub fn record(&self, fence: Fence) -> Result<Option<Record>, StoreError> {
        let txn = self.env.read_txn()?;
        self.attempts.get(&txn, &fence.0.to_be_bytes())?.map(decode).transpose()
    }

    /// At most `len` kept bytes of a stream from `offset`.
    ///
    /// # Errors
    /// The engine's.
    pub fn kept(&self, fence: Fence, stream: Stream, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        let txn = self.env.read_txn()?;
        let bytes = self.kept.get(&txn, &kept_key(fence, stream))?.unwrap_or_default();
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        Ok(rest[..rest.len().min(len)].to_vec())
    }

    /// Whether there is room for one more outcome beside those that are already promised.
    pub fn has_room(&self) -> bool {
        let Ok(txn) = self.env.read_txn() else { return false };
        let pages = [&self.meta, &self.attempts, &self.kept].map(|table| {
            table.stat(&txn).map_or(u64::MAX / 8, |s| {
                (s.branch_pages + s.leaf_pages + s.overflow_pages) as u64 * u64::from(s.page_size)
            })
        });
        pages.iter().sum::<u64>() + RESERVE_BYTES < MAP_BYTES as u64
    }
}

fn kept_key(fence: Fence, stream: Stream) -> [u8; 9] {
    let mut key = [0; 9];
    key[..8].copy_from_slice(&fence.0.to_be_bytes());
    key[8] = stream as u8;
    key
}

fn encode(record: &Record) -> Vec<u8> {
    postcard::to_extend(record, vec![RECORD]).expect("records always encode: they have no unsized parts")
}

fn decode(bytes: &[u8]) -> Result<Record, StoreError> {
    match bytes.split_first() {
        Some((&RECORD, body)) => postcard::from_bytes(body).map_err(|_| StoreError::Corrupt("attempts")),
        Some((&found, _)) if found > RECORD => Err(StoreError::Newer { found: found.into() }),
        _ => Err(StoreError::Corrupt("attempts")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_wire::ClaimId;
    use dunlin_wire::job::{Delivery, Outcome, Report};

    fn record(fence: u64, ended: bool) -> Record {
        Record {
            fence: Fence(fence),
            task: format!("t{fence}").parse().unwrap(),
            claim: ClaimId(fence),
            attempt: 1,
            boot: [1; 16],
            delivery: Delivery::AtLeastOnce,
            report: ended.then(|| Box::new(Report::without_process(Outcome::Ok))),
        }
    }

    #[test]
    fn what_was_committed_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let writes = [
            Write::Accepted(record(1, false)),
            Write::Accepted(record(2, false)),
            Write::Ended { record: record(2, true), kept: [b"out".to_vec(), vec![7; 5000]] },
            Write::Accepted(record(3, false)),
            Write::Forget(Fence(3)),
            Write::Claims(9),
            Write::Connections(4),
        ];
        let mut want = Loaded::default();
        writes.iter().for_each(|w| want.apply(w));
        Store::open(dir.path()).unwrap().commit(&writes).unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.load().unwrap(), want);
        assert_eq!(store.kept(Fence(2), Stream::Stdout, 1, 100).unwrap(), b"ut");
        assert_eq!(store.kept(Fence(2), Stream::Stderr, 4990, 100).unwrap(), [7; 10]);
        assert!(store.has_room());
    }

    #[test]
    fn a_journal_whose_last_pages_were_given_back_opens() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let ended =
            |fence, bytes| Write::Ended { record: record(fence, true), kept: [vec![7; bytes], Vec::new()] };
        store.commit(&[Write::Accepted(record(1, false)), ended(2, 50_000)]).unwrap();
        store.commit(&[Write::Forget(Fence(2))]).unwrap();
        store.commit(&[Write::Claims(1)]).unwrap();
        store.commit(&[ended(3, 100_000), Write::Forget(Fence(3))]).unwrap();
        drop(store);
        assert!(Store::open(dir.path()).unwrap().load().unwrap().attempts.contains_key(&Fence(1)));
        let file = File::options().write(true).open(dir.path().join("data.mdb")).unwrap();
        file.set_len(3 * 4096).unwrap();
        assert!(matches!(Store::open(dir.path()).map(drop), Err(StoreError::Corrupt("pages"))));
    }

    #[test]
    fn a_journal_of_the_first_format_opens_and_a_newer_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        // As an agent of 2026-11-21 left it, killed while its hub was away: one outcome that the hub lacks.
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/journal-1/data.mdb");
        std::fs::copy(golden, dir.path().join("data.mdb")).unwrap();
        let store = Store::open(dir.path()).unwrap();
        let loaded = store.load().unwrap();
        let [record] = loaded.attempts.values().collect::<Vec<_>>()[..] else { panic!("{loaded:?}") };
        assert_eq!((record.fence, record.task.as_str()), (Fence(3), "t-zcefv4zktt668wq0"));
        assert_eq!(record.report.as_ref().map(|r| r.outcome.clone()), Some(Outcome::Ok));
        assert_eq!(store.kept(Fence(3), Stream::Stdout, 0, 100).unwrap(), b"kept\n");
        let put = |table: &Table, key: &[u8], value: &[u8]| {
            let mut txn = store.env.write_txn().unwrap();
            table.put(&mut txn, key, value).unwrap();
            txn.commit().unwrap();
        };
        put(&store.attempts, &9u64.to_be_bytes(), &[RECORD + 1, 0]);
        assert!(matches!(store.load(), Err(StoreError::Newer { found: 2 })));
        put(&store.meta, b"format", &7u64.to_be_bytes());
        drop(store);
        let refused = Store::open(dir.path()).map(drop).unwrap_err().to_string();
        assert!(refused.contains("version 7") && refused.contains("run the newer one"), "{refused}");
    }

    #[test]
    fn a_corrupt_journal_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.commit(&[Write::Accepted(record(1, false))]).unwrap();
        let mut txn = store.env.write_txn().unwrap();
        store.attempts.put(&mut txn, &1u64.to_be_bytes(), &[RECORD, 1, 2]).unwrap();
        txn.commit().unwrap();
        assert!(matches!(store.load(), Err(StoreError::Corrupt("attempts"))));
    }
}
