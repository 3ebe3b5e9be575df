//! Dunlin's protocol: what a hub and an agent say to each other, and nothing else.
//!
//! Everything here is pure: no IO, no clock, no async, no logging. Time and randomness come in as values.
//! Messages are postcard (<https://postcard.jamesmunns.com/wire-format>) in length-delimited frames on QUIC
//! streams. Variants and fields are appended only, see [`version`]; `tests/` holds the bytes of every message.

pub mod actuation;
pub mod backoff;
pub mod bundle;
pub mod close;
pub mod company;
pub mod datagram;
pub mod envelope;
pub mod frame;
pub mod ids;
pub mod job;
pub mod keys;
pub mod limits;
pub mod message;
pub mod nvml;
pub mod outcome;
pub mod overlay;
pub mod prober;
pub mod redact;
pub mod report;
pub mod require;
pub mod seal;
pub mod telemetry;
pub mod ticket;
pub mod units;
mod upload;
pub mod version;
pub mod window;

pub use close::CloseCode;
pub use ids::{ClaimId, Fence, FleetId, Key, NodeName, Tag, TaskId};
