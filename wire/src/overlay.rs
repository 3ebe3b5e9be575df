//! What the hub asks a board to leave out of its own policy. It can only narrow: a board applies it to its file's rules, and
//! there is nothing in it that could add to them.

use crate::limits;
use serde::{Deserialize, Serialize};

/// Names in one overlay.
const NAMES_MAX: usize = 256;

/// The overlay. `None` leaves that as the board's file has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Which one it is; the hub numbers them from 1. 0: none.
    pub version: u64,
    /// All that may be used: ids of rules, `hook:NAME`, `orchestrator`.
    pub rules: Option<Vec<String>>,
    /// Longest run, in milliseconds: who asks for more gets this.
    pub timeout_ms: Option<u64>,
    /// Most output kept per stream, in bytes.
    pub output: Option<u64>,
    /// Jobs at once.
    pub jobs: Option<u32>,
}

impl Overlay {
    /// One under which nothing runs.
    pub fn nothing() -> Self {
        Self { rules: Some(vec![]), ..Self::default() }
    }

    /// Whether it may use what has this name.
    pub fn takes(&self, name: &str) -> bool {
        self.rules.as_ref().is_none_or(|rules| rules.iter().any(|rule| rule == name))
    }

    /// Whether every part is within its bounds.
    pub fn is_in_bounds(&self) -> bool {
        let names = self.rules.as_ref().is_none_or(|rules| {
            rules.len() <= NAMES_MAX && rules.iter().all(|name| name.len() <= limits::TEXT_MAX)
        });
        names && self.timeout_ms != Some(0) && self.output != Some(0) && self.jobs != Some(0)
    }
}
