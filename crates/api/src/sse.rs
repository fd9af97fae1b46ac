//! An answer in server-sent events. It must never go on for a client that went away, nor hold more than a few events for a slow one.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{FutureExt, stream};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use crate::answer::{Head, Part};
use crate::choices::Choices;
use crate::engine::Piece;
use crate::error::ApiError;
use crate::gate::Ticket;
use crate::request::Job;

/// Events that wait for a client; the engine waits when there are more.
const EVENTS_MAX: usize = 32;
/// After so long without an event, a comment shows that the answer still comes.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What a stream is made of.
pub(crate) struct Telling {
    pub head: Head,
    pub choices: Choices,
    /// The first piece: it was waited for, so that what the engine refuses has a status of its own.
    pub first: Option<(usize, Piece)>,
    pub choice_count: usize,
    pub scored: bool,
    pub include_usage: bool,
}

impl Telling {
    /// Waits for the first piece.
    pub async fn begin(job: &Job, head: Head, mut choices: Choices) -> Result<Self, ApiError> {
        let first = choices.next().await.transpose()?;
        let (choice_count, scored, include_usage) = (job.choices(), job.scored(), job.include_usage);
        Ok(Self { head, choices, first, choice_count, scored, include_usage })
    }

    /// The response. A task of its own fills it: it ends with the deadline, also where the client reads no more.
    pub fn respond(self, ticket: Ticket) -> Response {
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(fill(self, ticket, sender));
        let events = stream::unfold(receiver, |mut receiver| async move {
            let event: Event = receiver.recv().await?;
            Some((Ok::<_, Infallible>(event), receiver))
        });
        Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
    }

    async fn tell(mut self, sender: &mpsc::Sender<Event>) -> Result<(), Untold> {
        for index in 0..self.choice_count {
            if let Some(opening) = self.head.opening(index, self.include_usage) {
                send(sender, &opening).await?;
            }
        }
        let mut offsets = vec![0; self.choice_count];
        let mut first = self.first.take().map(Ok);
        loop {
            let next = match first.take() {
                Some(first) => Some(first),
                None => self.choices.next().await,
            };
            let Some(piece) = next else { break };
            let (index, piece) = piece.map_err(Untold::Failed)?;
            let mut part = Part { offset: offsets[index], ..Part::default() };
            part.add(piece, self.scored);
            offsets[index] += part.characters();
            if !part.is_empty() {
                send(sender, &self.head.chunk(index, &part, self.scored, self.include_usage)).await?;
            }
        }
        if self.include_usage {
            send(sender, &self.head.usage(self.choices.usage())).await?;
        }
        sender.send(Event::default().data("[DONE]")).await.map_err(|_| Untold::Gone)
    }
}

/// Why a stream was not told to its end.
enum Untold {
    /// Nobody listens.
    Gone,
    Failed(ApiError),
}

async fn fill(telling: Telling, ticket: Ticket, sender: mpsc::Sender<Event>) {
    let told = AssertUnwindSafe(telling.tell(&sender)).catch_unwind();
    let told = tokio::select! {
        told = told => told.unwrap_or_else(|_| Err(Untold::Failed(ApiError::internal("The engine failed.")))),
        () = sender.closed() => Err(Untold::Gone),
        () = sleep_until(ticket.deadline) => Err(Untold::Failed(ApiError::late())),
    };
    match told {
        Ok(()) => ticket.answered(),
        // Dropped, it counts as cancelled.
        Err(Untold::Gone) => drop(ticket),
        Err(Untold::Failed(error)) => {
            let error = ticket.refuse(error);
            // Whoever does not read does not hear of it.
            let _ = sender.try_send(Event::default().data(error.body().to_string()));
        }
    }
}

async fn send(sender: &mpsc::Sender<Event>, chunk: &Value) -> Result<(), Untold> {
    sender.send(Event::default().data(chunk.to_string())).await.map_err(|_| Untold::Gone)
}
