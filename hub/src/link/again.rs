//! Grants that nobody answered are said once more, in datagrams, at a capped interval: after an outage they are there
//! before QUIC has backed off to its next try. On a link that was seen to lose, a copy goes out before an answer could be
//! there: QUIC finds a lost packet out only after more than a round trip, and what is behind it in its stream waits as
//! long. A grant that comes twice is one grant: it has a fence. Pure.

use dunlin_wire::Fence;
use dunlin_wire::datagram::FromHub;
use dunlin_wire::message::{ToAgent, ToHub, Upload};
use dunlin_wire::prober::{Action, Prober};
use std::collections::BTreeMap;

/// Grants of one agent that are repeated at once; more wait for QUIC.
const WAITING_MAX: usize = 8;

/// A link loses when it lost one packet in so many.
const LOSSY: u64 = 50;
/// Fewer losses say nothing of it.
const LOST_MIN: u64 = 2;
/// Packets after which what was seen counts half.
const REMEMBERED: u64 = 512;

/// Packets sent and lost of late.
#[derive(Default)]
struct Losses {
    sent: u64,
    lost: u64,
    seen: [u64; 2],
}

impl Losses {
    /// `total`: packets that were sent and lost on this connection so far.
    fn handle(&mut self, total: [u64; 2]) {
        let [sent, lost] = [0, 1].map(|at| total[at].saturating_sub(self.seen[at]));
        (self.sent, self.lost, self.seen) = (self.sent + sent, self.lost + lost, total);
        while self.sent > REMEMBERED {
            (self.sent, self.lost) = (self.sent / 2, self.lost / 2);
        }
    }

    fn are_common(&self) -> bool {
        self.lost >= LOST_MIN && self.lost * LOSSY >= self.sent
    }
}

struct Waiting {
    bytes: Vec<u8>,
    until: u64,
}

/// What was granted and not answered. Times are milliseconds of one clock.
pub(super) struct Again {
    prober: Prober,
    waiting: BTreeMap<Fence, Waiting>,
    losses: Losses,
    // When copies go out without waiting for anything.
    blind: Vec<u64>,
    // Until when what was said before may still hold its stream up.
    behind: u64,
    // Until when something may be under way that a grant must not overtake: what narrows the policy, what ends an attempt.
    first: u64,
}

impl Again {
    pub(super) fn new() -> Self {
        let (prober, waiting) = (Prober::new(false), BTreeMap::new());
        Self { prober, waiting, losses: Losses::default(), blind: Vec::new(), behind: 0, first: 0 }
    }

    /// Packets that were sent and lost on this connection so far.
    pub(super) fn handle_packets(&mut self, sent_and_lost: [u64; 2]) {
        self.losses.handle(sent_and_lost);
    }

    /// A message goes out; `room` is the size of the largest datagram, in bytes.
    pub(super) fn handle_sent(&mut self, message: &ToAgent, now: u64, rtt_ms: u64, room: usize) {
        let held_up = now < std::mem::replace(&mut self.behind, now + 2 * rtt_ms);
        if !matches!(
            message,
            ToAgent::Grant(_) | ToAgent::Ack { .. } | ToAgent::Renewed { .. } | ToAgent::Moved
        ) {
            self.first = self.behind;
        }
        let ToAgent::Grant(grant) = message else { return };
        let again = FromHub::Again(Box::new(message.clone()));
        let Ok(bytes) = postcard::to_stdvec(&again) else { return };
        if bytes.len() > room || self.waiting.len() == WAITING_MAX {
            return;
        }
        if self.waiting.is_empty() {
            // What was asked about before is answered.
            self.prober = Prober::new(false);
            self.blind.clear();
        }
        // Past its lease a repeated grant would only be accepted to wait.
        self.waiting.insert(grant.fence, Waiting { bytes, until: now + grant.lease_ms });
        self.prober.handle_sent(now, rtt_ms);
        if self.losses.are_common() && now >= self.first {
            // Late enough to be lost by itself, early enough to be there before QUIC's next try leaves.
            self.blind.push(now + rtt_ms * 3 / 10);
            self.blind.extend(held_up.then_some(now));
        }
    }

    /// The agent says something.
    pub(super) fn handle_heard(&mut self, message: &ToHub) {
        let fence = match message {
            ToHub::Accepted { fence } | ToHub::Upload(Upload::Outcome { fence, .. }) => fence,
            _ => return,
        };
        self.waiting.remove(fence);
    }

    /// When [`Again::poll`] must be called.
    pub(super) fn poll_timeout(&self) -> Option<u64> {
        let probe = self.prober.poll_timeout().into_iter();
        probe.chain(self.blind.iter().copied()).min().filter(|_| !self.waiting.is_empty())
    }

