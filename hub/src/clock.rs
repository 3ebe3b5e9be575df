//! The only reader of time in the hub. Everything else takes [`Now`] as a value.

use rustix::time::{ClockId, clock_gettime};

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of CLOCK_BOOTTIME. Every deadline is one of these; never persisted.
    pub mono: u64,
    /// Milliseconds since the Unix epoch. For people, for `ttlMs` and `completeBy`; no lease depends on it.
    pub wall: u64,
}

/// Reads both clocks.
pub fn now() -> Now {
    Now { mono: read(ClockId::Boottime), wall: read(ClockId::Realtime) }
}

/// Microseconds of CLOCK_BOOTTIME, for measuring how long something took.
pub fn micros() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.max(0) as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}
