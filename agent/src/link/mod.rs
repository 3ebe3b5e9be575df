//! The uplink: one QUIC connection to the hub, made again for ever, with full jitter.
//!
//! What is said comes from the core, what is heard goes to it. Deliberately absent: what a message means.

mod join;
mod known;
mod meter;
mod probe;
mod say;
mod session;
mod tls;

pub use join::{JoinError, join};
pub use probe::probe;
pub use tls::{Tickets, client_config as client_tls};

use crate::core::uplinks::{POSTURE, Uplink};
use crate::event::{Effect, Event, Record};
use crate::files::Files;
use crate::store::{Store, StoreError};
use dunlin_wire::close::retry_after_ms;
use dunlin_wire::job::Stream;
use dunlin_wire::message::{Numbered, Profile};
use dunlin_wire::telemetry::Sample;
use dunlin_wire::window::FlooredConfig;
use dunlin_wire::{CloseCode, Fence, Key, backoff, version};
use known::Known;
use meter::Meter;
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt, ZeroRttAccepted,
};
use session::{Ended, Ends};
use std::cell::RefCell;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// How long one attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Attempts in a row that use up a session ticket. After so many the hub is away, and the rest are for when it is back.
const TICKET_TRIES: u32 = 2;
/// Datagrams that may wait, in bytes.
const DATAGRAMS: usize = 16 * 1024;
/// First window of the back-off between attempts, in milliseconds.
const BACKOFF_MS: u64 = 200;
/// Largest window of the back-off, in milliseconds.
const BACKOFF_MS_MAX: u64 = 30_000;
/// The same on a metered link, where an attempt that nobody answers costs some 4 kB.
const BACKOFF_MS_METERED: u64 = 300_000;

/// To the link.
#[derive(Debug)]
pub enum ToLink {
    /// So many bytes more of this stream may be sent to who follows it; 0 takes back what is left.
    Credit {
        /// The attempt.
        fence: Fence,
        /// The stream.
        stream: Stream,
        /// Bytes.
        credit: u64,
    },
    /// Say these, in one packet if they fit. A `Hello` is the first of a connection.
    Send(Vec<Numbered>),
    /// A sign of life; may be lost.
    Beat {
        /// Longest time until the next, in milliseconds; 0: as often as the hub asked for.
        every_ms: u64,
        /// What the board is like, when a report is due.
        sample: Option<Box<Sample>>,
    },
    /// Output as it comes; may be dropped.
    Live(Effect),
    /// Deliver an outcome.
    Upload {
        /// The attempt.
        fence: Fence,
        /// Where to begin, when the hub said it.
        have: Option<[u64; 2]>,
    },
    /// Drop the connection and make another.
    Reconnect,
}

impl ToLink {
    /// What a turn of the core has to say; `None` when that is nothing.
    pub fn say(frames: Vec<Numbered>) -> Option<Self> {
        (!frames.is_empty()).then_some(Self::Send(frames))
    }
}

/// How the link is, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkState {
    /// Whether a connection stands.
    pub connected: bool,
    /// The hub's address in use or last tried.
    pub hub: String,
    /// Why the last connection or attempt ended.
    pub last: Option<String>,
    /// Attempts since a connection last stood.
    pub failures: u32,
}

/// What the link reads of attempts that the hub has not acknowledged. A simulated agent has no file.
pub trait Unsent: Send + Sync {
    /// An attempt; `None` once it is acknowledged.
    ///
    /// # Errors
    /// The store's.
    fn record(&self, fence: Fence) -> Result<Option<Record>, StoreError>;

    /// At most `len` kept bytes of a stream from `offset`.
    ///
    /// # Errors
    /// The store's.
    fn kept(&self, fence: Fence, stream: Stream, offset: u64, len: usize) -> Result<Vec<u8>, StoreError>;
}

impl Unsent for Store {
    fn record(&self, fence: Fence) -> Result<Option<Record>, StoreError> {
        Store::record(self, fence)
    }

    fn kept(&self, fence: Fence, stream: Stream, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        Store::kept(self, fence, stream, offset, len)
    }
}

