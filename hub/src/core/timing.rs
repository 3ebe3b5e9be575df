//! The numbers of the task lifecycle, all in one place. A config may override each; tests scale them.

use dunlin_wire::message::Profile;
use serde::Deserialize;

/// Times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "snake_case")]
pub struct Timing {
    /// A grant that nobody accepted in this time flags its node `unresponsive`.
    pub accept_ms: u64,
    /// Shortest lease.
    pub lease_ms_min: u64,
    /// Lease of a grant made before the node's handshake was over; never longer than the shortest.
    pub early_lease_ms: u64,
    /// Fixed part of the hub's margin behind a lease; 1 % of the lease is added.
    pub margin_ms: u64,
    /// First retry delay; doubles with each attempt.
    pub retry_ms: u64,
    /// Longest retry delay.
    pub retry_ms_max: u64,
    /// How long a running attempt may be silent about its progress before it is reclaimed; 0 never.
    pub stuck_ms: u64,
    /// What one point of priority is worth in waiting time: a task waits behind later ones of higher priority for at
    /// most the difference times this.
    pub ageing_ms: u64,
    /// How long a `carryOn` attempt is held while its agent is away.
    pub offline_ms: u64,
    /// How long a settled claim id is remembered.
    pub claim_memory_ms: u64,
    /// Heartbeat of every profile instead of the profile's own; for tests.
    pub heartbeat_ms: Option<u64>,
    /// Silence, in heartbeats, after which a node is degraded.
    pub degraded_heartbeats: u64,
    /// Silence, in heartbeats, after which a node is offline.
    pub offline_heartbeats: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            accept_ms: 30_000,
            lease_ms_min: 30_000,
            early_lease_ms: 8_000,
            margin_ms: 5_000,
            retry_ms: 250,
            retry_ms_max: 10_000,
            stuck_ms: 300_000,
            ageing_ms: 6_000,
            offline_ms: 24 * 3_600_000,
            claim_memory_ms: 24 * 3_600_000,
            heartbeat_ms: None,
            degraded_heartbeats: 2,
            offline_heartbeats: 6,
        }
    }
}

impl Timing {
    /// Time between heartbeats of a node with this profile.
    pub fn heartbeat_ms(&self, profile: Profile) -> u64 {
        self.heartbeat_ms.unwrap_or(profile.heartbeat_ms())
    }

    /// Length of a lease of a node with this profile: max(30 s, 1.5 heartbeats).
    pub fn lease_ms(&self, profile: Profile) -> u64 {
        self.lease_ms_min.max(self.heartbeat_ms(profile) * 3 / 2)
    }

    /// How long the hub waits from its own grant or receipt until it believes that a lease is over.
    pub fn hold_ms(&self, lease_ms: u64) -> u64 {
        lease_ms + self.margin_ms + lease_ms / 100
    }
}
