//! The hub's truth on disk. Nothing above this module knows which engine it is (LMDB, by heed).
//!
//! One writer, the loop, takes a [`Write`] per batch of events and commits it; readers take a [`View`] of the last
//! commit from any thread. Deliberately absent: decisions, and any in-memory copy of what is stored.

mod history;
mod log;
mod nodes;
mod outputs;
mod schema;
mod sessions;
mod tasks;

pub use nodes::Token;
pub use sessions::Sessions;
pub use tasks::{Filled, TaskFilter, TaskPage};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, RoTxn, RwTxn, WithoutTls};
use schema::{FORMAT, Table};
use serde::{Serialize, de::DeserializeOwned};
use std::cell::OnceCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The name in `meta` of what all settled attempts used: tokens, cost.
pub const SPENT: &str = "spent";

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
            StoreError::Engine(heed::Error::Io(e)) => e.kind() == std::io::ErrorKind::StorageFull,
            _ => false,
        }
    }
}

impl From<heed::Error> for StoreError {
    fn from(error: heed::Error) -> Self {
        StoreError::Engine(error)
    }
}

type Tables = [Database<'static, Bytes, Bytes>; Table::COUNT];

/// The open store.
pub struct Store {
    env: Env<WithoutTls>,
    tables: Tables,
    data: Data,
    bytes_max: u64,
    // Held for as long as the store is open.
    _lock: File,
}

/// How to open a store.
#[derive(Debug, Clone, Copy)]
pub struct StoreOptions {
    /// The map's bound, in bytes. The file grows up to it.
    pub bytes_max: u64,
    /// Whether a commit waits for the disk. Only the simulation says no.
    pub sync: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { bytes_max: 8 << 30, sync: true }
    }
}

impl Store {
    /// Opens the store in `dir`, or makes it there when the directory has none.
    ///
    /// # Errors
    /// Named ones for a second hub, a truncated file, another format; the engine's for the rest.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        let io = |source| StoreError::Io { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(io)?;
        let lock = File::create(dir.join("lock")).map_err(io)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StoreError::Locked(dir.to_owned()))?;
        let mut builder = EnvOpenOptions::new().read_txn_without_tls();
        builder.map_size(options.bytes_max as usize).max_dbs(Table::COUNT as u32).max_readers(64);
        let flags = if options.sync { EnvFlags::empty() } else { EnvFlags::NO_SYNC };
        // SAFETY: NO_SYNC only gives up durability. The lock file keeps every other hub out of the map, and nothing
        // else writes to the file.
        let env = unsafe { builder.flags(flags).open(dir) }?;
        let data = Data::open(&env, dir.join("data.mdb"))?;
        let txn = env.write_txn()?;
        let tables = env
            .create_databases_and_commit(txn, |opener, txn| {
                let mut made = Vec::new();
                for table in Table::ALL {
                    made.push(opener.create_database::<Bytes, Bytes>(txn, Some(table.name()))?);
                }
                let made: [Database<'_, Bytes, Bytes>; Table::COUNT] =
                    made.try_into().unwrap_or_else(|_| unreachable!("one database per table"));
                Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(made))
            })?
            .unwrap_commit();
        let store = Self { env, tables, data, bytes_max: options.bytes_max, _lock: lock };
        store.check_format()?;
        Ok(store)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let mut write = self.write();
        match write.view().meta::<u32>("format")? {
            Some(FORMAT) => return Ok(()),
            Some(found) => return Err(StoreError::Format { found }),
            None if !self.tables[Table::Tasks as usize].is_empty(write.txn()?)? => {
                return Err(StoreError::Corrupt { table: Table::Meta.name() });
            }
            None => write.put_meta("format", &FORMAT)?,
        }
        write.commit()?;
        Ok(())
    }

    /// The one write transaction. It begins with the first look into it: LMDB notes each in a page of its lock file, which
    /// the kernel then writes, and an event that needs nothing of the store, as a sign of life, should cost no flash.
    pub fn write(&self) -> Write<'_> {
        Write { store: self, txn: OnceCell::new(), wrote: false }
    }

    /// Calls `f` with the state of the last commit.
    ///
    /// # Errors
    /// The engine's, and those of `f`.
    pub fn read<T>(&self, f: impl FnOnce(View<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let txn = self.env.read_txn()?;
        f(View { txn: Looked::Read(&txn), tables: &self.tables })
    }

    /// Bytes in use and the bound, in bytes. Free pages inside the file are not in use.
    ///
    /// # Errors
    /// The engine's.
    pub fn bytes(&self) -> Result<(u64, u64), StoreError> {
        let txn = self.env.read_txn()?;
        let mut pages = 0;
        for table in &self.tables {
            let stat = table.stat(&txn)?;
            pages += stat.branch_pages + stat.leaf_pages + stat.overflow_pages;
        }
        let page = self.tables[0].stat(&txn)?.page_size;
        Ok((pages as u64 * u64::from(page), self.bytes_max))
    }
}

