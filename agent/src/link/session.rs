//! One connection: the control stream both ways, and an upload stream per attempt.

use super::meter::Meter;
use super::say::{from_hello, write};
use super::{CONNECT, ToLink, Unsent};
use crate::clock;
use crate::event::{Effect, Event};
use dunlin_wire::datagram::{FromAgent, FromHub};
use dunlin_wire::frame::{self, Decoder};
use dunlin_wire::job::Stream;
use dunlin_wire::message::{Early, ToAgent, Upload};
use dunlin_wire::prober::{Action, Prober};
use dunlin_wire::{CloseCode, Fence, limits};
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt, ZeroRttAccepted};
use std::collections::HashMap;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Turns of the core whose messages may wait to be written. A hub that does not read so many is not there.
const WAITING_MAX: usize = 1024;
/// Pieces of live output that may wait per attempt; more are dropped, the outcome brings them.
const LIVE_MAX: usize = 64;

/// The loop is gone: the process ends.
pub(super) struct Gone;

enum Piece {
    Live { stream: Stream, offset: u64, bytes: Vec<u8> },
    Tail { stream: Stream, offset: u64, bytes: Vec<u8> },
    Finish { from: Option<[u64; 2]> },
}

/// What a connection speaks through and to.
pub(super) struct Ends<'a> {
    pub(super) store: &'a Arc<dyn Unsent>,
    pub(super) bytes: &'a Arc<AtomicU64>,
    pub(super) events: &'a mpsc::Sender<Event>,
    pub(super) commands: &'a mut mpsc::Receiver<ToLink>,
    /// Told when the handshake is over.
    pub(super) up: &'a dyn Fn(),
}

/// How a connection ended.
pub(super) enum Ended {
    /// Its handshake was never over.
    Never,
    /// It stood.
    Stood,
    /// It stands, but the tickets that came with it are about to end: another one brings new ones.
    Stale,
}

/// Serves a connection until it is over. `early` tells when its handshake is, if it is not yet: until then only what
/// may be repeated is said.
pub(super) async fn serve(
    endpoint: &Endpoint,
    connection: &Connection,
    early: Option<ZeroRttAccepted>,
    ends: &mut Ends<'_>,
) -> Result<Ended, Gone> {
    if let Some(done) = early {
        match tokio::time::timeout(CONNECT, begin_early(connection, done, ends)).await {
            Ok(first) => match first? {
                First::Taken(streams) => {
                    (ends.up)();
                    return steady(endpoint, connection, streams, true, ends).await;
                }
                // The hub did not know the session: what was said is said again, on a stream that it hears.
                First::Refused => {}
                First::Over => return Ok(Ended::Never),
            },
            Err(_) => return Ok(Ended::Never),
        }
    }
    (ends.up)();
    let Ok(streams) = connection.open_bi().await else { return Ok(Ended::Stood) };
    // What was said for the connection before this one must not be said here.
    while ends.commands.try_recv().is_ok() {}
    ends.events.send(Event::Connected { early: false }).await.map_err(|_| Gone)?;
    steady(endpoint, connection, streams, false, ends).await
}

enum First {
    Taken((SendStream, RecvStream)),
    Refused,
    Over,
}

