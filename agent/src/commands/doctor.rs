//! `dunlin-agent doctor`: what this kernel and board offer, and what stands in the way.

use crate::config::Config;
use crate::core::uplinks;
use crate::exec::{self, Kernel};
use crate::files::Files;
use dunlin_wire::job::layer;
use serde_json::json;
use std::process::ExitCode;

/// 2025-01-01, in seconds since the epoch: a clock before it was never set. Leases do not care.
const CLOCK_S_MIN: u64 = 1_735_689_600;

pub(super) fn run(config: &Config, as_json: bool) -> ExitCode {
    let kernel = Kernel::probe(&config.data);
    let mut rows = Vec::new();
    let mut add = |name: &str, level: &str, found: String, fix: &str| {
        rows.push(
            json!({"name": name, "level": level, "found": found, "fix": (!fix.is_empty()).then_some(fix)}),
        );
    };
    match Files::at(&config.data).enrolment() {
        Ok(e) => {
            add("enrolment", "green", format!("node `{}`", e.node), "");
            let uplinks = uplinks::choose(&config.uplinks, &e.hubs);
            let uplinks: Vec<_> = uplinks.iter().map(ToString::to_string).collect();
            add("uplinks", "green", uplinks.join(", "), "");
        }
        Err(e) => add("enrolment", "red", e.to_string(), "dunlin-agent join TICKET"),
    }
    match exec::load(&config.policy) {
        Ok((policy, _)) => {
            let findings = exec::lint(&policy, &kernel);
            add("policy", "green", format!("{} rules", policy.rules.len()), "");
            findings.into_iter().for_each(|f| add("policy", "yellow", f, "change the rule or the board"));
        }
        Err(e) => add("policy", "red", e, "until then every job is denied with policy_invalid"),
    }
    match kernel.free_mib {
        Some(mib) if mib < 64 => {
            add("disk", "red", format!("{mib} MiB free"), "free space: no job is accepted")
        }
        Some(mib) if mib < 500 => add("disk", "yellow", format!("{mib} MiB free"), "free some space"),
        Some(mib) => add("disk", "green", format!("{mib} MiB free"), ""),
        None => add("disk", "yellow", "not known: the data directory is not there".into(), ""),
    }
    let how = if kernel.openat2 { "openat2" } else { "component by component (before Linux 5.6)" };
    add("paths", "green", how.into(), "");
    let landlock = kernel.landlock.map_or("not there".to_owned(), |abi| format!("ABI {abi}"));
    add("landlock", "green", landlock, "");
    add("cgroup", "green", kernel.cgroup.to_owned(), "");
    let list = |bits| layer::words(bits).collect::<Vec<_>>().join(", ");
    add("sandbox", "green", list(kernel.layers), "");
    let extra = layer::LANDLOCK;
    let missing = layer::ALL.iter().fold(0, |bits, (bit, _)| bits | bit) & !kernel.layers & !extra;
    if missing != 0 {
        let fix = "rules that ask for one of these, or for `sandbox = \"require\"`, are denied; run the executor as root";
        add("sandbox", "yellow", format!("not there: {}", list(missing)), fix);
    }
    let wall = std::fs::metadata("/proc/self").and_then(|m| m.modified()).ok();
    let wall = wall.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).map_or(0, |d| d.as_secs());
    match wall >= CLOCK_S_MIN {
        true => add("clock", "green", format!("{wall} s since the epoch"), ""),
        false => add(
            "clock",
            "yellow",
            format!("{wall} s since the epoch"),
            "no matter for leases; logs will look odd",
        ),
    }
    if as_json {
        println!("{:#}", json!(rows));
    } else {
        for row in &rows {
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            println!("{:<7} {:<10} {}", text("level"), text("name"), text("found"));
            if !text("fix").is_empty() {
                println!("{:<7} {:<10} fix: {}", "", "", text("fix"));
            }
        }
    }
    ExitCode::from(u8::from(rows.iter().any(|row| row["level"] == "red")))
}
