//! Against a driver's library that does what a file says (`tests/fake/fake.c`). Without a C compiler these tests say so and
//! check nothing.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

#[path = "../tests/fake/mod.rs"]
mod fake;

use super::eyes::{Eyes, Gone};
use dunlin_wire::nvml::{Gpu, Look, metric};
use std::time::Duration;

const TICK: Duration = Duration::from_secs(2);
const ALL: u8 = u8::MAX;

/// Codes of nvmlReturn_t, as nvml.h has them.
mod code {
    pub const UNINITIALIZED: i32 = 1;
    pub const INVALID_ARGUMENT: i32 = 2;
    pub const NOT_SUPPORTED: i32 = 3;
    pub const NO_PERMISSION: i32 = 4;
    pub const NOT_FOUND: i32 = 6;
    pub const DRIVER_NOT_LOADED: i32 = 9;
    pub const TIMEOUT: i32 = 10;
    pub const IRQ_ISSUE: i32 = 11;
    pub const FUNCTION_NOT_FOUND: i32 = 13;
    pub const GPU_IS_LOST: i32 = 15;
    pub const RESET_REQUIRED: i32 = 16;
    pub const OPERATING_SYSTEM: i32 = 17;
    pub const LIB_RM_VERSION_MISMATCH: i32 = 18;
    pub const IN_USE: i32 = 19;
    pub const NO_DATA: i32 = 21;
    pub const OF_A_LATER_VERSION: i32 = 77;
    pub const UNKNOWN: i32 = 999;
}

struct Fake {
    dir: tempfile::TempDir,
    eyes: Eyes,
}

impl Fake {
    /// `None` without a C compiler.
    fn new(control: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        if !fake::build(dir.path()) {
            return None;
        }
        let mut eyes = Eyes::default();
        eyes.lib = Some(dir.path().join("fake.so").into());
        eyes.root = dir.path().to_owned();
        let fake = Self { dir, eyes };
        fake.say(control);
        Some(fake)
    }

    fn say(&self, control: &str) {
        std::fs::write(self.dir.path().join("control"), control).unwrap();
    }

    fn look(&mut self) -> Vec<Gpu> {
        match self.eyes.look(TICK) {
            Ok(Look::Gpus(gpus)) => gpus,
            other => panic!("{other:?}"),
        }
    }

    /// Calls of the library since this was last asked.
    fn calls(&self) -> Vec<String> {
        let path = self.dir.path().join("calls");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let _ = std::fs::remove_file(path);
        text.lines().map(str::to_owned).collect()
    }

    fn pci(&self, address: &str, status: &str) {
        let dir = self.dir.path().join("sys/bus/pci/devices").join(address);
        std::fs::create_dir_all(dir.join("power")).unwrap();
        for (file, text) in
            [("vendor", "0x10de\n"), ("class", "0x030200\n"), ("power/runtime_status", status)]
        {
            std::fs::write(dir.join(file), text).unwrap();
        }
    }
}

fn whole() -> Gpu {
    Gpu {
        unit: "0".into(),
        name: Some("Fake 1".into()),
        suspended: false,
        busy_permille: Some(410),
        memory_mib: Some((3072, 8192)),
        power_mw: Some(123_456),
        temperature_c: Some(51),
        slowdown_c: Some(90),
        clock_mhz: Some(1980),
        throttled: Some(false),
        processes: vec![(4242, 700)],
        supported: ALL,
    }
}

#[test]
fn a_gpu_that_answers_everything() {
    let Some(mut fake) = Fake::new("") else { return };
    assert_eq!(fake.look(), [whole()]);
    fake.say("gpus 2\nreasons 32");
    assert_eq!(fake.look()[0].throttled, Some(true), "thermal");
    assert_eq!(fake.look().len(), 1, "GPUs are counted at the beginning");
}

#[test]
fn what_is_never_answered_is_not_asked_again() {
    use code::*;
    for code in [NOT_SUPPORTED, INVALID_ARGUMENT, FUNCTION_NOT_FOUND] {
        let Some(mut fake) = Fake::new(&format!("Utilization {code}")) else { return };
        let want = Gpu { busy_permille: None, supported: ALL & !metric::BUSY, ..whole() };
        assert_eq!(fake.look()[..], *std::slice::from_ref(&want), "{code}");
        fake.say("");
        fake.calls();
        assert_eq!(fake.look(), [want], "{code}");
        assert!(!fake.calls().contains(&"Utilization".to_owned()));
    }
}

#[test]
fn what_is_not_answered_once_is_asked_again() {
    use code::*;
    for code in [TIMEOUT, IN_USE, NO_DATA, NOT_FOUND, UNKNOWN, OF_A_LATER_VERSION, NO_PERMISSION] {
        let Some(mut fake) = Fake::new(&format!("Power {code}")) else { return };
        let want = Gpu { power_mw: None, supported: ALL & !metric::POWER, ..whole() };
        assert_eq!(fake.look(), [want], "{code}");
        fake.say("");
        assert_eq!(fake.look(), [whole()], "{code}");
    }
}

