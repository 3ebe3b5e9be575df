//! Enrolment: one connection, one question, one answer.

use super::{client_config, connect};
use dunlin_wire::frame::{self, Decoder};
use dunlin_wire::message::{Join, Joined, Numbered, Profile, ToAgent, ToHub};
use dunlin_wire::ticket::Ticket;
use dunlin_wire::version::GENERATION;
use dunlin_wire::{CloseCode, limits};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long the hub may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Rounds over all addresses before giving up.
const ROUNDS: u32 = 3;

/// Why a device was not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No hub answered.
    #[error("cannot reach the hub at {0}")]
    Unreachable(String),
    /// The hub refused.
    #[error("the hub refused: {word} ({fix})")]
    Refused {
        /// The close code's word.
        word: &'static str,
        /// What to do.
        fix: &'static str,
    },
    /// The device key cannot be used.
    #[error("identity.key: {0}")]
    Key(String),
}

/// Asks the ticket's hub to enrol the key.
///
/// # Errors
/// See [`JoinError`].
pub async fn join(ticket: &Ticket, pkcs8: &[u8]) -> Result<Joined, JoinError> {
    let client = client_config(pkcs8, ticket.hub, Profile::default(), Arc::default())
        .map_err(|e| JoinError::Key(e.to_string()))?;
    let mut last = String::new();
    for _ in 0..ROUNDS {
        for addr in &ticket.addrs {
            let failure = match connect(addr, &client, &Arc::default()).await {
                Ok((_endpoint, connection, _)) => match timeout(ANSWER, ask(&connection, ticket)).await {
                    Ok(Some(joined)) => {
                        connection.close(0u32.into(), b"leaving");
                        _endpoint.wait_idle().await;
                        return Ok(joined);
                    }
                    Ok(None) => super::close_word(&connection),
                    Err(_) => super::Failure::new("no answer".into()),
                },
                Err(failure) => failure,
            };
            let code = CloseCode::ALL.iter().find(|c| failure.word.as_deref() == Some(c.as_str()));
            if let Some(code) = code.filter(|c| !c.may_retry()) {
                return Err(JoinError::Refused { word: code.as_str(), fix: fix(*code) });
            }
            last = format!("{addr}: {}", failure.text);
        }
    }
    Err(JoinError::Unreachable(last))
}

async fn ask(connection: &quinn::Connection, ticket: &Ticket) -> Option<Joined> {
    let (mut send, mut recv) = connection.open_bi().await.ok()?;
    let join = Join { generation: GENERATION, invite: ticket.invite, secret: ticket.secret };
    let mut bytes = Vec::new();
    frame::push(&mut bytes, &Numbered { seq: 1, message: ToHub::Join(Box::new(join)) }, limits::FRAME_MAX)
        .ok()?;
    send.write_all(&bytes).await.ok()?;
    let mut decoder = Decoder::new(limits::FRAME_MAX);
    loop {
        if let Some(ToAgent::Joined(joined)) = decoder.next().ok()? {
            return Some(*joined);
        }
        match recv.read_chunk(64 * 1024, true).await {
            Ok(Some(chunk)) => decoder.push(&chunk.bytes),
            Ok(None) | Err(_) => {
                // The close code says why.
                connection.closed().await;
                return None;
            }
        }
    }
}

fn fix(code: CloseCode) -> &'static str {
    match code {
        CloseCode::TicketUsed => "each ticket enrols one device once; make another with `dunlin node invite`",
        CloseCode::TicketExpired => "make another with `dunlin node invite`",
        CloseCode::TicketUnknown => "this hub did not make it; make one there with `dunlin node invite`",
        CloseCode::KeyMismatch => {
            "the name or this key is enrolled already; revoke it or choose another name"
        }
        CloseCode::Revoked => "this device key was revoked; start over with another --data",
        CloseCode::Busy => {
            "the hub has as many connections as its `link.connections_max` allows; try again later"
        }
        CloseCode::UnsupportedGeneration => "update the agent or the hub",
        _ => "see the hub's log",
    }
}
