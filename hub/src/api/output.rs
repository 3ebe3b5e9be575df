//! `/v1/tasks/{id}/output`: the raw bytes that a job wrote, as they are.

use super::ApiState;
use super::error::ApiError;
use super::tasks::{id, query};
use crate::core::task::End;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use dunlin_wire::job::Stream;
use serde::Deserialize;

/// Bytes of one answer at most; `X-Dunlin-Next` says where to go on.
const BYTES_MAX: usize = 4 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    pub(super) attempt: Option<u32>,
    stream: Option<String>,
    pub(super) offset: Option<u64>,
}

pub(super) async fn get(
    State(state): State<ApiState>,
    Path(text): Path<String>,
    wanted: Result<Query<Wanted>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let wanted = query(wanted)?;
    let id = id(&text)?;
    let stream = stream_of(&wanted)?;
    let task = state.read(|view| view.task(&id)).await?.ok_or_else(|| ApiError::not_found("task", &text))?;
    let attempt = match wanted.attempt {
        None => task.attempts.last(),
        Some(n) => task.attempts.iter().rev().find(|a| a.number == n),
    };
    let range = range(&headers);
    let Some(attempt) = attempt else {
        if let Some(n) = wanted.attempt {
            return Err(ApiError::not_found("attempt", &n.to_string()));
        }
        return answer(StatusCode::OK, Vec::new(), 0, 0, true, 0);
    };
    let fence = attempt.fence;
    let held = state.read(|view| view.output_len(fence, stream)).await?;
    let (from, until) = match range {
        Some((from, until)) => (from, until.map_or(held, |u| held.min(u + 1))),
        None => (wanted.offset.unwrap_or(0), held),
    };
    if range.is_some() && from >= held {
        let message = format!("{held} bytes are held");
        return Err(ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", message));
    }
    let want = until.saturating_sub(from).min(BYTES_MAX as u64) as usize;
    let bytes = match want {
        0 => Vec::new(),
        want => state.read(|view| view.output(fence, stream, from, want)).await?,
    };
    let truncated = match &attempt.end {
        Some(End::Reported(report)) => report.streams[stream as usize].truncated,
        Some(End::Lost(_)) | None => 0,
    };
    let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    answer(status, bytes, from, held, attempt.end.is_none(), truncated)
}

pub(super) fn stream_of(wanted: &Wanted) -> Result<Stream, ApiError> {
    match wanted.stream.as_deref() {
        None | Some("stdout") => Ok(Stream::Stdout),
        Some("stderr") => Ok(Stream::Stderr),
        Some(_) => Err(ApiError::field("stream", "must be stdout or stderr")),
    }
}

fn answer(
    status: StatusCode,
    bytes: Vec<u8>,
    from: u64,
    held: u64,
    live: bool,
    truncated: u64,
) -> Result<Response, ApiError> {
    let next = from + bytes.len() as u64;
    let mut response = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::ACCEPT_RANGES, "bytes")
        .header("x-content-type-options", "nosniff")
        .header("x-dunlin-live", live.to_string())
        .header("x-dunlin-next", next)
        .header("x-dunlin-held", held)
        .header("x-dunlin-truncated", truncated);
    if status == StatusCode::PARTIAL_CONTENT {
        response =
            response.header(header::CONTENT_RANGE, format!("bytes {from}-{}/{held}", next.saturating_sub(1)));
    }
    response.body(Body::from(bytes)).map_err(|_| super::mismatch())
}

/// `bytes=A-` or `bytes=A-B`; other forms are ignored, as RFC 9110 section 14.2 allows.
fn range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(header::RANGE)?.to_str().ok()?.strip_prefix("bytes=")?;
    let (from, until) = text.split_once('-')?;
    let until = if until.is_empty() { None } else { Some(until.parse().ok()?) };
    Some((from.parse().ok()?, until))
}
