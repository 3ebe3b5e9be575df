//! `dunlin-hub doctor`: what stands in the way of running a hub here, and what to do about it.

use crate::api::Tls;
use crate::clock;
use crate::config::{Config, Posture};
use crate::link::Identity;
use crate::store::{Store, StoreError, StoreOptions};
use serde::Serialize;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Free space under which a hub is in trouble, in MiB.
const DISK_MIB_MIN: u64 = 500;
/// 2025-01-01, in milliseconds since the epoch: a clock before it was never set.
const CLOCK_MS_MIN: u64 = 1_735_689_600_000;

/// Writes that are timed, and the bytes of each: about what a commit takes.
const WRITES: u64 = 16;
const WRITE_BYTES: usize = 4096;
/// A write that takes longer than so many milliseconds until it is on the disk delays every answer.
const WRITE_MS_MAX: u64 = 20;
/// How long a hub that runs may take to say so.
const ANSWER: Duration = Duration::from_secs(2);
/// Bytes that the kernel must let a socket hold: a second of a thousand agents.
const SOCKET_BYTES_MIN: u64 = 200_000;

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
    let mut runs = false;
    // Nothing is made here: a directory made by the wrong user would be in the hub's way.
    match store.exists().then(|| Store::open(&store, options)) {
        None => add("store", Level::Green, "not made yet".into(), ""),
        Some(Ok(_)) => add("store", Level::Green, "opens".into(), ""),
        Some(Err(StoreError::Locked(_))) => {
            runs = true;
            add("store", Level::Green, "in use by the hub that runs here".into(), "");
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
    let (level, found, fix) = secrets(&config.data);
    add("secrets", level, found, fix);
    let (level, found, fix) = speed(&config.data);
    add("fsync", level, found, fix);
    match UdpSocket::bind(config.quic) {
        Err(_) if runs => add("quic", Level::Green, format!("udp {}: the hub's", config.quic), ""),
        Ok(_) => add("quic", Level::Green, format!("udp {} is free", config.quic), ""),
        Err(e) => add("quic", Level::Red, format!("udp {}: {e}", config.quic), in_use),
    }
    match TcpListener::bind(config.http) {
        Err(_) if runs => add("http", Level::Green, format!("tcp {}: the hub's", config.http), ""),
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
    let (level, found, fix) = version(runs && config.tls.is_none(), config.http);
    add("version", level, found, fix);
    let held = std::fs::read_to_string("/proc/sys/net/core/rmem_max").ok();
    match held.and_then(|text| text.trim().parse::<u64>().ok()) {
        Some(bytes) if bytes < SOCKET_BYTES_MIN => {
            let fix = "sysctl -w net.core.rmem_max=2500000: packets of many agents at once are dropped";
            add("buffers", Level::Yellow, format!("a socket holds {bytes} bytes"), fix);
        }
        Some(bytes) => add("buffers", Level::Green, format!("a socket may hold {bytes} bytes"), ""),
        None => add("buffers", Level::Green, "not said here".into(), ""),
    }
    out
}

type Found = (Level, String, &'static str);

/// Who reads these is the hub, or its owner.
fn secrets(data: &Path) -> Found {
    for name in ["hub.key", "owner.token"] {
        let path = data.join(name);
        let mode = path.metadata().map_or(0, |m| m.permissions().mode() & 0o777);
        if mode & 0o077 != 0 {
            let found = format!("{}: mode {mode:o}, others may read it", path.display());
            return (Level::Red, found, "chmod 600, and think who could have read it");
        }
    }
    (Level::Green, "only their owner can read them".into(), "")
}

/// How long a write takes until it is on the disk: every answer that changes something waits for one.
fn speed(data: &Path) -> Found {
    let path = data.join(".doctor");
    let timed = || -> std::io::Result<u64> {
        let mut file = std::fs::File::create(&path)?;
        let begun = clock::micros();
        for _ in 0..WRITES {
            file.write_all(&[0; WRITE_BYTES])?;
            file.sync_data()?;
        }
        Ok((clock::micros() - begun) / WRITES / 1000)
    };
    let took = timed();
    let _ = std::fs::remove_file(&path);
    match took {
        Ok(ms) if ms > WRITE_MS_MAX => (
            Level::Yellow,
            format!("{ms} ms a write"),
            "put --data on a faster disk: each answer waits for a write",
        ),
        Ok(ms) => (Level::Green, format!("{ms} ms a write"), ""),
        Err(e) => (Level::Yellow, e.to_string(), "see `data`"),
    }
}

/// Whether what runs is what is installed, by what the hub says of itself.
fn version(runs: bool, http: SocketAddr) -> Found {
    let own = env!("CARGO_PKG_VERSION");
    if !runs {
        return (Level::Green, own.into(), "");
    }
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&http, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(b"GET /health HTTP/1.0\r\nHost: hub\r\n\r\n")?;
        let mut text = String::new();
        stream.take(4096).read_to_string(&mut text)?;
        Ok(text)
    };
    let answer = ask().unwrap_or_default();
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    let health: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    match health["version"].as_str() {
        Some(running) if running == own => (Level::Green, format!("{own} runs"), ""),
        Some(running) => {
            (Level::Yellow, format!("{running} runs, {own} is installed"), "systemctl restart dunlin-hub")
        }
        None => (
            Level::Red,
            format!("the hub does not answer at {http}"),
            "see its log: journalctl -u dunlin-hub",
        ),
    }
}
