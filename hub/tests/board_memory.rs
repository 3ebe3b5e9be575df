//! What the hub keeps of a board in memory: with an hour of reports behind it, less than a parked agent may cost. Counted
//! as growth of this process's memory over many boards.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use dunlin_hub::core::telemetry::Board;
use dunlin_wire::telemetry::{Figure, Inventory, Sample, Slot};

const BOARDS: u64 = 300;
/// Bytes that a parked agent may cost the hub in all.
const AGENT_MAX: u64 = 41_000;

/// As a Jetson Orin Nano has them: 34 slots.
fn slots() -> Vec<Slot> {
    let rail = |name: &str| Slot::Rail { name: name.into() };
    let temperature = |name: &str| Slot::Temperature { name: name.into(), trip: Some(1050) };
    let mut slots = vec![
        Slot::Cpu,
        Slot::Load,
        Slot::MemoryAvailable,
        Slot::SwapUsed,
        Slot::Gpu,
        Slot::GpuClock,
        Slot::GpuMemoryUsed,
        Slot::Power { measured: true },
        Slot::Fan,
        Slot::Throttled,
        Slot::OomKills,
        Slot::CpuWaiting,
        Slot::MemoryWaiting,
        Slot::MemoryStalled,
        Slot::IoWaiting,
        Slot::IoStalled,
        Slot::DiskRead,
        Slot::DiskWritten,
        Slot::Filesystem { name: "/".into(), total_mib: 100_000 },
        Slot::Wear { name: "mmcblk0".into() },
    ];
    slots.extend(["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"].map(rail));
    slots.extend(["cpu", "gpu", "soc0", "soc1", "soc2", "tj", "cv0", "cv1", "cv2"].map(temperature));
    slots.extend([1, 2].map(|kind| Slot::OverCurrent { kind }));
    slots
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Boards that have reported every `every_ms` for an hour and a half, each figure on a walk of its own.
fn boards(every_ms: u64) -> (Vec<Board>, usize) {
    let mut state = 7u64;
    let mut random = move |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let slots = slots();
    let mut points = 0;
    let boards = (0..BOARDS).map(|_| {
        let mut board = Board::default();
        board.handle_inventory(Inventory { number: 1, slots: slots.clone(), ..Inventory::default() });
        let mut means: Vec<i64> = slots.iter().map(|_| 1000 + random(50_000) as i64).collect();
        for n in 0..5_400_000 / every_ms {
            let figures = slots.iter().zip(&mut means).zip(0u8..).map(|((slot, mean), at)| {
                *mean += if slot.is_counter() { random(100) as i64 } else { random(201) as i64 - 100 };
                (
                    at,
                    Some(Figure {
                        mean: *mean,
                        over: if slot.is_counter() { 0 } else { random(200) as u32 },
                    }),
                )
            });
            let sample = Sample { seq: n as u32 + 1, inventory: 1, base: None, figures: figures.collect() };
            let at = 1_700_000_000_000 + n * every_ms;
            assert!(board.handle_sample(&sample, at, at));
            if n % 6 == 0 {
                board.history.flush(at);
            }
        }
        points = board.history.raw().iter().filter(|row| row.at_ms + 3_600_000 >= 1_700_005_400_000).count();
        board
    });
    (boards.collect(), points)
}

#[test]
fn an_hour_of_reports_costs_less_than_an_agent_may() {
    // What is freed would be used again, and cost nothing.
    let mut all = Vec::new();
    for (profile, every_ms, hour) in [("metered", 300_000, 11), ("wan", 60_000, 59), ("lan", 10_000, 60)] {
        let before = resident_bytes();
        let (boards, points) = boards(every_ms);
        let each = (resident_bytes() - before) / BOARDS;
        println!("{profile}: {each} bytes a board, {points} reports of the last hour");
        assert!(points >= hour, "{profile}: {points}");
        assert!(each <= AGENT_MAX, "{profile}: {each} bytes");
        all.push(boards);
    }
}
