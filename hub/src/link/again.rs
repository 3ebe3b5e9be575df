//! Grants that nobody answered are said once more, in datagrams, at a capped interval: after an outage they are there
//! before QUIC has backed off to its next try. A grant that comes twice is one grant: it has a fence. Pure.

use dunlin_wire::Fence;
use dunlin_wire::datagram::FromHub;
use dunlin_wire::message::{ToAgent, ToHub, Upload};
use dunlin_wire::prober::{Action, Prober};
use std::collections::BTreeMap;

/// Grants of one agent that are repeated at once; more wait for QUIC.
const WAITING_MAX: usize = 8;

struct Waiting {
    bytes: Vec<u8>,
    until: u64,
}

/// What was granted and not answered. Times are milliseconds of one clock.
pub(super) struct Again {
    prober: Prober,
    waiting: BTreeMap<Fence, Waiting>,
}

impl Again {
    pub(super) fn new() -> Self {
        Self { prober: Prober::new(false), waiting: BTreeMap::new() }
    }

    /// A message goes out; `room` is the size of the largest datagram, in bytes.
    pub(super) fn handle_sent(&mut self, message: &ToAgent, now: u64, rtt_ms: u64, room: usize) {
        let ToAgent::Grant(grant) = message else { return };
        let again = FromHub::Again(Box::new(message.clone()));
        let Ok(bytes) = postcard::to_stdvec(&again) else { return };
        if bytes.len() > room || self.waiting.len() == WAITING_MAX {
            return;
        }
        if self.waiting.is_empty() {
            // What was asked about before is answered.
            self.prober = Prober::new(false);
        }
        // Past its lease a repeated grant would only be accepted to wait.
        self.waiting.insert(grant.fence, Waiting { bytes, until: now + grant.lease_ms });
        self.prober.handle_sent(now, rtt_ms);
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
        self.prober.poll_timeout().filter(|_| !self.waiting.is_empty())
    }

    /// What to say again; `packets` came on this connection so far.
    pub(super) fn poll(&mut self, now: u64, packets: u64) -> Vec<Vec<u8>> {
        self.waiting.retain(|_, waiting| waiting.until > now);
        match self.prober.poll(now, packets) {
            (Some(Action::Probe | Action::Rebind | Action::Dead), _) => {
                self.waiting.values().map(|waiting| waiting.bytes.clone()).collect()
            }
            // Something came: QUIC sees by that what was lost, and sends it.
            (None, true) => {
                self.waiting.clear();
                Vec::new()
            }
            (None, false) => Vec::new(),
        }
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
}
