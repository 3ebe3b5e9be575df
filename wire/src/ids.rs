//! Newtype ids. Each can only be made from a valid value, also when it is decoded. Copies of a text share it: ids are in
//! many tables.

use crate::limits;
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

/// Why a text is not an id: names the kind of id and the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be 1 to {max} characters of {charset}")]
pub struct IdError {
    what: &'static str,
    max: usize,
    charset: &'static str,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr, $charset:literal, $ok:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                let ok: fn(u8) -> bool = $ok;
                if text.is_empty() || text.len() > $max || !text.bytes().all(ok) {
                    return Err(IdError { what: $what, max: $max, charset: $charset });
                }
                Ok(Self(text.into()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// What an operator submits is known by this; chosen by the operator or made by the hub.
    TaskId,
    "a task id",
    limits::TASK_ID_MAX,
    "a-z A-Z 0-9 . _ : -",
    |b| b.is_ascii_alphanumeric() || b"._:-".contains(&b)
);
text_id!(
    /// A node's name, unique in its fleet.
    NodeName,
    "a node name",
    limits::NODE_NAME_MAX,
    "a-z 0-9 . _ -",
    |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b)
);
text_id!(
    /// A tag of a node, or one a task requires: `gpu`, `site:oslo`, and in a requirement `actuator:*`.
    Tag,
    "a tag",
    limits::TAG_MAX,
    "a-z A-Z 0-9 . _ : / * -",
    |b| b.is_ascii_alphanumeric() || b"._:/*-".contains(&b)
);

impl Tag {
    /// Whether this requirement is met by `held`: equal, or `prefix:*` on whole colon segments.
    pub fn matches(&self, held: &Tag) -> bool {
        match self.0.strip_suffix(":*") {
            Some(prefix) => {
                held.0.strip_prefix(prefix).is_some_and(|rest| rest.len() > 1 && rest.starts_with(':'))
            }
            None => self == held,
        }
    }
}

/// A number from the hub's only-growing counter, given to each grant. Whatever carries an older fence than the
/// task's current one is refused. The high bits are the store's incarnation, raised when a backup is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence(pub u64);

impl Fence {
    const COUNTER_BITS: u32 = 40;

    /// The first fence of a store incarnation.
    pub fn first(incarnation: u32) -> Self {
        Self((u64::from(incarnation) << Self::COUNTER_BITS) + 1)
    }

    /// The fence after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One standing claim of an agent: a free slot. From a counter that is durable at the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClaimId(pub u64);

/// The fleet an agent belongs to; made once by the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FleetId(pub [u8; 16]);

impl fmt::Display for FleetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// An Ed25519 public key: the identity of a hub or a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key(pub [u8; 32]);

/// DER of a SubjectPublicKeyInfo for Ed25519 up to the key bytes (RFC 8410 section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// y coordinates of the points whose order divides 8, sign bit off: 0, 1, p - 1, two of order 8, and what p and p + 1
/// are when nobody reduces them (<https://cr.yp.to/ecdh.html#validate>, edwards25519 instead of curve25519).
pub(crate) const SMALL_ORDER: [[u8; 32]; 7] = {
    const fn near_p(lowest: u8) -> [u8; 32] {
        let mut y = [0xff; 32];
        y[0] = lowest;
        y[31] = 0x7f;
        y
    }
    let mut one = [0; 32];
    one[0] = 1;
    [
        [0; 32],
        one,
        near_p(0xec),
        near_p(0xed),
        near_p(0xee),
        [
            0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0,
            0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
        ],
        [
            0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f,
            0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
        ],
    ]
};

impl Key {
    /// The key as a DER SubjectPublicKeyInfo, the form raw public keys take in TLS (RFC 7250).
    pub fn to_spki(self) -> Vec<u8> {
        [SPKI_PREFIX.as_slice(), &self.0].concat()
    }

    /// Whether this is a point of small order, in whatever encoding: signatures that fit it can be made by anybody, and
    /// ring takes them. Such a key must be refused wherever one is trusted.
    pub fn is_small_order(&self) -> bool {
        let mut bytes = self.0;
        bytes[31] &= 0x7f;
        SMALL_ORDER.contains(&bytes)
    }

    /// The key of 64 hexadecimal digits; `None` for another text, and for a point of small order.
    pub fn from_hex(text: &str) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).ok()?;
        bytes.try_into().ok().map(Self).filter(|key| !key.is_small_order())
    }

    /// Reads an Ed25519 SubjectPublicKeyInfo; anything else is `None`.
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        der.strip_prefix(&SPKI_PREFIX)?.try_into().ok().map(Self)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_match_exactly_or_by_whole_segments() {
        let tag = |t: &str| t.parse::<Tag>().unwrap();
        for (want, held, hit) in [
            ("gpu", "gpu", true),
            ("gpu", "gpu:a", false),
            ("actuator:*", "actuator:pump:P1", true),
            ("actuator:*", "actuator", false),
            ("actuator:*", "actuator:", false),
            ("actuator:*", "actuators:pump", false),
            ("actuator:pump:*", "actuator:pump:P1", true),
            ("actuator:pump:*", "actuator:valve:P1", false),
        ] {
            assert_eq!(tag(want).matches(&tag(held)), hit, "{want} against {held}");
        }
    }

    #[test]
    fn ids_refuse_what_they_cannot_be() {
        assert!("".parse::<TaskId>().is_err());
        assert!("a/b".parse::<TaskId>().is_err());
        assert!("x".repeat(65).parse::<TaskId>().is_err());
        assert!("Board".parse::<NodeName>().is_err());
        let long = postcard::to_stdvec(&"y".repeat(65)).unwrap();
        assert!(postcard::from_bytes::<TaskId>(&long).is_err(), "decoding checks too");
    }

    #[test]
    fn spki_round_trip_and_rejects_other_keys() {
        let key = Key([7; 32]);
        assert_eq!(Key::from_spki(&key.to_spki()), Some(key));
        assert_eq!(Key::from_spki(&key.to_spki()[..43]), None);
        assert_eq!(Key::from_spki(&[0; 44]), None);
    }

    #[test]
    fn keys_that_any_signature_fits_are_known() {
        for mut bytes in SMALL_ORDER {
            assert!(Key(bytes).is_small_order());
            bytes[31] |= 0x80;
            assert!(Key(bytes).is_small_order(), "the sign changes nothing");
            assert_eq!(Key::from_hex(&Key(bytes).to_string()), None);
        }
        assert_eq!(Key::from_hex(&Key([7; 32]).to_string()), Some(Key([7; 32])));
    }

    #[test]
    fn fences_of_a_later_incarnation_are_greater() {
        assert!(Fence::first(1) > Fence(1 << 39));
        assert_eq!(Fence::first(0).next(), Fence(2));
    }
}