#[test]
fn a_driver_that_is_gone_is_begun_with_anew_after_a_wait() {
    use code::*;
    for code in [UNINITIALIZED, DRIVER_NOT_LOADED, GPU_IS_LOST, RESET_REQUIRED, IRQ_ISSUE, OPERATING_SYSTEM] {
        let Some(mut fake) = Fake::new("") else { return };
        fake.look();
        fake.say(&format!("Temperature {code}"));
        let absent = |look| matches!(look, Ok(Look::Absent { .. }));
        assert!(absent(fake.eyes.look(TICK)), "{code}");
        fake.say("");
        fake.calls();
        assert!(absent(fake.eyes.look(TICK)) && absent(fake.eyes.look(TICK)), "5 s are not over");
        assert_eq!(fake.calls(), Vec::<String>::new());
        assert_eq!(fake.look(), [whole()], "{code}");
    }
}

#[test]
fn the_wait_grows_to_ten_minutes() {
    let Some(mut fake) = Fake::new(&format!("Init {}", code::DRIVER_NOT_LOADED)) else { return };
    let (mut waits, mut waited) = (Vec::new(), 0);
    for _ in 0..2000 {
        assert!(matches!(fake.eyes.look(Duration::from_secs(5)), Ok(Look::Absent { .. })));
        if !fake.calls().is_empty() {
            waits.push(waited);
            waited = 0;
        }
        waited += 5;
    }
    assert_eq!(waits[..9], [0, 5, 10, 20, 40, 80, 160, 320, 600]);
}

#[test]
fn another_driver_wants_another_process_and_no_library_none() {
    let Some(mut fake) = Fake::new(&format!("Init {}", code::LIB_RM_VERSION_MISMATCH)) else { return };
    assert_eq!(fake.eyes.look(TICK).unwrap_err().1, Gone::Mismatch);
    fake.eyes.lib = Some("/nowhere/libnvidia-ml.so".into());
    assert_eq!(fake.eyes.look(Duration::from_secs(600)).unwrap_err().1, Gone::NoLibrary);
}

#[test]
fn a_partitioned_gpu_is_its_instances() {
    let Some(mut fake) = Fake::new(&format!("mig 1\nUtilization {}", code::NOT_SUPPORTED)) else { return };
    let instance = |n: u32, name: &str| Gpu {
        unit: format!("0/{n}"),
        name: Some(name.into()),
        memory_mib: Some((3072, 8192)),
        supported: metric::MEMORY,
        ..Gpu::default()
    };
    let parent = Gpu {
        busy_permille: None,
        memory_mib: None,
        supported: ALL & !metric::BUSY & !metric::MEMORY,
        ..whole()
    };
    assert_eq!(fake.look(), [parent, instance(0, "Fake 101"), instance(1, "Fake 102")]);
}

#[test]
fn a_gpu_that_is_powered_off_is_not_asked() {
    let Some(mut fake) = Fake::new("gpus 2") else { return };
    fake.pci("0000:01:00.0", "suspended\n");
    let off = |unit: &str| Gpu { unit: unit.into(), suspended: true, ..Gpu::default() };
    assert_eq!(fake.look(), [off("0")]);
    assert_eq!(fake.calls(), Vec::<String>::new(), "not even begun with");
    fake.pci("0000:02:00.0", "active\n");
    assert_eq!(fake.look()[0], off("0"));
    assert_eq!(fake.look()[1].name.as_deref(), Some("Fake 2"));
    fake.pci("0000:01:00.0", "active\n");
    assert_eq!(fake.look()[0], whole());
    fake.pci("0000:01:00.0", "suspended\n");
    fake.pci("0000:02:00.0", "suspended\n");
    fake.calls();
    assert_eq!(fake.look(), [off("0"), off("1")]);
    assert_eq!(fake.calls(), ["Shutdown"]);
}

#[test]
fn of_a_tegra_only_what_is_true_there_is_told() {
    let Some(mut fake) = Fake::new("mig 1") else { return };
    fake.eyes.tegra = true;
    let want = Gpu {
        memory_mib: None,
        clock_mhz: None,
        supported: ALL & !metric::MEMORY & !metric::CLOCK,
        ..whole()
    };
    assert_eq!(fake.look(), [want]);
    assert!(!fake.calls().iter().any(|call| call.starts_with("Mig")));
}

#[test]
fn a_gpu_that_answers_nothing_is_there_without_a_figure() {
    let all = ["Utilization", "Memory", "Power", "Temperature", "Threshold", "Clock", "Throttle"];
    let control: String = all.iter().map(|name| format!("{name} 3\n")).collect();
    let Some(mut fake) = Fake::new(&format!("{control}Compute 3\nGraphics 3\nName 3\nMigMode 3")) else {
        return;
    };
    assert_eq!(fake.look(), [Gpu { unit: "0".into(), ..Gpu::default() }]);
}