/// Where the first page says how long pages are, in LMDB 0.9 on 64 bits: behind the page's head, magic, version, address
/// and size of the map.
const PAGE_SIZE_AT: u64 = 40;
/// Bytes that the file is kept longer than what is in use, at least, and what it is made longer by. LMDB counts pages that a
/// transaction took and gave back, and never writes them: were they the last, the file would end before them, as if it had
/// been cut. They are a hole, and take no room on the disk.
const AHEAD: (u64, u64) = (1 << 20, 4 << 20);

/// The engine's file, to keep it long enough.
struct Data {
    file: File,
    path: PathBuf,
    page: u64,
    length: AtomicU64,
}

impl Data {
    /// Checks its length, and makes it long enough.
    fn open(env: &Env<WithoutTls>, path: PathBuf) -> Result<Self, StoreError> {
        let io = |source| StoreError::Io { path: path.clone(), source };
        let file = File::options().read(true).write(true).open(&path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        // Pages are as long as the system's were where the store was made, and that stays so elsewhere.
        let mut page = [0; 4];
        file.read_exact_at(&mut page, PAGE_SIZE_AT).map_err(io)?;
        let (page, length) = (u64::from(u32::from_ne_bytes(page)), AtomicU64::new(bytes));
        let data = Self { file, page, length, path };
        let wanted = data.in_use(env);
        if bytes < wanted {
            return Err(StoreError::Truncated { path: data.path, bytes, wanted });
        }
        data.reach_ahead(env)?;
        data.file.sync_all().map_err(|source| StoreError::Io { path: data.path.clone(), source })?;
        Ok(data)
    }

    fn in_use(&self, env: &Env<WithoutTls>) -> u64 {
        (env.info().last_page_number as u64 + 1) * self.page
    }

    /// To be called after each commit; the next one's wait for the disk makes it last.
    fn reach_ahead(&self, env: &Env<WithoutTls>) -> Result<(), StoreError> {
        let in_use = self.in_use(env);
        if self.length.load(Relaxed) < in_use + AHEAD.0 {
            let set = self.file.set_len(in_use + AHEAD.1);
            set.map_err(|source| StoreError::Io { path: self.path.clone(), source })?;
            self.length.store(in_use + AHEAD.1, Relaxed);
        }
        Ok(())
    }
}

/// Reads, inside a transaction of either kind.
#[derive(Clone, Copy)]
pub struct View<'a> {
    txn: Looked<'a>,
    tables: &'a Tables,
}

#[derive(Clone, Copy)]
enum Looked<'a> {
    Read(&'a RoTxn<'a, WithoutTls>),
    Write(&'a dyn Begin),
}

/// A write transaction, whatever it outlives.
trait Begin {
    fn begin(&self) -> Result<&RoTxn<'_, WithoutTls>, StoreError>;
}

impl Begin for Write<'_> {
    fn begin(&self) -> Result<&RoTxn<'_, WithoutTls>, StoreError> {
        Ok(self.txn()?)
    }
}

impl<'a> View<'a> {
    fn txn(&self) -> Result<&'a RoTxn<'a, WithoutTls>, StoreError> {
        match self.txn {
            Looked::Read(txn) => Ok(txn),
            Looked::Write(write) => write.begin(),
        }
    }

    fn table(&self, table: Table) -> &'a Database<'static, Bytes, Bytes> {
        &self.tables[table as usize]
    }

    fn get<T: DeserializeOwned>(&self, table: Table, key: &[u8]) -> Result<Option<T>, StoreError> {
        match self.table(table).get(self.txn()?, key)? {
            Some(bytes) => schema::decode(table, bytes).map(Some),
            None => Ok(None),
        }
    }

    /// A single value by name.
    ///
    /// # Errors
    /// The engine's, or `Corrupt`.
    pub fn meta<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        self.get(Table::Meta, name.as_bytes())
    }
}

/// The one write transaction. Dropped without `commit`, nothing of it happened.
pub struct Write<'a> {
    store: &'a Store,
    txn: OnceCell<RwTxn<'a>>,
    wrote: bool,
}

