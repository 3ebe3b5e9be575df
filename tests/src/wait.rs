//! Waiting on a condition, with a bound that is generous because the machines are shared and noisy.

use std::time::{Duration, SystemTime};

/// How long a condition may take. Only a failing test waits this long.
pub const BOUND: Duration = Duration::from_secs(60);

/// Calls `f` until it answers, and gives the answer; panics with `what` after [`BOUND`].
pub fn until<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    #[expect(clippy::disallowed_methods, reason = "the harness is an edge; nothing it tests sees this clock")]
    let began = SystemTime::now();
    loop {
        if let Some(answer) = f() {
            return answer;
        }
        let waited = began.elapsed().unwrap_or_default();
        assert!(waited < BOUND, "waited {waited:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(15));
    }
}
