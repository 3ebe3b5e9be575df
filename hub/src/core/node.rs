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
    /// Greatest connection counter that was ever said for it in early data.
    pub early_connection: u64,
    /// Two live copies of it were seen: it is held until it is revoked.
    pub cloned: bool,
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
            early_connection: 0,
            cloned: false,
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

/// Random ids that processes of one node said at their start, to see a copied identity: one device goes from a process
/// to the next and never back, two copies go back and forth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Boots {
    now: Option<[u8; 16]>,
    before: Option<[u8; 16]>,
    returns: u32,
}

impl Boots {
    /// Returns after which there are two copies. One alone may be the last word of a process, late on its way.
    const RETURNS: u32 = 2;

    /// Whether this process was there lately: what it says late is no sign of a copy.
    pub fn knows(&self, boot: [u8; 16]) -> bool {
        [self.now, self.before].contains(&Some(boot))
    }

    /// A confirmed connection of this process. Whether there are two live copies.
    pub fn handle_hello(&mut self, boot: [u8; 16]) -> bool {
        if self.now == Some(boot) {
            return false;
        }
        if self.before == Some(boot) {
            self.returns += 1;
        } else {
            self.returns = 0;
        }
        self.before = self.now.replace(boot);
        self.returns >= Self::RETURNS
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

#[cfg(test)]
mod tests {
    use super::Boots;

    #[test]
    fn only_two_copies_go_back_and_forth() {
        let check = |boots: &str, want: &[bool]| {
            let mut seen = Boots::default();
            let got: Vec<bool> = boots.bytes().map(|b| seen.handle_hello([b; 16])).collect();
            assert_eq!(got, want, "{boots}");
        };
        check("abcde", &[false; 5]);
        check("aaabbb", &[false; 6]);
        // A late word of the old process.
        check("abac", &[false; 4]);
        check("abab", &[false, false, false, true]);
        check("aabbaabb", &[false, false, false, false, false, false, true, false]);
    }
}
