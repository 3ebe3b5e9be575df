//! What a job writes: its first and its last half of a limit, in bounded memory, whatever it writes in between.

use dunlin_wire::job::StreamEnd;
use ring::digest::{SHA256, digest};
use std::collections::VecDeque;

/// One stream's kept bytes.
#[derive(Debug)]
pub(super) struct HeadTail {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    half: usize,
    total: u64,
}

impl HeadTail {
    /// Keeps at most `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        let half = (limit as usize / 2).max(1);
        Self { head: Vec::new(), tail: VecDeque::new(), half, total: 0 }
    }

    /// Takes what was written; returns how much of its beginning went into the head.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        self.total += bytes.len() as u64;
        let fits = (self.half - self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..fits]);
        let rest = &bytes[fits..];
        let rest = &rest[rest.len().saturating_sub(self.half)..];
        let over = (self.tail.len() + rest.len()).saturating_sub(self.half);
        self.tail.drain(..over);
        self.tail.extend(rest);
        fits
    }

    /// Bytes written in all.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Whether something had to be cut.
    pub(super) fn is_cut(&self) -> bool {
        self.total > (self.head.len() + self.tail.len()) as u64
    }

    /// The kept bytes, and the account of them.
    pub(super) fn finish(self) -> (StreamEnd, Vec<u8>) {
        let mut kept = self.head;
        let head = kept.len() as u64;
        kept.extend(self.tail);
        let truncated = self.total - kept.len() as u64;
        let mut short = [0; 8];
        short.copy_from_slice(&digest(&SHA256, &kept).as_ref()[..8]);
        let head = if truncated == 0 { kept.len() as u64 } else { head };
        (StreamEnd { end: self.total, truncated, head, digest: short }, kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_and_tail_survive_any_chunking() {
        let bytes: Vec<u8> = (0..1000u32).map(|n| n as u8).collect();
        for (limit, truncated) in [(2000, 0), (1000, 0), (100, 900), (2, 998)] {
            for size in [1, 7, 64, 1000] {
                let mut out = HeadTail::new(limit);
                let live: usize = bytes.chunks(size).map(|c| out.push(c)).sum();
                assert_eq!(out.is_cut(), truncated > 0);
                let (end, kept) = out.finish();
                let half = limit as usize / 2;
                let want = if truncated == 0 {
                    bytes.clone()
                } else {
                    [&bytes[..half], &bytes[1000 - half..]].concat()
                };
                assert_eq!(
                    (end.end, end.truncated, &kept),
                    (1000, truncated, &want),
                    "limit {limit}, size {size}"
                );
                assert_eq!(live, half.min(1000));
            }
        }
    }
}
