//! The QUIC endpoint: who connects is known by its key (raw public keys, RFC 7250), and every frame becomes an event.
//!
//! Deliberately absent: what a message means. The engine decides that, and answers through a bounded [`Outbox`].

mod again;
mod peers;
mod session;
mod tls;
mod tokens;

pub use peers::Peers;
pub use tls::{Identity, IdentityError, write_secret};

use crate::event::{ConnId, Event, Traffic};
use dunlin_wire::CloseCode;
use dunlin_wire::datagram::FromHub;
use dunlin_wire::message::ToAgent;
use dunlin_wire::window::FlooredConfig;
use peers::Watched;
use quinn::{AckFrequencyConfig, Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use rustls::server::StoresServerSessions;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc};

/// Messages that may wait for one agent. One that does not read so many is cut off; it loses nothing by that.
const OUTBOX_MAX: usize = 1024;
/// Handshakes at once; more are turned away, so that strangers cannot fill the memory.
const HANDSHAKES_MAX: usize = 256;
/// Three times the longest heartbeat. The agent's own, shorter, idle timeout holds; liveness is judged above QUIC.
const IDLE: Duration = Duration::from_secs(900);
/// Upload streams that a connection begins with and that it may have, at once. QUIC keeps a row for each that is allowed, so
/// more are allowed only to an agent that uses them. An agent that resumes remembers the first, so it may not shrink under a
/// session (RFC 9000 section 7.4.1): sessions of another number are forgotten.
pub const UPLOADS: u32 = 6;
const UPLOADS_MAX: u32 = 128;
/// Packets that an agent may leave unacknowledged for QUIC's usual delay.
const ACK_EVERY: u32 = 4;
/// In how many milliseconds an agent that is shed may come again: drawn, so that they do not all come at once.
const SHED_MS: std::ops::Range<u64> = 1_000..16_000;
/// Datagrams that may wait, in bytes.
const DATAGRAMS: usize = 16 * 1024;
/// What the kernel may keep of what was not read yet, in bytes, as far as net.core.rmem_max lets it. Agents that come at
/// once send 1.2 kB each: of a thousand, the usual 208 KiB dropped so much that some had no answer in 5 s.
const RECEIVE: usize = 4 << 20;
/// How long a handshake, and then the first message, may take.
const HELLO: Duration = Duration::from_secs(10);

/// The way to one agent.
#[derive(Debug, Clone)]
pub struct Outbox {
    waiting: Arc<Waiting>,
    connection: quinn::Connection,
    said: Arc<Said>,
}

/// Messages for one agent. Not a channel, which keeps room for 32 and for 32 more: here nothing waits most of the time, and
/// there are as many of these as agents.
#[derive(Debug, Default)]
struct Waiting {
    messages: Mutex<Vec<ToAgent>>,
    news: Notify,
}

impl Waiting {
    /// `false` when it is full.
    fn push(&self, message: ToAgent) -> bool {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = messages.len() < OUTBOX_MAX;
        if has_room {
            messages.push(message);
            self.news.notify_one();
        }
        has_room
    }

    /// Waits until there are some, and takes them. Loses none when it is given up.
    async fn take(&self) -> Vec<ToAgent> {
        loop {
            let taken = std::mem::take(&mut *self.messages.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken;
            }
            self.news.notified().await;
        }
    }
}

/// Bytes of what was said on a connection, by class.
#[derive(Debug, Default)]
struct Said {
    control_in: AtomicU64,
    control_out: AtomicU64,
    telemetry_in: AtomicU64,
    output_in: AtomicU64,
}

/// IPv4 and UDP headers of a datagram, in bytes (RFC 791, RFC 768).
const HEADERS: u64 = 28;

impl Outbox {
    /// Queues a message; an agent that does not take its messages is cut off.
    pub fn send(&self, message: ToAgent) {
        if !self.waiting.push(message) {
            self.close(CloseCode::Flooding);
        }
    }

    /// Asks whether the agent lives.
    pub fn ask(&self) {
        if let Ok(bytes) = postcard::to_stdvec(&FromHub::Ask) {
            let _lost = self.connection.send_datagram(bytes.into());
        }
    }

    /// Bytes that the connection carried so far.
    pub fn traffic(&self) -> Traffic {
        let stats = self.connection.stats();
        let of = |class: &AtomicU64| class.load(Ordering::Relaxed);
        Traffic {
            wire_in: stats.udp_rx.bytes + HEADERS * stats.udp_rx.datagrams,
            wire_out: stats.udp_tx.bytes + HEADERS * stats.udp_tx.datagrams,
            control_in: of(&self.said.control_in),
            control_out: of(&self.said.control_out),
            telemetry_in: of(&self.said.telemetry_in),
            output_in: of(&self.said.output_in),
        }
    }

    /// Smoothed round-trip time, in microseconds.
    pub fn rtt_us(&self) -> u64 {
        self.connection.rtt().as_micros() as u64
    }

    /// Closes the connection.
    pub fn close(&self, code: CloseCode) {
        self.connection.close(VarInt::from_u32(code as u32), code.reason(None).as_bytes());
    }
}

