//! One connection: a control stream both ways, and upload streams in.

use super::again::Again;
use super::{HELLO, Lines, Outbox, SHED_MS, Said, UPLOADS, UPLOADS_MAX};
use crate::clock;
use crate::event::{ConnId, Event};
use dunlin_wire::company::{ACK_MS, Company, SOON_MS};
use dunlin_wire::datagram::{FromAgent, FromHub};
use dunlin_wire::frame::{self, Decoder, FrameError};
use dunlin_wire::message::{Numbered, ToAgent, Upload};
use dunlin_wire::{CloseCode, Fence, Key, limits};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, SetOnce};
use tokio::time::timeout;

/// A connection whose peer is known, as early data if that is how it came.
pub(super) struct Opened {
    conn: ConnId,
    key: Key,
    to_agent: Outbox,
    // Until the handshake is over.
    early: Option<quinn::ZeroRttAccepted>,
}

/// From a connection's first packet to its announcement. Apart from [`serve`], so that what only this needs is freed when
/// it is done: there are as many sessions as agents.
pub(super) async fn open(conn: ConnId, incoming: quinn::Incoming, lines: Lines) -> Option<Opened> {
    let peer = incoming.remote_address();
    let accepted = incoming.accept().map(quinn::Connecting::into_0rtt);
    let (connection, mut done) = match accepted {
        Ok(Ok(both)) => both,
        Ok(Err(_)) => return None,
        Err(error) => {
            tracing::debug!(%peer, %error, "handshake failed");
            return None;
        }
    };
    // A resumed session says at once whose it is; but until the handshake is over that may be somebody's copy.
    let early = peer_key(&connection);
    let key = match early {
        Some(key) => key,
        None => {
            if timeout(HELLO, &mut done).await.is_err() {
                tracing::debug!(%peer, "handshake took too long");
                return None;
            }
            match peer_key(&connection) {
                Some(key) => key,
                None => {
                    close(&connection, CloseCode::UnknownKey);
                    return None;
                }
            }
        }
    };
    let to_agent = Outbox { waiting: Arc::default(), connection: connection.clone(), said: Arc::default() };
    let announced = async {
        lines.outboxes.send((conn, to_agent.clone())).await.ok()?;
        lines.room().await?.send(Event::Opened { conn, key, early: early.is_some() });
        Some(())
    };
    if announced.await.is_none() {
        close(&connection, CloseCode::Leaving);
        return None;
    }
    tracing::debug!(%peer, %key, conn = conn.0, early = early.is_some(), "connected");
    Some(Opened { conn, key, to_agent, early: early.map(|_| done) })
}

/// Serves one connection to its end. `seat` is held as long, `handshake` until that is over.
pub(super) async fn serve(
    opening: Pin<Box<impl Future<Output = Option<Opened>>>>,
    lines: Lines,
    handshake: OwnedSemaphorePermit,
    seat: OwnedSemaphorePermit,
) {
    let Some(Opened { conn, key, to_agent, early }) = opening.await else { return };
    let connection = &to_agent.connection;
    let confirmed = SetOnce::new();
    let confirm = async {
        if let Some(done) = early {
            if timeout(HELLO, done).await.is_err() {
                return Some(CloseCode::NoHello);
            }
            if connection.close_reason().is_some() {
                return None;
            }
            lines.room().await?.send(Event::Confirmed { conn });
        }
        // Only this sets it, once.
        let _ = confirmed.set(());
        drop(handshake);
        lines.peers.add(conn, connection.clone());
        std::future::pending().await
    };
    let code = tokio::select! {
        code = confirm => code,
        code = control(conn, &to_agent, &lines, &confirmed) => code,
        code = uploads(conn, &to_agent, &lines, &confirmed) => code,
        code = datagrams(conn, &to_agent, &lines, &confirmed) => code,
        _ = connection.closed() => None,
    };
    lines.peers.remove(conn);
    let peer = connection.remote_address();
    if let Some(code) = code {
        tracing::warn!(%peer, %key, code = code.as_str(), "closed by the link");
        close(connection, code);
    }
    let why = connection.closed().await;
    tracing::debug!(%peer, conn = conn.0, %why, "disconnected");
    if let Some(room) = lines.room().await {
        room.send(Event::Closed { conn, key, by: code, traffic: to_agent.traffic() });
    }
    drop(seat);
}

/// Tells an agent when to come again. That takes the handshake, which is what this costs.
pub(super) async fn shed(incoming: quinn::Incoming, handshake: OwnedSemaphorePermit) {
    let peer = incoming.remote_address();
    let Ok(connecting) = incoming.accept() else { return };
    let Ok(Ok(connection)) = timeout(HELLO, connecting).await else { return };
    let after_ms = fastrand::u64(SHED_MS);
    tracing::debug!(%peer, after_ms, "too busy for one more");
    let code = CloseCode::Busy;
    connection.close(VarInt::from_u32(code as u32), code.reason(Some(after_ms)).as_bytes());
    drop(handshake);
}

/// Waits until what a peer says is surely its own.
async fn surely(confirmed: &SetOnce<()>) {
    confirmed.wait().await;
}

