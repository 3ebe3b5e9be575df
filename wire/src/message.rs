//! Every message between agent and hub. Append variants and fields at the end only, see [`crate::version`].
//!
//! The agent opens one bidirectional **control stream**: it sends [`Numbered`] frames there and reads [`ToAgent`].
//! Output, and the outcome that ends it, travel on one unidirectional **upload stream** per attempt as [`Upload`]
//! frames, so that no attempt waits for another's output. The first message on a connection is `Hello` or `Join`.
//!
//! # The lease rule
//! Each message on the control stream carries a number. The hub's answers name the newest number it had heard, and a
//! lease runs at the agent from the moment it *sent* that number; the hub counts from its own, later, grant or
//! receipt and adds a margin. No two clocks are ever compared.

use crate::ids::{ClaimId, Fence, FleetId, NodeName, Tag, TaskId};
use crate::job::{CancelledBy, Delivery, Job, OnDisconnect, Stream};
use crate::overlay::Overlay;
use crate::report::Told;
use crate::require::Require;
use crate::telemetry::{Alarm, Inventory, Sample};
use serde::{Deserialize, Serialize};

pub use crate::upload::Upload;

/// A frame on the control stream from the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered {
    /// Grows by one with each frame of a connection, from 1.
    pub seq: u64,
    /// What is said.
    pub message: ToHub,
}

/// From the agent. Append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHub {
    /// Who connects, and what it still holds. First on every connection of an enrolled node.
    Hello(Box<Hello>),
    /// A device with a ticket asks to be enrolled. First and only message of its connection.
    Join(Box<Join>),
    /// Free slots: one standing claim each. Sent after `Hello`, and when a slot frees.
    Claim {
        /// Ids that this agent never used for another slot.
        ids: Vec<ClaimId>,
    },
    /// The grant is on the agent's disk; its process starts now.
    Accepted {
        /// The attempt.
        fence: Fence,
    },
    /// The process runs.
    Started {
        /// The attempt.
        fence: Fence,
    },
    /// I am alive; renew these leases. Answered by `Renewed` when there are any.
    Heartbeat {
        /// Attempts that are accepted or running.
        fences: Vec<Fence>,
        /// What the board is like, when a report is due.
        sample: Option<Box<Sample>>,
    },
    /// Output or an outcome of an attempt too small for a stream of its own.
    Upload(Upload),
    /// The agent shuts down in order and will not renew.
    Leaving,
    /// What the agent holds from before this connection. Once on each, when the handshake is over: never early.
    Holding {
        /// Every attempt the agent has on disk that the hub has not acknowledged.
        unfinished: Vec<Unfinished>,
        /// Claims that stand, and those whose grant is not on disk yet.
        claims: Vec<ClaimId>,
    },
    /// What the board has. A full sample follows.
    Inventory(Box<Inventory>),
    /// A full sample, which deltas may be based on.
    Sample(Box<Sample>),
    /// The board is in trouble. Said at once, of each kind at most every [`crate::telemetry::ALARM_MS`].
    Alarm {
        /// What it is.
        alarm: Alarm,
        /// The sensor or filesystem, as the board calls it, at most `limits::NAME_MAX` bytes; else empty.
        name: String,
        /// How long ago it was seen, in milliseconds: there may have been no connection.
        age_ms: u64,
    },
    /// Version of the key set in force, 0 for none: said when the connection stands, and after each change. Whoever
    /// never says it trusts no signatures. Answered by `Keys` when the hub has a newer one.
    Keys {
        /// The version.
        version: u64,
    },
    /// What a running job says of itself: a sign that it goes on.
    Told {
        /// The attempt.
        fence: Fence,
        /// What it says, without a result.
        told: Told,
    },
    /// Version of the overlay in force, 0 for none: said as `Keys` is. Answered by `Overlay` when another is meant.
    Overlay {
        /// The version.
        version: u64,
    },
}

/// A frame that may ride in 0-RTT data, where an attacker can repeat it (RFC 8446 section 8). It can only be made of
/// a message that is safe there: `Hello` identifies, and a repeated `Claim` gets the same grant again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Early(Numbered);

impl Early {
    /// The frame.
    pub fn frame(&self) -> &Numbered {
        &self.0
    }
}

impl TryFrom<Numbered> for Early {
    type Error = Numbered;

    fn try_from(frame: Numbered) -> Result<Self, Numbered> {
        if frame.message.may_be_early() { Ok(Self(frame)) } else { Err(frame) }
    }
}

impl ToHub {
    /// Whether repeating it harms nothing.
    pub fn may_be_early(&self) -> bool {
        matches!(self, ToHub::Hello(_) | ToHub::Claim { .. })
    }
}

