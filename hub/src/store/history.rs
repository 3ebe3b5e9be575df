//! What boards were like: rows by node, tier and time. The oldest go when they are over their tier's time, so a node
//! has at most 1,440 rows of a minute and 1,008 of ten, and a few more of a row that is being forgotten.

use super::schema::{Table, key, number};
use super::{StoreError, View, Write};
use crate::core::history::{Row, Tier};
use dunlin_wire::NodeName;
use std::ops::Bound;

/// Rows that are forgotten at once at most.
const FORGET_MAX: usize = 100;

impl View<'_> {
    /// Names of a node's series, by their places.
    ///
    /// # Errors
    /// The engine's, or `Corrupt`; as everywhere here.
    pub fn series(&self, node: &NodeName) -> Result<Vec<String>, StoreError> {
        Ok(self.get(Table::Series, node.as_str().as_bytes())?.unwrap_or_default())
    }

    /// Rows that begin at `from_ms` or later and before `to_ms`, oldest first.
    pub fn history(
        &self,
        node: &NodeName,
        tier: Tier,
        from_ms: u64,
        to_ms: u64,
    ) -> Result<Vec<Row>, StoreError> {
        let (from, to) = (row_key(node, tier, from_ms), row_key(node, tier, to_ms));
        let range = (Bound::Included(from.as_slice()), Bound::Excluded(to.as_slice()));
        let rows = self.table(Table::History).range(self.txn()?, &range)?;
        rows.map(|row| super::schema::decode(Table::History, row?.1)).collect()
    }
}

impl Write<'_> {
    /// Writes the names.
    ///
    /// # Errors
    /// The engine's; as everywhere here.
    pub fn put_series(&mut self, node: &NodeName, names: &[&str]) -> Result<(), StoreError> {
        self.put(Table::Series, node.as_str().as_bytes(), &names)
    }

    /// Writes a row.
    pub fn put_history(&mut self, node: &NodeName, tier: Tier, row: &Row) -> Result<(), StoreError> {
        self.put(Table::History, &row_key(node, tier, row.at_ms), row)
    }

    /// Forgets rows that begin before `before_ms`.
    pub fn forget_history(&mut self, node: &NodeName, tier: Tier, before_ms: u64) -> Result<(), StoreError> {
        let first = row_key(node, tier, 0);
        let range = (Bound::Included(first.as_slice()), Bound::Unbounded);
        let mut old = Vec::new();
        let head = first.len() - 8;
        let view = self.view();
        for row in view.table(Table::History).range(view.txn()?, &range)?.take(FORGET_MAX) {
            let (row_key, _) = row?;
            if row_key.get(..head) != first.get(..head) || number(Table::History, row_key, head)? >= before_ms
            {
                break;
            }
            old.push(row_key.to_vec());
        }
        for row_key in old {
            self.delete(Table::History, &row_key)?;
        }
        Ok(())
    }
}

fn row_key(node: &NodeName, tier: Tier, at_ms: u64) -> Vec<u8> {
    key(&[node.as_str().as_bytes(), &[0, tier as u8], &at_ms.to_be_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::history::Point;
    use crate::store::{Store, StoreOptions};

    #[test]
    fn rows_are_found_by_time_and_only_a_node_s_own_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions { sync: false, ..StoreOptions::default() }).unwrap();
        let [a, b]: [NodeName; 2] = ["a", "a-b"].map(|name| name.parse().unwrap());
        let row = |at_ms| Row { at_ms, points: vec![Point { series: 1, mean: -5, max: 7 }] };
        let mut write = store.write();
        for (node, tier) in [(&a, Tier::Minute), (&a, Tier::Ten), (&b, Tier::Minute)] {
            (0..200).for_each(|n| write.put_history(node, tier, &row(n)).unwrap());
        }
        write.put_series(&a, &["cpu"]).unwrap();
        write.forget_history(&a, Tier::Minute, 150).unwrap();
        write.forget_history(&a, Tier::Minute, 150).unwrap();
        write.commit().unwrap();
        store
            .read(|view| {
                let found = |node, tier| view.history(node, tier, 0, 1000).map(|rows| rows.len());
                assert_eq!(found(&a, Tier::Minute)?, 50);
                assert_eq!((found(&a, Tier::Ten)?, found(&b, Tier::Minute)?), (200, 200));
                assert_eq!(view.history(&a, Tier::Minute, 150, 152)?, [row(150), row(151)]);
                assert_eq!((view.series(&a)?, view.series(&b)?), (vec!["cpu".to_owned()], vec![]));
                Ok(())
            })
            .unwrap();
    }
}
