//! Why a connection was closed: one code each, shown in both logs and in `dunlin-agent status`.

use crate::limits;
use std::fmt;

macro_rules! close_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal, $retry:literal;)*) => {
        /// An application close code (RFC 9000 section 19.19).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum CloseCode { $($(#[$doc])* $name = $code,)* }

        impl CloseCode {
            /// Every code, for tables and tests.
            pub const ALL: &'static [CloseCode] = &[$(CloseCode::$name,)*];

            /// The code a peer closed with; `None` when this generation does not know it.
            pub fn from_code(code: u64) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }

            /// The stable word for it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Whether trying again by itself can help. Otherwise an operator must act first; the agent then
            /// retries only at the back-off cap.
            pub fn may_retry(self) -> bool {
                match self { $(Self::$name => $retry,)* }
            }
        }
    };
}

close_codes! {
    /// The peer shuts down in order.
    Leaving = 0, "leaving", true;
    /// The key is not in the hub's registry.
    UnknownKey = 1, "unknown_key", false;
    /// The node was revoked.
    Revoked = 2, "revoked", false;
    /// The agent belongs to another fleet.
    WrongFleet = 3, "wrong_fleet", false;
    /// No common protocol generation.
    UnsupportedGeneration = 4, "unsupported_generation", false;
    /// A frame was larger than `limits::FRAME_MAX`.
    TooLarge = 5, "too_large", true;
    /// A frame did not decode, or came where it may not.
    Garbage = 6, "garbage", true;
    /// The ticket was used before.
    TicketUsed = 7, "ticket_used", false;
    /// The ticket's time is over.
    TicketExpired = 8, "ticket_expired", false;
    /// The hub never made this ticket, or its secret is wrong.
    TicketUnknown = 9, "ticket_unknown", false;
    /// A newer connection of the same node took over.
    Replaced = 10, "replaced", true;
    /// The node name is enrolled with another key.
    KeyMismatch = 11, "public_key_mismatch", false;
    /// Two live copies of one identity.
    Cloned = 12, "cloned_identity", false;
    /// The hub could not commit; connect again.
    StoreFailed = 13, "store_failed", true;
    /// The peer sends faster than its limits allow.
    Flooding = 14, "flooding", true;
    /// Nothing was said on a new connection in time.
    NoHello = 15, "no_hello", true;
    /// The hub has as much to do as it can; its reason says when to come again.
    Busy = 16, "busy", true;
}

impl CloseCode {
    /// The reason to close with: the word, and behind it in how many milliseconds to come again.
    pub fn reason(self, retry_after_ms: Option<u64>) -> String {
        retry_after_ms.map_or(self.as_str().to_owned(), |ms| format!("{self} {ms}"))
    }
}

/// In how many milliseconds the peer that closed with this reason wants us again; never more than
/// [`limits::RETRY_AFTER_MS_MAX`], whatever it says.
pub fn retry_after_ms(reason: &[u8]) -> Option<u64> {
    let (_, ms) = std::str::from_utf8(reason).ok()?.split_once(' ')?;
    ms.parse().ok().map(|ms: u64| ms.min(limits::RETRY_AFTER_MS_MAX))
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        for &code in CloseCode::ALL {
            assert_eq!(CloseCode::from_code(code as u64), Some(code));
        }
        assert_eq!(CloseCode::from_code(9999), None);
    }

    #[test]
    fn a_busy_hub_says_when_to_come_again_and_cannot_say_never() {
        let reason = |ms| CloseCode::Busy.reason(ms).into_bytes();
        assert_eq!(retry_after_ms(&reason(Some(1500))), Some(1500));
        assert_eq!(retry_after_ms(&reason(Some(u64::MAX))), Some(limits::RETRY_AFTER_MS_MAX));
        assert_eq!(retry_after_ms(&reason(None)), None);
        for wrong in [&b"busy soon"[..], b"busy -1", b"busy 99999999999999999999999", b"\xff 5", b""] {
            assert_eq!(retry_after_ms(wrong), None, "{wrong:?}");
        }
    }
}
