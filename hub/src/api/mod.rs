//! The HTTP API. Reads go to the store; whatever changes something is one event into the loop, answered after its
//! commit.

mod auth;
mod body;
mod error;
mod events;
mod follow;
mod history;
mod kinds;
mod listen;
mod metrics;
mod nodes;
mod output;
mod overlays;
mod signed;
mod tasks;
mod telemetry;
mod tls;

pub use listen::TlsListener;
pub use tls::{Tls, TlsError};

use crate::event::{Answer, Event, Request};
use crate::feed::Feed;
use crate::store::{Store, StoreError, Token, View};
use auth::{Actor, RateLimits};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::serve::Listener;
use axum::{Json, Router, middleware};
use dunlin_wire::limits::BODY_MAX;
use error::ApiError;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot, watch};

/// What every handler can reach.
#[derive(Clone)]
pub struct ApiState {
    store: Arc<Store>,
    tokens: Arc<[Token]>,
    events: mpsc::Sender<Event>,
    feed: Arc<Feed>,
    newest: watch::Receiver<u64>,
    limits: Arc<RateLimits>,
    requests: Arc<[AtomicU64; 6]>,
}

impl ApiState {
    /// `tokens` are let in, `events` leads into the loop, `feed` tells what happened there.
    pub fn new(
        store: Arc<Store>,
        events: mpsc::Sender<Event>,
        feed: Arc<Feed>,
        tokens: Vec<Token>,
        rate_per_s: u32,
        burst: u32,
    ) -> Self {
        let limits = Arc::new(RateLimits::new(rate_per_s, burst));
        let newest = feed.newest();
        Self { store, tokens: tokens.into(), events, feed, newest, limits, requests: Arc::default() }
    }

    /// Reads what is acknowledged.
    async fn read<T>(&self, f: impl FnOnce(View<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        if let Some(acknowledged) = self.store.behind() {
            // When the loop's inbox is full, it is awake.
            let _ = self.events.try_send(Event::Read);
            self.store.caught_up(acknowledged).await?;
        }
        self.store.read(f)
    }

    /// Asks the loop.
    async fn ask(&self, actor: &Actor, request: Request) -> Result<Answer, ApiError> {
        let (reply, answer) = oneshot::channel();
        let event = Event::Api { actor: actor.0.clone(), request, reply };
        self.events.send(event).await.map_err(|_| ApiError::unavailable())?;
        Ok(answer.await.map_err(|_| ApiError::unavailable())??)
    }
}

/// The answer was of another kind than the question: a fault of ours.
fn mismatch() -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the hub answered another question")
}

/// All routes.
pub fn router(state: ApiState) -> Router {
    let guarded = Router::new()
        .route("/v1/tasks", post(tasks::submit).get(tasks::list))
        .route("/v1/tasks/running", get(tasks::running))
        .route("/v1/tasks/{id}", get(tasks::show))
        .route("/v1/tasks/{id}/cancel", post(tasks::cancel))
        .route("/v1/tasks/{id}/retry", post(tasks::retry))
        .route("/v1/tasks/{id}/why", get(tasks::why))
        .route("/v1/tasks/{id}/output", get(output::get))
        .route("/v1/tasks/{id}/output/follow", get(follow::get))
        .route("/v1/dlq", get(tasks::dead))
        .route("/v1/dlq/{id}", get(tasks::dead_one))
        .route("/v1/runs/summary", get(tasks::summary))
        .route("/v1/queue-depth", get(tasks::depth))
        .route("/v1/nodes", get(nodes::list))
        .route("/v1/nodes/{name}", get(nodes::show))
        .route("/v1/nodes/{name}/metrics", get(history::get))
        .route("/v1/nodes/{name}/drain", post(nodes::drain))
        .route("/v1/nodes/{name}/undrain", post(nodes::undrain))
        .route("/v1/nodes/{name}/revoke", post(nodes::revoke))
        .route("/v1/nodes/{name}/report-down", post(nodes::report_down))
        .route("/v1/invites", post(nodes::invite))
        .route("/v1/keys", post(signed::push_keys))
        .route("/v1/policy", post(overlays::push))
        .route("/v1/fleet/halt", post(nodes::halt))
        .route("/v1/fleet/resume", post(nodes::resume))
        .route("/v1/audit", get(nodes::audit))
        .route("/v1/events", get(events::stream))
        .route("/metrics", get(metrics::text))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is no such path"))
        .method_not_allowed_fallback(async || {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this path does not take that method",
            )
        })
        .layer(middleware::from_fn_with_state(state.clone(), auth::check));
    Router::new()
        .route("/health", get(health))
        .merge(guarded)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::map_response_with_state(state.clone(), count))
        .with_state(state)
}

async fn count(
    State(state): State<ApiState>,
    response: axum::response::Response,
) -> axum::response::Response {
    let class = usize::from(response.status().as_u16() / 100).min(5);
    state.requests[class].fetch_add(1, Ordering::Relaxed);
    response
}

/// Says only that the hub is there: it needs no token.
async fn health(State(state): State<ApiState>) -> Result<Json<Value>, ApiError> {
    let answer = state.ask(&Actor("health".into()), Request::Metrics).await?;
    let Answer::Metrics(figures) = answer else { return Err(mismatch()) };
    Ok(Json(json!({"status": "ok", "version": env!("CARGO_PKG_VERSION"), "halted": figures.halted})))
}

/// Serves until `stop` is over.
///
/// # Errors
/// The listener's.
pub async fn serve<L: Listener<Addr = SocketAddr>>(
    listener: L,
    state: ApiState,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(state)).with_graceful_shutdown(stop).await
}
