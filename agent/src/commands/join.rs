//! `dunlin-agent join`: from a ticket to an enrolled device.

use super::{EX_NOPERM, EX_UNAVAILABLE, EX_USAGE};
use crate::config::Config;
use crate::core::uplinks::{self, Uplink};
use crate::files::{Enrolment, Files};
use crate::link::{self, JoinError};
use anyhow::{Context, Result};
use dunlin_wire::limits::TICKET_TEXT_MAX;
use dunlin_wire::ticket::Ticket;
use std::io::Read;
use std::process::ExitCode;

pub(super) fn run(config: &Config, text: &str) -> ExitCode {
    let say = |error: &dyn std::fmt::Display, code| {
        eprintln!("dunlin-agent: {error}");
        ExitCode::from(code)
    };
    let ticket = match ticket(text) {
        Ok(ticket) => ticket,
        Err(error) => return say(&error, EX_USAGE),
    };
    if Files::at(&config.data).path("enrolment.toml").exists() {
        let dir = config.data.display();
        let error =
            format!("{dir}: this device is enrolled already; to start over, move that directory away");
        return say(&error, EX_USAGE);
    }
    match enrol(config, &ticket) {
        Ok(node) => {
            println!(
                "enrolled as `{node}`; start it with: dunlin-agent run --data {}",
                config.data.display()
            );
            ExitCode::SUCCESS
        }
        Err((error, code)) => say(&error, code),
    }
}

/// The ticket that the command line names.
///
/// # Errors
/// What is wrong with it.
pub(super) fn ticket(text: &str) -> Result<Ticket, String> {
    read(text).and_then(|text| Ticket::parse(&text).map_err(|e| e.to_string()))
}

/// Enrols this device; its name.
///
/// # Errors
/// Why not, and the exit code that says so.
pub(super) fn enrol(config: &Config, ticket: &Ticket) -> Result<String, (String, u8)> {
    ask(&Files::at(&config.data), ticket, &config.uplinks).map_err(|error| {
        let refused = matches!(error.downcast_ref(), Some(JoinError::Refused { .. }));
        (format!("{error:#}"), if refused { EX_NOPERM } else { EX_UNAVAILABLE })
    })
}

/// A ticket is a secret: `-` keeps it out of the process list.
fn read(text: &str) -> Result<String, String> {
    if text != "-" {
        return Ok(text.to_owned());
    }
    let mut line = String::new();
    let read = std::io::stdin().take(TICKET_TEXT_MAX as u64 + 2).read_to_string(&mut line);
    read.map(|_| line).map_err(|e| format!("stdin: {e}"))
}

fn ask(files: &Files, ticket: &Ticket, own: &[Uplink]) -> Result<String> {
    let _lock = files.lock()?;
    let key = files.key()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // A board that the ticket's addresses do not serve cannot enrol over them either.
    let addrs = uplinks::choose(own, &ticket.addrs).into_iter().map(|uplink| uplink.addr).collect();
    let asked = Ticket { addrs, ..ticket.clone() };
    let joined = runtime.block_on(link::join(&asked, &key))?;
    let enrolment = Enrolment {
        hubs: ticket.addrs.clone(),
        hub_key: ticket.hub.to_string(),
        fleet: joined.fleet.to_string(),
        node: joined.node.to_string(),
        slots: joined.slots,
        profile: joined.profile.as_str().into(),
        role: joined.role.as_str().into(),
    };
    let text = toml::to_string(&enrolment).context("enrolment")?;
    files.write("enrolment.toml", text.as_bytes())?;
    Ok(enrolment.node)
}
