//! The UDP socket, with every byte counted that goes through it, handshakes that nobody answers among them: this is what
//! is paid for.

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

/// IPv4 and UDP headers of a datagram, in bytes (RFC 791, RFC 768).
const HEADERS: usize = 28;

/// A counted socket.
pub(super) struct Meter {
    inner: Arc<dyn AsyncUdpSocket>,
    bytes: Arc<AtomicU64>,
}

impl Meter {
    /// Wraps `socket`; both ways are added to `bytes`.
    pub(super) fn wrap(socket: UdpSocket, bytes: &Arc<AtomicU64>) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let runtime = quinn::default_runtime().ok_or_else(|| io::Error::other("no tokio runtime"))?;
        let inner = runtime.wrap_udp_socket(socket)?;
        Ok(Arc::new(Self { inner, bytes: bytes.clone() }))
    }

    fn count(&self, len: usize, segment: usize) {
        let datagrams = len.div_ceil(segment.max(1));
        self.bytes.fetch_add((len + datagrams * HEADERS) as u64, Relaxed);
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl AsyncUdpSocket for Meter {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)?;
        self.count(transmit.contents.len(), transmit.segment_size.unwrap_or(transmit.contents.len()));
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let polled = self.inner.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = &polled {
            meta.iter().take(*count).for_each(|meta| self.count(meta.len, meta.stride));
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
