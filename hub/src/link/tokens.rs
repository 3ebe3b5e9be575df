//! Which address tokens were used: each is good once (RFC 9000 section 8.1.4).

use quinn::{TokenLog, TokenReuseError};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Tokens remembered. One that was forgotten could be used again, from the address that it is for, within its life.
const USED_MAX: usize = 65_536;

/// The newest tokens that were used.
#[derive(Default)]
pub(super) struct UsedTokens(Mutex<(BTreeSet<u128>, VecDeque<u128>)>);

impl TokenLog for UsedTokens {
    fn check_and_insert(&self, nonce: u128, _: SystemTime, _: Duration) -> Result<(), TokenReuseError> {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (used, order) = &mut *guard;
        if !used.insert(nonce) {
            return Err(TokenReuseError);
        }
        order.push_back(nonce);
        if order.len() > USED_MAX
            && let Some(oldest) = order.pop_front()
        {
            used.remove(&oldest);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once() {
        let log = UsedTokens::default();
        let uses = |nonce| log.check_and_insert(nonce, SystemTime::UNIX_EPOCH, Duration::ZERO).is_ok();
        assert_eq!([uses(1), uses(2), uses(1)], [true, true, false]);
        (10..10 + USED_MAX as u128).for_each(|n| assert!(uses(n)));
        assert!(uses(1), "forgotten");
    }
}
