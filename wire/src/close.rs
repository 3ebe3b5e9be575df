//! Why a connection was closed: one code each, shown in both logs and in `dunlin-agent status`.

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
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::CloseCode;

    #[test]
    fn codes_round_trip() {
        for &code in CloseCode::ALL {
            assert_eq!(CloseCode::from_code(code as u64), Some(code));
        }
        assert_eq!(CloseCode::from_code(9999), None);
    }
}