/// From the hub. Append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Answer to `Hello`.
    Welcome(Box<Welcome>),
    /// Answer to `Join`.
    Joined(Box<Joined>),
    /// A task for a standing claim.
    Grant(Box<Grant>),
    /// Leases that go on, and attempts that must end.
    Renewed {
        /// The newest number heard from the agent.
        heard: u64,
        /// Attempt and length of its lease in milliseconds.
        leases: Vec<(Fence, u64)>,
    },
    /// The outcome and its output are on the hub's disk, or were refused for good: drop your copy.
    Ack {
        /// The attempt.
        fence: Fence,
        /// Whether it counted.
        verdict: AckVerdict,
    },
    /// Kill the attempt. Its outcome is still reported.
    Abort {
        /// The attempt.
        fence: Fence,
        /// Why.
        cause: AbortCause,
    },
    /// This claim will never get a grant (its grant was settled or taken back): use a new id for the slot.
    Void {
        /// The claim.
        claim: ClaimId,
    },
    /// The outcome came, but its output has a gap or does not hash to what the report says: upload again from here.
    Missing {
        /// The attempt.
        fence: Fence,
        /// Bytes of stdout and stderr that the hub holds from the start without a gap.
        have: [u64; 2],
    },
    /// Answer to `Holding`: what to do with each unfinished attempt.
    Verdicts {
        /// The newest number heard from the agent.
        heard: u64,
        /// Each of them.
        verdicts: Vec<(Fence, Verdict)>,
    },
    /// The agent's packets come from another address than before: a NAT on the way has forgotten the one before, so the
    /// silence before the last packet was too long.
    Moved,
    /// A set of keys, as a root signed it ([`crate::keys::KeySet`]). The hub cannot tell whether it is one.
    Keys(#[serde(with = "serde_bytes")] Vec<u8>),
    /// What to leave out of the board's own policy from now on, also after a restart.
    Overlay(Box<Overlay>),
    /// Somebody follows what an attempt writes: send it as `Tail`, so many bytes more than was granted on this connection.
    Watch {
        /// The attempt.
        fence: Fence,
        /// Which stream.
        stream: Stream,
        /// Bytes, on top of what is left; 0: nobody follows it any more.
        credit: u64,
    },
}

/// First message of an enrolled node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol generation that the agent speaks.
    pub generation: u16,
    /// The fleet it was enrolled in.
    pub fleet: FleetId,
    /// Its name.
    pub node: NodeName,
    /// What it may do.
    pub role: Role,
    /// Random at each start of the board or agent process, so that a clone shows.
    pub boot_id: [u8; 16],
    /// Grows with every connection, durable at the agent.
    pub connection: u64,
    /// Version of the agent, at most 64 bytes.
    pub version: String,
    /// What the kernel and board offer, e.g. `arch:aarch64`.
    pub capabilities: Vec<Tag>,
    /// Slots the agent's own file allows.
    pub slots: u32,
    /// Timing profile.
    pub profile: Profile,
    /// First eight bytes of the SHA-256 of the policy in force.
    pub policy: [u8; 8],
}

/// An attempt the agent holds from before the connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// The task.
    pub task: TaskId,
    /// The attempt.
    pub fence: Fence,
    /// Whether its outcome is on the agent's disk.
    pub ended: bool,
}

/// What a node may do. Append only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Reports and works.
    #[default]
    Worker,
    /// Reports only.
    Viewer,
}

impl Role {
    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Worker => "worker",
            Role::Viewer => "viewer",
        }
    }
}

/// Timing profile of an uplink. Append only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Profile {
    /// Heartbeat every 5 s.
    Lan,
    /// Heartbeat every 25 s.
    #[default]
    Wan,
    /// Heartbeat every 300 s.
    Metered,
}

impl Profile {
    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Profile::Lan => "lan",
            Profile::Wan => "wan",
            Profile::Metered => "metered",
        }
    }

    /// The profile of a word.
    pub fn parse(word: &str) -> Option<Self> {
        [Profile::Lan, Profile::Wan, Profile::Metered].into_iter().find(|p| p.as_str() == word)
    }

    /// Time between heartbeats, in milliseconds.
    pub fn heartbeat_ms(self) -> u64 {
        match self {
            Profile::Lan => 5_000,
            Profile::Wan => 25_000,
            Profile::Metered => 300_000,
        }
    }

    /// The shortest and the longest time between heartbeats of an agent that looks for what its NAT allows, in
    /// milliseconds.
    pub fn keepalive_ms(self) -> (u64, u64) {
        match self {
            Profile::Lan => (5_000, 5_000),
            Profile::Wan => (25_000, 120_000),
            Profile::Metered => (60_000, 300_000),
        }
    }

    /// Time between telemetry reports, in milliseconds, of a node that sends heartbeats as often as this. A report rides
    /// in a heartbeat, so one is never more frequent than the other.
    pub fn report_ms(self, heartbeat_ms: u64) -> u64 {
        let own = match self {
            Profile::Lan => 10_000,
            Profile::Wan => 60_000,
            Profile::Metered => 300_000,
        };
        if heartbeat_ms == self.heartbeat_ms() { own } else { heartbeat_ms * 2 }
    }

    /// After how much silence QUIC gives a connection up, in milliseconds: three times the longest keep-alive.
    pub fn idle_ms(self) -> u64 {
        (self.keepalive_ms().1 * 3).max(30_000)
    }
}

