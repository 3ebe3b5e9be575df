//! Which messages may wait for others, so that one packet carries what would take two. A packet costs 46 bytes or more before
//! it says anything (IP, UDP and QUIC headers, and QUIC's tag), and often one back that acknowledges it. Pure: time comes in as a
//! value.

/// How long an acknowledgement of ours, which nobody waits for, may wait for others, in milliseconds: it goes before QUIC would
/// acknowledge what it answers by a packet of its own, which is after 25 ms (RFC 9000 section 18.2, `max_ack_delay`).
pub const ACK_MS: u64 = 20;
/// The same of what the peer should know soon: after this a job that is over at once is over.
pub const SOON_MS: u64 = 5;

/// What is said next. Times are milliseconds of any one clock.
#[derive(Debug)]
pub struct Company<T> {
    // With the time at which each goes, and all others with it.
    messages: Vec<(u64, T)>,
}

impl<T> Default for Company<T> {
    fn default() -> Self {
        Self { messages: Vec::new() }
    }
}

impl<T> Company<T> {
    /// More is to be said, behind what waits; `wait_ms` is how long each may wait.
    pub fn handle(&mut self, messages: Vec<T>, now: u64, wait_ms: impl Fn(&T) -> u64) {
        self.messages.extend(messages.into_iter().map(|message| (now + wait_ms(&message), message)));
    }

    /// What waits and is `over` may wait until `at`.
    pub fn put_off(&mut self, at: u64, over: impl Fn(&T) -> bool) {
        self.messages.iter_mut().filter(|(_, message)| over(message)).for_each(|(due, _)| *due = at);
    }

    /// When [`Company::poll`] must be called.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.messages.iter().map(|(at, _)| *at).min()
    }

    /// What goes now, in the order in which it was said; nothing when that is not due.
    pub fn poll(&mut self, now: u64) -> Vec<T> {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return Vec::new();
        }
        // Taken with its memory: there is one for each connection, and most wait most of the time.
        std::mem::take(&mut self.messages).into_iter().map(|(_, message)| message).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When it was said, and of each message how long it may wait.
    type Turn = (u64, &'static [u64]);

    fn company(said: &[Turn]) -> Company<u64> {
        let mut company = Company::default();
        said.iter().for_each(|(now, messages)| company.handle(messages.to_vec(), *now, |wait| *wait));
        company
    }

    #[test]
    fn all_go_when_the_first_must() {
        let said: &[(&[Turn], Option<u64>)] = &[
            (&[], None),
            (&[(5, &[])], None),
            (&[(5, &[0])], Some(5)),
            (&[(5, &[20, 0])], Some(5)),
            (&[(5, &[20])], Some(25)),
            (&[(5, &[20]), (20, &[20])], Some(25)),
            (&[(5, &[20]), (10, &[5])], Some(15)),
            (&[(5, &[20]), (20, &[0])], Some(20)),
            (&[(5, &[0]), (6, &[20])], Some(5)),
        ];
        for (said, at) in said {
            let mut company = company(said);
            assert_eq!(company.poll_timeout(), *at, "{said:?}");
            let Some(at) = *at else { continue };
            assert_eq!(company.poll(at - 1), []);
            assert_eq!(company.poll(at), said.iter().flat_map(|(_, n)| n.to_vec()).collect::<Vec<_>>());
            assert_eq!((company.poll_timeout(), company.poll(at + 1)), (None, vec![]));
        }
    }

    #[test]
    fn what_is_over_needs_not_go_soon() {
        let mut company = company(&[(0, &[5, 6])]);
        company.put_off(20, |message| *message == 5);
        assert_eq!(company.poll_timeout(), Some(6));
        company.put_off(20, |message| *message == 6);
        assert_eq!((company.poll(19), company.poll(20)), (vec![], vec![5, 6]));
    }
}
