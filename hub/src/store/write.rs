//! Writing: [`Write`] is one transaction, [`Writer`] makes one after the other durable.
//!
//! The engine's commit waits for the disk twice and writes every page of every tree that a transaction touched. So the loop's
//! transactions are one to the engine, which stays open: each is added to the [redo log](super::redo), which waits once, and
//! then acknowledged; the engine commits a little later, when a reader waits, and when the log is full.
//! After a crash the engine's file is what it last committed, and the log is applied to it.

use super::redo::{self, Change, Mark, Redo};
use super::schema::{self, Table};
use super::{Looked, Store, StoreError, View};
use crate::fault;
use heed::{RoTxn, RwTxn, WithoutTls};
use serde::Serialize;
use std::cell::OnceCell;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// The log's mark, in `meta`.
const MARK: &str = "redo";
/// How long a reader waits for the engine's commit. It takes milliseconds.
const CATCH_UP: Duration = Duration::from_secs(10);

/// A write transaction, whatever it outlives.
pub(super) trait Begin {
    fn begin(&self) -> Result<&RoTxn<'_, WithoutTls>, StoreError>;
}

impl Begin for Write<'_> {
    fn begin(&self) -> Result<&RoTxn<'_, WithoutTls>, StoreError> {
        Ok(self.txn()?)
    }
}

/// A transaction. Dropped without being committed, nothing of it happened.
pub struct Write<'a> {
    pub(super) store: &'a Store,
    txn: OnceCell<RwTxn<'a>>,
    // For the log; nothing once it is longer than that.
    body: Vec<u8>,
    changes: u32,
    pub(super) newest: Newest,
}

/// The newest ids of rows that are only added to, once they were looked up.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Newest {
    pub(super) event: Option<u64>,
    pub(super) audit: Option<u64>,
}

impl<'a> Write<'a> {
    pub(super) fn new(store: &'a Store, open: Option<RwTxn<'a>>, newest: Newest) -> Self {
        let txn = open.map_or_else(OnceCell::new, OnceCell::from);
        Self { store, txn, body: Vec::new(), changes: 0, newest }
    }

    /// Reads that see this transaction's writes.
    pub fn view(&self) -> View<'_> {
        View { txn: Looked::Write(self), store: self.store }
    }

    /// It begins with the first look into it: LMDB notes each in a page of its lock file, which the kernel then writes, and an
    /// event that needs nothing of the store, as a sign of life, should cost no flash.
    fn txn(&self) -> Result<&RwTxn<'a>, StoreError> {
        match self.txn.get() {
            Some(txn) => Ok(txn),
            None => {
                let txn = self.store.env.write_txn()?;
                Ok(self.txn.get_or_init(|| txn))
            }
        }
    }

    /// Makes one change, and notes it for the log.
    fn make(&mut self, change: Change<'_>) -> Result<bool, StoreError> {
        self.changes += 1;
        if self.body.len() as u64 <= redo::BYTES {
            change.write_to(&mut self.body);
        }
        self.txn()?;
        let txn = self.txn.get_mut().unwrap_or_else(|| unreachable!("it has begun"));
        apply(self.store, txn, change)
    }

    pub(super) fn put<T: Serialize>(
        &mut self,
        table: Table,
        key: &[u8],
        value: &T,
    ) -> Result<(), StoreError> {
        self.put_bytes(table, key, &schema::encode(value))
    }

    pub(super) fn put_bytes(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.make(Change::Put(table, key, value)).map(drop)
    }

    /// Says whether there was one.
    pub(super) fn delete(&mut self, table: Table, key: &[u8]) -> Result<bool, StoreError> {
        self.make(Change::Delete(table, key))
    }

    /// Deletes what lies between two keys, and they.
    pub(super) fn delete_range(&mut self, table: Table, first: &[u8], last: &[u8]) -> Result<(), StoreError> {
        self.make(Change::DeleteRange(table, first, last)).map(drop)
    }

    /// Sets a single value by name.
    ///
    /// # Errors
    /// The engine's.
    pub fn put_meta<T: Serialize>(&mut self, name: &str, value: &T) -> Result<(), StoreError> {
        self.put(Table::Meta, name.as_bytes(), value)
    }

    /// Makes everything of this transaction durable at once, by the engine alone. Costs nothing, and says `false`, when
    /// nothing was written.
    ///
    /// # Errors
    /// Nothing of it happened then.
    pub fn commit(self) -> Result<bool, StoreError> {
        let wrote = self.changes > 0;
        if let Some(txn) = self.txn.into_inner().filter(|_| wrote) {
            txn.commit()?;
            self.store.data.reach_ahead(&self.store.env);
        }
        Ok(wrote)
    }
}

