//! What telemetry costs on the wire: a day of a Jetson Orin Nano that walks between the two recordings of its fixture,
//! encoded as the protocol encodes it, for each profile.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod boards;

use dunlin_agent::core::reports::{Report, Reports};
use dunlin_agent::event::Reading;
use dunlin_agent::telemetry::{Reader, Shape, Sysroot};
use dunlin_wire::datagram::FromAgent;
use dunlin_wire::message::{Numbered, Profile, ToHub};

const DAY_MS: u64 = 24 * 3_600_000;
/// Between two readings, in milliseconds.
const STEP_MS: u64 = 2_000;

/// The board's two recordings, 10 s apart, and the filesystem that a tree cannot have.
fn recorded() -> [Reading; 2] {
    let (first, second) = boards::nodes("orin-nano-t234-jp61");
    let dir = tempfile::tempdir().unwrap();
    boards::expand(dir.path(), &first);
    let network = dir.path().join("proc/net/dev");
    std::fs::create_dir_all(network.parent().unwrap()).unwrap();
    let moved = |received: u64, sent: u64| {
        let line = format!("eth0: {received} 0 0 0 0 0 0 0 {sent} 0 0 0 0 0 0 0\n");
        format!("Inter-|\n face |\n{line}")
    };
    std::fs::write(&network, moved(1 << 30, 1 << 30)).unwrap();
    let mut reader = Reader::new(Sysroot::new(dir.path()), vec![]);
    let mut shape = Shape::default();
    shape.reading(&reader.read());
    for (path, node) in &second {
        let _ = std::fs::remove_file(dir.path().join(path));
        boards::put(dir.path(), path, node);
    }
    // A board that streams: 12 Mbit/s in, half of that out.
    std::fs::write(&network, moved((1 << 30) + (15 << 20), (1 << 30) + (7 << 20))).unwrap();
    let after = shape.reading(&reader.read());
    // Once more, so that both have the shares that take two readings.
    for (path, node) in &first {
        let _ = std::fs::remove_file(dir.path().join(path))
            .or_else(|_| std::fs::remove_dir(dir.path().join(path)));
        boards::put(dir.path(), path, node);
    }
    std::fs::write(&network, moved(1 << 30, 1 << 30)).unwrap();
    let mut before = shape.reading(&reader.read());
    before.inventory = after.inventory.clone();
    before.values.resize(after.values.len(), None);
    [before, after]
}

/// Uniform in 0 to 1.
fn random(state: &mut u64) -> f64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as f64 / (1u64 << 31) as f64
}

fn frame(message: ToHub) -> usize {
    // A frame has its length before it, in 4 bytes.
    4 + postcard::to_stdvec(&Numbered { seq: 100_000, message }).unwrap().len()
}

/// Bytes of a day: all that telemetry adds, and how many reports there were.
fn day(profile: Profile) -> (usize, usize, usize) {
    let [before, after] = recorded();
    let mut reports = Reports::new(profile);
    let heartbeat_ms = profile.heartbeat_ms();
    // As often as a heartbeat can be, so that there are as many reports as there can be.
    let every_ms = profile.keepalive_ms().0;
    let (mut bytes, mut count, mut full) = (0, 0, 0);
    let (mut state, mut at) = (7, vec![0.5; after.values.len()]);
    for now in (0..DAY_MS).step_by(STEP_MS as usize) {
        let values = before.inventory.slots.iter().enumerate().map(|(n, slot)| {
            let b = after.values[n]?;
            let a = before.values[n].unwrap_or(b);
            if slot.is_counter() {
                return Some(a + (b - a).abs() * now as i64 / 10_000);
            }
            // Back and forth between the two and as far again beyond them, each figure on its own. What the
            // recordings have as one moves by five times what is news.
            let swing = if a == b { slot.band(a) as i64 * 5 } else { b - a };
            let x: &mut f64 = &mut at[n];
            *x = (*x + (random(&mut state) - 0.5) * 0.4).clamp(-1.0, 2.0);
            Some(a + (swing as f64 * *x) as i64)
        });
        let reading = Reading { values: values.collect(), inventory: before.inventory.clone(), jobs: vec![] };
        reports.handle_reading(&reading, now);
        if let Some(inventory) = reports.untold() {
            bytes += frame(ToHub::Inventory(Box::new(inventory)));
            bytes += frame(ToHub::Sample(Box::new(reports.full(now).unwrap())));
        }
        if now % every_ms == 0 || reports.is_urgent() {
            match reports.due(now, every_ms, heartbeat_ms) {
                Some(Report::Full(sample)) => {
                    bytes += frame(ToHub::Sample(Box::new(sample)));
                    (count, full) = (count + 1, full + 1);
                }
                Some(Report::Delta(sample)) => {
                    let beat = FromAgent::Beat { every_ms: every_ms as u32, sample: Some(Box::new(sample)) };
                    bytes += postcard::to_stdvec(&beat).unwrap().len();
                    count += 1;
                }
                None => {}
            }
        }
    }
    (bytes, count, full)
}

#[test]
fn a_day_of_telemetry_fits_its_profile() {
    let slots = recorded()[1].inventory.slots.len();
    let changing = recorded()[0].values.iter().zip(&recorded()[1].values).filter(|(a, b)| a != b).count();
    println!("{slots} slots, {changing} of them change");
    assert!(slots > 20 && changing >= 5);
    for (profile, bytes_max) in
        [(Profile::Lan, 2_000_000), (Profile::Wan, 320_000), (Profile::Metered, 60_000)]
    {
        let (bytes, reports, full) = day(profile);
        println!("{}: {bytes} bytes a day in {reports} reports, {full} of them full", profile.as_str());
        assert!(bytes <= bytes_max, "{profile:?}: {bytes}");
    }
}
