//! The paths and what answers at each. It must never answer in another shape than OpenAI's, whatever was asked.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde_json::{Value, json};
use tokio::time::timeout_at;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;

use crate::answer::{Head, Shape, embedding, now_unix_s};
use crate::choices::Choices;
use crate::config::ServerConfig;
use crate::engine::{Engine, ModelCard, ModelKind, Prompt};
use crate::error::ApiError;
use crate::gate::{Gate, Ticket};
use crate::guard;
use crate::metrics::{Endpoint, Metrics};
use crate::request::{self, EmbeddingBody, Job, conversation, parse};
use crate::sse::Telling;

/// What every handler has.
pub(crate) struct Shared {
    pub engine: Arc<dyn Engine>,
    pub config: ServerConfig,
    /// Whether only this machine can reach the listener.
    pub loopback: bool,
    gate: Gate,
    metrics: Arc<Metrics>,
}

impl Shared {
    pub fn new(engine: Arc<dyn Engine>, config: ServerConfig, loopback: bool) -> Self {
        let metrics = Arc::new(Metrics::default());
        Self { gate: Gate::new(config.clone(), metrics.clone()), engine, config, loopback, metrics }
    }

    fn card(&self, model: Option<&str>) -> Result<ModelCard, ApiError> {
        let model = model.ok_or_else(|| ApiError::missing("model"))?;
        self.engine.models().into_iter().find(|card| card.id == model).ok_or_else(|| ApiError::unknown_model(model))
    }
}

/// The whole endpoint. Layers run from the last to the first.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/embeddings", post(embeddings))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(CatchPanicLayer::custom(|_| ApiError::internal("The server failed.").into_response()))
        .layer(middleware::from_fn_with_state(shared.clone(), guard::key))
        .layer(cors(&shared.config))
        .layer(middleware::from_fn_with_state(shared.clone(), guard::host))
        .with_state(shared)
}

/// Says to browsers which pages may read answers: none, unless the configuration names them.
fn cors(config: &ServerConfig) -> CorsLayer {
    if config.origins.is_empty() {
        return CorsLayer::new();
    }
    let origins: Vec<HeaderValue> = config.origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE])
        .expose_headers([header::RETRY_AFTER])
}

async fn models(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let cards: Vec<Value> = shared.engine.models().iter().map(model_json).collect();
    Json(json!({ "object": "list", "data": cards }))
}

async fn model(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    Ok(Json(model_json(&shared.card(Some(&id))?)))
}

async fn completions(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    require_json(&headers)?;
    let (mut ticket, bytes) = shared.gate.admit(Endpoint::Completions, body).await?;
    let job = completion_job(&shared, bytes, &mut ticket).await;
    answer(&shared, Shape::Completion, job, ticket).await
}

async fn chat(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    require_json(&headers)?;
    let (mut ticket, bytes) = shared.gate.admit(Endpoint::Chat, body).await?;
    let job = chat_job(&shared, bytes, &mut ticket).await;
    answer(&shared, Shape::Chat, job, ticket).await
}

/// Reads the request, then waits for its turn.
async fn completion_job(shared: &Shared, bytes: Vec<u8>, ticket: &mut Ticket) -> Result<Job, ApiError> {
    let body: request::Body = parse(&bytes)?;
    drop(bytes);
    let job = Job::completion(generating(shared, body.model.as_deref())?, body)?;
    ticket.turn().await?;
    Ok(job)
}

/// The same, and then writes the conversation down. Templates are small programs: they run where they hold no one up.
async fn chat_job(shared: &Shared, bytes: Vec<u8>, ticket: &mut Ticket) -> Result<Job, ApiError> {
    let mut body: request::Body = parse(&bytes)?;
    drop(bytes);
    body.refuse_unsupported()?;
    let card = generating(shared, body.model.as_deref())?;
    let messages = conversation(body.messages.take())?;
    let template = shared.engine.chat_template(&card.id).ok_or_else(|| {
        let message = format!("The model {:?} has no chat template: use /v1/completions.", card.id);
        ApiError::new(StatusCode::BAD_REQUEST, "no_chat_template", message)
    })?;
    let job = Job::chat(card, &body, template.stops())?;
    ticket.turn().await?;
    let add_special = template.add_special();
    let rendered = tokio::task::spawn_blocking(move || template.render(&messages, true, now_unix_s() as i64)).await;
    let rendered = rendered.map_err(|_| ApiError::internal("The chat template failed."))?;
    let text = rendered.map_err(|error| ApiError::invalid("messages", error.to_string()))?;
    Ok(job.with_prompt(Prompt::Text { text, add_special }))
}

