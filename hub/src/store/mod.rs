//! The hub's truth on disk. Nothing above this module knows which engine it is (LMDB, by heed).
//!
//! One writer, the loop, takes a [`Write`] per batch of events and commits it; readers take a [`View`] of the engine's last
//! commit from any thread, which may be [behind](Store::caught_up). Deliberately absent: decisions, and any in-memory copy of
//! what is stored.

mod data;
mod error;
mod history;
mod log;
mod nodes;
mod outputs;
mod redo;
mod schema;
mod sessions;
mod tasks;
mod write;

pub use error::StoreError;
pub use nodes::Token;
pub use sessions::Sessions;
pub use tasks::{Filled, TaskFilter, TaskPage};
pub use write::{Acknowledged, Write, Writer};

use data::Data;
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, RoTxn, WithoutTls};
use schema::{FORMAT, Table};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::path::Path;
use write::{Begin, Behind, Newest};

/// The name in `meta` of what all settled attempts used: tokens, cost.
pub const SPENT: &str = "spent";

type Tables = [Database<'static, Bytes, Bytes>; Table::COUNT];

/// The open store.
pub struct Store {
    env: Env<WithoutTls>,
    tables: Tables,
    data: Data,
    behind: Behind,
    bytes_max: u64,
    sync: bool,
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
        let StoreOptions { bytes_max, sync } = options;
        let store = Self { env, tables, data, behind: Behind::default(), bytes_max, sync, _lock: lock };
        store.check_format()?;
        store.writer()?;
        Ok(store)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let mut write = self.write();
        match write.view().meta::<u32>("format")? {
            Some(FORMAT) => return Ok(()),
            Some(1) => write.put_meta("format", &FORMAT)?,
            Some(found) => return Err(StoreError::Format { found }),
            None if !write.view().is_empty(Table::Tasks)? => {
                return Err(StoreError::Corrupt { table: Table::Meta.name() });
            }
            None => write.put_meta("format", &FORMAT)?,
        }
        write.commit()?;
        Ok(())
    }

    /// A transaction that the engine commits by itself; while no [writer](Self::writer) has one.
    pub fn write(&self) -> Write<'_> {
        Write::new(self, None, Newest::default())
    }

    /// Calls `f` with the state of the engine's last commit.
    ///
    /// # Errors
    /// The engine's, and those of `f`.
    pub fn read<T>(&self, f: impl FnOnce(View<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let txn = self.env.read_txn()?;
        f(View { txn: Looked::Read(&txn), store: self })
    }

    /// Whether the engine's next commit finds room for what the redo log may hold: on the disk, and below its bound.
    fn has_room_behind(&self) -> bool {
        self.data.has_room() && self.data.in_use(&self.env) + self.data.ahead() <= self.bytes_max
    }
}

/// Reads, inside a transaction of either kind.
#[derive(Clone, Copy)]
pub struct View<'a> {
    txn: Looked<'a>,
    store: &'a Store,
}

#[derive(Clone, Copy)]
enum Looked<'a> {
    Read(&'a RoTxn<'a, WithoutTls>),
    Write(&'a dyn Begin),
}

impl<'a> View<'a> {
    fn txn(&self) -> Result<&'a RoTxn<'a, WithoutTls>, StoreError> {
        match self.txn {
            Looked::Read(txn) => Ok(txn),
            Looked::Write(write) => write.begin(),
        }
    }

    fn table(&self, table: Table) -> &'a Database<'static, Bytes, Bytes> {
        &self.store.tables[table as usize]
    }

    fn get<T: DeserializeOwned>(&self, table: Table, key: &[u8]) -> Result<Option<T>, StoreError> {
        match self.table(table).get(self.txn()?, key)? {
            Some(bytes) => schema::decode(table, bytes).map(Some),
            None => Ok(None),
        }
    }

    fn is_empty(&self, table: Table) -> Result<bool, StoreError> {
        Ok(self.table(table).is_empty(self.txn()?)?)
    }

    /// Whether a tenth of the bound is free.
    ///
    /// # Errors
    /// The engine's.
    pub fn has_room(&self) -> Result<bool, StoreError> {
        let most = self.store.bytes_max / 10 * 9;
        // The file's pages, free ones too, are known without a look at each table.
        Ok(self.store.data.in_use(&self.store.env) <= most || self.bytes()?.0 <= most)
    }

    /// Bytes in use and the bound, in bytes. Free pages inside the file are not in use.
    ///
    /// # Errors
    /// The engine's.
    pub fn bytes(&self) -> Result<(u64, u64), StoreError> {
        let (mut pages, mut page) = (0, 0);
        for table in &self.store.tables {
            let stat = table.stat(self.txn()?)?;
            pages += stat.branch_pages + stat.leaf_pages + stat.overflow_pages;
            page = u64::from(stat.page_size);
        }
        Ok((pages as u64 * page, self.store.bytes_max))
    }

    /// A single value by name.
    ///
    /// # Errors
    /// The engine's, or `Corrupt`.
    pub fn meta<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        self.get(Table::Meta, name.as_bytes())
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
        write.put_bytes(Table::Meta, b"later", &bytes).unwrap();
        write.put_meta("format", &7u32).unwrap();
        write.commit().unwrap();
        let later = store.read(|view| view.meta::<u32>("later"));
        assert!(matches!(later, Err(StoreError::Record { table: "meta", found: 2 })));
        drop(store);
        let refused = open().map(drop).unwrap_err().to_string();
        assert!(refused.contains("format 7") && refused.contains("run a newer dunlin-hub"), "{refused}");
    }
}
