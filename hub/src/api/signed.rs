//! Signed jobs and key sets. The hub reads them to show what they say and to choose a node; it can check neither.

use super::auth::Actor;
use super::body::Fields;
use super::error::ApiError;
use super::tasks::json_body;
use super::{ApiState, kinds, mismatch};
use crate::core::task::TaskSpec;
use crate::event::{Answer, Request};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Extension, State};
use data_encoding::BASE64URL_NOPAD;
use dunlin_wire::envelope::{Audience, Envelope, Payload};
use dunlin_wire::{Tag, TaskId, limits};
use serde_json::{Value, json};

fn bytes(fields: &mut Fields, name: &'static str, field: &str, max: usize) -> Result<Vec<u8>, ApiError> {
    let text: String = fields.take(name)?.ok_or_else(|| ApiError::field(field, "is required"))?;
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes());
    bytes
        .ok()
        .filter(|bytes| bytes.len() <= max)
        .ok_or_else(|| ApiError::field(field, format!("must be unpadded base64url of at most {max} bytes")))
}

/// The envelope of a submission's payload, and what it says.
pub(super) fn envelope(payload: Value) -> Result<(Vec<u8>, Payload), ApiError> {
    let mut fields = Fields::of(payload, "payload.")?;
    let bytes = bytes(&mut fields, "envelope", "payload.envelope", limits::ENVELOPE_MAX)?;
    fields.end()?;
    let payload = Envelope::decode(&bytes).and_then(|envelope| envelope.peek());
    let bad = || ApiError::field("payload.envelope", "is not a signed job that this version reads");
    Ok((bytes, payload.ok_or_else(bad)?))
}

/// Puts what was signed in the place of what the request says: the board goes by that.
pub(super) fn fill(id: Option<TaskId>, spec: &mut TaskSpec, signed: Payload) -> Result<TaskId, ApiError> {
    if id.is_some_and(|id| id != signed.task) {
        return Err(ApiError::field("taskId", format!("must be `{}`, as was signed", signed.task)));
    }
    spec.attempts_max = signed.attempts_max;
    spec.timeout_ms = signed.timeout_ms;
    spec.delivery = signed.delivery;
    match signed.audience {
        Audience::Nodes(mut nodes) if nodes.len() == 1 && spec.target.is_none() => spec.target = nodes.pop(),
        Audience::Tags(tags) => {
            spec.tags.extend(tags);
            spec.tags.sort();
            spec.tags.dedup();
        }
        Audience::Nodes(_) | Audience::Keys(_) => {}
    }
    Ok(signed.task)
}

/// What a signed job says of itself, as the API shows it; empty for one that cannot be read.
pub(super) fn shown(bytes: &[u8]) -> Value {
    let Some(payload) = Envelope::decode(bytes).and_then(|envelope| envelope.peek()) else {
        return json!({});
    };
    let (kind, mut shown) = kinds::shown(&payload.work.into());
    shown["kind"] = kind.into();
    shown["issuer"] = payload.issuer.to_string().into();
    shown["reason"] = payload.reason.into();
    shown["rules"] = payload.rules.into();
    shown["user"] = payload.user.into();
    shown["notBefore"] = payload.not_before_ms.into();
    shown["expiresAt"] = payload.expires_ms.into();
    shown["audience"] = match payload.audience {
        Audience::Nodes(nodes) => json!({"nodes": nodes.iter().map(|n| n.as_str()).collect::<Vec<_>>()}),
        Audience::Keys(keys) => json!({"keys": keys.iter().map(ToString::to_string).collect::<Vec<_>>()}),
        Audience::Tags(tags) => json!({"tags": tags.iter().map(Tag::as_str).collect::<Vec<_>>()}),
    };
    shown
}

/// `POST /v1/keys`.
pub(super) async fn push_keys(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
    request: Result<Json<Value>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::of(json_body(request)?, "")?;
    let bytes = bytes(&mut fields, "keySet", "keySet", limits::KEYS_MAX)?;
    fields.end()?;
    match state.ask(&actor, Request::PushKeys(bytes)).await? {
        Answer::Keys { version, sent } => Ok(Json(json!({"version": version, "sent": sent}))),
        _ => Err(mismatch()),
    }
}
