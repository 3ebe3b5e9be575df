//! `exec`: the executor's process, by itself or started by the uplink.

use super::EX_UNAVAILABLE;
use crate::config::{Config, SOCKET};
use crate::core::trust::Board;
use crate::exec::{ExecConfig, Signing, serve, serve_parent};
use crate::files::{self, Files};
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
    // Who this board is, the trust file says: what the uplink's user could write is not asked.
    let signing = Signing { trust: config.trust.clone(), tags: config.tags.clone(), board: None };
    let config = ExecConfig { policy: config.policy.clone(), data, log: config.log, signing };
    ended(serve(config, socket, peer))
}

/// The executor that an uplink starts for itself: data directory, policy, log level, trust file and tags; its socket is
/// descriptor 3. The data directory is the uplink's, so who it is enrolled as is who this board is.
pub fn of_parent(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut next = || args.next();
    let (Some(data), Some(policy), Some(log), Some(trust), Some(tags)) =
        (next(), next(), next(), next(), next())
    else {
        return ended(Err("started by hand? only the agent starts it so; see `dunlin-agent exec`".into()));
    };
    let log = log.to_str().and_then(|level| level.parse().ok()).unwrap_or(tracing::Level::INFO);
    log_at(log);
    let tags = tags.to_str().into_iter().flat_map(|tags| tags.split(',')).filter_map(|t| t.parse().ok());
    let signing =
        Signing { trust: trust.into(), tags: tags.collect(), board: enrolled(&Files::at(Path::new(&data))) };
    ended(serve_parent(ExecConfig { policy: policy.into(), data: data.into(), log, signing }))
}

fn enrolled(files: &Files) -> Option<Board> {
    let enrolled = files.enrolment().ok()?;
    let key = files.key().ok().and_then(|key| files::public(&key).ok());
    Some(Board { fleet: enrolled.fleet, node: enrolled.node, key, tags: vec![] })
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