/// Where connections report to.
#[derive(Clone)]
pub struct Lines {
    /// Into the loop.
    pub events: mpsc::Sender<Event>,
    /// How the loop learns of an outbox. Sent before the connection's `Opened`.
    pub outboxes: mpsc::Sender<(ConnId, Outbox)>,
    /// Who is connected.
    pub peers: Arc<Peers>,
}

impl Lines {
    /// Waits for room in the loop's channel; an event is made when there is some, as one that waits would take its own in
    /// each session. `None` when the loop is gone.
    async fn room(&self) -> Option<mpsc::Permit<'_, Event>> {
        self.events.reserve().await.ok()
    }
}

/// What the endpoint needs besides its address.
pub struct Setup<'a> {
    /// The hub's identity.
    pub identity: &'a Identity,
    /// Sessions of agents, for 0-RTT. Asked under the endpoint's lock, so it must not wait for a disk.
    pub sessions: Arc<dyn StoresServerSessions>,
    /// Where agents were when the last process ended.
    pub lost: Vec<(SocketAddr, Vec<u8>)>,
    /// Takes note of where they are now.
    pub peers: Arc<Peers>,
}

/// Opens the endpoint, and tells agents of the last process that their connections are gone.
///
/// # Errors
/// When the address cannot be had.
pub fn bind(addr: SocketAddr, setup: Setup<'_>) -> std::io::Result<Endpoint> {
    let identity = setup.identity;
    let tls = tls::server_config(identity, setup.sessions).map_err(std::io::Error::other)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(transport()));
    config.token_key(Arc::new(
        ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, b"").extract(&identity.derive("token")),
    ));
    let mut tokens = quinn::ValidationTokenConfig::default();
    tokens.log(Arc::new(tokens::UsedTokens::default())).sent(1);
    config.validation_token_config(tokens);
    let runtime = quinn::default_runtime().ok_or_else(|| std::io::Error::other("no tokio runtime"))?;
    let socket = UdpSocket::bind(addr)?;
    if let Err(error) = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE) {
        tracing::debug!(%error, "the socket keeps its usual buffer");
    }
    let resets = socket.try_clone()?;
    let inner = runtime.wrap_udp_socket(socket)?;
    let socket = Arc::new(Watched { inner, peers: setup.peers });
    let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &identity.derive("reset"));
    let endpoint =
        Endpoint::new_with_abstract_socket(endpoint_config(identity), Some(config), socket, runtime)?;
    tokio::spawn(async move { peers::reset(&resets, &reset_key, &setup.lost).await });
    Ok(endpoint)
}

/// A hub that was restarted answers packets of connections that it lost with a stateless reset (RFC 9000 section 10.3),
/// so that agents notice at once. For that its reset key and its connection ids must be those of before; both follow
/// from its identity, so nothing more has to be kept.
fn endpoint_config(identity: &Identity) -> EndpointConfig {
    let reset = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &identity.derive("reset"));
    let mut config = EndpointConfig::new(Arc::new(reset));
    let mut cid_key = [0; 8];
    cid_key.copy_from_slice(&identity.derive("connection ids")[..8]);
    let cid_key = u64::from_be_bytes(cid_key);
    config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(cid_key)));
    config.min_reset_interval(Duration::from_millis(1));
    config
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    // An acknowledgement and a grant behind each other would be answered at once by a packet of its own; the answer to
    // the grant carries it, if it comes within the usual delay (draft-ietf-quic-ack-frequency).
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY));
    transport
        .ack_frequency_config(Some(acks))
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE).unwrap_or(VarInt::MAX.into())))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(UPLOADS))
        .stream_receive_window(VarInt::from_u32(256 * 1024))
        .receive_window(VarInt::from_u32(1024 * 1024))
        .send_window(1024 * 1024)
        .datagram_receive_buffer_size(Some(DATAGRAMS))
        .datagram_send_buffer_size(DATAGRAMS)
        // What goes to a board is small: looking for longer packets would cost a board's link more than they could save.
        .mtu_discovery_config(None)
        // And each connection keeps the longest burst it ever made as its buffer.
        .enable_segmentation_offload(false)
        .congestion_controller_factory(Arc::new(FlooredConfig::default()));
    transport
}

/// Accepts connections until the endpoint is closed, `connections_max` of them at once. What is more, or comes while
/// the loop is far behind, is told when to come again.
pub async fn accept(endpoint: Endpoint, lines: Lines, connections_max: usize) {
    let next = AtomicU64::new(1);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let seats = Arc::new(Semaphore::new(connections_max));
    while let Some(incoming) = endpoint.accept().await {
        // Under load a stranger must first show that it is where it says (RFC 9000 section 8.1.2); agents have a token.
        if handshakes.available_permits() < HANDSHAKES_MAX / 2
            && !incoming.remote_address_validated()
            && incoming.may_retry()
        {
            let _ = incoming.retry();
            continue;
        }
        let Ok(handshake) = handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let behind = lines.events.capacity() < lines.events.max_capacity() / 4;
        match seats.clone().try_acquire_owned().ok().filter(|_| !behind) {
            Some(seat) => {
                let conn = ConnId(next.fetch_add(1, Ordering::Relaxed));
                let opening = Box::pin(session::open(conn, incoming, lines.clone()));
                tokio::spawn(session::serve(opening, lines.clone(), handshake, seat));
            }
            None => drop(tokio::spawn(session::shed(incoming, handshake))),
        }
    }
}
