//! 10,000 readings take no more memory than the first; and what one costs. Alone in its process, so that nothing else
//! is measured.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod boards;

use dunlin_agent::telemetry::{Reader, Sysroot};

/// What may be added between two looks: the allocator's own rounding, not a leak of a byte a reading.
const GROWTH_KIB_MAX: u64 = 64;
/// Of one reading, also in a build that is not optimised: 0.3 % of a core at one reading in 2 s.
const CPU_US_MAX: u128 = 6000;

fn rss_anon_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn cpu_us() -> u128 {
    // SAFETY: an all-zero rusage is a valid value, and valid for writes.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let us = |t: libc::timeval| t.tv_sec as u128 * 1_000_000 + t.tv_usec as u128;
    us(usage.ru_utime) + us(usage.ru_stime)
}

#[test]
fn ten_thousand_readings_take_no_more_memory_than_the_first() {
    let dir = tempfile::tempdir().unwrap();
    boards::expand(dir.path(), &boards::nodes("orin-nano-t234-jp61").0);
    for (name, root) in [("orin-nano", dir.path()), ("this machine", std::path::Path::new("/"))] {
        let mut reader = Reader::new(Sysroot::new(root), vec!["/".into()]);
        (0..1000).for_each(|_| drop(reader.read()));
        let (memory, cpu) = (rss_anon_kib(), cpu_us());
        (0..10_000).for_each(|_| drop(reader.read()));
        let (grown, cpu) = (rss_anon_kib().saturating_sub(memory), (cpu_us() - cpu) / 10_000);
        println!(
            "{name}: {cpu} us of CPU a reading; RssAnon {memory} KiB + {grown} KiB over 10,000 readings"
        );
        assert!(grown <= GROWTH_KIB_MAX, "{name}: {grown} KiB more");
        assert!(cpu <= CPU_US_MAX, "{name}: {cpu} us");
    }
}
