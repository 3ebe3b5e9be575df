//! How long this agent may be silent without a NAT on the way forgetting it. Found by trying: the interval is stretched
//! until the hub says that our address changed, and then narrowed to the longest that held (RFC 4787 section 4.3: every
//! NAT has its own).

use dunlin_wire::message::Profile;

/// When the longest good and the shortest bad interval are this close, in percent of the bad one, the search is over.
const CLOSE: u64 = 10;

/// The interval in use, and what is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keepalive {
    shortest: u64,
    longest: u64,
    every: u64,
    good: u64,
    bad: Option<u64>,
    // The silence before the last beat; nobody complained of it yet.
    tried: Option<u64>,
}

impl Keepalive {
    /// Begins at the shortest interval of the profile. A hub that wants another heartbeat than the profile's gets that.
    pub fn new(profile: Profile, heartbeat_ms: u64) -> Self {
        let (mut shortest, mut longest) = profile.keepalive_ms();
        if heartbeat_ms != profile.heartbeat_ms() {
            (shortest, longest) = (heartbeat_ms, heartbeat_ms);
        }
        Self { shortest, longest, every: shortest, good: shortest, bad: None, tried: None }
    }

    /// Longest silence, in milliseconds.
    pub fn every_ms(&self) -> u64 {
        self.every
    }

    /// The longest that the profile allows, in milliseconds, whatever the NAT does.
    pub fn longest_ms(&self) -> u64 {
        self.longest
    }

    /// A beat goes out after this much silence both ways. The one before it was not complained of, so it held.
    pub fn handle_beat(&mut self, silent_ms: u64) {
        if let Some(tried) = self.tried.take() {
            self.good = self.good.max(tried);
            self.every = self.next();
        }
        // The answer to the beat before came a little after it. A much shorter silence shows nothing new.
        self.tried = (silent_ms >= self.every * 9 / 10).then_some(silent_ms.min(self.every));
    }

    /// The hub saw us come from another address.
    pub fn handle_moved(&mut self) {
        let Some(bad) = self.tried.take() else { return };
        if bad <= self.good {
            // What held once holds no more: another network.
            self.good = (bad / 2).max(self.shortest);
        }
        self.bad = Some(bad);
        self.every = self.next();
    }

    /// We took another address ourselves: that shows nothing of the NAT.
    pub fn handle_rebound(&mut self) {
        self.tried = None;
    }

    fn next(&self) -> u64 {
        let next = match self.bad {
            None => self.good * 3 / 2,
            Some(bad) if bad <= self.good + bad * CLOSE / 100 => self.good,
            Some(bad) => self.good.midpoint(bad),
        };
        next.clamp(self.shortest, self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beats behind a NAT that forgets after `nat_s`; where it settles, and how often a binding was lost on the way.
    fn settle(keepalive: &mut Keepalive, nat_s: u64) -> (u64, u32) {
        let mut lost = 0;
        for _ in 0..50 {
            // Less the round trip to the answer of the beat before.
            let silent = keepalive.every_ms() - 650;
            keepalive.handle_beat(silent);
            if silent > nat_s * 1000 {
                keepalive.handle_moved();
                lost += 1;
            }
        }
        (keepalive.every_ms() / 1000, lost)
    }

    #[test]
    fn it_finds_what_the_nat_allows() {
        use Profile::{Lan, Metered, Wan};
        for (profile, nat_s) in [
            (Lan, 30),
            (Wan, 30),
            (Wan, 60),
            (Wan, 119),
            (Wan, 120),
            (Wan, 3600),
            (Metered, 120),
            (Metered, 360),
        ] {
            let mut keepalive = Keepalive::new(profile, profile.heartbeat_ms());
            let (every, lost) = settle(&mut keepalive, nat_s);
            let (shortest, longest) = profile.keepalive_ms();
            let most = nat_s.min(longest / 1000);
            let least = (most * 85 / 100).max(shortest / 1000);
            assert!((least..=most).contains(&every), "{profile:?} behind {nat_s} s: {every}");
            assert!(lost <= 5, "{profile:?} behind {nat_s} s was lost {lost} times");
        }
    }

    #[test]
    fn another_network_is_found_again_and_a_hub_s_own_wish_holds() {
        let mut keepalive = Keepalive::new(Profile::Metered, 300_000);
        assert_eq!(settle(&mut keepalive, 3600).0, 300);
        let found = settle(&mut keepalive, 100).0;
        assert!((85..=100).contains(&found), "{found}");
        let mut keepalive = Keepalive::new(Profile::Wan, 200);
        keepalive.handle_beat(200);
        keepalive.handle_beat(500);
        assert_eq!(keepalive.every_ms(), 200);
    }
}