fn peer_key(connection: &Connection) -> Option<Key> {
    let certs = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Key::from_spki(certs.first()?)
}

fn close(connection: &Connection, code: CloseCode) {
    if connection.close_reason().is_some() {
        return;
    }
    connection.close(VarInt::from_u32(code as u32), code.as_str().as_bytes());
}

/// The control stream, until it or the connection ends; the code to close with, when the peer is to blame.
async fn control(
    conn: ConnId,
    to_agent: &Outbox,
    lines: &Lines,
    confirmed: &SetOnce<()>,
) -> Option<CloseCode> {
    let (send, mut recv) = match timeout(HELLO, to_agent.connection.accept_bi()).await {
        Ok(Ok(streams)) => streams,
        Ok(Err(_)) => return None,
        Err(_) => return Some(CloseCode::NoHello),
    };
    let again = Mutex::new(Again::new());
    let writer = write(to_agent, send, &again);
    let reader = async {
        let mut decoder = Decoder::new(limits::FRAME_MAX);
        let mut silent = true;
        loop {
            let next = next_frame::<Numbered>(&mut recv, &mut decoder, &to_agent.said.control_in);
            let next = if silent { timeout(HELLO, next).await } else { Ok(next.await) };
            silent = false;
            match next {
                Ok(Ok(Some(frame))) => {
                    // What may not ride in early data is held until it is none.
                    if !frame.message.may_be_early() {
                        surely(confirmed).await;
                    }
                    lock(&again).handle_heard(&frame.message);
                    lines.room().await?.send(Event::Control { conn, frame });
                }
                // An agent that ends its control stream has nothing more to say.
                Ok(Ok(None)) => return Some(CloseCode::Leaving),
                Ok(Err(error)) => return Some(code_of(error)),
                Err(_) => return Some(CloseCode::NoHello),
            }
        }
    };
    tokio::select! {
        code = reader => code,
        () = writer => None,
    }
}

