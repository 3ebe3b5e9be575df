//! `/v1/tasks`, `/v1/dlq`, and what sums them up.

use super::auth::Actor;
use super::error::ApiError;
use super::{ApiState, body, mismatch};
use crate::core::task::State as TaskState;
use crate::event::{Answer, Request};
use crate::store::{SPENT, TaskFilter};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::StatusCode;
use axum::{Json, response::IntoResponse, response::Response};
use dunlin_wire::{TaskId, limits::PAGE_MAX};
use serde::Deserialize;
use serde_json::{Value, json};

/// Rows of a page that names no limit.
const PAGE: usize = 50;

pub(super) fn id(text: &str) -> Result<TaskId, ApiError> {
    // What cannot be an id is not there.
    text.parse().map_err(|_| ApiError::not_found("task", text))
}

/// The JSON of a request, or why it is none.
pub(super) fn json_body(body: Result<Json<Value>, JsonRejection>) -> Result<Value, ApiError> {
    match body {
        Ok(Json(value)) => Ok(value),
        Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let message = format!("the body must be at most {} bytes", dunlin_wire::limits::BODY_MAX);
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message))
        }
        Err(rejection) => Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", rejection.body_text())),
    }
}

pub(super) async fn submit(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
    request: Result<Json<Value>, JsonRejection>,
) -> Result<Response, ApiError> {
    let (id, spec) = body::submission(json_body(request)?)?;
    let request = Request::Submit { id, spec: Box::new(spec) };
    let Answer::Submitted { task, duplicate } = state.ask(&actor, request).await? else {
        return Err(mismatch());
    };
    let mut shown = body::task(&task);
    shown["duplicate"] = duplicate.into();
    let status = if duplicate { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(shown)).into_response())
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listing {
    state: Option<String>,
    status: Option<String>,
    node: Option<String>,
    tag: Option<String>,
    since: Option<u64>,
    cursor: Option<u64>,
    limit: Option<usize>,
}

pub(super) fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, ApiError> {
    query.map(|Query(q)| q).map_err(|e| ApiError::field("query", e.body_text()))
}

async fn page(
    state: &ApiState,
    listing: &Listing,
    force: Option<TaskState>,
) -> Result<Json<Value>, ApiError> {
    let wrong =
        |field: &'static str| move |e: dunlin_wire::ids::IdError| ApiError::field(field, e.to_string());
    let word = listing.state.as_deref().or(listing.status.as_deref());
    let wanted = match word {
        None => None,
        Some(word) => Some(TaskState::parse(word).ok_or_else(|| {
            ApiError::field("state", "must be queued, claimed, running, done, failed or cancelled")
        })?),
    };
    let limit = listing.limit.unwrap_or(PAGE);
    if limit == 0 || limit > PAGE_MAX {
        return Err(ApiError::field("limit", format!("must be 1 to {PAGE_MAX}")));
    }
    let filter = TaskFilter {
        state: force.or(wanted),
        node: listing.node.as_deref().map(|n| n.parse().map_err(wrong("node"))).transpose()?,
        tag: listing.tag.as_deref().map(|t| t.parse().map_err(wrong("tag"))).transpose()?,
        since_ms: listing.since,
    };
    let page = state.read(|view| view.tasks(&filter, listing.cursor, limit)).await?;
    let tasks: Vec<Value> = page.tasks.iter().map(body::task).collect();
    Ok(Json(json!({"tasks": tasks, "nextCursor": page.next})))
}

pub(super) async fn list(
    State(state): State<ApiState>,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    page(&state, &query(listing)?, None).await
}

pub(super) async fn running(
    State(state): State<ApiState>,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    page(&state, &query(listing)?, Some(TaskState::Running)).await
}

pub(super) async fn dead(
    State(state): State<ApiState>,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    page(&state, &query(listing)?, Some(TaskState::Failed)).await
}

/// Asked again and again by whoever waits for a task: so the loop is asked, which has it without a commit of the store's engine.
pub(super) async fn show(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
    Path(text): Path<String>,
) -> Result<Json<Value>, ApiError> {
    task(&state, &actor, Request::Task(id(&text)?)).await
}

pub(super) async fn dead_one(
    State(state): State<ApiState>,
    Path(text): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let id = id(&text)?;
    let task = state.read(|view| view.task(&id)).await?.filter(|t| t.state == TaskState::Failed);
    task.map(|t| Json(body::task(&t))).ok_or_else(|| ApiError::not_found("dead-letter entry", &text))
}

/// Asks for a task.
async fn task(state: &ApiState, actor: &Actor, request: Request) -> Result<Json<Value>, ApiError> {
    match state.ask(actor, request).await? {
        Answer::Task(task) => Ok(Json(body::task(&task))),
        _ => Err(mismatch()),
    }
}

pub(super) async fn cancel(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
    Path(text): Path<String>,
) -> Result<Json<Value>, ApiError> {
    task(&state, &actor, Request::Cancel(id(&text)?)).await
}

pub(super) async fn retry(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
    Path(text): Path<String>,
) -> Result<Json<Value>, ApiError> {
    task(&state, &actor, Request::Retry(id(&text)?)).await
}

pub(super) async fn why(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
    Path(text): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let Answer::Why(why) = state.ask(&actor, Request::Why(id(&text)?)).await? else { return Err(mismatch()) };
    let reasons: Vec<Value> =
        why.reasons.iter().map(|(code, text)| json!({"code": code, "message": text})).collect();
    Ok(Json(json!({"taskId": text, "status": why.state.as_str(), "reasons": reasons})))
}

/// Totals. The ratio is null as long as nothing has ended.
pub(super) async fn summary(State(state): State<ApiState>) -> Result<Json<Value>, ApiError> {
    let counts = state
        .read(|view| {
            TaskState::ALL.into_iter().map(|s| Ok((s, view.count_in(s)?))).collect::<Result<Vec<_>, _>>()
        })
        .await?;
    let of = |state| counts.iter().find(|(s, _)| *s == state).map_or(0, |(_, n)| *n);
    let (done, failed) = (of(TaskState::Done), of(TaskState::Failed));
    let ratio = (done + failed > 0).then(|| done as f64 / (done + failed) as f64);
    let by_state: serde_json::Map<String, Value> =
        counts.iter().map(|(s, n)| (s.as_str().to_owned(), (*n).into())).collect();
    let total: u64 = counts.iter().map(|(_, n)| n).sum();
    let (tokens, cost) = state.read(|view| view.meta::<(u64, u64)>(SPENT)).await?.unwrap_or_default();
    Ok(Json(json!({"total": total, "byState": by_state, "successRatio": ratio,
                   "tokensUsed": tokens, "costUnits": cost})))
}

/// Queued tasks by priority.
pub(super) async fn depth(
    State(state): State<ApiState>,
    Extension(actor): Extension<Actor>,
) -> Result<Json<Value>, ApiError> {
    let Answer::Metrics(figures) = state.ask(&actor, Request::Metrics).await? else { return Err(mismatch()) };
    let by: Vec<Value> =
        figures.queued.iter().rev().map(|(p, n)| json!({"priority": p, "queued": n})).collect();
    Ok(Json(json!({"queued": figures.queued.values().sum::<u64>(), "byPriority": by})))
}
