//! A NAT before the boards: UDP source ports are rewritten, and a binding is forgotten when nothing came from inside
//! for a time (RFC 4787 section 4.3). Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

const UDP: u8 = 17;

/// Bindings of UDP ports; other protocols pass as they are.
pub(super) struct Nat {
    timeout: Duration,
    next: u16,
    // Inner port to outer port and when it was last used from inside.
    bindings: HashMap<u16, (u16, Instant)>,
}

impl Nat {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, next: 20_000, bindings: HashMap::new() }
    }

    pub(super) fn forget(&mut self) {
        self.bindings.clear();
    }

    /// Rewrites a packet's port. `false`: there is no binding for it.
    pub(super) fn pass(&mut self, outbound: bool, packet: &mut [u8], now: Instant) -> bool {
        let head = usize::from(packet[0] & 15) * 4;
        if packet.len() < head + 8 || packet[9] != UDP {
            return true;
        }
        let at = if outbound { head } else { head + 2 };
        let port = u16::from_be_bytes([packet[at], packet[at + 1]]);
        let Some(other) = (if outbound { Some(self.outer(port, now)) } else { self.inner(port, now) }) else {
            return false;
        };
        packet[at..at + 2].copy_from_slice(&other.to_be_bytes());
        // No checksum is a legal one in IPv4 (RFC 768).
        packet[head + 6..head + 8].fill(0);
        true
    }

    fn outer(&mut self, inner: u16, now: Instant) -> u16 {
        let next = &mut self.next;
        let timeout = self.timeout;
        let binding = self.bindings.entry(inner).or_insert((0, now));
        if binding.0 == 0 || now - binding.1 > timeout {
            *next = next.checked_add(1).unwrap_or(20_000);
            binding.0 = *next;
        }
        binding.1 = now;
        binding.0
    }

    fn inner(&self, outer: u16, now: Instant) -> Option<u16> {
        let lives = |used: &Instant| now - *used <= self.timeout;
        self.bindings.iter().find(|(_, (o, used))| *o == outer && lives(used)).map(|(inner, _)| *inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_lasts_while_it_is_used_from_inside() {
        let (mut nat, now) = (Nat::new(Duration::from_secs(2)), crate::wan::sys::now());
        let mut packet = [0u8; 28];
        (packet[0], packet[9]) = (0x45, UDP);
        packet[20..22].copy_from_slice(&5000u16.to_be_bytes());
        let out = |nat: &mut Nat, s| {
            let mut p = packet;
            assert!(nat.pass(true, &mut p, now + Duration::from_secs(s)));
            u16::from_be_bytes([p[20], p[21]])
        };
        let first = out(&mut nat, 0);
        assert_eq!((out(&mut nat, 2), out(&mut nat, 4)), (first, first));
        let mut back = packet;
        back[22..24].copy_from_slice(&first.to_be_bytes());
        assert!(nat.pass(false, &mut back.clone(), now + Duration::from_secs(6)));
        assert!(!nat.pass(false, &mut back, now + Duration::from_secs(7)));
        assert_ne!(out(&mut nat, 7), first);
    }
}
