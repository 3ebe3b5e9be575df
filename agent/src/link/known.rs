//! What is worth knowing of the way to the hub when the agent starts again: how long it is, and the tokens that prove
//! our address (RFC 9000 section 8.1.3), so that a hub under load need not ask first.

use crate::files::Files;
use bytes::Bytes;
use dunlin_wire::limits;
use quinn::TokenStore;
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The file, in the data directory. It may be lost, and is never trusted.
const FILE: &str = "uplink.json";
/// Tokens kept; each is good for one connection.
const TOKENS_MAX: usize = 2;
/// Shortest and longest first guess of the round-trip time, in milliseconds; the longest is QUIC's own.
const GUESS_MS: (u64, u64) = (50, 333);

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    rtt_ms: u64,
    tokens: Vec<String>,
}

/// The state and its file.
pub(super) struct Known {
    files: Files,
    state: Mutex<State>,
}

impl Known {
    pub(super) fn load(files: Files) -> Self {
        let text = std::fs::read_to_string(files.path(FILE)).unwrap_or_default();
        let mut state: State = serde_json::from_str(&text).unwrap_or_default();
        state.tokens.truncate(TOKENS_MAX);
        Self { files, state: Mutex::new(state) }
    }

    /// The first guess for the next connection: one and a half times what was last seen (RFC 9002 section 6.2.2 asks for
    /// a guess that is not too short).
    pub(super) fn initial_rtt(&self) -> Option<Duration> {
        let rtt = self.lock().rtt_ms;
        (rtt > 0).then(|| Duration::from_millis((rtt * 3 / 2).clamp(GUESS_MS.0, GUESS_MS.1)))
    }

    /// A connection ended whose round trip took so long. Written when it is news.
    pub(super) fn put_rtt(&self, rtt: Duration) {
        let mut state = self.lock();
        let new = (rtt.as_millis() as u64).max(1);
        if new.abs_diff(state.rtt_ms) * 4 > state.rtt_ms {
            state.rtt_ms = new;
            self.write(&state);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, state: &State) {
        let text = serde_json::to_string(state).unwrap_or_default();
        if let Err(error) = self.files.write_lossy(FILE, text.as_bytes()) {
            tracing::debug!(%error, "what is known of the way was not kept");
        }
    }
}

// The hub's name is fixed, and so is its key: whatever its address, a token is for it.
impl TokenStore for Known {
    fn insert(&self, _server: &str, token: Bytes) {
        if token.len() > limits::TEXT_MAX {
            return;
        }
        let mut state = self.lock();
        if state.tokens.len() == TOKENS_MAX {
            state.tokens.remove(0);
        }
        state.tokens.push(data_encoding::HEXLOWER.encode(&token));
        self.write(&state);
    }

    fn take(&self, _server: &str) -> Option<Bytes> {
        let token = self.lock().tokens.pop()?;
        data_encoding::HEXLOWER.decode(token.as_bytes()).ok().map(Bytes::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_after_a_restart_and_garbage_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let known = Known::load(Files::at(dir.path()));
        assert_eq!((known.initial_rtt(), known.take("x")), (None, None));
        known.put_rtt(Duration::from_millis(100));
        for n in 1..=3u8 {
            known.insert("x", Bytes::from(vec![n; 40]));
        }
        let known = Known::load(Files::at(dir.path()));
        assert_eq!(known.initial_rtt(), Some(Duration::from_millis(150)));
        assert_eq!(
            [known.take("x"), known.take("x"), known.take("x")].map(|t| t.map(|t| t[0])),
            [Some(3), Some(2), None]
        );
        for (rtt, guess) in [(1, 50), (900, 333)] {
            known.put_rtt(Duration::from_millis(rtt));
            assert_eq!(known.initial_rtt(), Some(Duration::from_millis(guess)));
        }
        for text in ["", "{", "{\"rtt_ms\":-1,\"tokens\":[]}", "{\"rtt_ms\":1,\"tokens\":[\"zz\"]}"] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            assert_eq!(Known::load(Files::at(dir.path())).take("x"), None, "{text}");
        }
    }
}
