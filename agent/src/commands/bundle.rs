//! `run-bundle`: a signed job that came in a file, and its result in a file that this device signs. No network at all.

use super::{EX_NOPERM, EX_UNAVAILABLE, EX_USAGE};
use crate::agent;
use crate::clock;
use crate::config::Config;
use crate::exec::message::{Decision, FromExec, ToExec, Work};
use crate::files::{self, Files};
use anyhow::{Context, Result, bail};
use dunlin_wire::bundle::BundleResult;
use dunlin_wire::envelope::{Envelope, Payload};
use dunlin_wire::job::{Job, Outcome, Report};
use dunlin_wire::seal::{self, from_text};
use dunlin_wire::{Fence, limits};
use ring::signature::Ed25519KeyPair;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;

/// No hub gives such a fence: it has all bits.
const FENCE: Fence = Fence(u64::MAX);

pub(super) fn run(config: &Config, file: &Path, out: Option<&Path>) -> ExitCode {
    let Some(out) = out else {
        eprintln!("dunlin-agent: run-bundle needs --out RESULT");
        return ExitCode::from(EX_USAGE);
    };
    match execute(config, file, out) {
        Ok(outcome @ Outcome::Denied { .. }) => {
            eprintln!("dunlin-agent: {outcome}; the result says so too");
            ExitCode::from(EX_NOPERM)
        }
        Ok(outcome) => {
            println!("{outcome}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("dunlin-agent: {error:#}");
            ExitCode::from(EX_UNAVAILABLE)
        }
    }
}

fn execute(config: &Config, file: &Path, out: &Path) -> Result<Outcome> {
    let name = file.display();
    let long =
        std::fs::metadata(file).with_context(|| name.to_string())?.len() > 2 * limits::ENVELOPE_MAX as u64;
    let text =
        if long { String::new() } else { std::fs::read_to_string(file).with_context(|| name.to_string())? };
    let bytes = from_text(seal::Context::Job, &text, limits::ENVELOPE_MAX);
    let envelope = bytes.as_ref().and_then(|bytes| Envelope::decode(bytes));
    let payload = envelope.as_ref().and_then(Envelope::peek);
    let (Some(bytes), Some(envelope), Some(payload)) = (bytes, envelope, payload) else {
        bail!("{name}: not a bundle; `dunlin bundle --sign` makes one");
    };
    // The place of the result is taken before anything runs: what has run once does not run again for its result.
    let place = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(out);
    let mut place = place.with_context(|| out.display().to_string())?;
    let files = Files::at(&config.data);
    let _lock = files.lock()?;
    let enrolled = files.enrolment()?;
    let key = files.key()?;
    let (report, [stdout, stderr]) = work(config, bytes, &payload)?;
    let outcome = report.outcome.clone();
    let result = BundleResult {
        node: enrolled.node,
        key: files::public(&key).map_err(|e| anyhow::anyhow!("the device key: {e}"))?,
        fleet: enrolled.fleet,
        task: payload.task,
        job: envelope.digest(),
        at_ms: clock::wall_ms(),
        report,
        stdout,
        stderr,
    };
    let key = Ed25519KeyPair::from_pkcs8(&key).map_err(|e| anyhow::anyhow!("the device key: {e}"))?;
    use std::io::Write;
    writeln!(place, "{}", result.sign(&key))
        .and_then(|()| place.sync_all())
        .with_context(|| out.display().to_string())?;
    Ok(outcome)
}

/// Asks the executor as the agent does for a grant: the same checks, the same guard.
fn work(config: &Config, bytes: Vec<u8>, payload: &Payload) -> Result<(Report, [Vec<u8>; 2])> {
    let (tell, told) = mpsc::channel();
    let executor = agent::reach(config, move |message| drop(tell.send(message)))?;
    let work = Work {
        task: payload.task.clone(),
        fence: FENCE,
        attempt: 1,
        job: Job::Signed(bytes),
        timeout_ms: None,
    };
    executor.send(ToExec::Prepare(Box::new(work)));
    loop {
        match told.recv().ok().flatten().context("the executor is gone")? {
            FromExec::Prepared { decision: Decision::Deny(report), .. } => {
                return Ok((*report, Default::default()));
            }
            FromExec::Prepared { decision: Decision::Allow { .. }, .. } => {
                // No hub holds a lease: the timeout is what ends it.
                executor.send(ToExec::Start { fence: FENCE, lease_until: u64::MAX / 2 });
            }
            FromExec::Ended { report, kept, .. } => return Ok((*report, kept)),
            _ => {}
        }
    }
}
