//! When to ask whether the peer is still there. QUIC alone backs off like TCP: after an outage of five seconds it may say
//! nothing for five more. A small probe at a capped interval finds out at once, and the answer to it tells both sides
//! what was lost. Pure: time and counters come in as values.

/// Between probes at first, in milliseconds.
const EVERY_MS: u64 = 200;
/// How long they go at that pace; then each comes later than the one before.
const FAST_MS: u64 = 5_000;
/// Between probes at most.
const EVERY_MS_MAX: u64 = 2_000;
/// Without an answer for so long, another socket is tried: the address may have changed, or a NAT forgotten us.
const REBIND_MS: u64 = 3_000;
/// Without an answer for so long, the connection is given up.
const DEAD_MS: u64 = 10_000;
/// Beyond the round trip an answer may take so long: QUIC acknowledges after 25 ms at most.
const SLACK_MS: u64 = 60;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send a probe.
    Probe,
    /// Go on from a new socket, and send a probe.
    Rebind,
    /// Nobody is there.
    Dead,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Nothing is due.
    Quiet,
    /// Something was said at `since`. What comes before `from` cannot be an answer to it.
    Sent { since: u64, from: u64, wait: u64 },
    /// An answer may come; `heard` packets had come before it could.
    Due { since: u64, at: u64, heard: u64 },
    /// It is late.
    Late { since: u64, at: u64, heard: u64, every: u64, rebound: bool },
}

/// What was said and not answered yet. Times are milliseconds of any one clock.
#[derive(Debug)]
pub struct Prober {
    state: State,
    gives_up: bool,
}

impl Prober {
    /// A prober that gives the connection up after some time, or goes on asking.
    pub fn new(gives_up: bool) -> Self {
        Self { state: State::Quiet, gives_up }
    }

    /// Something was said that QUIC will acknowledge; `rtt_ms` as it was last seen.
    pub fn handle_sent(&mut self, now: u64, rtt_ms: u64) {
        if let State::Quiet = self.state {
            self.state =
                State::Sent { since: now, from: now + rtt_ms * 9 / 10, wait: rtt_ms * 5 / 4 + SLACK_MS };
        }
    }

    /// When [`Prober::poll`] must be called.
    pub fn poll_timeout(&self) -> Option<u64> {
        match self.state {
            State::Quiet => None,
            State::Sent { from, .. } => Some(from),
            State::Due { at, .. } | State::Late { at, .. } => Some(at),
        }
    }

    /// Looks; `packets` came on this connection so far. `true` beside the action: an answer came.
    pub fn poll(&mut self, now: u64, packets: u64) -> (Option<Action>, bool) {
        match self.state {
            State::Sent { since, from, wait } if now >= from => {
                self.state = State::Due { since, at: since + wait, heard: packets };
                (None, false)
            }
            State::Due { heard, .. } | State::Late { heard, .. } if packets > heard => {
                self.state = State::Quiet;
                (None, true)
            }
            State::Due { since, at, heard, .. } if now >= at => {
                self.state =
                    State::Late { since, at: now + EVERY_MS, heard, every: EVERY_MS, rebound: false };
                (Some(Action::Probe), false)
            }
            State::Late { since, at, heard, every, rebound } if now >= at => {
                if self.gives_up && now >= since + DEAD_MS {
                    self.state = State::Quiet;
                    return (Some(Action::Dead), false);
                }
                let slow = now >= since + FAST_MS;
                let every = if slow { (every * 3 / 2).min(EVERY_MS_MAX) } else { every };
                let rebind = !rebound && now >= since + REBIND_MS;
                self.state = State::Late { since, at: now + every, heard, every, rebound: rebound || rebind };
                (Some(if rebind { Action::Rebind } else { Action::Probe }), false)
            }
            _ => (None, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_in_time_needs_no_probe() {
        let mut prober = Prober::new(true);
        assert_eq!(prober.poll_timeout(), None);
        prober.handle_sent(1_000, 100);
        assert_eq!(prober.poll_timeout(), Some(1_090));
        // What came before an answer could is none.
        assert_eq!(prober.poll(1_090, 7), (None, false));
        assert_eq!(prober.poll_timeout(), Some(1_185));
        assert_eq!(prober.poll(1_185, 8), (None, true));
        assert_eq!(prober.poll_timeout(), None);
    }

    #[test]
    fn silence_is_probed_often_then_less_then_given_up() {
        let mut prober = Prober::new(true);
        prober.handle_sent(0, 60);
        let (mut probes, mut rebinds, mut dead) = (0, 0, None);
        while let Some(now) = prober.poll_timeout() {
            match prober.poll(now, 3).0 {
                Some(Action::Probe) => probes += 1,
                Some(Action::Rebind) => rebinds += 1,
                Some(Action::Dead) => dead = Some(now),
                None => {}
            }
        }
        assert!((27..35).contains(&probes), "{probes}");
        assert_eq!(rebinds, 1);
        assert!(dead.is_some_and(|at| (10_000..12_100).contains(&at)), "{dead:?}");
        prober.handle_sent(20_000, 60);
        prober.poll(20_054, 3);
        prober.poll(20_200, 3);
        assert_eq!(prober.poll(20_300, 4), (None, true), "heard at last");
    }
}
