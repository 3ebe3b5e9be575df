//! The errors of the API: a stable code, the right status, words for the operator, and nothing internal.

use crate::event::ApiRefusal;
use crate::store::StoreError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// What a caller is told.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    field: Option<String>,
    state: Option<&'static str>,
    retry_after_s: Option<u64>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), field: None, state: None, retry_after_s: None }
    }

    /// A field that is missing, unknown, or out of its range.
    pub(super) fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_field", message);
        Self { field: Some(field.into()), ..error }
    }

    /// The same in the payload of a job.
    pub(super) fn in_payload(self) -> Self {
        Self { code: "invalid_payload", ..self }
    }

    pub(super) fn not_found(what: &'static str, id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {what} `{id}`"))
    }

    pub(super) fn rate_limited(retry_after_s: u64) -> Self {
        let message = format!("too many requests with this token; try again in {retry_after_s} s");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message);
        Self { retry_after_s: Some(retry_after_s), ..error }
    }

    pub(super) fn unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "the hub is starting or stopping; try again",
        )
    }
}

impl From<ApiRefusal> for ApiError {
    fn from(refusal: ApiRefusal) -> Self {
        let message = refusal.to_string();
        let status = match &refusal {
            ApiRefusal::UnknownTask(_) | ApiRefusal::UnknownNode(_) => StatusCode::NOT_FOUND,
            ApiRefusal::TaskExists(_)
            | ApiRefusal::IllegalMove { .. }
            | ApiRefusal::NodeExists(_)
            | ApiRefusal::OldKeySet { .. } => StatusCode::CONFLICT,
            ApiRefusal::NoKeySet => StatusCode::BAD_REQUEST,
            ApiRefusal::Actuation(_) => StatusCode::FORBIDDEN,
            ApiRefusal::QueueFull(_) | ApiRefusal::StoreFailed => StatusCode::SERVICE_UNAVAILABLE,
            ApiRefusal::StorageFull => StatusCode::INSUFFICIENT_STORAGE,
        };
        let code = refusal.code();
        let state = match refusal {
            ApiRefusal::IllegalMove { state, .. } => Some(state.as_str()),
            _ => None,
        };
        Self { state, ..Self::new(status, code, message) }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "a read for the API failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the store could not be read; see the hub's log",
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(field) = self.field {
            error["field"] = field.into();
        }
        if let Some(state) = self.state {
            error["state"] = state.into();
        }
        let mut response = (self.status, Json(json!({"error": error}))).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
