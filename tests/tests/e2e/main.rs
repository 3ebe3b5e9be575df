//! End to end, on real processes: a hub and agents as a user starts them, with the numbers of TASKS.md scaled down.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod actuation;
mod api;
mod board;
mod boards;
mod clock;
mod faults;
mod fleet;
mod follow;
mod https;
mod install;
mod kinds;
mod nodes;
mod openclaw;
mod replay;
mod restart;
mod roles;
mod sandbox;
mod signed;
mod telemetry;
mod update;
mod uplink;
mod uplinks;
mod wan;
mod work;

use dunlin_tests::Fleet;
use serde_json::Value;

/// About a tenth of the usual times; requests as many as the tests make.
const FAST: &str = "[api]\nrate_per_s = 10000\nburst = 10000\n[timing]\nheartbeat_ms = 500\nlease_ms_min = 3000\nmargin_ms = 500\naccept_ms = 3000\n";

/// A fleet with scaled times, and the directory that it lives in.
fn fleet() -> (tempfile::TempDir, Fleet) {
    fleet_with(FAST)
}

fn fleet_with(config: &str) -> (tempfile::TempDir, Fleet) {
    let dir = tempfile::tempdir().unwrap();
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_demo"));
    let fleet = Fleet::new(dir.path(), binary, config).unwrap();
    (dir, fleet)
}

/// Lines of a file in the fleet's work directory.
fn lines(fleet: &Fleet, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(fleet.dir().join("work").join(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// A shell job in the work directory; more fields beside it.
fn sh(fleet: &Fleet, script: &str, more: Value) -> String {
    let mut more = more;
    more["cwd"] = fleet.dir().join("work").display().to_string().into();
    fleet.submit(&["/bin/sh", "-c", script], more).unwrap()
}

/// Whether a process with this argument in its command line runs.
fn runs(mark: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_pid = entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit());
        is_pid && String::from_utf8_lossy(&line).contains(mark)
    })
}
