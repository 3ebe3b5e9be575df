//! The only reader of time in the agent. Everything else takes `now` as a value.

/// Milliseconds of CLOCK_BOOTTIME: never goes back, counts suspend, means nothing on another machine or after a
/// reboot, so it is never persisted.
pub type BootMs = u64;

/// Now, in milliseconds since boot, suspend included.
pub fn boot_ms() -> BootMs {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writes; CLOCK_BOOTTIME exists since Linux 2.6.39, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// When the source of this version was last touched, in milliseconds since the epoch: no right clock is behind it.
/// Raised with each release, so that what is built from the same source is the same.
pub const SOURCE_MS: u64 = 1_793_491_200_000;

/// Now, in milliseconds since the epoch. For the times of signed jobs and for people: no lease depends on it.
pub fn wall_ms() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writes; CLOCK_REALTIME always exists, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut time) };
    time.tv_sec.max(0) as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}
