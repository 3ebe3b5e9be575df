//! Join tickets: one line of text that an operator carries to a board.
//!
//! `dunlin1.` and unpadded base64url of `body || signature`: the body is postcard, the signature is the hub's Ed25519
//! over `"dunlin-ticket-v1\0" || body`. The signature makes any change to a ticket visible on the board; that the
//! ticket is *this* hub's is what the operator vouches for by carrying it, and its secret is checked by the hub.

use crate::ids::{FleetId, Key};
use crate::limits;
use data_encoding::BASE64URL_NOPAD;
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

const PREFIX: &str = "dunlin1.";
const CONTEXT: &[u8] = b"dunlin-ticket-v1\0";
const SIGNATURE_LEN: usize = 64;

/// What a board needs to enrol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Where the hub listens, `host:port`, tried in order.
    pub addrs: Vec<String>,
    /// The hub's identity, to be pinned.
    pub hub: Key,
    /// The fleet.
    pub fleet: FleetId,
    /// Public id of the invite.
    pub invite: [u8; 16],
    /// The invite's secret.
    pub secret: [u8; 16],
}

/// Why a text is not a usable ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Not the form of a ticket.
    #[error("not a dunlin ticket: it must be one line that starts with `dunlin1.`")]
    Malformed,
    /// The signature does not match.
    #[error("the ticket was altered or cut short: copy it again")]
    Tampered,
}

impl Ticket {
    /// The signed text.
    pub fn sign(&self, key: &Ed25519KeyPair) -> String {
        let mut body = postcard::to_stdvec(self).expect("a ticket always encodes");
        let signature = key.sign(&[CONTEXT, &body].concat());
        body.extend_from_slice(signature.as_ref());
        format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&body))
    }

    /// Reads a ticket and checks its signature.
    ///
    /// # Errors
    /// `Malformed` or `Tampered`.
    pub fn parse(text: &str) -> Result<Self, TicketError> {
        let text = text.trim();
        if text.len() > limits::TICKET_TEXT_MAX {
            return Err(TicketError::Malformed);
        }
        let coded = text.strip_prefix(PREFIX).ok_or(TicketError::Malformed)?;
        let bytes = BASE64URL_NOPAD.decode(coded.as_bytes()).map_err(|_| TicketError::Tampered)?;
        let split = bytes.len().checked_sub(SIGNATURE_LEN).ok_or(TicketError::Tampered)?;
        let (body, signature) = bytes.split_at(split);
        let (ticket, rest): (Ticket, _) =
            postcard::take_from_bytes(body).map_err(|_| TicketError::Tampered)?;
        UnparsedPublicKey::new(&ED25519, ticket.hub.0)
            .verify(&[CONTEXT, body].concat(), signature)
            .map_err(|_| TicketError::Tampered)?;
        let bad_addr = |a: &String| a.is_empty() || a.len() > limits::TEXT_MAX;
        if !rest.is_empty()
            || ticket.addrs.is_empty()
            || ticket.addrs.len() > limits::TICKET_ADDRS_MAX
            || ticket.addrs.iter().any(bad_addr)
        {
            return Err(TicketError::Malformed);
        }
        Ok(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::KeyPair;

    fn ticket() -> (Ticket, String) {
        let key = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap();
        let ticket = Ticket {
            addrs: vec!["127.0.0.1:7443".into()],
            hub: Key(key.public_key().as_ref().try_into().unwrap()),
            fleet: FleetId([1; 16]),
            invite: [2; 16],
            secret: [9; 16],
        };
        let text = ticket.sign(&key);
        (ticket, text)
    }

    #[test]
    fn a_ticket_reads_back() {
        let (ticket, text) = ticket();
        assert_eq!(Ticket::parse(&format!(" {text}\n")), Ok(ticket));
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let (_, text) = ticket();
        for i in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[i] = if bytes[i] == b'A' { b'B' } else { b'A' };
            assert!(Ticket::parse(std::str::from_utf8(&bytes).unwrap()).is_err(), "character {i}");
            assert!(Ticket::parse(&text[..i]).is_err(), "cut at {i}");
        }
    }
}
