//! `/v1/events`: server-sent events, without gaps, resumable by `Last-Event-ID`, also after a restart of the hub.

use super::ApiState;
use super::error::ApiError;
use super::tasks::query;
use crate::event::EventRecord;
use crate::feed;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

/// Events read from the store at once; a slow reader makes the hub hold no more than this.
const BATCH: usize = 200;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    since: Option<u64>,
}

fn shown(id: u64, event: &EventRecord) -> Value {
    let mut value = json!({"id": id, "at": event.at_ms, "kind": event.kind});
    let texts = [
        ("taskId", event.task.as_ref().map(|t| t.to_string())),
        ("nodeId", event.node.as_ref().map(|n| n.to_string())),
        ("detail", event.detail.clone()),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            value[name] = text.into();
        }
    }
    if let Some(attempt) = event.attempt {
        value["attempt"] = attempt.into();
    }
    value
}

/// What a stream goes on from.
struct Reader {
    state: ApiState,
    last: u64,
    ready: VecDeque<Event>,
}

pub(super) async fn stream(
    State(state): State<ApiState>,
    from: Result<Query<From>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let from = query(from)?;
    let header = headers.get("last-event-id").and_then(|v| v.to_str().ok()).and_then(|t| t.parse().ok());
    let newest = *state.newest.borrow();
    let last = header.or(from.since).unwrap_or(newest);
    let wants_json = headers
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|a| a.starts_with("application/json"));
    if wants_json {
        let events = state.read(|view| view.events_after(last, BATCH)).await?;
        let list: Vec<Value> = events.iter().map(|(id, e)| shown(*id, e)).collect();
        return Ok(Json(json!({"events": list, "newest": newest})).into_response());
    }
    let mut reader = Reader { state, last, ready: VecDeque::new() };
    // A newer hub's id after a restore, or one from the future: there is nothing to resume.
    if last > newest {
        reader.last = newest;
        reader.ready.push_back(gap(last, newest));
    }
    let events = futures_util::stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok::<_, Infallible>(event), reader))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

fn gap(after: u64, until: u64) -> Event {
    let text = json!({"kind": "gap", "after": after, "until": until}).to_string();
    Event::default().event("gap").data(text)
}

impl Reader {
    async fn after(&self) -> Option<Vec<feed::Numbered>> {
        match self.state.feed.after(self.last, BATCH) {
            Some(events) => Some(events),
            None => {
                let events = self.state.read(|view| view.events_after(self.last, BATCH)).await.ok()?;
                Some(events.into_iter().map(|(id, event)| (id, Arc::new(event))).collect())
            }
        }
    }

    /// The next event; `None` when the hub stops.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            // Seen before the read, so that what is committed after it wakes us.
            self.state.newest.borrow_and_update();
            let events = self.after().await?;
            if events.is_empty() {
                self.state.newest.changed().await.ok()?;
                continue;
            }
            for (id, event) in &events {
                if *id > self.last + 1 {
                    self.ready.push_back(gap(self.last, id - 1));
                }
                self.last = *id;
                let text = shown(*id, event).to_string();
                self.ready.push_back(Event::default().id(id.to_string()).event(&event.kind).data(text));
            }
        }
    }
}
