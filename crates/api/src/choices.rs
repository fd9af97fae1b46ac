//! The choices of a request, computed side by side and told apart by their number. It must never wait for one while another has a piece.

use std::sync::Arc;

use futures_util::stream::{self, BoxStream, StreamExt};

use crate::answer::Part;
use crate::engine::{Engine, EngineError, Piece, Usage};
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::request::Job;

/// Choices of one request that the engine has at once; more wait for these.
const CHOICES_AT_ONCE: usize = 16;

/// The pieces of all choices, as they come. Dropping it gives all of them up.
pub(crate) struct Choices {
    pieces: BoxStream<'static, (usize, Result<Piece, EngineError>)>,
    /// Choices for each prompt: the first of them tells what the prompt took.
    n: usize,
    left: usize,
    usage: Usage,
    metrics: Arc<Metrics>,
}

impl Choices {
    /// Opens the first of them.
    pub fn open(engine: Arc<dyn Engine>, job: Arc<Job>, metrics: Arc<Metrics>) -> Self {
        let (n, left) = (job.n, job.choices());
        let one = move |choice: usize| until_end(engine.generate(job.generate(choice))).map(move |piece| (choice, piece)).boxed();
        let pieces = stream::iter(0..left).map(one).flatten_unordered(CHOICES_AT_ONCE).boxed();
        Self { pieces, n, left, usage: Usage::default(), metrics }
    }

    /// The next piece and whose it is; `None` when all are complete.
    pub async fn next(&mut self) -> Option<Result<(usize, Piece), ApiError>> {
        if self.left == 0 {
            return None;
        }
        let (choice, piece) = self.pieces.next().await?;
        match &piece {
            Ok(Piece::Token(_)) => self.metrics.generated_token(),
            Ok(Piece::End { usage, .. }) => self.count(choice, usage),
            _ => {}
        }
        Some(piece.map(|piece| (choice, piece)).map_err(ApiError::from))
    }

    /// A prompt counts once, however many answers it has.
    fn count(&mut self, choice: usize, usage: &Usage) {
        self.left -= 1;
        self.usage.completion_tokens += usage.completion_tokens;
        if choice.is_multiple_of(self.n) {
            self.usage.prompt_tokens += usage.prompt_tokens;
            self.usage.cached_tokens += usage.cached_tokens;
            self.metrics.prompt(usage);
        }
    }

    /// What was used, once all are complete.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// All of them, whole.
    pub async fn collect(&mut self, scored: bool) -> Result<Vec<Part>, ApiError> {
        let mut parts = vec![Part::default(); self.left];
        while let Some(piece) = self.next().await {
            let (choice, piece) = piece?;
            parts[choice].add(piece, scored);
        }
        Ok(parts)
    }
}

/// Ends after [`Piece::End`] or an error. An engine that says neither has failed.
fn until_end(
    pieces: BoxStream<'static, Result<Piece, EngineError>>,
) -> impl stream::Stream<Item = Result<Piece, EngineError>> + Send + 'static {
    stream::unfold(Some(pieces), |pieces| async move {
        let mut pieces = pieces?;
        match pieces.next().await {
            Some(piece @ Ok(Piece::Prompt(_) | Piece::Token(_))) => Some((piece, Some(pieces))),
            Some(last) => Some((last, None)),
            None => Some((Err(EngineError::Failed("the answer broke off".to_owned())), None)),
        }
    })
}