/// The first words, in the first flight. What may not be said there is dropped: the core says it when it may.
async fn begin_early(
    connection: &Connection,
    mut done: ZeroRttAccepted,
    ends: &mut Ends<'_>,
) -> Result<First, Gone> {
    let Ok((mut send, recv)) = connection.open_bi().await else { return Ok(First::Over) };
    while ends.commands.try_recv().is_ok() {}
    ends.events.send(Event::Connected { early: true }).await.map_err(|_| Gone)?;
    let mut said_hello = false;
    let taken = loop {
        let command = tokio::select! {
            taken = &mut done => break taken,
            command = ends.commands.recv() => command.ok_or(Gone)?,
        };
        let ToLink::Send(mut frames) = command else { continue };
        from_hello(&mut frames, &mut said_hello);
        let mut bytes = Vec::new();
        for early in frames.into_iter().filter_map(|frame| Early::try_from(frame).ok()) {
            // A message that fits no frame is left out, as if it had been lost with the early data.
            let _pushed = frame::push(&mut bytes, early.frame(), limits::FRAME_MAX);
        }
        if !bytes.is_empty() && send.write_all(&bytes).await.is_err() && connection.close_reason().is_some() {
            return Ok(First::Over);
        }
    };
    if connection.close_reason().is_some() {
        return Ok(First::Over);
    }
    if !taken {
        return Ok(First::Refused);
    }
    ends.events.send(Event::Confirmed).await.map_err(|_| Gone)?;
    Ok(First::Taken((send, recv)))
}

