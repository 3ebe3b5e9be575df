//! Signatures over opaque bytes: what is verified is what is decoded, byte for byte.
//!
//! A signature is Ed25519 over `context || u32le len || body`, so that nothing signed for one purpose can be taken for
//! another. Postcard is not canonical and ignores what follows a value, so the signed thing is never encoded again, and
//! [`decode`] wants an empty rest.

use crate::ids::Key;
use data_encoding::BASE64URL_NOPAD;
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What is signed for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// A job, by an operator.
    Job,
    /// An operator's certificate, by a root.
    Cert,
    /// A set of keys, by a root.
    Keys,
    /// The result of a bundle, by a board.
    Result,
}

impl Context {
    /// What stands before the body.
    fn bytes(self) -> &'static [u8] {
        match self {
            Context::Job => b"dunlin-job-v1\0",
            Context::Cert => b"dunlin-cert-v1\0",
            Context::Keys => b"dunlin-keys-v1\0",
            Context::Result => b"dunlin-result-v1\0",
        }
    }

    /// What a text of it begins with.
    fn prefix(self) -> &'static str {
        match self {
            Context::Job => "dunlin-job1.",
            Context::Cert => "dunlin-cert1.",
            Context::Keys => "dunlin-keys1.",
            Context::Result => "dunlin-result1.",
        }
    }
}

/// An Ed25519 signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature(#[serde(with = "serde_bytes")] [u8; 64]);

impl Signature {
    /// Signs `body`.
    pub fn make(context: Context, body: &[u8], key: &Ed25519KeyPair) -> Self {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(key.sign(&message(context, body)).as_ref());
        Self(bytes)
    }

    /// Whether `key` signed `body` for this context. Never true of a key that any signature fits.
    pub fn verifies(&self, context: Context, body: &[u8], key: &Key) -> bool {
        !key.is_small_order()
            && UnparsedPublicKey::new(&ED25519, key.0).verify(&message(context, body), &self.0).is_ok()
    }
}

fn message(context: Context, body: &[u8]) -> Vec<u8> {
    // A body that is too long to have a length was refused long before.
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
    [context.bytes(), &len, body].concat()
}

/// Bytes and the signature over them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    #[serde(with = "serde_bytes")]
    body: Vec<u8>,
    signature: Signature,
}

impl Sealed {
    /// Encodes and signs `value`.
    pub fn make<T: Serialize>(context: Context, value: &T, key: &Ed25519KeyPair) -> Self {
        let body =
            postcard::to_stdvec(value).expect("signed values always encode: they have no unsized parts");
        let signature = Signature::make(context, &body, key);
        Self { body, signature }
    }

    /// What was signed, when `key` did it.
    pub fn open<T: DeserializeOwned>(&self, context: Context, key: &Key) -> Option<T> {
        self.signature.verifies(context, &self.body, key).then(|| self.peek())?
    }

    /// What is said to be signed. For display only: nobody looked at the signature.
    pub fn peek<T: DeserializeOwned>(&self) -> Option<T> {
        decode(&self.body, self.body.len())
    }
}

/// The value that `bytes` are, all of them, when there are at most `max`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Option<T> {
    if bytes.len() > max {
        return None;
    }
    let (value, rest) = postcard::take_from_bytes(bytes).ok()?;
    rest.is_empty().then_some(value)
}

/// One line of text that carries `bytes`.
pub fn to_text(context: Context, bytes: &[u8]) -> String {
    format!("{}{}", context.prefix(), BASE64URL_NOPAD.encode(bytes))
}

/// The bytes of such a line, when there are at most `max`.
pub fn from_text(context: Context, text: &str, max: usize) -> Option<Vec<u8>> {
    let coded = text.trim().strip_prefix(context.prefix())?;
    // Four characters carry three bytes.
    if coded.len() / 4 > max / 3 + 1 {
        return None;
    }
    BASE64URL_NOPAD.decode(coded.as_bytes()).ok().filter(|bytes| bytes.len() <= max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::KeyPair;

    fn pair() -> (Ed25519KeyPair, Key) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap();
        let key = Key(pair.public_key().as_ref().try_into().unwrap());
        (pair, key)
    }

    #[test]
    fn a_signature_holds_for_one_purpose_and_one_key() {
        let (pair, key) = pair();
        let sealed = Sealed::make(Context::Cert, &7u32, &pair);
        assert_eq!(sealed.open::<u32>(Context::Cert, &key), Some(7));
        assert_eq!(sealed.open::<u32>(Context::Keys, &key), None);
        assert_eq!(sealed.open::<u32>(Context::Cert, &Key([1; 32])), None);
        // The body is longer than the value.
        let longer = Sealed::make(Context::Cert, &(7u32, 1u8), &pair);
        assert_eq!(longer.open::<u32>(Context::Cert, &key), None);
    }

    #[test]
    fn what_any_signature_fits_is_no_key() {
        // With R the identity and S zero the equation is `k A = 0`, which for a point of order 8 one k in eight meets.
        let mut forged = [0; 64];
        forged[0] = 1;
        let canonical = crate::ids::SMALL_ORDER.iter().filter(|y| y[31] != 0x7f || y[0] == 0xec);
        for point in canonical {
            let taken = (0u32..400).find(|n| {
                let message = message(Context::Job, &n.to_le_bytes());
                UnparsedPublicKey::new(&ED25519, point).verify(&message, &forged).is_ok()
            });
            let body = taken.expect("ring takes some of them, so we must not").to_le_bytes();
            assert!(!Signature(forged).verifies(Context::Job, &body, &Key(*point)));
        }
    }

    #[test]
    fn texts_are_bounded_and_of_their_kind() {
        let text = to_text(Context::Job, b"abc");
        assert_eq!(from_text(Context::Job, &format!(" {text}\n"), 3).as_deref(), Some(&b"abc"[..]));
        assert_eq!(from_text(Context::Job, &text, 2), None);
        assert_eq!(from_text(Context::Cert, &text, 3), None);
    }
}
