//! `dunlin-agent doctor`: what this kernel and board offer, and what stands in the way.

mod board;
mod ways;

use crate::config::Config;
use crate::exec::Kernel;
use crate::files::Files;
use serde_json::json;
use std::process::ExitCode;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Green,
    /// Something is worse than it could be.
    Yellow,
    /// This board does not do its work.
    Red,
}

/// What was looked at, what was found, and what to do.
struct Check {
    name: &'static str,
    level: Level,
    found: String,
    fix: &'static str,
}

fn green(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, level: Level::Green, found: found.into(), fix: "" }
}

fn yellow(name: &'static str, found: impl Into<String>, fix: &'static str) -> Check {
    Check { name, level: Level::Yellow, found: found.into(), fix }
}

fn red(name: &'static str, found: impl Into<String>, fix: &'static str) -> Check {
    Check { name, level: Level::Red, found: found.into(), fix }
}

pub(super) fn run(config: &Config, as_json: bool) -> ExitCode {
    let kernel = Kernel::probe(&config.data);
    let files = Files::at(&config.data);
    let mut checks = Vec::new();
    ways::look(config, &files, &mut checks);
    board::look(config, &kernel, &files, &mut checks);
    let word = |level| match level {
        Level::Green => "green",
        Level::Yellow => "yellow",
        Level::Red => "red",
    };
    if as_json {
        let rows = checks.iter().map(|c| {
            json!({"name": c.name, "level": word(c.level), "found": c.found, "fix": (!c.fix.is_empty()).then_some(c.fix)})
        });
        println!("{:#}", json!(rows.collect::<Vec<_>>()));
    } else {
        for check in &checks {
            println!("{:<7} {:<10} {}", word(check.level), check.name, check.found);
            if !check.fix.is_empty() {
                println!("{:<7} {:<10} fix: {}", "", "", check.fix);
            }
        }
    }
    ExitCode::from(u8::from(checks.iter().any(|check| check.level == Level::Red)))
}
