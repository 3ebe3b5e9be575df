//! The record of an enrolled node, and of an invite that enrols one.

use dunlin_wire::message::{Profile, Role};
use dunlin_wire::{Key, NodeName, Tag};
use serde::{Deserialize, Serialize};

/// What the operator decides about a node when inviting it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Its name.
    pub name: NodeName,
    /// Its tags, sorted.
    pub tags: Vec<Tag>,
    /// Tasks it may hold at once, 1 to `limits::CONCURRENT_MAX`.
    pub slots: u32,
    /// Its timing.
    pub profile: Profile,
    /// What it may do.
    pub role: Role,
    /// Where it is, for people.
    pub region: Option<String>,
}

/// An enrolled node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The operator's part.
    pub spec: NodeSpec,
    /// Its identity.
    pub key: Key,
    /// When it enrolled, in milliseconds since the epoch, as the other times.
    pub enrolled_ms: u64,
    /// Takes no new work.
    pub draining: bool,
    /// Its key is refused for good.
    pub revoked_ms: Option<u64>,
    /// Greatest connection counter it ever used.
    pub connection: u64,
    /// Agent version it last said.
    pub version: String,
    /// Capabilities it last said; tags in the eyes of the scheduler.
    pub capabilities: Vec<Tag>,
    /// Role it last said; the narrower of this and the operator's holds.
    pub role: Role,
    /// Slots its own file allows, as it last said.
    pub slots: u32,
    /// Policy in force there, as it last said.
    pub policy: [u8; 8],
    /// When it was last heard, as of its last change of state.
    pub heard_ms: Option<u64>,
}

impl Node {
    /// A node that just enrolled.
    pub fn new(spec: NodeSpec, key: Key, enrolled_ms: u64) -> Self {
        let (role, slots) = (spec.role, spec.slots);
        Self {
            spec,
            key,
            enrolled_ms,
            draining: false,
            revoked_ms: None,
            connection: 0,
            version: String::new(),
            capabilities: Vec::new(),
            role,
            slots,
            policy: [0; 8],
            heard_ms: None,
        }
    }

    /// Whether it may ever be given work.
    pub fn is_worker(&self) -> bool {
        self.spec.role == Role::Worker && self.role == Role::Worker && self.revoked_ms.is_none()
    }

    /// Tasks it may hold at once: the lower of the operator's number and its own.
    pub fn capacity(&self) -> u32 {
        self.spec.slots.min(self.slots)
    }
}

/// A ticket that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// What the node will be.
    pub node: NodeSpec,
    /// SHA-256 of the ticket's secret.
    pub secret_hash: [u8; 32],
    /// When it ends, in milliseconds since the epoch.
    pub expires_ms: u64,
    /// The key that used it.
    pub used_by: Option<Key>,
}
