//! `/v1/nodes`, invites, the fleet's halt, and the audit.

use super::auth::Actor;
use super::body::{self, Fields};
use super::error::ApiError;
use super::tasks::{json_body, query};
use super::{ApiState, mismatch};
use crate::clock;
use crate::core::health::Health;
use crate::core::node::NodeSpec;
use crate::event::AuditRecord;
use crate::event::{Answer, Request};
use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use dunlin_wire::message::{Profile, Role};
use dunlin_wire::{NodeName, Tag, limits};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::timeout;

/// Life of a ticket that names none, in milliseconds.
const INVITE_MS: u64 = 24 * 3_600_000;
/// How long a node that is said to be down has to answer.
const PROBE: Duration = Duration::from_secs(3);
/// How often it is looked whether it did.
const PROBE_STEP: Duration = Duration::from_millis(50);

fn name(text: &str) -> Result<NodeName, ApiError> {
    text.parse().map_err(|_| ApiError::not_found("node", text))
}

async fn node(state: &ApiState, actor: &Actor, request: Request) -> Result<Json<Value>, ApiError> {
    match state.ask(actor, request).await? {
        Answer::Node(view) => Ok(Json(body::node(&view))),
        _ => Err(mismatch()),
    }
}

pub(super) async fn list(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
) -> Result<Json<Value>, ApiError> {
    let Answer::Nodes(nodes) = state.ask(&actor, Request::Nodes).await? else { return Err(mismatch()) };
    Ok(Json(json!({"nodes": nodes.iter().map(body::node).collect::<Vec<_>>()})))
}

pub(super) async fn show(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
    Path(text): Path<String>,
) -> Result<Json<Value>, ApiError> {
    node(&state, &actor, Request::Node(name(&text)?)).await
}

pub(super) async fn drain(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
    Path(text): Path<String>,
) -> Result<Json<Value>, ApiError> {
    node(&state, &actor, Request::Drain(name(&text)?, true)).await
}

pub(super) async fn undrain(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
    Path(text): Path<String>,
) -> Result<Json<Value>, ApiError> {
    node(&state, &actor, Request::Drain(name(&text)?, false)).await
}

pub(super) async fn revoke(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
    Path(text): Path<String>,
) -> Result<Json<Value>, ApiError> {
    node(&state, &actor, Request::Revoke(name(&text)?)).await
}

/// Somebody says that a node is down. It is asked first: who reports may have lost the way himself.
pub(super) async fn report_down(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
    Path(text): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let name = name(&text)?;
    let view = async |request| match state.ask(&actor, request).await? {
        Answer::Node(view) => Ok(view),
        _ => Err(mismatch()),
    };
    // Before it is asked: the answer may be there before we are told that it was.
    let asked = clock::now().mono;
    view(Request::Probe(name.clone())).await?;
    let answered = async || {
        loop {
            tokio::time::sleep(PROBE_STEP).await;
            if view(Request::Node(name.clone())).await?.heard >= asked {
                return Ok::<_, ApiError>(());
            }
        }
    };
    if let Ok(answered) = timeout(PROBE, answered()).await {
        answered?;
    }
    let now = view(Request::ReportDown(name, asked)).await?;
    Ok(Json(json!({"honoured": now.health == Health::Offline, "health": now.health.as_str()})))
}

pub(super) async fn invite(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
    request: Result<Json<Value>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::of(json_body(request)?, "")?;
    let mut tags: Vec<Tag> = fields.take("tags")?.unwrap_or_default();
    tags.sort();
    tags.dedup();
    if tags.len() > limits::TAGS_MAX {
        return Err(ApiError::field("tags", format!("must have at most {}", limits::TAGS_MAX)));
    }
    let profile = match fields.take::<String>("profile")? {
        None => Profile::default(),
        Some(word) => {
            Profile::parse(&word).ok_or_else(|| ApiError::field("profile", "must be lan, wan or metered"))?
        }
    };
    let role = match fields.take::<String>("role")?.as_deref() {
        None | Some("worker") => Role::Worker,
        Some("viewer") => Role::Viewer,
        Some(_) => return Err(ApiError::field("role", "must be worker or viewer")),
    };
    let region: Option<String> = fields.take("region")?;
    if region.as_ref().is_some_and(|r| r.len() > limits::TEXT_MAX) {
        return Err(ApiError::field("region", format!("must be at most {} bytes", limits::TEXT_MAX)));
    }
    let node = NodeSpec {
        name: fields.take("name")?.ok_or_else(|| ApiError::field("name", "is required"))?,
        tags,
        slots: fields.number("maxConcurrentTasks", 1, limits::CONCURRENT_MAX.into())?.map_or(1, |n| n as u32),
        profile,
        role,
        region,
    };
    let ttl_ms = fields.number("ttlMs", 1, limits::INVITE_TTL_S_MAX * 1000)?.unwrap_or(INVITE_MS);
    fields.end()?;
    match state.ask(&actor, Request::Invite { node, ttl_ms }).await? {
        Answer::Ticket { ticket, expires_ms } => Ok(Json(json!({"ticket": ticket, "expiresAt": expires_ms}))),
        _ => Err(mismatch()),
    }
}

async fn fleet(state: &ApiState, actor: &Actor, request: Request) -> Result<Json<Value>, ApiError> {
    match state.ask(actor, request).await? {
        Answer::Fleet { halted, cancelled } => Ok(Json(json!({"halted": halted, "cancelled": cancelled}))),
        _ => Err(mismatch()),
    }
}

pub(super) async fn halt(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
) -> Result<Json<Value>, ApiError> {
    fleet(&state, &actor, Request::Halt).await
}

pub(super) async fn resume(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
) -> Result<Json<Value>, ApiError> {
    fleet(&state, &actor, Request::Resume).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rows {
    actor: Option<String>,
    target: Option<String>,
    code: Option<String>,
    since: Option<u64>,
    cursor: Option<u64>,
    limit: Option<usize>,
}

pub(super) async fn audit(
    State(state): State<ApiState>,
    rows: Result<Query<Rows>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let rows = query(rows)?;
    let limit = rows.limit.unwrap_or(50).clamp(1, limits::PAGE_MAX);
    let is = |wanted: &Option<String>, found: &String| wanted.as_ref().is_none_or(|wanted| wanted == found);
    let wanted = |row: &AuditRecord| {
        let late = rows.since.is_none_or(|since| row.at_ms >= since);
        late && is(&rows.actor, &row.actor) && is(&rows.target, &row.target) && is(&rows.code, &row.code)
    };
    let before = rows.cursor.unwrap_or(u64::MAX);
    let found = state.read(|view| view.audit_before(before, limit, wanted)).await?;
    let next = found.last().filter(|_| found.len() == limit).map(|(id, _)| *id);
    let shown: Vec<Value> = found
        .iter()
        .map(|(id, row)| {
            json!({"id": id, "at": row.at_ms, "actor": row.actor, "action": row.action, "target": row.target,
                   "result": row.result, "code": row.code, "detail": row.detail})
        })
        .collect();
    Ok(Json(json!({"audit": shown, "nextCursor": next})))
}
