//! Where agents are, and by which of our connection ids they reach us: seen at the socket, kept over a restart, so that
//! a hub that comes back can tell each of them at once that its connection is gone (RFC 9000 section 10.3).

use crate::event::ConnId;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Connection, UdpPoller};
use ring::rand::SecureRandom;
use std::collections::HashMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// Length of our connection ids, in bytes.
pub(super) const CID: usize = 8;
/// Addresses remembered; anybody can make us see one. When it is full it begins anew, and agents fill it again.
const SEEN_MAX: usize = 65_536;
/// Between two resets, so that a start is not a burst that the link drops.
const PACE: Duration = Duration::from_millis(1);
/// Length of a stateless reset, in bytes: long enough that it looks like a packet (RFC 9000 section 10.3 asks for 21).
const RESET: usize = 57;
const TOKEN: usize = 16;

/// What is known of where agents are.
#[derive(Default)]
pub struct Peers {
    seen: Mutex<HashMap<SocketAddr, [u8; CID]>>,
    live: Mutex<HashMap<ConnId, Connection>>,
}

impl Peers {
    /// Address and connection id of each agent that is connected.
    pub fn list(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        let seen = lock(&self.seen);
        let live = lock(&self.live);
        let addrs = live.values().map(Connection::remote_address);
        let mut list: Vec<_> = addrs.filter_map(|addr| Some((addr, seen.get(&addr)?.to_vec()))).collect();
        list.sort();
        list
    }

    pub(super) fn add(&self, conn: ConnId, connection: Connection) {
        lock(&self.live).insert(conn, connection);
    }

    pub(super) fn remove(&self, conn: ConnId) {
        if let Some(connection) = lock(&self.live).remove(&conn) {
            lock(&self.seen).remove(&connection.remote_address());
        }
    }

    fn see(&self, from: SocketAddr, datagram: &[u8]) {
        // A short header names the connection id that we gave (RFC 9000 section 17.3).
        if let Some((first, rest)) = datagram.split_first()
            && first & 0x80 == 0
            && let Some(cid) = rest.first_chunk()
        {
            let mut seen = lock(&self.seen);
            if seen.len() >= SEEN_MAX {
                seen.clear();
            }
            seen.insert(from, *cid);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the peers of an earlier process that their connections are gone. They connect anew.
pub(super) async fn reset(socket: &UdpSocket, key: &ring::hmac::Key, peers: &[(SocketAddr, Vec<u8>)]) {
    for (addr, cid) in peers {
        let mut packet = [0; RESET];
        if ring::rand::SystemRandom::new().fill(&mut packet).is_err() {
            return;
        }
        packet[0] = 0x40 | packet[0] & 0x3f;
        packet[RESET - TOKEN..].copy_from_slice(&ring::hmac::sign(key, cid).as_ref()[..TOKEN]);
        if let Err(error) = socket.send_to(&packet, addr) {
            tracing::debug!(%addr, %error, "a reset was not sent");
        }
        tokio::time::sleep(PACE).await;
    }
}

/// The UDP socket, watched.
pub(super) struct Watched {
    pub(super) inner: Arc<dyn AsyncUdpSocket>,
    pub(super) peers: Arc<Peers>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl AsyncUdpSocket for Watched {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let polled = self.inner.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = &polled {
            for (meta, buf) in meta.iter().zip(bufs.iter()).take(*count) {
                self.peers.see(meta.addr, &buf[..meta.len.min(buf.len())]);
            }
        }
        polled
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
