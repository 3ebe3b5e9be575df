//! What a node's silence means. Judged by the hub's own monotonic clock only.

use super::timing::Timing;

/// How a node looks from the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// Not heard since this hub started, and not for long enough to be called offline.
    Unheard,
    /// Heard within the first bound.
    Healthy,
    /// Silent for longer than the first bound.
    Degraded,
    /// Silent for longer than the second bound, or gone in order.
    Offline,
}

impl Health {
    /// Every value.
    pub const ALL: [Health; 4] = [Health::Unheard, Health::Healthy, Health::Degraded, Health::Offline];

    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Unheard => "unheard",
            Health::Healthy => "healthy",
            Health::Degraded => "degraded",
            Health::Offline => "offline",
        }
    }
}

/// The health of one node over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    health: Health,
    heard: u64,
}

impl Pulse {
    /// A node not heard since the hub started at `now` (monotonic milliseconds, as everywhere here).
    pub fn unheard(now: u64) -> Self {
        Self { health: Health::Unheard, heard: now }
    }

    /// The state in force.
    pub fn health(&self) -> Health {
        self.health
    }

    /// When it was last heard.
    pub fn heard(&self) -> u64 {
        self.heard
    }

    /// Something authenticated came. Returns the state it left, when that changed.
    pub fn handle_heard(&mut self, now: u64) -> Option<Health> {
        self.heard = now;
        self.become_(Health::Healthy)
    }

    /// It left in order.
    pub fn handle_leaving(&mut self) -> Option<Health> {
        self.become_(Health::Offline)
    }

    /// Somebody said that it is down, and it did not answer when asked.
    pub fn handle_reported_down(&mut self) -> Option<Health> {
        self.become_(Health::Offline)
    }

    /// When silence next changes the state.
    pub fn poll_timeout(&self, heartbeat_ms: u64, timing: &Timing) -> Option<u64> {
        let beats = match self.health {
            Health::Healthy => timing.degraded_heartbeats,
            Health::Unheard | Health::Degraded => timing.offline_heartbeats,
            Health::Offline => return None,
        };
        Some(self.heard + beats * heartbeat_ms + 1)
    }

    /// Silence is judged. Returns the state it left, when that changed.
    pub fn handle_timeout(&mut self, now: u64, heartbeat_ms: u64, timing: &Timing) -> Option<Health> {
        let mut left = None;
        while self.poll_timeout(heartbeat_ms, timing).is_some_and(|at| at <= now) {
            let next = if self.health == Health::Healthy { Health::Degraded } else { Health::Offline };
            let before = self.become_(next);
            left = left.or(before);
        }
        left
    }

    fn become_(&mut self, health: Health) -> Option<Health> {
        let before = std::mem::replace(&mut self.health, health);
        (before != health).then_some(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_wire::message::Profile;

    #[test]
    fn silence_degrades_and_ends_by_the_profile() {
        let timing = Timing::default();
        for (profile, degraded, offline) in [
            (Profile::Lan, 10_000, 30_000),
            (Profile::Wan, 50_000, 150_000),
            (Profile::Metered, 600_000, 1_800_000),
        ] {
            let every = timing.heartbeat_ms(profile);
            let mut pulse = Pulse::unheard(0);
            assert_eq!(pulse.handle_heard(100), Some(Health::Unheard));
            assert_eq!(pulse.handle_timeout(100 + degraded, every, &timing), None);
            assert_eq!(pulse.handle_timeout(101 + degraded, every, &timing), Some(Health::Healthy));
            assert_eq!(pulse.handle_timeout(100 + offline, every, &timing), None);
            assert_eq!(pulse.handle_timeout(101 + offline, every, &timing), Some(Health::Degraded));
            assert_eq!((pulse.health(), pulse.poll_timeout(every, &timing)), (Health::Offline, None));
            assert_eq!(pulse.handle_heard(999_999), Some(Health::Offline));
        }
    }

    #[test]
    fn a_restarted_hub_gives_a_node_its_whole_time() {
        let timing = Timing::default();
        let mut pulse = Pulse::unheard(1_000);
        assert_eq!(pulse.handle_timeout(31_000, 5_000, &timing), None);
        assert_eq!(pulse.handle_timeout(31_001, 5_000, &timing), Some(Health::Unheard));
    }

    #[test]
    fn leaving_needs_no_silence() {
        let mut pulse = Pulse::unheard(0);
        pulse.handle_heard(5);
        assert_eq!(pulse.handle_leaving(), Some(Health::Healthy));
        assert_eq!(pulse.health(), Health::Offline);
    }
}