/// Request of a device that holds a ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// Protocol generation that the agent speaks.
    pub generation: u16,
    /// The ticket's public id.
    pub invite: [u8; 16],
    /// The ticket's secret.
    pub secret: [u8; 16],
}

/// The node as enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The fleet.
    pub fleet: FleetId,
    /// The name the operator gave.
    pub node: NodeName,
    /// Slots the operator allows.
    pub slots: u32,
    /// Timing profile.
    pub profile: Profile,
    /// Its role.
    pub role: Role,
}

/// Answer to `Hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Protocol generation in use: the lower of both.
    pub generation: u16,
    /// The newest number heard from the agent.
    pub heard: u64,
    /// Slots the hub will fill at most.
    pub slots: u32,
    /// Time between heartbeats, in milliseconds.
    pub heartbeat_ms: u64,
}

/// What the hub says of an unfinished attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It is still yours; run on, or deliver its outcome. Bytes of stdout and stderr that the hub has.
    Continue {
        /// Length of the lease, in milliseconds.
        lease_ms: u64,
        /// Bytes the hub holds of each stream, from the start without a gap.
        have: [u64; 2],
    },
    /// It is no longer yours: kill it, then report its end.
    Abort {
        /// Why.
        cause: AbortCause,
    },
    /// Its outcome is settled: drop it.
    Ack {
        /// Whether it counted.
        verdict: AckVerdict,
    },
}

/// A task for a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The claim that it fills.
    pub claim: ClaimId,
    /// Number of this attempt in the order of all grants.
    pub fence: Fence,
    /// The newest number heard from the agent: the lease runs from when that was sent.
    pub heard: u64,
    /// Length of the first lease, in milliseconds.
    pub lease_ms: u64,
    /// The task.
    pub task: TaskId,
    /// Which attempt of the task this is, from 1.
    pub attempt: u32,
    /// The work.
    pub job: Job,
    /// Run timeout that was asked for, in milliseconds; `None` leaves it to the rule.
    pub timeout_ms: Option<u64>,
    /// What to do when the lease cannot be renewed.
    pub on_disconnect: OnDisconnect,
    /// What to do when the device dies.
    pub delivery: Delivery,
    /// What the board must have when the job starts; else it is denied.
    pub requires: Vec<Require>,
}

/// Whether an outcome counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AckVerdict {
    /// It is the task's result.
    Applied,
    /// It was applied before.
    Duplicate,
    /// The task was granted again since; this fence is old.
    StaleFence,
    /// The task had ended otherwise (cancelled, for example).
    TaskEnded,
    /// The hub does not know the task.
    UnknownTask,
    /// The attempt belongs to another node.
    NotYourLease,
}

impl AckVerdict {
    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            AckVerdict::Applied => "applied",
            AckVerdict::Duplicate => "duplicate",
            AckVerdict::StaleFence => "stale_fence",
            AckVerdict::TaskEnded => "task_ended",
            AckVerdict::UnknownTask => "unknown_task",
            AckVerdict::NotYourLease => "not_your_lease",
        }
    }
}

/// Why an attempt must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbortCause {
    /// On request: SIGTERM, grace, then SIGKILL.
    Cancelled {
        /// By whom.
        by: CancelledBy,
    },
    /// The lease is not this node's any more: SIGKILL at once.
    LeaseLost,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{frame, limits};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoding_anything_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
            let mut decoder = frame::Decoder::new(limits::FRAME_MAX);
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next::<Numbered>() {}
            let _ = postcard::from_bytes::<ToAgent>(&bytes);
            let _ = postcard::from_bytes::<Upload>(&bytes);
        }

        #[test]
        fn chunks_round_trip(offset: u64, fence: u64, bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let chunk = Upload::Chunk { fence: Fence(fence), stream: Stream::Stderr, offset, bytes };
            let mut out = Vec::new();
            frame::push(&mut out, &chunk, limits::FRAME_MAX).unwrap();
            let mut decoder = frame::Decoder::new(limits::FRAME_MAX);
            decoder.push(&out);
            prop_assert_eq!(decoder.next::<Upload>().unwrap(), Some(chunk));
        }
    }

    #[test]
    fn an_announced_huge_list_allocates_nothing() {
        // Claim with a list of 2^60 ids: postcard stops at the end of the input instead of reserving for it.
        let mut bytes = vec![1u8, 2];
        bytes.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert!(postcard::from_bytes::<Numbered>(&bytes).is_err());
    }
}