/// What the link is told once.
pub struct LinkConfig {
    /// Where the hub listens, tried in order.
    pub hubs: Vec<Uplink>,
    /// Its pinned key.
    pub hub: Key,
    /// The device key, PKCS#8.
    pub key: Vec<u8>,
    /// Decides the idle timeout.
    pub profile: Profile,
    /// The data directory.
    pub files: Files,
    /// Bytes that were sent and received, headers included; grows.
    pub bytes: Arc<AtomicU64>,
    /// Where outcomes and output are read from.
    pub store: Arc<dyn Unsent>,
}

/// Keeps the uplink until the loop is gone.
///
/// # Errors
/// When the key cannot be used.
pub async fn run(
    config: LinkConfig,
    events: mpsc::Sender<Event>,
    mut commands: mpsc::Receiver<ToLink>,
    state: watch::Sender<LinkState>,
) -> Result<(), rustls::Error> {
    // One client configuration for the life of the process: session tickets belong to it.
    let tickets = Arc::new(Tickets::default());
    let mut client = client_config(&config.key, config.hub, config.profile, tickets.clone())?;
    let known = Arc::new(Known::load(config.files.clone()));
    client.token_store(known.clone());
    let mut failures = 0;
    // A connection that stands while a newer one is made in its place.
    let old = RefCell::new(None);
    for uplink in config.hubs.iter().cycle() {
        // Again by the same way, when a connection is only made anew.
        loop {
            let (hub, label) = (&uplink.addr, uplink.label());
            tickets.keep(failures >= TICKET_TRIES);
            client.transport_config(Arc::new(transport(config.profile, known.initial_rtt())));
            let error = match connect(hub, &client, &config.bytes).await {
                Ok((endpoint, connection, early)) => {
                    let in_early = early.is_some();
                    let up = || {
                        let up = LinkState { connected: true, hub: hub.clone(), last: None, failures: 0 };
                        state.send_replace(up);
                        drop(old.take());
                        let tickets = tickets.left();
                        tracing::info!(%hub, label, posture = POSTURE, early = in_early, tickets, "connected");
                    };
                    let mut ends = Ends {
                        store: &config.store,
                        bytes: &config.bytes,
                        events: &events,
                        commands: &mut commands,
                        up: &up,
                    };
                    let ended = session::serve(&endpoint, &connection, early, &mut ends).await;
                    let why = close_word(&connection);
                    if ended.is_err() || events.send(Event::Disconnected).await.is_err() {
                        return Ok(());
                    }
                    if matches!(ended, Ok(Ended::Stood | Ended::Stale)) {
                        failures = 0;
                        known.put_rtt(connection.rtt());
                    }
                    if matches!(ended, Ok(Ended::Stale)) {
                        old.replace(Some((endpoint, connection)));
                        continue;
                    }
                    why
                }
                Err(error) => error,
            };
            failures += 1;
            let cap =
                CloseCode::ALL.iter().any(|c| !c.may_retry() && error.word.as_deref() == Some(c.as_str()));
            let attempt = if cap { 30 } else { failures - 1 };
            let most = if config.profile == Profile::Metered { BACKOFF_MS_METERED } else { BACKOFF_MS_MAX };
            let wait = backoff::reconnect_ms(attempt, BACKOFF_MS, most, random());
            let wait = wait.max(error.retry_after_ms.unwrap_or(0));
            let (posture, text) = (POSTURE, &error.text);
            tracing::warn!(%hub, label, posture, error = %text, retry_ms = wait, failures, "no connection");
            let last = Some(error.word.unwrap_or(error.text));
            state.send_replace(LinkState { connected: false, hub: hub.clone(), last, failures });
            old.take();
            if !pause(wait, &mut commands).await {
                return Ok(());
            }
            break;
        }
    }
    Ok(())
}

/// Waits, and drops what is said meanwhile: the core hears of the connection first. `false` when the loop is gone.
async fn pause(ms: u64, commands: &mut mpsc::Receiver<ToLink>) -> bool {
    let sleep = tokio::time::sleep(Duration::from_millis(ms));
    tokio::pin!(sleep);
    loop {
        tokio::select! {
            () = &mut sleep => return true,
            command = commands.recv() => if command.is_none() { return false },
        }
    }
}

/// Why a connection could not be made, or ended.
struct Failure {
    text: String,
    /// The hub's close code, when it closed with one.
    word: Option<String>,
    /// In how many milliseconds it wants us again.
    retry_after_ms: Option<u64>,
}

impl Failure {
    fn new(text: String) -> Self {
        Self { text, word: None, retry_after_ms: None }
    }
}

