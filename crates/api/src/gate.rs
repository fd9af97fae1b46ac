//! Who is answered now, who waits, and who is sent away. It must never hold a body without having counted its bytes.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::StatusCode;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::ServerConfig;
use crate::error::ApiError;
use crate::metrics::{Endpoint, Metrics, Outcome};

/// When to try again after a refusal: a turn is rarely shorter.
const RETRY_AFTER_S: u32 = 1;
/// Longest that a refused body is read and thrown away, so that its sender hears why before the connection closes.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);

/// The counted places of a server.
pub(crate) struct Gate {
    places: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    config: ServerConfig,
    metrics: Arc<Metrics>,
}

/// A request's place: in line at first, then answered. Dropping it makes room.
pub(crate) struct Ticket {
    /// When the request must be over.
    pub deadline: Instant,
    pub metrics: Arc<Metrics>,
    endpoint: Endpoint,
    outcome: Outcome,
    turns: Arc<Semaphore>,
    held: Vec<OwnedSemaphorePermit>,
}

impl Gate {
    pub fn new(config: ServerConfig, metrics: Arc<Metrics>) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        let places = semaphore(config.requests_max.saturating_add(config.waiting_max));
        let (turns, bytes) = (semaphore(config.requests_max), semaphore(config.bodies_bytes_max as usize));
        Self { places, turns, bytes, config, metrics }
    }

    /// Requests that are answered, and those that wait or are being read.
    pub fn under_way(&self) -> (usize, usize) {
        let active = self.config.requests_max.saturating_sub(self.turns.available_permits());
        let places = self.config.requests_max.saturating_add(self.config.waiting_max);
        (active, places.saturating_sub(self.places.available_permits()).saturating_sub(active))
    }

    /// A place in line and the body, or why neither.
    pub async fn admit(&self, endpoint: Endpoint, body: Body) -> Result<(Ticket, Vec<u8>), ApiError> {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            self.metrics.refused_busy();
            discard(body, self.config.body_bytes_max).await;
            return Err(ApiError::busy("Too many requests are waiting: try again later.", RETRY_AFTER_S));
        };
        let deadline = Instant::now() + self.config.request_time_max;
        let (metrics, turns) = (self.metrics.clone(), self.turns.clone());
        let mut ticket = Ticket { deadline, metrics, endpoint, outcome: Outcome::Cancelled, turns, held: vec![place] };
        match self.read(&mut ticket, body).await {
            Ok(bytes) => Ok((ticket, bytes)),
            Err(error) => Err(ticket.refuse(error)),
        }
    }

    /// Reads a body within the bounds, and keeps its bytes counted until the request is over.
    async fn read(&self, ticket: &mut Ticket, body: Body) -> Result<Vec<u8>, ApiError> {
        let bytes_max = self.config.body_bytes_max;
        let announced = body.size_hint().exact();
        if announced.is_some_and(|bytes| bytes > u64::from(bytes_max)) {
            discard(body, bytes_max).await;
            return Err(too_large(bytes_max));
        }
        let reserve = announced.map_or(bytes_max, |bytes| bytes as u32);
        let permits = timeout_at(ticket.deadline, self.bytes.clone().acquire_many_owned(reserve)).await;
        let Ok(Ok(mut permits)) = permits else {
            self.metrics.refused_busy();
            return Err(ApiError::busy("Too many requests are waiting: try again later.", RETRY_AFTER_S));
        };
        let Ok(read) = timeout(self.config.body_time_max, collect(body, bytes_max)).await else {
            let message = "The body did not arrive in time.";
            return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message));
        };
        let bytes = read?;
        drop(permits.split((reserve as usize).saturating_sub(bytes.len())));
        ticket.held.push(permits);
        Ok(bytes)
    }
}

impl Ticket {
    /// Waits until it is this request's turn. Those that came first go first.
    pub async fn turn(&mut self) -> Result<(), ApiError> {
        match timeout_at(self.deadline, self.turns.clone().acquire_owned()).await {
            Ok(Ok(turn)) => {
                self.held.push(turn);
                Ok(())
            }
            _ => {
                self.metrics.refused_busy();
                Err(ApiError::busy("The request waited too long for its turn: try again later.", RETRY_AFTER_S))
            }
        }
    }

    /// The request has its answer.
    pub fn answered(mut self) {
        self.outcome = Outcome::Answered;
    }

    /// The request has none.
    pub fn refuse(mut self, error: ApiError) -> ApiError {
        self.outcome = if error.status.is_server_error() { Outcome::Failed } else { Outcome::Refused };
        error
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.metrics.over(self.endpoint, self.outcome);
    }
}

fn too_large(bytes_max: u32) -> ApiError {
    let message = format!("The body is longer than the {bytes_max} bytes that this server reads.");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
}

/// Memory grows with what arrives, not with what was announced.
async fn collect(body: Body, bytes_max: u32) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, None, format!("The body broke off: {error}.")))?;
        if bytes.len() + chunk.len() > bytes_max as usize {
            discard(Body::from_stream(chunks), bytes_max).await;
            return Err(too_large(bytes_max));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Reads a refused body to no end: a connection that closes with bytes unread loses the answer on its way.
async fn discard(body: Body, bytes_max: u32) {
    let mut left = u64::from(bytes_max) * 4;
    let mut chunks = body.into_data_stream();
    let read = async {
        while let Some(Ok(chunk)) = chunks.next().await {
            left = left.saturating_sub(chunk.len() as u64);
            if left == 0 {
                return;
            }
        }
    };
    // Late or not, the refusal follows.
    let _ = timeout(DISCARD_TIME_MAX, read).await;
}