impl<'a> Write<'a> {
    /// Reads that see this transaction's writes.
    pub fn view(&self) -> View<'_> {
        View { txn: Looked::Write(self), tables: &self.store.tables }
    }

    fn txn(&self) -> Result<&RwTxn<'a>, StoreError> {
        match self.txn.get() {
            Some(txn) => Ok(txn),
            None => {
                let txn = self.store.env.write_txn()?;
                Ok(self.txn.get_or_init(|| txn))
            }
        }
    }

    fn txn_mut(&mut self) -> Result<&mut RwTxn<'a>, StoreError> {
        self.txn()?;
        Ok(self.txn.get_mut().unwrap_or_else(|| unreachable!("it has begun")))
    }

    fn put<T: Serialize>(&mut self, table: Table, key: &[u8], value: &T) -> Result<(), StoreError> {
        let bytes = schema::encode(value);
        self.wrote = true;
        Ok(self.store.tables[table as usize].put(self.txn_mut()?, key, &bytes)?)
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<bool, StoreError> {
        self.wrote = true;
        Ok(self.store.tables[table as usize].delete(self.txn_mut()?, key)?)
    }

    /// Sets a single value by name.
    ///
    /// # Errors
    /// The engine's.
    pub fn put_meta<T: Serialize>(&mut self, name: &str, value: &T) -> Result<(), StoreError> {
        self.put(Table::Meta, name.as_bytes(), value)
    }

    /// Makes everything of this transaction durable at once. Costs nothing, and says `false`, when nothing was written.
    ///
    /// # Errors
    /// Nothing of it happened then.
    pub fn commit(self) -> Result<bool, StoreError> {
        if let Some(txn) = self.txn.into_inner().filter(|_| self.wrote) {
            txn.commit()?;
            // It is committed: what fails here only leaves the next start a file that it may take for cut.
            if let Err(error) = self.store.data.reach_ahead(&self.store.env) {
                tracing::warn!(%error, "the store's file could not be made longer");
            }
        }
        Ok(self.wrote)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]
mod tests {
    use super::*;
    use crate::core::task::State;

    #[test]
    fn a_write_that_looks_at_nothing_begins_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        // A second one that had begun would wait for the first for ever.
        let idle = store.write();
        let mut write = store.write();
        write.put_meta("said", &1u32).unwrap();
        assert!(write.commit().unwrap());
        assert_eq!(idle.view().meta::<u32>("said").unwrap(), Some(1), "it begins when it is looked into");
        assert!(!idle.commit().unwrap());
    }

    #[test]
    fn a_store_whose_last_pages_were_given_back_opens() {
        let options = StoreOptions { bytes_max: 16 << 20, sync: false };
        for seed in 0..100 {
            let (mut rng, dir) = (fastrand::Rng::with_seed(seed), tempfile::tempdir().unwrap());
            let mut store = Store::open(dir.path(), options).unwrap();
            let mut model = std::collections::BTreeMap::new();
            for _ in 0..6 {
                let mut write = store.write();
                for _ in 0..rng.usize(1..40) {
                    let (key, value) = (rng.u8(0..30), vec![7u8; rng.usize(1..6000)]);
                    if rng.u8(0..3) == 0 {
                        write.delete(Table::Meta, &[key]).unwrap();
                        model.remove(&key);
                    } else {
                        write.put(Table::Meta, &[key], &value).unwrap();
                        model.insert(key, value);
                    }
                }
                write.commit().unwrap();
                drop(store);
                store = Store::open(dir.path(), options).unwrap();
                for (key, value) in &model {
                    let read = store.read(|view| view.get::<Vec<u8>>(Table::Meta, &[*key])).unwrap();
                    assert_eq!(read.as_ref(), Some(value));
                }
            }
        }
    }

    #[test]
    fn a_store_of_the_first_format_opens_and_a_newer_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        // As a hub of 2026-11-21 left it, killed: a node, and four tasks, one of which ran.
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/store-1/data.mdb");
        std::fs::copy(golden, dir.path().join("data.mdb")).unwrap();
        let open = || Store::open(dir.path(), StoreOptions { bytes_max: 16 << 20, sync: true });
        let store = open().unwrap();
        let page = store.read(|view| view.tasks(&TaskFilter::default(), None, 10)).unwrap();
        let states: Vec<_> = page.tasks.iter().map(|task| task.state).collect();
        assert_eq!(states, [State::Running, State::Queued, State::Failed, State::Done]);
        let mut write = store.write();
        let bytes = [&[2], &schema::encode(&1u32)[..]].concat();
        store.tables[Table::Meta as usize].put(write.txn_mut().unwrap(), b"later", &bytes).unwrap();
        write.put_meta("format", &7u32).unwrap();
        write.commit().unwrap();
        let later = store.read(|view| view.meta::<u32>("later"));
        assert!(matches!(later, Err(StoreError::Record { table: "meta", found: 2 })));
        drop(store);
        let refused = open().map(drop).unwrap_err().to_string();
        assert!(refused.contains("format 7") && refused.contains("run a newer dunlin-hub"), "{refused}");
    }
}
