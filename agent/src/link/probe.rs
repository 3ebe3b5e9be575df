//! Whether a hub's UDP port can be reached at all, without a key: a QUIC server answers a version that it does not speak
//! with those that it does (RFC 9000 section 6).

use crate::clock;
use std::io;
use std::net::{ToSocketAddrs, UdpSocket};
use std::time::Duration;

/// How often it is asked, and how long each answer may take.
const TRIES: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];
/// Shorter ones a server does not answer (RFC 9000 section 14.1).
const PACKET: usize = 1200;
/// A version that is reserved for this (RFC 9000 section 15).
const VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];
/// Our connection id in the answer.
const OURS: [u8; 8] = *b"dunlin-?";

/// Milliseconds until a QUIC server at `addr`, HOST:PORT, answered.
///
/// # Errors
/// The system's; `TimedOut` when nobody did.
pub fn probe(addr: &str) -> io::Result<u64> {
    let to = addr.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
    let socket = UdpSocket::bind(if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" })?;
    socket.connect(to)?;
    let mut packet = vec![0; PACKET];
    packet[0] = 0xc0;
    packet[1..5].copy_from_slice(&VERSION);
    packet[5] = OURS.len() as u8;
    packet[6..14].copy_from_slice(&OURS);
    packet[14] = OURS.len() as u8;
    packet[15..23].copy_from_slice(&OURS);
    for wait in TRIES {
        let sent = clock::boot_ms();
        socket.send(&packet)?;
        socket.set_read_timeout(Some(wait))?;
        let mut answer = [0; 64];
        match socket.recv(&mut answer) {
            Ok(n) if is_answer(&answer[..n]) => return Ok(clock::boot_ms() - sent),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// A long header, version 0, meant for us.
fn is_answer(packet: &[u8]) -> bool {
    let ours = packet.get(6..14) == Some(&OURS);
    packet.first().is_some_and(|first| first & 0x80 != 0) && packet.get(1..5) == Some(&[0; 4]) && ours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_version_negotiation_for_us_is_an_answer() {
        let mut good = vec![0x80, 0, 0, 0, 0, 8];
        good.extend(OURS);
        assert!(is_answer(&good));
        for (at, byte) in [(0, 0x40), (4, 1), (6, b'x')] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert!(!is_answer(&bad), "{at}");
        }
        assert!(!is_answer(&good[..10]) && !is_answer(&[]));
    }

    #[test]
    fn nobody_there_is_said() {
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert!(probe(&format!("127.0.0.1:{port}")).is_err());
    }
}