fn apply(store: &Store, txn: &mut RwTxn<'_>, change: Change<'_>) -> Result<bool, StoreError> {
    let table = |table: Table| &store.tables[table as usize];
    Ok(match change {
        Change::Put(to, key, value) => table(to).put(txn, key, value).map(|()| true),
        Change::Delete(of, key) => table(of).delete(txn, key),
        Change::DeleteRange(of, first, last) => {
            let range = (Bound::Included(first), Bound::Included(last));
            table(of).delete_range(txn, &range).map(|n| n > 0)
        }
    }?)
}

/// A place in the order of what was acknowledged.
#[derive(Debug, Clone, Copy)]
pub struct Acknowledged(u64);

/// How far the engine's commits are behind what was acknowledged.
#[derive(Debug, Default)]
pub(super) struct Behind {
    acknowledged: AtomicU64,
    committed: watch::Sender<u64>,
    wanted: AtomicBool,
    has_writer: AtomicBool,
}

impl Store {
    /// What was acknowledged before this call, when a reader does not see it yet. The writer is told that one wants to.
    pub fn behind(&self) -> Option<Acknowledged> {
        let behind = &self.behind;
        let acknowledged = behind.acknowledged.load(Ordering::SeqCst);
        (*behind.committed.borrow() < acknowledged).then(|| {
            behind.wanted.store(true, Ordering::SeqCst);
            Acknowledged(acknowledged)
        })
    }

    /// Waits until a reader sees what was acknowledged.
    ///
    /// # Errors
    /// The writer is gone, or stands still.
    pub async fn caught_up(&self, Acknowledged(acknowledged): Acknowledged) -> Result<(), StoreError> {
        let mut committed = self.behind.committed.subscribe();
        let caught_up = committed.wait_for(|committed| *committed >= acknowledged);
        match tokio::time::timeout(CATCH_UP, caught_up).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(StoreError::StandsStill),
        }
    }

    /// The writer; what the log holds is applied first. There is one at a time.
    ///
    /// # Errors
    /// `Locked` when there is one, the file system's, and the engine's.
    pub fn writer(&self) -> Result<Writer<'_>, StoreError> {
        if self.behind.has_writer.swap(true, Ordering::SeqCst) {
            return Err(StoreError::Locked(self.env.path().to_owned()));
        }
        let seat = Seat(&self.behind);
        let mark = self.read(|view| view.meta::<Mark>(MARK))?;
        let redo = Redo::open(self.env.path(), mark, self.sync)?;
        let mut writer =
            Writer { store: self, open: None, redo, newest: Newest::default(), torn: false, _seat: seat };
        let bodies = if mark.is_some() { writer.redo.bodies(false)? } else { Vec::new() };
        if mark.is_none() || !bodies.is_empty() {
            tracing::debug!(records = bodies.len(), "applying the redo log");
            let txn = writer.applied(&bodies)?;
            writer.commit_all(txn)?;
        }
        writer.redo.blank()?;
        Ok(writer)
    }
}

/// What the loop writes with.
pub struct Writer<'s> {
    store: &'s Store,
    // Holds what the log holds.
    open: Option<RwTxn<'s>>,
    redo: Redo,
    newest: Newest,
    // Of the last record it is not known whether it is there.
    torn: bool,
    _seat: Seat<'s>,
}

