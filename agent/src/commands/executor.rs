//! `exec`: the executor's process, by itself or started by the uplink.

use super::EX_UNAVAILABLE;
use crate::config::{Config, SOCKET};
use crate::exec::{ExecConfig, serve, serve_parent};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

pub(super) fn run(config: &Config, data: &Path, peer: &str) -> ExitCode {
    log_at(config.log);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), policy = %config.policy.display(), "dunlin-agent exec");
    let socket = config.executor.as_deref().unwrap_or(Path::new(SOCKET));
    let data = match std::path::absolute(data) {
        Ok(data) => data,
        Err(error) => return ended(Err(format!("{}: {error}", data.display()))),
    };
    let config = ExecConfig { policy: config.policy.clone(), data, log: config.log };
    ended(serve(config, socket, peer))
}

/// The executor that an uplink starts for itself: data directory, policy and log level; its socket is descriptor 3.
pub fn of_parent(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(data), Some(policy), Some(log)) = (args.next(), args.next(), args.next()) else {
        return ended(Err("started by hand? only the agent starts it so; see `dunlin-agent exec`".into()));
    };
    let log = log.to_str().and_then(|level| level.parse().ok()).unwrap_or(tracing::Level::INFO);
    log_at(log);
    ended(serve_parent(ExecConfig { policy: policy.into(), data: data.into(), log }))
}

fn log_at(level: tracing::Level) {
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).init();
}

fn ended(done: Result<(), String>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dunlin-agent exec: {error}");
            ExitCode::from(EX_UNAVAILABLE)
        }
    }
}