/// A connection whose handshake is over.
async fn steady(
    endpoint: &Endpoint,
    connection: &Connection,
    (send, recv): (SendStream, RecvStream),
    mut said_hello: bool,
    ends: &mut Ends<'_>,
) -> Result<Ended, Gone> {
    let Ends { store, bytes, events, commands, .. } = ends;
    let (outbox, waiting) = mpsc::channel(WAITING_MAX);
    let mut tasks = JoinSet::new();
    tasks.spawn(write(send, waiting));
    tasks.spawn(read(recv, connection.clone(), events.clone()));
    let mut uploads: HashMap<Fence, mpsc::Sender<Piece>> = HashMap::new();
    let mut credits = Credits::default();
    let mut prober = Prober::new(true);
    let stale = tokio::time::sleep(super::stale_after());
    tokio::pin!(stale);
    loop {
        let now = clock::boot_ms();
        let due = Duration::from_millis(prober.poll_timeout().unwrap_or(now).saturating_sub(now));
        let command = tokio::select! {
            command = commands.recv() => command.ok_or(Gone),
            datagram = connection.read_datagram() => {
                let Ok(datagram) = datagram else { return Ok(Ended::Stood) };
                match postcard::from_bytes(&datagram) {
                    Ok(FromHub::Again(message)) => {
                        events.send(Event::FromHub(*message)).await.map_err(|_| Gone)?;
                    }
                    Ok(FromHub::Ask) => events.send(Event::Asked).await.map_err(|_| Gone)?,
                    Ok(FromHub::Echo) | Err(_) => {}
                }
                continue;
            }
            () = &mut stale => return Ok(Ended::Stale),
            () = tokio::time::sleep(due), if prober.poll_timeout().is_some() => {
                let (action, heard) = prober.poll(clock::boot_ms(), connection.stats().udp_rx.datagrams);
                if heard {
                    events.send(Event::Heard).await.map_err(|_| Gone)?;
                }
                match action {
                    None => {}
                    Some(Action::Probe) => datagram(connection, &FromAgent::Probe),
                    Some(Action::Rebind) => {
                        rebind(endpoint, bytes, events).await?;
                        datagram(connection, &FromAgent::Probe);
                    }
                    Some(Action::Dead) => {
                        tracing::warn!("the hub does not answer any more");
                        close(connection, CloseCode::Leaving);
                        return Ok(Ended::Stood);
                    }
                }
                continue;
            }
            _ = connection.closed() => return Ok(Ended::Stood),
        };
        let Ok(mut command) = command else {
            // The last words, Leaving among them, are given a moment to go out.
            drop(outbox);
            let flush = async { while tasks.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(Duration::from_millis(200), flush).await;
            close(connection, CloseCode::Leaving);
            return Err(Gone);
        };
        if let ToLink::Send(frames) = &mut command {
            from_hello(frames, &mut said_hello);
        }
        if !said_hello {
            continue;
        }
        if !matches!(command, ToLink::Live(_) | ToLink::Credit { .. } | ToLink::Reconnect) {
            prober.handle_sent(clock::boot_ms(), connection.rtt().as_millis() as u64);
        }
        match command {
            ToLink::Beat { every_ms, sample } => {
                let every_ms = every_ms.try_into().unwrap_or(u32::MAX);
                let beat = match sample {
                    None if every_ms == 0 => FromAgent::Alive,
                    sample => FromAgent::Beat { every_ms, sample },
                };
                datagram(connection, &beat);
            }
            ToLink::Send(frames) => {
                if outbox.try_send(frames).is_err() {
                    close(connection, CloseCode::Leaving);
                }
            }
            ToLink::Live(Effect::Live { fence, stream, offset, bytes }) => {
                let upload =
                    uploads.entry(fence).or_insert_with(|| begin(fence, connection, store, &mut tasks));
                let _dropped = upload.try_send(Piece::Live { stream, offset, bytes });
            }
            ToLink::Live(Effect::Tail { fence, stream, offset, bytes }) => {
                if let Some(left) = credits.left(fence, stream, bytes.len()) {
                    let upload =
                        uploads.entry(fence).or_insert_with(|| begin(fence, connection, store, &mut tasks));
                    // What is dropped is not counted: the credit that is left brings what comes behind it.
                    if upload.try_send(Piece::Tail { stream, offset, bytes }).is_ok() {
                        credits.0.insert((fence, stream), left);
                    }
                }
            }
            ToLink::Live(_) => {}
            ToLink::Credit { fence, stream, credit } => credits.add(fence, stream, credit),
            ToLink::Upload { fence, have } => {
                credits.forget(fence);
                // From where the hub says: a stream of its own. Otherwise behind what was sent live.
                let live = uploads.remove(&fence).filter(|_| have.is_none());
                let upload = live.unwrap_or_else(|| begin(fence, connection, store, &mut tasks));
                tokio::spawn(async move { drop(upload.send(Piece::Finish { from: have }).await) });
            }
            ToLink::Reconnect => {
                close(connection, CloseCode::Leaving);
                return Ok(Ended::Stood);
            }
        }
    }
}

/// Bytes that may still be sent to who follows a stream.
#[derive(Default)]
struct Credits(HashMap<(Fence, Stream), u64>);

impl Credits {
    fn add(&mut self, fence: Fence, stream: Stream, credit: u64) {
        if credit == 0 {
            self.0.remove(&(fence, stream));
        } else {
            let left = self.0.entry((fence, stream)).or_default();
            *left = left.saturating_add(credit).min(limits::TAIL_WINDOW);
        }
    }

    /// What would be left behind so many bytes; nothing when they are too many.
    fn left(&self, fence: Fence, stream: Stream, bytes: usize) -> Option<u64> {
        self.0.get(&(fence, stream))?.checked_sub(bytes as u64)
    }

    fn forget(&mut self, fence: Fence) {
        self.0.retain(|(of, _), _| *of != fence);
    }
}

/// Says what may be lost.
fn datagram(connection: &Connection, message: &FromAgent) {
    if let Ok(bytes) = postcard::to_stdvec(message) {
        let _lost = connection.send_datagram(bytes.into());
    }
}

/// Goes on from a new socket: the board's address may be another now, or a NAT may have forgotten the old one.
async fn rebind(
    endpoint: &Endpoint,
    bytes: &Arc<AtomicU64>,
    events: &mpsc::Sender<Event>,
) -> Result<(), Gone> {
    let bound = endpoint.local_addr().and_then(|addr| UdpSocket::bind((addr.ip(), 0)));
    let bound = bound.and_then(|socket| Meter::wrap(socket, bytes));
    match bound.and_then(|socket| endpoint.rebind_abstract(socket)) {
        Ok(()) => tracing::info!("the hub is silent: going on from another socket"),
        Err(error) => tracing::debug!(%error, "no other socket"),
    }
    events.send(Event::Rebound).await.map_err(|_| Gone)
}

fn close(connection: &Connection, code: CloseCode) {
    // Closing again would put our reason in the place of the hub's.
    if connection.close_reason().is_some() {
        return;
    }
    connection.close(VarInt::from_u32(code as u32), code.as_str().as_bytes());
}

fn begin(
    fence: Fence,
    connection: &Connection,
    store: &Arc<dyn Unsent>,
    tasks: &mut JoinSet<()>,
) -> mpsc::Sender<Piece> {
    let (pieces, inbox) = mpsc::channel(LIVE_MAX);
    let (connection, store) = (connection.clone(), store.clone());
    tasks.spawn(async move {
        if let Err(error) = upload(fence, &connection, &*store, inbox).await {
            tracing::warn!(%fence, %error, "an upload broke off; the next connection repeats it");
            close(&connection, CloseCode::Leaving);
        }
    });
    pieces
}

async fn read(mut recv: RecvStream, connection: Connection, events: mpsc::Sender<Event>) {
    let mut decoder = Decoder::new(limits::FRAME_MAX);
    loop {
        match decoder.next::<ToAgent>() {
            Ok(Some(message)) => {
                if events.send(Event::FromHub(message)).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "the hub sent what is not of this protocol");
                return close(&connection, CloseCode::Garbage);
            }
        }
        match recv.read_chunk(64 * 1024, true).await {
            Ok(Some(chunk)) => decoder.push(&chunk.bytes),
            Ok(None) | Err(_) => return close(&connection, CloseCode::Leaving),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error("{0}")]
    Stream(#[from] quinn::WriteError),
    #[error("{0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("{0}")]
    Store(#[from] crate::store::StoreError),
    #[error("{0}")]
    Frame(#[from] frame::FrameError),
}

/// One attempt's output in order, then its outcome, all on one stream.
async fn upload(
    fence: Fence,
    connection: &Connection,
    store: &dyn Unsent,
    mut inbox: mpsc::Receiver<Piece>,
) -> Result<(), UploadError> {
    let mut send = connection.open_uni().await?;
    let mut sent = [0; 2];
    while let Some(piece) = inbox.recv().await {
        match piece {
            Piece::Live { stream, offset, bytes } if sent[stream as usize] == offset => {
                sent[stream as usize] += bytes.len() as u64;
                say(&mut send, &Upload::Chunk { fence, stream, offset, bytes }).await?;
            }
            // A piece before it was dropped: from here on the outcome brings the rest.
            Piece::Live { .. } => {}
            Piece::Tail { stream, offset, bytes } => {
                say(&mut send, &Upload::Tail { fence, stream, offset, bytes }).await?;
            }
            Piece::Finish { from } => {
                finish(fence, &mut send, store, from.unwrap_or(sent)).await?;
                let _ = send.finish();
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn finish(
    fence: Fence,
    send: &mut SendStream,
    store: &dyn Unsent,
    mut from: [u64; 2],
) -> Result<(), UploadError> {
    for stream in Stream::BOTH {
        loop {
            let offset = from[stream as usize];
            let bytes = store.kept(fence, stream, offset, limits::CHUNK_MAX)?;
            if bytes.is_empty() {
                break;
            }
            from[stream as usize] += bytes.len() as u64;
            say(send, &Upload::Chunk { fence, stream, offset, bytes }).await?;
        }
    }
    // Acknowledged meanwhile, by another stream: nothing is left to say.
    if let Some(record) = store.record(fence)?
        && let Some(report) = record.report
    {
        say(send, &Upload::Outcome { task: record.task, fence, report }).await?;
    }
    Ok(())
}

async fn say(send: &mut SendStream, message: &Upload) -> Result<(), UploadError> {
    let mut bytes = Vec::new();
    frame::push(&mut bytes, message, limits::UPLOAD_FRAME_MAX)?;
    Ok(send.write_all(&bytes).await?)
}
