//! The agent's own reader with the real helper and a library that a C compiler made: from the driver's call to what the
//! agent reports.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod fake;

use dunlin_agent::telemetry::{Nvml, Programs, Sysroot};
use std::path::PathBuf;
use std::time::Duration;

type Look<'a> = Result<&'a [dunlin_wire::nvml::Gpu], &'a str>;

#[test]
fn the_agent_hears_what_the_library_says_until_that_fails() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    if !fake::build(dir.path()) {
        return;
    }
    let control = |text: &str| std::fs::write(dir.path().join("control"), text).unwrap();
    control("gpus 2\nbusy 73\nused 5\n");
    let args = ["--every-ms", "20", "--lib", &path("fake.so"), "--sysroot", dir.path().to_str().unwrap()];
    let helper = PathBuf::from(env!("CARGO_BIN_EXE_dunlin-nvml"));
    let args = args.iter().map(Into::into).collect();
    let mut nvml = Nvml::new(Programs { helper, smi: "/nowhere/nvidia-smi".into(), args });
    let root = Sysroot::new(dir.path());
    let mut until = |what: &str, is: &dyn Fn(Look<'_>) -> bool| {
        for _ in 0..2000 {
            if is(nvml.look(&root, false, 1_000_000).map(|(_, gpus)| gpus)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{what}: {:?}", nvml.look(&root, false, 1_000_000));
    };
    until("both GPUs", &|look| {
        look.is_ok_and(|gpus| {
            gpus.len() == 2
                && gpus[0].busy_permille == Some(730)
                && gpus[0].memory_mib == Some((5 << 10, 8 << 10))
        })
    });
    // Not supported is absent, and nothing else goes with it.
    control("gpus 2\nUtilization 3\nused 2\n");
    until("a figure less", &|look| {
        look.is_ok_and(|gpus| {
            gpus.len() == 2
                && gpus[0].busy_permille.is_none()
                && gpus[0].memory_mib == Some((2 << 10, 8 << 10))
        })
    });
}
