//! Tables, keys and record versions. Keys are big-endian so that LMDB's order is the number's order.

use super::StoreError;
use serde::{Serialize, de::DeserializeOwned};

/// Format of the whole store; raised when an older hub could not read it. 2: beside the engine's file is a redo log.
pub(super) const FORMAT: u32 = 2;

/// Version of every record's postcard body; the first byte of each value. An old version gets a branch in `decode`.
const RECORD: u8 = 1;

macro_rules! tables {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Table { $($(#[$doc])* $name,)* }

        impl Table {
            pub(super) const ALL: [Table; [$($text,)*].len()] = [$(Table::$name,)*];
            pub(super) const COUNT: usize = Self::ALL.len();

            pub(super) fn name(self) -> &'static str {
                match self { $(Table::$name => $text,)* }
            }
        }
    };
}

// The redo log names tables by their places here: new ones come last.
tables! {
    /// name -> a single value: format, counters, fleet, halted
    Meta = "meta",
    /// task id -> Task
    Tasks = "tasks",
    /// seq -> task id
    Order = "order",
    /// state, seq -> task id. State `failed` is the dead-letter list.
    ByState = "by_state",
    /// fence -> task id, for every attempt in a task's history
    Fences = "fences",
    /// fence -> task id, while the attempt's end is unknown
    Live = "live",
    /// node, claim -> fence, task, and when it was settled
    Claims = "claims",
    /// settled time, node, claim -> nothing: what to forget, oldest first
    Settled = "settled",
    /// fence, stream, offset -> bytes
    Outputs = "outputs",
    /// name -> Node
    Nodes = "nodes",
    /// key -> node name; stays when the node is revoked
    Keys = "keys",
    /// invite id -> Invite
    Invites = "invites",
    /// event id -> EventRecord
    Events = "events",
    /// audit id -> AuditRecord, of what people did
    Audit = "audit",
    /// audit id -> AuditRecord, of what boards decided and did; ids are of one sequence with `audit`
    Decisions = "decisions",
    /// token name -> Token
    Tokens = "tokens",
    /// node -> names of its series
    Series = "series",
    /// node, tier, time -> Row
    History = "history",
}

pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![RECORD]).expect("records always encode: they have no unsized parts")
}

pub(super) fn decode<T: DeserializeOwned>(table: Table, bytes: &[u8]) -> Result<T, StoreError> {
    let corrupt = StoreError::Corrupt { table: table.name() };
    match bytes.split_first() {
        Some((&RECORD, body)) => postcard::from_bytes(body).map_err(|_| corrupt),
        Some((&found, _)) if found > RECORD => Err(StoreError::Record { table: table.name(), found }),
        _ => Err(corrupt),
    }
}

/// A key of several parts.
pub(super) fn key(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// The big-endian number at `at`.
pub(super) fn number(table: Table, key: &[u8], at: usize) -> Result<u64, StoreError> {
    key.get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map(u64::from_be_bytes)
        .ok_or(StoreError::Corrupt { table: table.name() })
}
