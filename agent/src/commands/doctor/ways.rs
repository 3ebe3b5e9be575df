//! The way to the hub, and to the executor.

use super::{Check, green, red, yellow};
use crate::agent::reach;
use crate::config::Config;
use crate::core::uplinks;
use crate::files::Files;
use crate::link::probe;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;

pub(super) fn look(config: &Config, files: &Files, out: &mut Vec<Check>) {
    let enrolled = files.enrolment();
    let ticket = enrolled.as_ref().map_or(Vec::new(), |e| e.hubs.clone());
    out.push(match enrolled {
        Ok(e) => green("enrolment", format!("node `{}`", e.node)),
        Err(e) => red("enrolment", e.to_string(), "dunlin-agent up TICKET"),
    });
    out.push(keys(files));
    hubs(config, &ticket, out);
    let text = std::fs::read_to_string(files.path("status.json")).unwrap_or_default();
    let status: Value = serde_json::from_str(&text).unwrap_or_default();
    let pid = status["pid"].as_u64().unwrap_or(0);
    let running = pid > 0 && std::path::Path::new(&format!("/proc/{pid}")).exists();
    uplink(&status, running, out);
    out.push(executor(config, running));
}

/// Who can read these can be this device.
fn keys(files: &Files) -> Check {
    for name in ["identity.key", "enrolment.toml"] {
        let path = files.path(name);
        match path.metadata().map(|m| m.permissions().mode() & 0o777) {
            Ok(mode) if mode & 0o077 != 0 => {
                let found = format!("{}: mode {mode:o}, others may read it", path.display());
                return red(
                    "keys",
                    found,
                    "chmod 600; if somebody else was on this board, revoke the node and join anew",
                );
            }
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return yellow("keys", format!("{}: {e}", path.display()), "run doctor as root");
            }
            _ => {}
        }
    }
    green("keys", "only their owner can read them")
}

fn hubs(config: &Config, ticket: &[String], out: &mut Vec<Check>) {
    let uplinks = uplinks::choose(&config.uplinks, ticket);
    let answers: Vec<_> = uplinks.iter().map(|uplink| (uplink, probe(&uplink.addr))).collect();
    let any = answers.iter().any(|(_, answer)| answer.is_ok());
    let fix =
        "is a hub running there? its UDP port must be open on the way: firewalls often let TCP through only";
    out.extend(answers.into_iter().map(|(uplink, answer)| match answer {
        Ok(ms) => green("uplink", format!("{uplink}: answers after {ms} ms")),
        Err(e) if any => yellow("uplink", format!("{uplink}: {e}"), fix),
        Err(e) => red("uplink", format!("{uplink}: {e}"), fix),
    }));
}

/// What the running agent, or the last one, knows of its connection.
fn uplink(status: &Value, running: bool, out: &mut Vec<Check>) {
    let text = |name: &str| status[name].as_str().unwrap_or_default();
    let fix = "systemctl start dunlin-agent; its log says why not: journalctl -u dunlin-agent";
    out.push(match (running, status["connected"] == true) {
        (true, true) => green("agent", format!("runs, and {} has welcomed it", text("hub"))),
        (true, false) => {
            yellow("agent", format!("runs without a hub: {}", text("lastError")), "see `uplink`")
        }
        (false, _) => yellow("agent", "does not run", fix),
    });
    let own = env!("CARGO_PKG_VERSION");
    if running && text("version") != own {
        let found = format!("{} runs, {own} is installed", text("version"));
        out.push(yellow("version", found, "systemctl restart dunlin-exec"));
    } else {
        out.push(green("version", own));
    }
    // What a NAT forgets within the time between two signs of life, the agent found out by losing it.
    out.push(match status["heartbeatMs"].as_u64() {
        Some(ms) if ms < 10_000 => {
            green("nat", format!("a sign of life every {} s (LAN, or not known better yet)", ms / 1000))
        }
        Some(ms) => green("nat", format!("mappings on the way last at least {} s", ms / 1000)),
        None => green("nat", "not known: no agent has run here yet"),
    });
}

fn executor(config: &Config, running: bool) -> Check {
    let Some(socket) = &config.executor else { return green("executor", "the uplink starts its own") };
    // It serves one uplink, which does not run without it.
    if running {
        return green("executor", "serves the uplink that runs");
    }
    match reach(config, |_| ()) {
        Ok(_) => green("executor", format!("answers at {}", socket.display())),
        Err(e) => red(
            "executor",
            e.to_string(),
            "systemctl start dunlin-exec, or run doctor as root or dunlin-agent",
        ),
    }
}
