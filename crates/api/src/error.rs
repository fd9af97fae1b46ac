//! Refusals, in the shape and with the status codes that OpenAI's clients expect. It must never tell a client of our files or memory.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::engine::EngineError;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub message: String,
    pub param: Option<String>,
    pub code: Option<&'static str>,
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    pub fn new(status: StatusCode, code: impl Into<Option<&'static str>>, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: code.into(), retry_after_s: None }
    }

    /// A field with a value that cannot be.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, "invalid_value", message) }
    }

    /// A field that must be there.
    pub fn missing(param: &'static str) -> Self {
        let message = format!("Missing required parameter: '{param}'.");
        Self { param: Some(param.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, "missing_required_parameter", message) }
    }

    /// A field that asks for what is not built: ignoring it would answer another question.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, "unsupported_parameter", message) }
    }

    /// No model of that name.
    pub fn unknown_model(model: &str) -> Self {
        let message = format!("The model {model:?} does not exist: see /v1/models.");
        Self { param: Some("model".to_owned()), ..Self::new(StatusCode::NOT_FOUND, "model_not_found", message) }
    }

    /// Too much is under way.
    pub fn busy(message: impl Into<String>, retry_after_s: u32) -> Self {
        let busy = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
        Self { retry_after_s: Some(retry_after_s), ..busy }
    }

    /// The request took longer than it may.
    pub fn late() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "request_timeout", "The request took longer than this server allows: ask for fewer tokens.")
    }

    /// A mistake of ours or of the engine's.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// Its class, which OpenAI's documents tell apart.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body, also of an event in the middle of a stream.
    pub fn body(&self) -> Value {
        json!({ "error": { "message": self.message, "type": self.kind(), "param": self.param, "code": self.code } })
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Refused { param, .. } => Self { param, ..Self::new(StatusCode::BAD_REQUEST, "invalid_value", message) },
            EngineError::TooLong { .. } => Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message),
            EngineError::UnknownModel(model) => Self::unknown_model(&model),
            EngineError::Busy { retry_after_s } => Self::busy(message, retry_after_s),
            EngineError::Gone(_) => {
                let gone = Self::new(StatusCode::SERVICE_UNAVAILABLE, "engine_unavailable", message);
                Self { retry_after_s: Some(1), ..gone }
            }
            EngineError::Failed(_) => {
                tracing::warn!("{message}");
                Self::internal(message)
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let mut insert = |name: HeaderName, value: HeaderValue| response.headers_mut().insert(name, value);
        if let Some(seconds) = self.retry_after_s {
            insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
