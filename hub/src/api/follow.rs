//! `/v1/tasks/{id}/output/follow`: one stream of an attempt as it is written, as server-sent events.
//!
//! What is stored is read from the store; what a board sends only to be seen comes from the engine. An event has bytes, says
//! how many were not seen, or says how the attempt ended; then the stream ends. A reader that does not read makes nobody wait
//! but the board's live output.

use super::error::ApiError;
use super::output::{Wanted, stream_of};
use super::tasks::{id, query};
use super::{ApiState, body};
use crate::core::task::{Attempt, End};
use crate::event::{Event as Told, Followed, Piece};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use data_encoding::BASE64;
use dunlin_wire::job::Stream;
use dunlin_wire::{Fence, TaskId};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use tokio::sync::mpsc;

/// Bytes of one event at most.
const BYTES_MAX: u64 = 48 * 1024;
/// Pieces that may wait for a reader. With the size of a piece this bounds its memory.
const PIECES_MAX: usize = 64;

struct Follower {
    state: ApiState,
    id: TaskId,
    number: Option<u32>,
    stream: Stream,
    /// Position in what the job wrote.
    next: u64,
    live: Option<Live>,
    ready: VecDeque<Event>,
    over: bool,
}

/// The engine's end, while the attempt runs.
struct Live {
    state: ApiState,
    at: (Fence, Stream),
    shared: Followed,
    pieces: mpsc::Receiver<Piece>,
}

impl Live {
    fn took(&self) {
        // When the engine's inbox is full this is lost; the next piece or its end makes up for it.
        let (fence, stream) = self.at;
        let _ = self.state.events.try_send(Told::Taken { fence, stream });
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.pieces.close();
        self.took();
    }
}

pub(super) async fn get(
    State(state): State<ApiState>,
    Path(text): Path<String>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, ApiError> {
    let wanted = query(wanted)?;
    let id = id(&text)?;
    let stream = stream_of(&wanted)?;
    if state.read(|view| view.task(&id)).await?.is_none() {
        return Err(ApiError::not_found("task", &text));
    }
    let (number, next) = (wanted.attempt, wanted.offset.unwrap_or(0));
    let follower =
        Follower { state, id, number, stream, next, live: None, ready: VecDeque::new(), over: false };
    let events = futures_util::stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

impl Follower {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            // Seen before the read, so that what is committed after it wakes us.
            self.state.newest.borrow_and_update();
            let task = self.state.read(|view| view.task(&self.id)).await.ok()??;
            let attempt = match self.number {
                None => task.attempts.last(),
                Some(number) => task.attempts.iter().find(|a| a.number == number),
            };
            let Some(attempt) = attempt else {
                if task.state.is_terminal() || self.number.is_some_and(|n| n <= task.attempt) {
                    self.end(None);
                } else {
                    self.state.newest.changed().await.ok()?;
                }
                continue;
            };
            self.number = Some(attempt.number);
            match &attempt.end {
                Some(_) => self.rest(attempt).await?,
                None => self.wait(attempt.fence).await?,
            }
        }
    }

    /// What is stored of an attempt that goes on, or the next piece of it.
    async fn wait(&mut self, fence: Fence) -> Option<()> {
        let at = (fence, self.stream);
        if self.live.as_ref().is_none_or(|live| live.at != at) {
            let (sink, pieces) = mpsc::channel(PIECES_MAX);
            let by = Followed::new(sink);
            let live = Live { state: self.state.clone(), at, shared: by.clone(), pieces };
            let (fence, stream) = at;
            self.state.events.send(Told::Follow { fence, stream, by }).await.ok()?;
            self.live = Some(live);
        }
        let held = self.state.read(|view| view.output_len(fence, self.stream)).await.ok()?;
        if held > self.next {
            return self.stored(fence, self.next, held).await;
        }
        let live = self.live.as_mut()?;
        tokio::select! {
            piece = live.pieces.recv() => match piece {
                Some(piece) => {
                    live.shared.took(&piece);
                    live.took();
                    if let Piece::Live { offset, bytes } = piece {
                        self.piece(offset, &bytes);
                    }
                }
                // The attempt is over, and the store says so in a moment; or the engine began again.
                None => {
                    self.state.newest.changed().await.ok()?;
                    self.live = None;
                }
            },
            changed = self.state.newest.changed() => changed.ok()?,
        }
        Some(())
    }

    fn piece(&mut self, offset: u64, bytes: &[u8]) {
        self.gap(offset);
        let skip = self.next.saturating_sub(offset).min(bytes.len() as u64);
        self.bytes(&bytes[skip as usize..]);
    }

    /// The rest of an attempt that has ended: kept is its head, then its tail.
    async fn rest(&mut self, attempt: &Attempt) -> Option<()> {
        self.live = None;
        let (fence, stream) = (attempt.fence, self.stream);
        let held = self.state.read(|view| view.output_len(fence, stream)).await.ok()?;
        let (head, cut) = match &attempt.end {
            Some(End::Reported(report)) => {
                let end = &report.streams[stream as usize];
                (end.head.min(held), end.truncated)
            }
            Some(End::Lost(_)) | None => (held, 0),
        };
        if self.next < head {
            return self.stored(fence, self.next, head).await;
        }
        if held > head {
            self.gap(head + cut);
            let kept = self.next - cut;
            if kept < held {
                return self.stored(fence, kept, held).await;
            }
        }
        self.end(Some(attempt));
        Some(())
    }

    /// An event of what is stored between two positions there.
    async fn stored(&mut self, fence: Fence, from: u64, until: u64) -> Option<()> {
        let want = (until - from).min(BYTES_MAX) as usize;
        let bytes = self.state.read(|view| view.output(fence, self.stream, from, want)).await.ok()?;
        // Less than there should be is an end, not a wait for ever.
        if bytes.is_empty() {
            return None;
        }
        self.bytes(&bytes);
        Some(())
    }

    fn bytes(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let data = BASE64.encode(bytes);
            self.push(json!({"stream": self.stream.as_str(), "offset": self.next, "data": data}));
            self.next += bytes.len() as u64;
        }
    }

    /// What lies before `offset` was not seen.
    fn gap(&mut self, offset: u64) {
        if offset > self.next {
            let missing = offset - self.next;
            self.push(json!({"stream": self.stream.as_str(), "offset": self.next, "gap": missing}));
            self.next = offset;
        }
    }

    fn end(&mut self, attempt: Option<&Attempt>) {
        self.over = true;
        self.push(json!({"end": attempt.map(body::attempt)}));
    }

    fn push(&mut self, value: Value) {
        self.ready.push_back(Event::default().data(value.to_string()));
    }
}
