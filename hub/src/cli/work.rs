//! The work that a command line describes, for whoever signs it: the hub reads what is not signed by itself.

use super::args::JobArgs;
use super::client::Failure;
use super::key::usage;
use dunlin_wire::actuation::{Actuation, Declared, Source, Tier};
use dunlin_wire::job::{HookDispatch, Job, OrchestratorRun, Shell, Wake};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    argv: Vec<String>,
    cwd: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hook {
    hook: String,
    payload: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Woken {
    hook: String,
    text: String,
}

/// What is declared of it, when it moves something. What no board would take is refused here already.
pub(super) fn declared(job: &JobArgs) -> Result<Option<Declared>, Failure> {
    let Some(target) = &job.actuate.actuate else { return Ok(None) };
    let sources = |words: &[String]| words.iter().filter_map(|word| Source::parse(word)).collect::<Vec<_>>();
    let declared = Declared {
        target: target.parse().map_err(|e| usage(format!("--actuate: {e}")))?,
        tier: job.actuate.tier.as_deref().and_then(Tier::parse).unwrap_or(Tier::T0),
        evidence: sources(&job.actuate.evidence),
        verified_by: sources(&job.actuate.verified_by),
    };
    match declared.refusal() {
        Some(denial) => Err(usage(format!("no board takes this actuation ({denial}): {declared}"))),
        None => Ok(Some(declared)),
    }
}

/// The work of `kind`, whose payload is in JSON or in the arguments.
pub(super) fn of(kind: &str, payload: Option<Value>, job: &JobArgs) -> Result<Job, Failure> {
    let Some(payload) = payload else {
        let shell = Shell { argv: job.argv.clone(), cwd: job.cwd.clone(), env: job.variables()? };
        return Ok(match declared(job)? {
            Some(declared) => Job::Actuation(Actuation { shell, declared }),
            None => Job::Shell(shell),
        });
    };
    let bad = |e: serde_json::Error| usage(format!("--payload is no {kind}: {e}"));
    let shell = |step: Step| Shell { argv: step.argv, cwd: step.cwd, env: step.env.into_iter().collect() };
    Ok(match kind {
        "shell" => Job::Shell(shell(serde_json::from_value(payload).map_err(bad)?)),
        "orchestrator-run" => {
            let run: Run = serde_json::from_value(payload).map_err(bad)?;
            Job::OrchestratorRun(OrchestratorRun { steps: run.steps.into_iter().map(shell).collect() })
        }
        "hook-dispatch" => {
            let Hook { hook, payload } = serde_json::from_value(payload).map_err(bad)?;
            Job::HookDispatch(HookDispatch { hook, payload: Value::Object(payload).to_string() })
        }
        "wake" => {
            let Woken { hook, text } = serde_json::from_value(payload).map_err(bad)?;
            Job::Wake(Wake { hook, text })
        }
        _ => return Err(usage(format!("--kind `{kind}` with a payload cannot be signed"))),
    })
}
