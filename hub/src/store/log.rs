//! The event stream and the audit: ids without gaps, the oldest forgotten beyond a bound.

use super::schema::{Table, number};
use super::{StoreError, View, Write};
use crate::event::{AuditRecord, EventRecord};
use std::ops::Bound;

/// Events kept.
pub const EVENTS_MAX: u64 = 100_000;
/// Audit rows kept.
pub const AUDIT_MAX: u64 = 100_000;

impl View<'_> {
    /// At most `limit` events after `id`, oldest first.
    ///
    /// # Errors
    /// The engine's, or `Corrupt`; as everywhere here.
    pub fn events_after(&self, id: u64, limit: usize) -> Result<Vec<(u64, EventRecord)>, StoreError> {
        let first = id.to_be_bytes();
        let range = (Bound::Excluded(first.as_slice()), Bound::Unbounded);
        let rows = self.table(Table::Events).range(self.txn()?, &range)?.take(limit);
        rows.map(|row| {
            let (key, value) = row?;
            Ok((number(Table::Events, key, 0)?, super::schema::decode(Table::Events, value)?))
        })
        .collect()
    }

    /// The newest event's id; 0 when there is none.
    pub fn newest_event(&self) -> Result<u64, StoreError> {
        self.newest(Table::Events)
    }

    /// At most `limit` audit rows below `before` that `wanted` takes, newest first.
    pub fn audit_before(
        &self,
        before: u64,
        limit: usize,
        wanted: impl Fn(&AuditRecord) -> bool,
    ) -> Result<Vec<(u64, AuditRecord)>, StoreError> {
        let last = before.to_be_bytes();
        let range = (Bound::Unbounded, Bound::Excluded(last.as_slice()));
        let rows = self.table(Table::Audit).rev_range(self.txn()?, &range)?;
        let rows = rows.map(|row| {
            let (key, value) = row?;
            Ok((number(Table::Audit, key, 0)?, super::schema::decode(Table::Audit, value)?))
        });
        rows.filter(|row| row.as_ref().map_or(true, |(_, row)| wanted(row))).take(limit).collect()
    }

    fn newest(&self, table: Table) -> Result<u64, StoreError> {
        self.table(table).last(self.txn()?)?.map_or(Ok(0), |(key, _)| number(table, key, 0))
    }
}

impl Write<'_> {
    /// Appends an event and returns its id.
    ///
    /// # Errors
    /// The engine's; as everywhere here.
    pub fn append_event(&mut self, event: &EventRecord) -> Result<u64, StoreError> {
        self.append(Table::Events, event, EVENTS_MAX)
    }

    /// Appends an audit row.
    pub fn append_audit(&mut self, row: &AuditRecord) -> Result<u64, StoreError> {
        self.append(Table::Audit, row, AUDIT_MAX)
    }

    fn append<T: serde::Serialize>(&mut self, table: Table, row: &T, keep: u64) -> Result<u64, StoreError> {
        let id = self.view().newest(table)? + 1;
        self.put(table, &id.to_be_bytes(), row)?;
        if let Some(old) = id.checked_sub(keep) {
            self.delete(table, &old.to_be_bytes())?;
        }
        Ok(id)
    }
}
