//! Who asks, and how often. Every route but `/health` passes here.

use super::ApiState;
use super::error::ApiError;
use crate::clock;
use crate::store::Token;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use ring::digest::{SHA256, digest};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use subtle::ConstantTimeEq;

/// The name of the token that a request came with.
#[derive(Debug, Clone)]
pub(super) struct Actor(pub String);

/// A bucket per token, and one for everybody without a good one, so that guessing is slow.
#[derive(Debug)]
pub(super) struct RateLimits {
    per_s: u64,
    burst: u64,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    millis: u64,
    at: u64,
}

/// The bucket of requests without a good token; no token can have this name.
const NOBODY: &str = "";

impl RateLimits {
    pub(super) fn new(per_s: u32, burst: u32) -> Self {
        Self { per_s: per_s.into(), burst: burst.into(), buckets: Mutex::default() }
    }

    /// Takes one request from a bucket, or says in how many seconds one will be there.
    fn take(&self, name: &str, now: u64) -> Result<(), u64> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let full = self.burst * 1000;
        let bucket = buckets.entry(name.to_owned()).or_insert(Bucket { millis: full, at: now });
        bucket.millis = full.min(bucket.millis + now.saturating_sub(bucket.at) * self.per_s);
        bucket.at = now;
        match bucket.millis.checked_sub(1000) {
            Some(rest) => {
                bucket.millis = rest;
                Ok(())
            }
            None => Err((1000 - bucket.millis).div_ceil(self.per_s * 1000).max(1)),
        }
    }
}

/// Lets a request with a good token through, as often as its token may.
pub(super) async fn check(
    State(state): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let now = clock::now().mono;
    let Some(name) = bearer(request.headers()).and_then(|text| find(&state.tokens, text)) else {
        state.limits.take(NOBODY, now).map_err(ApiError::rate_limited)?;
        let message = "a bearer token is required: `Authorization: Bearer TOKEN`";
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message));
    };
    state.limits.take(&name, now).map_err(ApiError::rate_limited)?;
    request.extensions_mut().insert(Actor(name));
    Ok(next.run(request).await)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ").map(str::trim)
}

/// The token with this text. Every stored one is compared, each in constant time.
fn find(tokens: &[Token], text: &str) -> Option<String> {
    let hash = digest(&SHA256, text.as_bytes());
    let mut found = None;
    for token in tokens {
        if bool::from(token.hash.ct_eq(hash.as_ref())) {
            found = Some(token.name.clone());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_separate_and_fill_again() {
        let limits = RateLimits::new(10, 3);
        for _ in 0..3 {
            assert_eq!(limits.take("a", 0), Ok(()));
        }
        assert_eq!(limits.take("a", 0), Err(1));
        assert_eq!(limits.take("b", 0), Ok(()));
        assert_eq!(limits.take("a", 99), Err(1));
        assert_eq!(limits.take("a", 100), Ok(()));
        assert_eq!(limits.take("a", 100_000), Ok(()), "never more than the burst");
    }
}
