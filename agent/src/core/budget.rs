//! How much of a month's bytes is spent, and what is done about it before nothing is left. Pure.
//!
//! A month is 30 days of running time, so that no clock that is 1970 at boot, or set, begins a new one.

use serde::{Deserialize, Serialize};

/// Length of a window, in milliseconds.
pub const WINDOW_MS: u64 = 30 * 24 * 3_600_000;
/// From this share on, in percent, the agent is thrifty.
const THRIFTY_PERCENT: u64 = 80;

/// How the agent behaves. Every rung keeps what the one before it saves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thrift {
    /// As its profile says.
    #[default]
    None,
    /// Signs of life as rare as the profile allows, and no telemetry.
    Thrifty,
    /// Nor output as it comes: only what ends a job is delivered.
    Spent,
}

impl Thrift {
    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Thrift::None => "normal",
            Thrift::Thrifty => "thrifty",
            Thrift::Spent => "spent",
        }
    }
}

/// What is spent of the window, kept over restarts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Running time of the window so far, in milliseconds.
    pub ran_ms: u64,
    /// Bytes of the window so far, headers included, both ways.
    pub spent: u64,
}

impl Budget {
    /// So much time went by and so many bytes.
    pub fn handle_spent(&mut self, ms: u64, bytes: u64) {
        self.ran_ms += ms;
        self.spent += bytes;
        if self.ran_ms >= WINDOW_MS {
            *self = Self::default();
        }
    }

    /// What to do about it; `limit` in bytes per window.
    pub fn thrift(&self, limit: u64) -> Thrift {
        match self.spent.saturating_mul(100) {
            spent if spent >= limit.saturating_mul(100) => Thrift::Spent,
            spent if spent >= limit.saturating_mul(THRIFTY_PERCENT) => Thrift::Thrifty,
            _ => Thrift::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_goes_up_and_a_new_window_begins_below_it() {
        let mut budget = Budget::default();
        let mut spend = |bytes| {
            budget.handle_spent(1, bytes);
            budget.thrift(1000)
        };
        assert_eq!(
            [spend(799), spend(1), spend(199), spend(1)].map(Thrift::as_str),
            ["normal", "thrifty", "thrifty", "spent"]
        );
        budget.handle_spent(WINDOW_MS, 5);
        assert_eq!((budget, budget.thrift(1000)), (Budget::default(), Thrift::None));
        assert_eq!(Budget { ran_ms: 0, spent: u64::MAX }.thrift(u64::MAX), Thrift::Spent);
    }
}
