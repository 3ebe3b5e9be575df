//! The kinds of work: from an API payload to a job, and back to be shown.

use super::body::Fields;
use super::error::ApiError;
use super::signed;
use axum::http::StatusCode;
use dunlin_wire::envelope::Payload;
use dunlin_wire::job::{HookDispatch, Job, OrchestratorRun, Shell, Wake};
use serde_json::{Map, Value, json};

/// What `kind` can be.
const KINDS: [&str; 5] = ["shell", "signed", "orchestrator-run", "hook-dispatch", "wake"];

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

fn shell(payload: Value) -> Result<Shell, ApiError> {
    let mut fields = Fields::of(payload, "payload.")?;
    let argv = required(&mut fields, "argv", "payload.argv")?;
    let env: Map<String, Value> = fields.take("env")?.unwrap_or_default();
    let env = env.into_iter().map(|(name, value)| match value {
        Value::String(text) => Ok((name, text)),
        _ => Err(ApiError::field(format!("payload.env.{name}"), "must be a string")),
    });
    let shell = Shell { argv, cwd: fields.take("cwd")?, env: env.collect::<Result<_, _>>()? };
    fields.end()?;
    Ok(shell)
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
    }
}

pub(super) fn shell_shown(shell: &Shell) -> Value {
    let env: Map<String, Value> = shell.env.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
    json!({"argv": shell.argv, "cwd": shell.cwd, "env": env})
}
