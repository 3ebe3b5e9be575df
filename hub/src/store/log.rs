//! The event stream and the audit: ids without gaps, the oldest forgotten beyond a bound.

use super::schema::{Table, number};
use super::{StoreError, View, Write};
use crate::event::{AuditRecord, EventRecord};
use std::ops::Bound;

/// Events kept.
pub const EVENTS_MAX: u64 = 100_000;
/// Audit rows kept of what people did.
pub const AUDIT_MAX: u64 = 100_000;
/// Audit rows kept of what boards decided: a busy fleet makes them in a day, and they must not push the others out.
pub const DECISIONS_MAX: u64 = 100_000;

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
        let mut found = Vec::new();
        for table in [Table::Audit, Table::Decisions] {
            let rows = self.table(table).rev_range(self.txn()?, &range)?;
            let rows = rows.map(|row| {
                let (key, value) = row?;
                Ok((number(table, key, 0)?, super::schema::decode(table, value)?))
            });
            let rows = rows.filter(|row| row.as_ref().map_or(true, |(_, row)| wanted(row))).take(limit);
            found.extend(rows.collect::<Result<Vec<_>, StoreError>>()?);
        }
        found.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        found.truncate(limit);
        Ok(found)
    }

    fn rows(&self, table: Table) -> Result<u64, StoreError> {
        Ok(self.table(table).len(self.txn()?)?)
    }

    fn oldest(&self, table: Table) -> Result<Option<u64>, StoreError> {
        self.table(table).first(self.txn()?)?.map(|(key, _)| number(table, key, 0)).transpose()
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
        let newest = self.newest.event.map_or_else(|| self.view().newest(Table::Events), Ok)?;
        self.newest.event = Some(newest + 1);
        self.append(Table::Events, newest + 1, event, EVENTS_MAX)
    }

    /// Appends an audit row of what somebody did.
    pub fn append_audit(&mut self, row: &AuditRecord) -> Result<u64, StoreError> {
        let id = self.next_audit()?;
        self.append(Table::Audit, id, row, AUDIT_MAX)
    }

    /// Appends an audit row of what a board decided or did.
    pub fn append_decision(&mut self, row: &AuditRecord) -> Result<u64, StoreError> {
        let id = self.next_audit()?;
        self.append(Table::Decisions, id, row, DECISIONS_MAX)
    }

    /// One sequence for both tables.
    fn next_audit(&mut self) -> Result<u64, StoreError> {
        let newest = match self.newest.audit {
            Some(newest) => newest,
            None => self.view().newest(Table::Audit)?.max(self.view().newest(Table::Decisions)?),
        };
        self.newest.audit = Some(newest + 1);
        Ok(newest + 1)
    }

    fn append<T: serde::Serialize>(
        &mut self,
        table: Table,
        id: u64,
        row: &T,
        keep: u64,
    ) -> Result<u64, StoreError> {
        self.put(table, &id.to_be_bytes(), row)?;
        while self.view().rows(table)? > keep {
            let Some(oldest) = self.view().oldest(table)? else { break };
            self.delete(table, &oldest.to_be_bytes())?;
        }
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, StoreOptions};

    #[test]
    fn what_boards_decide_pushes_nothing_out_that_people_did() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let row = |actor: &str| AuditRecord {
            at_ms: 1,
            actor: actor.into(),
            action: "a".into(),
            target: "t".into(),
            result: "ok".into(),
            code: "ok".into(),
            detail: None,
        };
        let mut write = store.write();
        write.append_audit(&row("owner")).unwrap();
        for _ in 0..5 {
            let id = write.next_audit().unwrap();
            write.append(Table::Decisions, id, &row("node:a"), 3).unwrap();
        }
        write.append_audit(&row("owner")).unwrap();
        write.commit().unwrap();
        let ids = |before, limit| {
            let rows = store.read(|view| view.audit_before(before, limit, |_| true)).unwrap();
            rows.into_iter().map(|(id, row)| (id, row.actor)).collect::<Vec<_>>()
        };
        let (owner, node) = ("owner".to_owned(), "node:a".to_owned());
        let all = [(7, owner.clone()), (6, node.clone()), (5, node.clone()), (4, node.clone()), (1, owner)];
        assert_eq!(ids(u64::MAX, 10), all);
        // A page goes on where the one before it ended.
        assert_eq!(ids(u64::MAX, 2), all[..2]);
        assert_eq!(ids(6, 2), all[2..4]);
        assert_eq!(ids(4, 2), all[4..]);
    }
}
