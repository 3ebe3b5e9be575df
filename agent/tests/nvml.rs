//! A helper that answers, hangs, dies or writes nonsense, and nvidia-smi behind it: programs of a line of shell.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use dunlin_agent::telemetry::{Nvml, Programs, Report, Shape, Sysroot};
use dunlin_wire::frame;
use dunlin_wire::nvml::{FRAME_MAX, Frame, Gpu, Look};
use dunlin_wire::telemetry::Slot;
use std::path::PathBuf;
use std::process::Command;

const SMI: &str = "0, 41, 3072, 8192, 123.45, 51, 1980, [N/A], NVIDIA X";

struct Board {
    dir: tempfile::TempDir,
    nvml: Nvml,
    now: u64,
}

impl Board {
    /// With these shell scripts for helper and nvidia-smi; `FRAMES` is a file of two looks.
    fn new(helper: &str, smi: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut frames = Vec::new();
        for busy in [100, 410] {
            frame::push(&mut frames, &Frame::Look(Look::Gpus(vec![gpu(busy)])), FRAME_MAX).unwrap();
        }
        std::fs::write(dir.path().join("frames"), frames).unwrap();
        let script = |name: &str, text: &str| -> PathBuf {
            let path = dir.path().join(name);
            let text = text.replace("FRAMES", &dir.path().join("frames").display().to_string());
            let text = text.replace("PID", &dir.path().join("pid").display().to_string());
            let draft = path.with_extension("draft");
            std::fs::write(&draft, format!("#!/bin/sh\nexport PATH=/usr/bin:/bin\n{text}\n")).unwrap();
            // By another program: what this one writes, a test beside this may just have inherited, and then it is busy.
            let installed =
                Command::new("install").args(["-m", "755"]).args([&draft, &path]).status().unwrap();
            assert!(installed.success());
            path
        };
        let helper = if helper.is_empty() { "/nowhere/dunlin-nvml".into() } else { script("helper", helper) };
        let programs = Programs { helper, smi: script("smi", smi), args: Vec::new() };
        Self { dir, nvml: Nvml::new(programs), now: 1_000_000 }
    }

    fn look(&mut self) -> Result<(&'static str, Vec<Gpu>), String> {
        let root = Sysroot::new(self.dir.path());
        let found = self.nvml.look(&root, false, self.now);
        found.map(|(by, gpus)| (by, gpus.to_vec())).map_err(str::to_owned)
    }

