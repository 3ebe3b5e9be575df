//! Who follows what a running job writes. Boards send it at once where that costs nothing, as a part of the output; over a
//! metered link only while somebody follows, and only as much as is granted here: one window ahead of whoever takes it
//! fastest. What a slow follower misses is seen by the offsets; nothing of this is stored.

use super::{Hub, Turn};
use crate::event::{Followed, Piece};
use dunlin_wire::job::Stream;
use dunlin_wire::message::ToAgent;
use dunlin_wire::{Fence, NodeName, limits};
use std::collections::BTreeMap;

/// Followers of one stream; more see what is stored.
const FOLLOWERS_MAX: usize = 32;

/// Streams that are followed, and by whom.
#[derive(Debug, Default)]
pub(super) struct Tails(BTreeMap<(Fence, Stream), Tail>);

#[derive(Debug, Default)]
struct Tail {
    /// Granted on this connection of the board, and not come yet, in bytes.
    outstanding: u64,
    followers: Vec<Followed>,
}

impl Tail {
    /// What to grant now.
    fn grant(&mut self) -> u64 {
        let taken = self.followers.iter().map(Followed::waiting).min().unwrap_or(0);
        let ahead = self.outstanding + taken;
        // In half windows, so that not every line of a job costs a message.
        if ahead > limits::TAIL_WINDOW / 2 {
            return 0;
        }
        let grant = limits::TAIL_WINDOW - ahead;
        self.outstanding += grant;
        grant
    }
}

impl Hub {
    /// Somebody wants to see what an attempt writes. One that is over has nobody who could be told.
    pub(super) fn follow(&mut self, fence: Fence, stream: Stream, by: Followed, turn: &mut Turn<'_>) {
        if self.attempts.contains_key(&fence) {
            let followers = &mut self.tails.0.entry((fence, stream)).or_default().followers;
            followers.retain(|follower| !follower.is_gone());
            if followers.len() < FOLLOWERS_MAX {
                followers.push(by);
                self.top_up(fence, stream, turn);
            }
        }
    }

    /// A follower took something, or is gone: grants more to the board, or tells it to stop.
    pub(super) fn top_up(&mut self, fence: Fence, stream: Stream, turn: &mut Turn<'_>) {
        let Some(tail) = self.tails.0.get_mut(&(fence, stream)) else { return };
        tail.followers.retain(|follower| !follower.is_gone());
        let node = self.attempts.get(&fence).and_then(|held| self.members.get(&held.node));
        let session = node.and_then(|member| member.session.as_ref()).filter(|session| session.settled);
        let credit = match tail.followers.is_empty() {
            true => Some(0),
            false => session.map(|_| tail.grant()).filter(|credit| *credit > 0),
        };
        if tail.followers.is_empty() {
            self.tails.0.remove(&(fence, stream));
        }
        if let (Some(session), Some(credit)) = (session, credit) {
            turn.send(session.conn, ToAgent::Watch { fence, stream, credit });
        }
    }

    /// A board is there again: what it was granted before is forgotten on both sides.
    pub(super) fn watch_again(&mut self, name: &NodeName, turn: &mut Turn<'_>) {
        let attempts = &self.attempts;
        let mine = |fence: &Fence| attempts.get(fence).is_some_and(|held| held.node == *name);
        let followed: Vec<_> = self.tails.0.keys().filter(|(fence, _)| mine(fence)).copied().collect();
        for (fence, stream) in followed {
            if let Some(tail) = self.tails.0.get_mut(&(fence, stream)) {
                tail.outstanding = 0;
            }
            self.top_up(fence, stream, turn);
        }
    }

    /// What an attempt of this node wrote, for those who follow it.
    pub(super) fn handle_tail(
        &mut self,
        name: &NodeName,
        (fence, stream): (Fence, Stream),
        offset: u64,
        bytes: Vec<u8>,
        turn: &mut Turn<'_>,
    ) {
        let held = self.attempts.get(&fence).is_some_and(|held| held.node == *name);
        let Some(tail) = self.tails.0.get_mut(&(fence, stream)) else { return };
        // What may wait for a follower is bounded by its channel, whatever a board sends.
        if !held || bytes.len() > limits::CHUNK_MAX {
            return;
        }
        tail.outstanding = tail.outstanding.saturating_sub(bytes.len() as u64);
        for follower in &tail.followers {
            follower.offer(Piece::Live { offset, bytes: bytes.clone() });
        }
        self.watch_progress(fence, turn);
        self.top_up(fence, stream, turn);
    }

    /// More of a stream is stored: those who follow it read it there.
    pub(super) fn nudge(&self, fence: Fence, stream: Stream) {
        let tail = self.tails.0.get(&(fence, stream));
        tail.into_iter().flat_map(|tail| &tail.followers).for_each(|follower| follower.offer(Piece::Stored));
    }

    /// The attempt is over: its followers find out how when their channels end.
    pub(super) fn unfollow(&mut self, fence: Fence) {
        self.tails.0.retain(|(of, _), _| *of != fence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    #[test]
    fn a_window_is_granted_ahead_of_the_fastest_and_no_more() {
        let (tx, mut rx) = mpsc::channel(8);
        let (slow, _never_read) = mpsc::channel(8);
        let mut tail = Tail { outstanding: 0, followers: vec![Followed::new(tx), Followed::new(slow)] };
        assert_eq!(tail.grant(), limits::TAIL_WINDOW);
        assert_eq!(tail.grant(), 0, "it is on its way");
        // All of it comes, and nobody takes it: nothing more is granted.
        tail.outstanding = 0;
        let bytes = vec![0; limits::TAIL_WINDOW as usize / 4];
        for n in 0..4 {
            let piece = Piece::Live { offset: n, bytes: bytes.clone() };
            tail.followers.iter().for_each(|follower| follower.offer(piece.clone()));
        }
        assert_eq!(tail.grant(), 0);
        // One of them takes a half.
        for _ in 0..2 {
            let piece = rx.try_recv().unwrap();
            tail.followers[0].took(&piece);
        }
        assert_eq!(tail.grant(), limits::TAIL_WINDOW / 2);
        // The one that never reads does not hold the other up, and its memory is bounded by its channel.
        tail.outstanding = 0;
        for _ in 0..2 {
            let piece = rx.try_recv().unwrap();
            tail.followers[0].took(&piece);
        }
        assert_eq!(tail.grant(), limits::TAIL_WINDOW);
        for n in 0..100 {
            tail.followers[1].offer(Piece::Live { offset: n, bytes: bytes.clone() });
        }
        assert!(tail.followers[1].waiting() <= 8 * bytes.len() as u64);
        drop(rx);
        assert!(tail.followers[0].is_gone());
    }
}
