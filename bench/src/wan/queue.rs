//! One way of the link: when each packet comes out. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What waits for the rate at most; a packet beyond is lost, as in a router with a short buffer.
const WAIT_MAX: Duration = Duration::from_millis(400);

/// Packets on their way, first in, first out.
#[derive(Default)]
pub(super) struct Queue {
    packets: VecDeque<(Instant, Vec<u8>)>,
    // When the rate lets the next packet begin.
    free: Option<Instant>,
}

impl Queue {
    /// Takes a packet; `false` when the buffer is full.
    pub(super) fn push(&mut self, packet: &[u8], now: Instant, delay: Duration, rate: Option<u64>) -> bool {
        let mut sent = now;
        if let Some(rate) = rate {
            let begin = self.free.map_or(now, |free| free.max(now));
            if begin - now > WAIT_MAX {
                return false;
            }
            sent = begin + Duration::from_nanos(packet.len() as u64 * 8 * 1_000_000_000 / rate.max(1));
            self.free = Some(sent);
        }
        // Jitter does not reorder.
        let due = self.packets.back().map_or(sent + delay, |(last, _)| (*last).max(sent + delay));
        self.packets.push_back((due, packet.to_vec()));
        true
    }

    /// When the next packet comes out.
    pub(super) fn due(&self) -> Option<Instant> {
        self.packets.front().map(|(due, _)| *due)
    }

    /// The next packet, if it is due.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.due().filter(|due| *due <= now)?;
        self.packets.pop_front().map(|(_, packet)| packet)
    }
}

/// A cheap random number (xorshift64*): it only spreads losses.
pub(super) fn draw(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_spaces_packets_and_a_full_buffer_drops() {
        let (mut queue, now) = (Queue::default(), crate::wan::sys::now());
        let ms = Duration::from_millis;
        // 1000 bytes at 80 kbit/s take 100 ms.
        let took: Vec<bool> = (0..7).map(|_| queue.push(&[0; 1000], now, ms(30), Some(80_000))).collect();
        assert_eq!(took, [true, true, true, true, true, false, false]);
        assert_eq!(queue.due(), Some(now + ms(130)));
        assert!(queue.pop(now + ms(129)).is_none() && queue.pop(now + ms(130)).is_some());
        assert_eq!(queue.due(), Some(now + ms(230)));
    }
}
