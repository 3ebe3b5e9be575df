//! The budget's file and its rung: bytes come from the link, what to do about them goes to the core.

use crate::clock::BootMs;
use crate::core::budget::{Budget, Thrift};
use crate::files::Files;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The file, in the data directory.
const FILE: &str = "budget.json";
/// The file is written when this share of the limit was spent since, or this much time went by: flash wears.
const SHARE: u64 = 200;
const WRITE_MS: u64 = 3_600_000;

/// What this agent spends.
pub struct Spending {
    limit: Option<u64>,
    bytes: Arc<AtomicU64>,
    seen: u64,
    at: BootMs,
    budget: Budget,
    written: Budget,
    thrift: Thrift,
    files: Files,
}

impl Spending {
    /// Goes on from what the last process kept. A file that does not read back begins a window.
    pub fn load(limit: Option<u64>, files: &Files, bytes: Arc<AtomicU64>, now: BootMs) -> Self {
        let text = std::fs::read_to_string(files.path(FILE)).unwrap_or_default();
        let budget: Budget = serde_json::from_str(&text).unwrap_or_default();
        Self {
            limit,
            bytes,
            seen: 0,
            at: now,
            budget,
            written: budget,
            thrift: Thrift::None,
            files: files.clone(),
        }
    }

    /// Looks again. The rung, when it is another.
    pub fn look(&mut self, now: BootMs) -> Option<Thrift> {
        let limit = self.limit?;
        let bytes = self.bytes.load(Relaxed);
        self.budget.handle_spent(now.saturating_sub(self.at), bytes - self.seen);
        (self.seen, self.at) = (bytes, now);
        let spent = self.budget.spent.abs_diff(self.written.spent);
        if spent * SHARE >= limit || self.budget.ran_ms.abs_diff(self.written.ran_ms) >= WRITE_MS {
            self.written = self.budget;
            let text = serde_json::to_string(&self.budget).unwrap_or_default();
            if let Err(error) = self.files.write_lossy(FILE, text.as_bytes()) {
                tracing::debug!(%error, "the budget was not kept");
            }
        }
        let thrift = self.budget.thrift(limit);
        (std::mem::replace(&mut self.thrift, thrift) != thrift).then(|| {
            tracing::warn!(thrift = thrift.as_str(), spent = self.budget.spent, limit, "the month's bytes");
            thrift
        })
    }

    /// The rung in force, and the bytes of the window as last written; `None` without a limit.
    pub fn status(&self) -> Option<(Thrift, u64, u64)> {
        self.limit.map(|limit| (self.thrift, self.written.spent, limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::at(dir.path());
        let bytes = Arc::new(AtomicU64::new(0));
        let mut spending = Spending::load(Some(1000), &files, bytes.clone(), 0);
        assert_eq!(spending.look(5), None);
        bytes.store(850, Relaxed);
        assert_eq!(spending.look(10), Some(Thrift::Thrifty));
        assert_eq!(spending.look(15), None);
        let mut spending = Spending::load(Some(1000), &files, Arc::default(), 0);
        assert_eq!(spending.look(5), Some(Thrift::Thrifty));
        std::fs::write(files.path(FILE), "{").unwrap();
        assert_eq!(Spending::load(Some(1000), &files, Arc::default(), 0).look(5), None);
        assert_eq!(Spending::load(None, &files, bytes, 0).look(5), None);
    }
}
