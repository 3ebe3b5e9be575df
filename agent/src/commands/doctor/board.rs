//! The board: policy, disk, kernel, clock, GPU.

use super::{Check, green, red, yellow};
use crate::clock;
use crate::config::Config;
use crate::exec::{self, Kernel};
use crate::files::Files;
use crate::store::Store;
use crate::telemetry::{Nvml, Programs, Reader, Sysroot};
use dunlin_wire::job::layer;
use std::io::Write;

/// 2025-01-01, in milliseconds since the epoch: a clock before it was never set. Leases do not care.
const CLOCK_MS_MIN: u64 = 1_735_689_600_000;
/// Writes that are timed, and the bytes of each: about what accepting a job takes.
const WRITES: u64 = 16;
const WRITE_BYTES: usize = 4096;
/// A write that takes longer than so many milliseconds until it is on the disk delays every job.
const WRITE_MS_MAX: u64 = 50;
/// Files that must be allowed to be open.
const FILES_MIN: u64 = 1024;

pub(super) fn look(config: &Config, kernel: &Kernel, files: &Files, out: &mut Vec<Check>) {
    policy(config, kernel, out);
    out.push(trust(config));
    out.push(space(kernel));
    out.push(speed(files));
    out.push(journal(files));
    sandbox(kernel, out);
    out.push(open_files());
    out.push(wall());
    out.push(gpu(config));
}

fn policy(config: &Config, kernel: &Kernel, out: &mut Vec<Check>) {
    match exec::load(&config.policy) {
        Ok((policy, _)) => {
            out.push(green("policy", format!("{} rules", policy.rules.len())));
            let findings = exec::lint(&policy, kernel).into_iter();
            out.extend(findings.map(|found| yellow("policy", found, "change the rule or the board")));
        }
        Err(e) => out.push(red("policy", e, "until then every job is denied with policy_invalid")),
    }
}

fn trust(config: &Config) -> Check {
    match exec::load_trust(&config.trust) {
        Ok(Some(trust)) => green("trust", format!("{} roots", trust.roots.len())),
        Ok(None) => green("trust", "nobody's signature: jobs that need one are denied"),
        Err(e) => red("trust", e, "until then signed jobs are denied"),
    }
}

fn space(kernel: &Kernel) -> Check {
    match kernel.free_mib {
        Some(mib) if mib < 64 => red("disk", format!("{mib} MiB free"), "free space: no job is accepted"),
        Some(mib) if mib < 500 => yellow("disk", format!("{mib} MiB free"), "free some space"),
        Some(mib) => green("disk", format!("{mib} MiB free")),
        None => yellow("disk", "not known: the data directory is not there", ""),
    }
}

/// How long a write takes until it is on the disk: every job waits for two of them.
fn speed(files: &Files) -> Check {
    let path = files.path(".doctor");
    let timed = || -> std::io::Result<u64> {
        let mut file = std::fs::File::create(&path)?;
        let begun = clock::boot_ms();
        for _ in 0..WRITES {
            file.write_all(&[0; WRITE_BYTES])?;
            file.sync_data()?;
        }
        Ok((clock::boot_ms() - begun) / WRITES)
    };
    let took = timed();
    let _ = std::fs::remove_file(&path);
    match took {
        Ok(ms) if ms > WRITE_MS_MAX => {
            let fix = "a worn or very slow card: each job waits for two writes; put the data directory on another disk";
            yellow("fsync", format!("{ms} ms a write"), fix)
        }
        Ok(ms) => green("fsync", format!("{ms} ms a write")),
        Err(e) => yellow("fsync", format!("{}: {e}", path.display()), "run doctor as root"),
    }
}

fn journal(files: &Files) -> Check {
    let dir = files.path("journal");
    if !dir.exists() {
        return green("journal", "not made yet");
    }
    match Store::open(&dir).and_then(|store| store.load()) {
        Ok(loaded) => {
            green("journal", format!("reads back; {} attempts not acknowledged", loaded.attempts.len()))
        }
        Err(e) => red("journal", e.to_string(), "the agent does not start until this is right"),
    }
}

fn sandbox(kernel: &Kernel, out: &mut Vec<Check>) {
    let how = if kernel.openat2 { "openat2" } else { "component by component (before Linux 5.6)" };
    out.push(green("paths", how));
    out.push(green("landlock", kernel.landlock.map_or("not there".to_owned(), |abi| format!("ABI {abi}"))));
    out.push(match kernel.cgroup {
        "none" => yellow(
            "cgroup",
            "none that can be used",
            "run the executor as root, with Delegate=yes: no limit by cgroup",
        ),
        mode => green("cgroup", mode),
    });
    let list = |bits| layer::words(bits).collect::<Vec<_>>().join(", ");
    out.push(green("sandbox", list(kernel.layers)));
    let missing = layer::ALL.iter().fold(0, |bits, (bit, _)| bits | bit) & !kernel.layers & !layer::LANDLOCK;
    if missing != 0 {
        let fix = "rules that ask for one of these, or for `sandbox = \"require\"`, are denied; run the executor as root";
        out.push(yellow("sandbox", format!("not there: {}", list(missing)), fix));
    }
}

fn open_files() -> Check {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writes.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    match limit.rlim_max {
        n if n < FILES_MIN => yellow("files", format!("{n} open files allowed"), "LimitNOFILE=4096"),
        n => green("files", format!("{n} open files allowed")),
    }
}

fn wall() -> Check {
    // SAFETY: all-zero is a valid `timex`, of no change; it lives through the call.
    let state = unsafe { libc::adjtimex(&mut std::mem::zeroed()) };
    match (clock::wall_ms(), state) {
        (ms, _) if ms < CLOCK_MS_MIN => yellow(
            "clock",
            format!("{} s since the epoch: never set", ms / 1000),
            "set it (NTP): signed jobs are denied; leases do not care",
        ),
        (_, libc::TIME_ERROR) => yellow("clock", "set, and nobody keeps it right", "run an NTP client"),
        _ => green("clock", "set, and kept right"),
    }
}

fn gpu(config: &Config) -> Check {
    let mut reader = Reader::new(Sysroot::default(), config.mounts.clone());
    let helper = Programs::installed().helper;
    reader = reader.with_nvml(Nvml::new(Programs::installed()));
    let (report, sources) = reader.read_with_sources();
    match (&report.gpu, sources.get("nvml")) {
        (Some(gpu), _) => green("gpu", format!("read from {}", gpu.source)),
        (None, Some(source)) => match &source.absent {
            None => green("gpu", format!("read by {}", source.file)),
            Some(why) if why.starts_with("no GPU") => green("gpu", "none"),
            // It was only just started: that it is there is what can be said.
            Some(_) if helper.exists() => green("gpu", format!("read by {}", helper.display())),
            Some(why) => {
                yellow("gpu", why.clone(), "put dunlin-nvml beside dunlin-agent, or install nvidia-smi")
            }
        },
        (None, None) => green("gpu", "none"),
    }
}