async fn answer(shared: &Shared, shape: Shape, job: Result<Job, ApiError>, ticket: Ticket) -> Result<Response, ApiError> {
    let job = match job {
        Ok(job) => Arc::new(job),
        Err(error) => return Err(ticket.refuse(error)),
    };
    let head = Head::new(shape, &job.card);
    let mut choices = Choices::open(shared.engine.clone(), job.clone(), ticket.metrics.clone());
    if job.stream {
        return match timeout_at(ticket.deadline, Telling::begin(&job, head, choices)).await.unwrap_or(Err(ApiError::late())) {
            Ok(telling) => Ok(telling.respond(ticket)),
            Err(error) => Err(ticket.refuse(error)),
        };
    }
    match timeout_at(ticket.deadline, choices.collect(job.scored())).await.unwrap_or(Err(ApiError::late())) {
        Ok(parts) => {
            ticket.answered();
            Ok(Json(head.whole(&parts, job.scored(), choices.usage())).into_response())
        }
        Err(error) => Err(ticket.refuse(error)),
    }
}

async fn embeddings(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Body) -> Result<Json<Value>, ApiError> {
    require_json(&headers)?;
    let (mut ticket, bytes) = shared.gate.admit(Endpoint::Embeddings, body).await?;
    match embedded(&shared, bytes, &mut ticket).await {
        Ok(answer) => {
            ticket.answered();
            Ok(Json(answer))
        }
        Err(error) => Err(ticket.refuse(error)),
    }
}

async fn embedded(shared: &Shared, bytes: Vec<u8>, ticket: &mut Ticket) -> Result<Value, ApiError> {
    let body: EmbeddingBody = parse(&bytes)?;
    drop(bytes);
    let card = shared.card(body.model.as_deref())?;
    let (embed, encoding) = body.embed(&card)?;
    ticket.turn().await?;
    let inputs = embed.inputs.len();
    let embeddings = timeout_at(ticket.deadline, shared.engine.embed(embed)).await.map_err(|_| ApiError::late())??;
    if embeddings.vectors.len() != inputs {
        return Err(ApiError::internal(format!("The engine gave {} vectors for {inputs} inputs.", embeddings.vectors.len())));
    }
    let prompt_tokens = embeddings.prompt_tokens;
    ticket.metrics.prompt(&crate::engine::Usage { prompt_tokens, ..Default::default() });
    Ok(embedding::whole(&card.id, &embeddings, encoding))
}

async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], shared.metrics.page(shared.gate.under_way()))
}

async fn unknown_path(method: Method, uri: Uri) -> ApiError {
    let message = format!("Unknown request URL: {method} {}. See /v1/models.", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, "unknown_url", message)
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("Not allowed to {method} on {}.", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// Also keeps other sites' pages from spending the model: without asking first, a browser sends no JSON to another origin.
fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let sent = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = sent.split(';').next().unwrap_or("").trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!("The content type is {sent:?}: send JSON with \"Content-Type: application/json\".");
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_type", message))
}

fn generating(shared: &Shared, model: Option<&str>) -> Result<ModelCard, ApiError> {
    let card = shared.card(model)?;
    match card.kind {
        ModelKind::Generates => Ok(card),
        ModelKind::Embeds { .. } => Err(ApiError::invalid("model", format!("The model {:?} only gives embeddings.", card.id))),
    }
}

/// `kind` and `max_model_len` are beyond OpenAI's fields; the second is as vLLM names it.
fn model_json(card: &ModelCard) -> Value {
    let kind = match card.kind {
        ModelKind::Generates => "generates",
        ModelKind::Embeds { .. } => "embeds",
    };
    json!({
        "id": card.id,
        "object": "model",
        "created": card.created_unix_s,
        "owned_by": "cutlayer",
        "kind": kind,
        "max_model_len": card.context_tokens,
    })
}
