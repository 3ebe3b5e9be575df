//! The result of a signed job that reached its board in a file, for the file that goes back.

use crate::ids::{FleetId, Key, NodeName, TaskId};
use crate::job::Report;
use crate::limits;
use crate::seal::{Context, Sealed, decode, from_text, to_text};
use ring::signature::Ed25519KeyPair;
use serde::{Deserialize, Serialize};

/// What a board says that came of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleResult {
    /// The board's name, as it knows it.
    pub node: NodeName,
    /// Its key, which signed this.
    pub key: Key,
    /// Its fleet.
    pub fleet: FleetId,
    /// The task.
    pub task: TaskId,
    /// SHA-256 of the payload that was signed.
    pub job: [u8; 32],
    /// When it ended by the board's clock, in milliseconds since the epoch.
    pub at_ms: u64,
    /// How it ended.
    pub report: Report,
    /// Kept bytes of stdout: head, then tail.
    #[serde(with = "serde_bytes")]
    pub stdout: Vec<u8>,
    /// The same of stderr.
    #[serde(with = "serde_bytes")]
    pub stderr: Vec<u8>,
}

impl BundleResult {
    /// One line of text, signed with the board's key.
    pub fn sign(&self, key: &Ed25519KeyPair) -> String {
        let sealed = Sealed::make(Context::Result, self, key);
        let bytes =
            postcard::to_stdvec(&sealed).expect("sealed bytes always encode: they have no unsized parts");
        to_text(Context::Result, &bytes)
    }

    /// Reads such a line. The key that it names signed it; whose that is, is for the reader to know.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = from_text(Context::Result, text, limits::BUNDLE_RESULT_MAX)?;
        let sealed: Sealed = decode(&bytes, bytes.len())?;
        let said: Self = sealed.peek()?;
        sealed.open(Context::Result, &said.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Outcome;
    use ring::signature::KeyPair;

    #[test]
    fn an_altered_result_is_none() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap();
        let result = BundleResult {
            node: "n".parse().unwrap(),
            key: Key(pair.public_key().as_ref().try_into().unwrap()),
            fleet: FleetId([1; 16]),
            task: "t".parse().unwrap(),
            job: [2; 32],
            at_ms: 3,
            report: Report::without_process(Outcome::Ok),
            stdout: b"out".to_vec(),
            stderr: vec![],
        };
        let text = result.sign(&pair);
        assert_eq!(BundleResult::parse(&text), Some(result));
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(BundleResult::parse(std::str::from_utf8(&bytes).unwrap()), None, "character {at}");
        }
    }
}
