//! `dunlin-agent install-service`.

use super::{EX_NOPERM, EX_UNAVAILABLE};
use dunlin_systemd::{AGENT, InstallError, Options};
use std::process::ExitCode;

pub(super) fn run(options: &Options) -> ExitCode {
    match dunlin_systemd::install(&AGENT, options, &mut |step| println!("{step}")) {
        Ok(started) => {
            let data = AGENT.data[0];
            if started && !std::path::Path::new(data).join("enrolment.toml").exists() {
                println!(
                    "The executor runs; the uplink starts once this device is enrolled: dunlin-agent up TICKET"
                );
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("dunlin-agent: {error}");
            ExitCode::from(if matches!(error, InstallError::NotRoot(_)) { EX_NOPERM } else { EX_UNAVAILABLE })
        }
    }
}
