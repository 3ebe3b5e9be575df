//! The kinds of work: from an API payload to a job, and back to be shown.

use super::body::Fields;
use super::error::ApiError;
use super::signed;
use axum::http::StatusCode;
use dunlin_wire::actuation::{Actuation, Declared, Source, Tier};
use dunlin_wire::envelope::Payload;
use dunlin_wire::job::{HookDispatch, Job, OrchestratorRun, Shell, Wake};
use serde_json::{Map, Value, json};

/// What `kind` can be.
const KINDS: [&str; 6] = ["shell", "signed", "orchestrator-run", "hook-dispatch", "wake", "actuation"];

/// The job of a submission; of a signed one also what was signed.
pub(super) fn job(kind: &str, payload: Option<Value>) -> Result<(Job, Option<Payload>), ApiError> {
    if !KINDS.contains(&kind) {
        let message = format!("kind `{kind}` is not known; this hub takes {}", KINDS.join(", "));
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "unsupported_kind", message));
    }
    parse(kind, payload).map_err(ApiError::in_payload)
}

fn parse(kind: &str, payload: Option<Value>) -> Result<(Job, Option<Payload>), ApiError> {
    let payload = payload.ok_or_else(|| ApiError::field("payload", "is required"))?;
    if kind == "signed" {
        let (bytes, payload) = signed::envelope(payload)?;
        return Ok((Job::Signed(bytes), Some(payload)));
    }
    if kind == "shell" {
        let shell = shell(payload)?;
        shell.check_shape().map_err(|e| ApiError::field(e.field, e.rule))?;
        return Ok((Job::Shell(shell), None));
    }
    let mut fields = Fields::of(payload, "payload.")?;
    let job = match kind {
        "actuation" => {
            let sources = |list: Vec<String>, field: &str| {
                let parse = |word: &String| word_of(word, Source::parse, field, "llm, sensor or human");
                list.iter().map(parse).collect::<Result<Vec<_>, _>>()
            };
            let tier: String = required(&mut fields, "tier", "payload.tier")?;
            let declared = Declared {
                target: required(&mut fields, "target", "payload.target")?,
                tier: word_of(&tier, Tier::parse, "payload.tier", "T0, T1, T2 or T3")?,
                evidence: sources(
                    required(&mut fields, "evidence", "payload.evidence")?,
                    "payload.evidence",
                )?,
                verified_by: sources(fields.take("verifiedBy")?.unwrap_or_default(), "payload.verifiedBy")?,
            };
            Job::Actuation(Actuation { shell: shell_in(&mut fields)?, declared })
        }
        "orchestrator-run" => {
            let steps: Vec<Value> = required(&mut fields, "steps", "payload.steps")?;
            // Old submitters say these. Gate and reviewer are the board's, whatever is said here.
            let _ignored: (Option<Value>, Option<Value>) =
                (fields.take("requireSecurityTests")?, fields.take("security")?);
            let steps = steps.into_iter().map(shell).collect::<Result<_, _>>()?;
            Job::OrchestratorRun(OrchestratorRun { steps })
        }
        "wake" => Job::Wake(Wake {
            hook: required(&mut fields, "hook", "payload.hook")?,
            text: required(&mut fields, "text", "payload.text")?,
        }),
        _ => {
            let hook = required(&mut fields, "hook", "payload.hook")?;
            let payload: Map<String, Value> = required(&mut fields, "payload", "payload.payload")?;
            Job::HookDispatch(HookDispatch { hook, payload: Value::Object(payload).to_string() })
        }
    };
    fields.end()?;
    job.check_shape().map_err(|e| ApiError::field(e.field, e.rule))?;
    Ok((job, None))
}

fn required<T: serde::de::DeserializeOwned>(
    fields: &mut Fields,
    name: &str,
    field: &str,
) -> Result<T, ApiError> {
    fields.take(name)?.ok_or_else(|| ApiError::field(field, "is required"))
}

fn word_of<T>(word: &str, parse: fn(&str) -> Option<T>, field: &str, words: &str) -> Result<T, ApiError> {
    parse(word).ok_or_else(|| ApiError::field(field, format!("must be of {words}, not `{word}`")))
}

fn shell(payload: Value) -> Result<Shell, ApiError> {
    let mut fields = Fields::of(payload, "payload.")?;
    let shell = shell_in(&mut fields)?;
    fields.end()?;
    Ok(shell)
}

fn shell_in(fields: &mut Fields) -> Result<Shell, ApiError> {
    let argv = required(fields, "argv", "payload.argv")?;
    let env: Map<String, Value> = fields.take("env")?.unwrap_or_default();
    let env = env.into_iter().map(|(name, value)| match value {
        Value::String(text) => Ok((name, text)),
        _ => Err(ApiError::field(format!("payload.env.{name}"), "must be a string")),
    });
    Ok(Shell { argv, cwd: fields.take("cwd")?, env: env.collect::<Result<_, _>>()? })
}

/// Kind and payload of a job as the API shows them.
pub(super) fn shown(job: &Job) -> (&'static str, Value) {
    match job {
        Job::Shell(shell) => ("shell", shell_shown(shell)),
        Job::Signed(bytes) => ("signed", signed::shown(bytes)),
        Job::OrchestratorRun(run) => {
            ("orchestrator-run", json!({"steps": run.steps.iter().map(shell_shown).collect::<Vec<_>>()}))
        }
        Job::HookDispatch(HookDispatch { hook, payload }) => {
            let payload: Value = serde_json::from_str(payload).unwrap_or_default();
            ("hook-dispatch", json!({"hook": hook, "payload": payload}))
        }
        Job::Wake(Wake { hook, text }) => ("wake", json!({"hook": hook, "text": text})),
        Job::Actuation(Actuation { shell, declared }) => {
            let words = |list: &[Source]| list.iter().map(|source| source.as_str()).collect::<Vec<_>>();
            let mut shown = shell_shown(shell);
            shown["target"] = declared.target.as_str().into();
            shown["tier"] = declared.tier.as_str().into();
            shown["evidence"] = words(&declared.evidence).into();
            shown["verifiedBy"] = words(&declared.verified_by).into();
            ("actuation", shown)
        }
    }
}

fn shell_shown(shell: &Shell) -> Value {
    let env: Map<String, Value> = shell.env.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
    json!({"argv": shell.argv, "cwd": shell.cwd, "env": env})
}