/// An endpoint for one connection: its packets are told by the socket that they come to, so the hub need not name a
/// connection id in each (RFC 9000 section 5.1).
fn endpoint(local: SocketAddr, bytes: &Arc<AtomicU64>) -> std::io::Result<Endpoint> {
    let mut config = EndpointConfig::default();
    config.cid_generator(|| Box::new(quinn_proto::RandomConnectionIdGenerator::new(0)));
    let runtime = quinn::default_runtime().ok_or_else(|| std::io::Error::other("no tokio runtime"))?;
    let socket = Meter::wrap(UdpSocket::bind(local)?, bytes)?;
    Endpoint::new_with_abstract_socket(config, None, socket, runtime)
}

/// A connection, or one that takes early data while it is made.
async fn connect(
    hub: &str,
    client: &ClientConfig,
    bytes: &Arc<AtomicU64>,
) -> Result<(Endpoint, Connection, Option<ZeroRttAccepted>), Failure> {
    let fail = Failure::new;
    let found = tokio::net::lookup_host(hub).await.map_err(|e| fail(format!("cannot resolve: {e}")))?;
    let mut last = fail("the name has no address".into());
    for addr in found {
        let local: SocketAddr = match addr {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let endpoint = endpoint(local, bytes).map_err(|e| fail(format!("no UDP socket: {e}")))?;
        let connecting = endpoint.connect_with(client.clone(), addr, version::SERVER_NAME);
        let connecting = match connecting.map_err(|e| fail(e.to_string()))?.into_0rtt() {
            Ok((connection, early)) => return Ok((endpoint, connection, Some(early))),
            Err(connecting) => connecting,
        };
        match timeout(CONNECT, connecting).await {
            Ok(Ok(connection)) => return Ok((endpoint, connection, None)),
            Ok(Err(error)) => last = failure(&error),
            Err(_) => last = fail(format!("no answer from {addr} in {} s", CONNECT.as_secs())),
        }
    }
    Err(last)
}

fn failure(error: &quinn::ConnectionError) -> Failure {
    let mut failure = Failure::new(error.to_string());
    if let quinn::ConnectionError::ApplicationClosed(close) = error {
        failure.word = CloseCode::from_code(close.error_code.into_inner()).map(|c| c.as_str().to_owned());
        failure.retry_after_ms = retry_after_ms(&close.reason);
    }
    failure
}

fn close_word(connection: &Connection) -> Failure {
    connection.close_reason().map_or_else(|| Failure::new("closed".into()), |error| failure(&error))
}

fn client_config(
    pkcs8: &[u8],
    hub: Key,
    profile: Profile,
    tickets: Arc<Tickets>,
) -> Result<ClientConfig, rustls::Error> {
    let mut client = ClientConfig::new(Arc::new(tls::client_config(pkcs8, hub, tickets)?));
    client.transport_config(Arc::new(transport(profile, None)));
    Ok(client)
}

fn transport(profile: Profile, initial_rtt: Option<Duration>) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = Duration::from_millis(profile.idle_ms());
    transport
        .max_idle_timeout(IdleTimeout::try_from(idle).ok())
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(1024 * 1024))
        .receive_window(VarInt::from_u32(1024 * 1024))
        .send_window(512 * 1024)
        .datagram_receive_buffer_size(Some(DATAGRAMS))
        .datagram_send_buffer_size(DATAGRAMS)
        .congestion_controller_factory(Arc::new(FlooredConfig::default()));
    if profile == Profile::Metered {
        // Discovery costs 11 kB a connection.
        transport.mtu_discovery_config(None);
    }
    if let Some(rtt) = initial_rtt {
        transport.initial_rtt(rtt);
    }
    transport
}

/// When a connection is made anew although it stands: session tickets live for a day, and without one the next
/// reconnect would cost a round trip more. Spread over two hours, so that a fleet does not do it at once.
fn stale_after() -> Duration {
    crate::fault::stale_after().unwrap_or(Duration::from_secs(20 * 3600 + (random() * 7200.0) as u64))
}

/// A number in `0.0..1.0`.
fn random() -> f64 {
    use ring::rand::{SecureRandom, SystemRandom};
    let mut bytes = [0; 4];
    // Without randomness the window's middle is as good a delay as any.
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_ne_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        Err(_) => 0.5,
    }
}