/// The one writer's.
struct Seat<'s>(&'s Behind);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.has_writer.store(false, Ordering::SeqCst);
    }
}

impl<'s> Writer<'s> {
    /// The next transaction. One that is not committed takes with it what the log holds: [recover](Self::recover) then.
    pub fn write(&mut self) -> Write<'s> {
        Write::new(self.store, self.open.take(), self.newest)
    }

    /// Makes a transaction durable. Costs nothing, and says `false`, when nothing was written.
    ///
    /// # Errors
    /// Nothing of it happened, and [recover](Self::recover) has to say so to the disk.
    pub fn commit(&mut self, write: Write<'s>) -> Result<bool, StoreError> {
        let Write { txn, body, changes, newest, .. } = write;
        let Some(txn) = txn.into_inner() else { return Ok(false) };
        if changes == 0 {
            self.open = self.redo.is_used().then_some(txn);
            return Ok(false);
        }
        // Where it could end for lack of room, the engine's own commit says so before anything is acknowledged.
        if self.store.has_room_behind() && self.redo.fits(body.len(), changes) {
            self.redo.append(&body, changes).inspect_err(|_| self.torn = true)?;
            self.open = Some(txn);
            self.store.behind.acknowledged.fetch_add(1, Ordering::SeqCst);
        } else {
            self.commit_all(txn)?;
        }
        self.newest = newest;
        Ok(true)
    }

    /// Whether the engine's commit is owed.
    pub fn is_behind(&self) -> bool {
        self.redo.is_used()
    }

    /// Whether a reader waits for it.
    pub fn is_wanted(&self) -> bool {
        self.is_behind() && self.store.behind.wanted.load(Ordering::SeqCst)
    }

    /// Has the engine commit what the log holds.
    ///
    /// # Errors
    /// The engine's; [recover](Self::recover) then.
    pub fn catch_up(&mut self) -> Result<(), StoreError> {
        match self.open.take() {
            Some(txn) if self.is_behind() => self.commit_all(txn),
            _ => Ok(()),
        }
    }

    /// Goes back to what was acknowledged, after something failed. Needs no room on a full disk, unless an append failed: then
    /// what may be in the log must not count after a restart either.
    ///
    /// # Errors
    /// The file system's, and the engine's. What was acknowledged is still in the log.
    pub fn recover(&mut self) -> Result<(), StoreError> {
        self.open = None;
        if !self.torn && !self.is_behind() {
            return Ok(());
        }
        let bodies = self.redo.bodies(true)?;
        let txn = self.applied(&bodies)?;
        if self.torn {
            self.commit_all(txn)?;
            self.torn = false;
        } else {
            self.open = Some(txn);
        }
        Ok(())
    }

    /// A transaction that has what is in these bodies.
    fn applied(&self, bodies: &[Vec<u8>]) -> Result<RwTxn<'s>, StoreError> {
        let mut txn = self.store.env.write_txn()?;
        for change in bodies.iter().flat_map(|body| redo::changes(body)) {
            let change = change.ok_or(StoreError::Corrupt { table: MARK })?;
            apply(self.store, &mut txn, change)?;
        }
        Ok(txn)
    }

    fn commit_all(&mut self, mut txn: RwTxn<'s>) -> Result<(), StoreError> {
        let (behind, mark) = (&self.store.behind, self.redo.draw()?);
        let value = schema::encode(&mark);
        apply(self.store, &mut txn, Change::Put(Table::Meta, MARK.as_bytes(), &value))?;
        fault::point("before_catching_up");
        txn.commit()?;
        fault::point("after_catching_up");
        self.redo.restart(mark);
        self.store.data.reach_ahead(&self.store.env);
        behind.wanted.store(false, Ordering::SeqCst);
        behind.committed.send_replace(behind.acknowledged.load(Ordering::SeqCst));
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]
mod tests;