    /// What to say again; `packets` came on this connection so far.
    pub(super) fn poll(&mut self, now: u64, packets: u64) -> Vec<Vec<u8>> {
        self.waiting.retain(|_, waiting| waiting.until > now);
        let before = self.blind.len();
        self.blind.retain(|at| *at > now);
        let (action, answered) = self.prober.poll(now, packets);
        if answered {
            // Something came: QUIC sees by that what was lost, and sends it.
            self.waiting.clear();
        }
        let due = matches!(action, Some(Action::Probe | Action::Rebind | Action::Dead));
        if !due && self.blind.len() == before {
            return Vec::new();
        }
        self.waiting.values().map(|waiting| waiting.bytes.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_wire::ClaimId;
    use dunlin_wire::job::{Delivery, Job, OnDisconnect, Shell};
    use dunlin_wire::message::Grant;

    fn grant(fence: u64, argument: usize) -> ToAgent {
        let shell = Shell { argv: vec!["/bin/true".into(), "x".repeat(argument)], cwd: None, env: vec![] };
        ToAgent::Grant(Box::new(Grant {
            claim: ClaimId(1),
            fence: Fence(fence),
            heard: 1,
            lease_ms: 8_000,
            task: "t".parse().unwrap(),
            attempt: 1,
            job: Job::Shell(shell),
            timeout_ms: None,
            on_disconnect: OnDisconnect::Fence,
            delivery: Delivery::AtLeastOnce,
            requires: vec![],
        }))
    }

    #[test]
    fn an_unanswered_grant_is_repeated_until_its_lease_is_over() {
        let mut again = Again::new();
        again.handle_sent(&grant(1, 1), 0, 60, 1200);
        again.handle_sent(&grant(2, 5000), 0, 60, 1200);
        let (mut said, mut last) = (0, 0);
        while let Some(now) = again.poll_timeout() {
            let copies = again.poll(now, 5);
            assert!(copies.len() <= 1, "the large one waits for QUIC");
            assert!(said == 0 || now - last <= 2_000, "{last} {now}");
            (said, last) = (said + copies.len(), now);
        }
        assert!(said > 25 && last < 11_000, "{said} {last}");
    }

    #[test]
    fn an_answer_or_an_acknowledgement_ends_it() {
        let mut again = Again::new();
        again.handle_sent(&grant(1, 1), 0, 60, 1200);
        again.handle_heard(&ToHub::Accepted { fence: Fence(1) });
        assert_eq!(again.poll_timeout(), None);
        again.handle_sent(&grant(2, 1), 1_000, 60, 1200);
        while let Some(now) = again.poll_timeout() {
            assert!(again.poll(now, now).is_empty(), "packets come");
        }
        // A grant long after that is asked about at the first pace again.
        again.handle_sent(&grant(3, 1), 90_000, 60, 1200);
        let mut at = Vec::new();
        while let Some(now) = again.poll_timeout().filter(|at| *at < 91_000) {
            at.extend(again.poll(now, 5).iter().map(|_| now));
        }
        assert!(at.windows(2).all(|w| w[1] - w[0] == 200) && at.len() >= 4, "{at:?}");
    }

    /// When copies of a grant said at 1000 go out on a link of 200 ms, until an answer could be there.
    fn copies(again: &mut Again) -> Vec<u64> {
        again.handle_sent(&grant(1, 1), 1_000, 200, 1200);
        let mut at = Vec::new();
        while let Some(now) = again.poll_timeout().filter(|at| *at < 1_180) {
            at.extend(again.poll(now, 5).iter().map(|_| now));
        }
        at
    }

    #[test]
    fn a_link_that_was_seen_to_lose_gets_a_copy_unasked() {
        let after = |seen: &[[u64; 2]]| {
            let mut again = Again::new();
            seen.iter().for_each(|seen| again.handle_packets(*seen));
            copies(&mut again)
        };
        assert!(after(&[]).is_empty());
        assert!(after(&[[10, 1]]).is_empty(), "one loss says nothing");
        assert!(after(&[[400, 4]]).is_empty(), "one in a hundred is a good link");
        assert_eq!(after(&[[40, 2]]), [1_060]);
        assert!(after(&[[40, 2], [2_000, 2]]).is_empty(), "that was long ago");
    }

    #[test]
    fn behind_what_may_be_lost_the_first_copy_goes_at_once() {
        let mut again = Again::new();
        again.handle_packets([40, 2]);
        again.handle_sent(&ToAgent::Moved, 900, 200, 1200);
        assert_eq!(copies(&mut again), [1_000, 1_060]);
        // What a grant must not overtake comes first: the copy waits until it is missed.
        let mut after_overlay = Again::new();
        after_overlay.handle_packets([40, 2]);
        after_overlay.handle_sent(&ToAgent::Keys(vec![]), 900, 200, 1200);
        assert!(copies(&mut after_overlay).is_empty());
        // Answered: nothing more is due.
        again.handle_heard(&ToHub::Accepted { fence: Fence(1) });
        assert_eq!(again.poll_timeout(), None);
    }
}