    /// Looks at the same moment until something is as wanted: that takes as long as a program takes.
    fn until(&mut self, what: &str, is: impl Fn(&Result<(&'static str, Vec<Gpu>), String>) -> bool) {
        let mut last = self.look();
        for _ in 0..2000 {
            if is(&last) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
            last = self.look();
        }
        panic!("{what}: {last:?}");
    }

    fn until_why(&mut self, why: &str) {
        self.until(why, |look| look.as_ref().is_err_and(|said| said.contains(why)));
    }
}

fn gpu(busy: u16) -> Gpu {
    Gpu { unit: "0".into(), busy_permille: Some(busy), memory_mib: Some((3072, 8192)), ..Gpu::default() }
}

#[test]
fn the_newest_look_counts_until_it_is_old() {
    let mut board = Board::new("cat FRAMES; exec cat", "exit 1");
    board.until("the second look", |look| *look == Ok(("nvml", vec![gpu(410)])));
    board.now += 10_000;
    assert!(board.look().is_ok());
    board.now += 1;
    assert!(board.look().is_err(), "10 s without another");
    board.now += 5_000;
    board.until_why("hung");
}

#[test]
fn a_helper_that_hangs_is_killed() {
    let mut board = Board::new("echo $$ > PID.new; mv PID.new PID; exec sleep 1000", "exit 1");
    let path = board.dir.path().join("pid");
    board.until("it runs", |_| path.exists());
    let pid = std::fs::read_to_string(&path).unwrap();
    board.now += 15_001;
    board.until_why("dunlin-nvml hung");
    let proc = PathBuf::from(format!("/proc/{}", pid.trim()));
    board.until("it is reaped", |_| !proc.exists());
}

#[test]
fn nonsense_another_version_and_too_much_are_no_gpu() {
    for script in [
        "head -c 1000 /dev/urandom | tr '\\000-\\177' '\\200-\\377'; exec cat",
        "printf '\\002\\001\\000'; exec cat",
        "printf '\\377\\377\\177'; exec cat",
        "exec cat /dev/zero",
    ] {
        let mut board = Board::new(script, "exit 1");
        board.until_why("of another version, or wrote nonsense");
    }
}

#[test]
fn one_that_ends_is_started_again_later_and_nvidia_smi_is_asked_meanwhile() {
    let mut board = Board::new("echo x >> PID; exit 75", &format!("echo '{SMI}'"));
    let starts = board.dir.path().join("pid");
    let count = || std::fs::read_to_string(&starts).unwrap_or_default().lines().count();
    board.until(
        "nvidia-smi",
        |look| matches!(look, Ok(("nvidia-smi", gpus)) if gpus[0].power_mw == Some(123_450)),
    );
    assert_eq!(count(), 1);
    // 5 s, then 10 s.
    for (wait, starts) in [(4_999, 1), (1, 2), (9_999, 2), (1, 3)] {
        board.now += wait;
        if starts > count() {
            board.until("it is started again", |_| count() == starts);
            board.until_why("dunlin-nvml ended");
        }
        let _ = board.look();
        assert_eq!(count(), starts);
    }
}

#[test]
fn without_a_helper_there_is_nvidia_smi_or_a_reason() {
    let mut board = Board::new("", &format!("echo '{SMI}'"));
    board.until("nvidia-smi", |look| matches!(look, Ok(("nvidia-smi", _))));
    board.now += 45_001;
    board.until("again", |look| matches!(look, Ok(("nvidia-smi", _))));
    let mut board = Board::new("", "echo 'No devices were found'");
    board.until_why("nvidia-smi told no GPU");
    let mut board = Board::new("", "exec sleep 1000");
    board.until_why("/nowhere/dunlin-nvml: No such file");
    board.now += 15_001;
    board.until_why("nvidia-smi hung");
}

#[test]
fn a_gpu_that_is_powered_off_is_not_woken_by_nvidia_smi() {
    let mut board = Board::new("", "touch PID");
    let device = board.dir.path().join("sys/bus/pci/devices/0000:01:00.0");
    std::fs::create_dir_all(device.join("power")).unwrap();
    for (file, text) in
        [("vendor", "0x10de\n"), ("class", "0x030000\n"), ("power/runtime_status", "suspended\n")]
    {
        std::fs::write(device.join(file), text).unwrap();
    }
    assert!(board.look().is_err() && board.look().is_err());
    std::fs::write(device.join("power/runtime_status"), "active\n").unwrap();
    let asked = board.dir.path().join("pid");
    board.until("it is asked", |_| asked.exists());
}

#[test]
fn gpus_of_the_driver_have_slots_like_those_of_a_board() {
    let instance = Gpu { unit: "1/0".into(), memory_mib: Some((1, 10)), ..Gpu::default() };
    let second = Gpu { unit: "1".into(), power_mw: Some(70_000), temperature_c: Some(50), ..Gpu::default() };
    let first =
        Gpu { name: Some("NVIDIA X".into()), slowdown_c: Some(90), temperature_c: Some(40), ..gpu(410) };
    let mut shape = Shape::default();
    let mut report = Report { nvml: Some(vec![first, second, instance]), ..Report::default() };
    let reading = shape.reading(&report);
    let named = |name: &str| name.to_owned();
    let free = |name, total_mib| Slot::GpuMemoryFree { name: named(name), total_mib };
    let expected = [
        (Slot::Gpu, 410),
        (Slot::GpuMemoryUsed, 3072),
        (Slot::Temperature { name: named("gpu"), trip: Some(900) }, 400),
        (free("0", 8192), 5120),
        (Slot::Rail { name: named("GPU1") }, 70_000),
        (Slot::Temperature { name: named("gpu1"), trip: None }, 500),
        (free("1/0", 10), 9),
    ];
    let found = reading.inventory.slots.iter().cloned().zip(reading.values.iter().flatten().copied());
    assert_eq!(found.collect::<Vec<_>>(), expected);
    assert_eq!(reading.inventory.gpu.as_deref(), Some("nvml: NVIDIA X"));
    assert_eq!(reading.inventory.gpu_memory_shared, Some(false));
    report.nvml = None;
    let silent = shape.reading(&report);
    assert_eq!(silent.inventory, reading.inventory, "a driver that is silent is not another board");
    assert!(silent.values.iter().all(Option::is_none));
}
