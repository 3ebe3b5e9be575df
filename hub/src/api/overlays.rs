//! `POST /v1/policy`: narrows what boards allow.

use super::auth::Actor;
use super::body::Fields;
use super::error::ApiError;
use super::tasks::json_body;
use super::{ApiState, mismatch};
use crate::event::{Answer, Request};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Extension, State};
use dunlin_wire::limits;
use dunlin_wire::overlay::Overlay;
use serde_json::{Value, json};

pub(super) async fn push(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
    request: Result<Json<Value>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::of(json_body(request)?, "")?;
    let node = fields.take("node")?;
    let overlay = Overlay {
        version: 0,
        rules: fields.take("rules")?,
        timeout_ms: fields.number("timeoutMs", 1, limits::TIMEOUT_MS_MAX)?,
        output: fields.number("output", 1, limits::OUTPUT_MAX)?,
        jobs: fields.number("jobs", 1, limits::CONCURRENT_MAX.into())?.map(|n| n as u32),
    };
    fields.end()?;
    if !overlay.is_in_bounds() {
        return Err(ApiError::field("rules", "must be at most 256 names of at most 255 bytes"));
    }
    match state.ask(&actor, Request::PushOverlay { node, overlay: Box::new(overlay) }).await? {
        Answer::Overlay { version, sent } => Ok(Json(json!({"version": version, "sent": sent}))),
        _ => Err(mismatch()),
    }
}
