//! What travels in QUIC datagrams (RFC 9221): small, at most once, in no order. Only what may be lost is said here.

use crate::message::ToAgent;
use crate::telemetry::Sample;
use serde::{Deserialize, Serialize};

/// From the agent. Append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAgent {
    /// I am alive. The acknowledgement by QUIC is the answer.
    Beat {
        /// Milliseconds until the next one at most; 0: as often as the hub asked for.
        every_ms: u32,
        /// What the board is like, when a report is due: a delta.
        sample: Option<Box<Sample>>,
    },
    /// Are you there? Answered by [`FromHub::Echo`], so that both sides learn at once what was lost.
    Probe,
    /// The shortest sign of life: a beat with nothing to say, as often as the hub asked for.
    Alive,
}

/// From the hub. Append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromHub {
    /// Answer to a probe.
    Echo,
    /// A message that was said on the control stream and not answered, once more: it may be stuck behind a loss.
    Again(Box<ToAgent>),
    /// You have been silent for long: say that you live. Answered by a beat.
    Ask,
}