async fn write(Outbox { waiting, connection, said }: &Outbox, mut send: SendStream, again: &Mutex<Again>) {
    let (mut company, mut lease_ms) = (Company::default(), 0);
    loop {
        let due = [lock(again).poll_timeout(), company.poll_timeout()].into_iter().flatten().min();
        let wait = Duration::from_millis(due.map_or(0, |at| at.saturating_sub(clock::now().mono)));
        tokio::select! {
            messages = waiting.take() => handle_messages(&mut company, &mut lease_ms, messages, clock::now().mono),
            () = tokio::time::sleep(wait), if due.is_some() => {
                for bytes in lock(again).poll(clock::now().mono, connection.stats().udp_rx.datagrams) {
                    let _lost = connection.send_datagram(bytes.into());
                }
            }
        }
        let (now, rtt) = (clock::now().mono, connection.rtt().as_millis() as u64);
        let messages = company.poll(now);
        if messages.is_empty() {
            continue;
        }
        let mut bytes = Vec::new();
        let room = connection.max_datagram_size().unwrap_or(0);
        let path = connection.stats().path;
        lock(again).handle_packets([path.sent_packets, path.lost_packets]);
        for message in messages {
            lock(again).handle_sent(&message, now, rtt, room);
            if let Err(error) = frame::push(&mut bytes, &message, limits::FRAME_MAX) {
                // The API bounds a task below this; a grant that cannot be said is taken back by its lease.
                tracing::error!(%error, "a message for an agent does not fit a frame");
            }
        }
        said.control_out.fetch_add(bytes.len() as u64, Relaxed);
        if send.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// An acknowledgement waits for the next grant, and with it what was to renew the lease that it ends. A lease that becomes
/// longer than any granted on this connection (a task carries on without us) waits for nothing: the link may be cut next.
fn handle_messages(company: &mut Company<ToAgent>, granted_ms: &mut u64, messages: Vec<ToAgent>, now: u64) {
    let settled: Vec<Fence> = messages.iter().filter_map(acknowledged).collect();
    for message in &messages {
        if let ToAgent::Grant(grant) = message {
            *granted_ms = grant.lease_ms.max(*granted_ms);
        }
    }
    company.handle(messages, now, |message| match message {
        ToAgent::Ack { .. } => ACK_MS,
        ToAgent::Renewed { leases, .. } if leases.iter().all(|(_, ms)| ms <= granted_ms) => SOON_MS,
        _ => 0,
    });
    company.put_off(now + ACK_MS, |message| {
        matches!(message, ToAgent::Renewed { leases, .. } if leases.iter().all(|(fence, _)| settled.contains(fence)))
    });
}

fn acknowledged(message: &ToAgent) -> Option<Fence> {
    if let ToAgent::Ack { fence, .. } = message { Some(*fence) } else { None }
}

fn lock(again: &Mutex<Again>) -> std::sync::MutexGuard<'_, Again> {
    again.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Signs of life, and questions for one.
async fn datagrams(
    conn: ConnId,
    to_agent: &Outbox,
    lines: &Lines,
    confirmed: &SetOnce<()>,
) -> Option<CloseCode> {
    surely(confirmed).await;
    let connection = &to_agent.connection;
    let mut addr = connection.remote_address();
    while let Ok(bytes) = connection.read_datagram().await {
        to_agent.said.telemetry_in.fetch_add(bytes.len() as u64, Relaxed);
        let moved = std::mem::replace(&mut addr, connection.remote_address()) != addr;
        let (every_ms, sample) = match postcard::from_bytes(&bytes) {
            Ok(FromAgent::Beat { every_ms, sample }) => (every_ms, sample),
            Ok(FromAgent::Alive) => (0, None),
            Ok(FromAgent::Probe) => {
                if let Ok(echo) = postcard::to_stdvec(&FromHub::Echo) {
                    let _lost = connection.send_datagram(echo.into());
                }
                continue;
            }
            Err(_) => return Some(CloseCode::Garbage),
        };
        if moved {
            tracing::debug!(conn = conn.0, %addr, every_ms, "an agent's address changed over its silence");
            to_agent.send(ToAgent::Moved);
        }
        lines.room().await?.send(Event::Beat { conn, every_ms, sample });
    }
    None
}

/// Upload streams, each read on its own so that none waits for another.
async fn uploads(
    conn: ConnId,
    to_agent: &Outbox,
    lines: &Lines,
    confirmed: &SetOnce<()>,
) -> Option<CloseCode> {
    surely(confirmed).await;
    let connection = &to_agent.connection;
    let mut streams = tokio::task::JoinSet::new();
    let mut allowed = UPLOADS;
    loop {
        tokio::select! {
            stream = connection.accept_uni() => match stream {
                Ok(stream) => {
                    streams.spawn(upload(conn, stream, lines.clone(), to_agent.said.clone()));
                    if streams.len() as u32 * 2 > allowed && allowed < UPLOADS_MAX {
                        allowed *= 2;
                        connection.set_max_concurrent_uni_streams(VarInt::from_u32(allowed));
                    }
                }
                // The connection is over; what it brought is read to its end first.
                Err(_) => while streams.join_next().await.is_some() {},
            },
            Some(ended) = streams.join_next() => {
                if let Ok(Some(code)) = ended {
                    return Some(code);
                }
            }
        }
        if connection.close_reason().is_some() {
            return None;
        }
    }
}

async fn upload(conn: ConnId, mut stream: RecvStream, lines: Lines, said: Arc<Said>) -> Option<CloseCode> {
    let mut decoder = Decoder::new(limits::UPLOAD_FRAME_MAX);
    loop {
        match next_frame::<Upload>(&mut stream, &mut decoder, &said.output_in).await {
            Ok(Some(frame)) => lines.room().await?.send(Event::Upload { conn, frame }),
            Ok(None) => return None,
            Err(error) => return Some(code_of(error)),
        }
    }
}

/// The next whole frame, its bytes counted; `None` when the stream is over.
async fn next_frame<T: DeserializeOwned>(
    stream: &mut RecvStream,
    decoder: &mut Decoder,
    count: &AtomicU64,
) -> Result<Option<T>, FrameError> {
    loop {
        if let Some(frame) = decoder.next()? {
            return Ok(Some(frame));
        }
        match stream.read_chunk(64 * 1024, true).await {
            Ok(Some(chunk)) => {
                count.fetch_add(chunk.bytes.len() as u64, Relaxed);
                decoder.push(&chunk.bytes);
            }
            Ok(None) | Err(_) => return Ok(None),
        }
    }
}

fn code_of(error: FrameError) -> CloseCode {
    match error {
        FrameError::TooLarge { .. } => CloseCode::TooLarge,
        FrameError::Garbage => CloseCode::Garbage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_wire::message::AckVerdict;

    #[test]
    fn an_acknowledgement_waits_for_the_grant_and_a_lease_that_goes_on_does_not() {
        let renewed = |fence| ToAgent::Renewed { heard: 1, leases: vec![(Fence(fence), 30_000)] };
        let ack = ToAgent::Ack { fence: Fence(1), verdict: AckVerdict::Applied };
        let said: &[(&[ToAgent], u64)] = &[
            (std::slice::from_ref(&ack), 120),
            (&[renewed(1)], 105),
            (&[renewed(1), ack.clone()], 120),
            (&[renewed(2), ack.clone()], 105),
            (&[ack.clone(), ToAgent::Moved], 100),
        ];
        for (messages, at) in said {
            let mut company = Company::default();
            handle_messages(&mut company, &mut 30_000, messages.to_vec(), 100);
            assert_eq!(company.poll_timeout(), Some(*at), "{messages:?}");
        }
        // Said one after the other.
        let mut company = Company::default();
        handle_messages(&mut company, &mut 30_000, vec![renewed(1)], 100);
        let ack = ToAgent::Ack { fence: Fence(1), verdict: AckVerdict::Applied };
        handle_messages(&mut company, &mut 30_000, vec![ack], 102);
        assert_eq!(company.poll_timeout(), Some(122));
        // Longer than what was granted.
        handle_messages(&mut company, &mut 29_999, vec![renewed(2)], 103);
        assert_eq!(company.poll_timeout(), Some(103));
    }
}
