//! `dunlin-hub doctor`: what stands in the way of running a hub here, and what to do about it.

use crate::api::Tls;
use crate::clock;
use crate::config::{Config, Posture};
use crate::link::Identity;
use crate::store::{Store, StoreError, StoreOptions};
use serde::Serialize;
use std::net::{TcpListener, UdpSocket};
use std::process::ExitCode;

/// Free space under which a hub is in trouble, in MiB.
const DISK_MIB_MIN: u64 = 500;
/// 2025-01-01, in milliseconds since the epoch: a clock before it was never set.
const CLOCK_MS_MIN: u64 = 1_735_689_600_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Green,
    Yellow,
    Red,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    level: Level,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

/// Prints every check; the exit code is 1 when one is red.
pub fn run(config: &Config, json: bool) -> ExitCode {
    let checks = checks(config);
    if json {
        println!("{}", serde_json::to_string_pretty(&checks).unwrap_or_default());
    } else {
        for check in &checks {
            let level = match check.level {
                Level::Green => "green ",
                Level::Yellow => "yellow",
                Level::Red => "red   ",
            };
            println!("{level}  {:<10} {}", check.name, check.found);
            if let Some(fix) = &check.fix {
                println!("        {:<10} fix: {fix}", "");
            }
        }
    }
    ExitCode::from(u8::from(checks.iter().any(|c| c.level == Level::Red)))
}

fn checks(config: &Config) -> Vec<Check> {
    let data = config.data.display();
    let mut out = Vec::new();
    let mut add = |name, level, found: String, fix: &str| {
        out.push(Check { name, level, found, fix: (!fix.is_empty()).then(|| fix.to_owned()) });
    };
    let probe = config.data.join(".doctor");
    match std::fs::write(&probe, b"") {
        Ok(()) => add("data", Level::Green, format!("{data} is writable"), ""),
        Err(e) => add(
            "data",
            Level::Red,
            format!("{data}: {e}"),
            "make the directory for this user, or choose another --data",
        ),
    }
    let _ = std::fs::remove_file(&probe);
    match rustix::fs::statvfs(&config.data) {
        Ok(fs) => {
            let mib = fs.f_bavail.saturating_mul(fs.f_frsize) >> 20;
            let low = mib < DISK_MIB_MIN;
            let fix = if low { "free space on this disk, or move --data" } else { "" };
            add("disk", if low { Level::Red } else { Level::Green }, format!("{mib} MiB free"), fix);
        }
        Err(e) => add("disk", Level::Yellow, format!("{data}: {e}"), ""),
    }
    let (store, key) = (config.data.join("store"), config.data.join("hub.key"));
    let options = StoreOptions { bytes_max: config.store_bytes_max, sync: true };
    // Nothing is made here: a directory made by the wrong user would be in the hub's way.
    match store.exists().then(|| Store::open(&store, options)) {
        None => add("store", Level::Green, "not made yet".into(), ""),
        Some(Ok(_)) => add("store", Level::Green, "opens".into(), ""),
        Some(Err(e @ StoreError::Locked(_))) => {
            add("store", Level::Yellow, e.to_string(), "a hub runs here: ask it, at /health");
        }
        Some(Err(e)) => {
            add("store", Level::Red, e.to_string(), "restore a backup, or start with an empty --data")
        }
    }
    match key.exists().then(|| Identity::load_or_make(&key)) {
        None => add("identity", Level::Green, "not made yet".into(), ""),
        Some(Ok(identity)) => add("identity", Level::Green, format!("key {}", identity.public()), ""),
        Some(Err(e)) => add("identity", Level::Red, e.to_string(), "restore hub.key: agents have it pinned"),
    }
    let in_use = "stop what listens there, or choose another port";
    match UdpSocket::bind(config.quic) {
        Ok(_) => add("quic", Level::Green, format!("udp {} is free", config.quic), ""),
        Err(e) => add("quic", Level::Red, format!("udp {}: {e}", config.quic), in_use),
    }
    match TcpListener::bind(config.http) {
        Ok(_) => add("http", Level::Green, format!("tcp {} is free", config.http), ""),
        Err(e) => add("http", Level::Red, format!("tcp {}: {e}", config.http), in_use),
    }
    let posture = config.posture();
    let found = posture.as_str().to_owned();
    match config.tls.as_ref().map(Tls::load).transpose() {
        Err(e) => {
            add("api", Level::Red, format!("{found}: {e}"), "make this right, or the hub does not start")
        }
        Ok(_) if posture == Posture::Insecure => {
            let fix = "set tls_cert and tls_key in [api]: whoever is on the way reads the token";
            add("api", Level::Yellow, found, fix);
        }
        Ok(_) => add("api", Level::Green, found, ""),
    }
    let wall = clock::now().wall;
    let bad = wall < CLOCK_MS_MIN;
    let fix = if bad { "set the clock (NTP): task times and ticket ends are shown by it" } else { "" };
    add(
        "clock",
        if bad { Level::Yellow } else { Level::Green },
        format!("{} s since the epoch", wall / 1000),
        fix,
    );
    match config.quic.ip().is_unspecified() && config.advertise.is_empty() {
        true => add(
            "advertise",
            Level::Yellow,
            format!("tickets will carry {}", config.ticket_addrs(config.quic).join(", ")),
            "set `advertise = [\"HOST:PORT\"]` to what boards can reach",
        ),
        false => add("advertise", Level::Green, config.ticket_addrs(config.quic).join(", "), ""),
    }
    match rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        Some(n) if n < 1024 => {
            add("files", Level::Yellow, format!("{n} open files allowed"), "LimitNOFILE=65536")
        }
        Some(n) => add("files", Level::Green, format!("{n} open files allowed"), ""),
        None => add("files", Level::Green, "no limit on open files".into(), ""),
    }
    out
}
