//! One generation, from the prompt to its last token.

use super::device::Shared;
use super::drafter::Drafter;
use super::offload::Answered;
use super::path::{About, Path, failed};
use super::worker::Watch;
use crate::error::NodeError;
use cutlayer_generation::{Depth, RoundCosts, StopStrings, Words};
use cutlayer_model::spec::HeadSpec;
use cutlayer_wire::{Drawn, FailureCode, SamplingSpec};
use futures_util::Stream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::mpsc;

/// Pieces that may wait for whoever reads them; then generating waits too.
const PIECES_MAX: usize = 64;
/// Rows of a prompt that whoever watches sees: the last ones, which cost little beside the rest.
const PROMPT_WATCHED: usize = 31;
/// What the newest measurement of a round counts for.
const NEW_SHARE: f64 = 0.2;

/// What to go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text, tokenised with the special tokens that the tokenizer adds.
    Text(String),
    /// Text in which special tokens are written out, as chat templates do; none are added.
    Template(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// What to go on from.
    pub prompt: Prompt,
    /// The adapter, by name; `None` for the base model.
    pub adapter: Option<String>,
    /// How tokens are drawn.
    pub sampling: SamplingSpec,
    /// Texts that end it; they are not shown.
    pub stop: Vec<String>,
    /// Tokens at most; `None` as many as the model has positions for.
    pub tokens_max: Option<u32>,
    /// Whether to go on past the token that ends a text: for measurements.
    pub ignore_end: bool,
}

impl GenerateRequest {
    /// The likeliest continuation of a text.
    pub fn greedy(prompt: impl Into<String>) -> Self {
        let prompt = Prompt::Text(prompt.into());
        Self { prompt, adapter: None, sampling: SamplingSpec::GREEDY, stop: vec![], tokens_max: None, ignore_end: false }
    }
}

/// A token as it comes.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text that may be shown now: empty while a character is incomplete, or while a stop string may have begun.
    pub text: String,
    /// The natural logarithm of its probability, if it was asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens at its place, best first.
    pub top: Vec<(u32, f32)>,
}

/// What comes out of a generation, piece by piece.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// A token.
    Token(Token),
    /// The end: nothing follows.
    End {
        /// Text that was held back until now.
        text: String,
        /// Why it ended.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended the text, or a stop string came.
    Stop,
    /// As many tokens as were asked for, or as fit.
    Length,
}

/// What a generation took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, tokens that caches held already.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// Tokens guessed ahead.
    pub guessed: u32,
    /// Of these, tokens that were right.
    pub guessed_right: u32,
    /// Times that the model was asked: round trips, where there is a host.
    pub rounds: u32,
    /// Milliseconds to the first token.
    pub first_token_ms: f64,
    /// Milliseconds in all.
    pub total_ms: f64,
    /// Who answered, where there was a choice.
    pub answered: Option<Answered>,
}

/// A stream of pieces; dropping it cancels the generation.
pub struct Generation(mpsc::Receiver<Result<Piece, NodeError>>);

impl Stream for Generation {
    type Item = Result<Piece, NodeError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

impl Generation {
    /// The next piece; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<Piece, NodeError>> {
        self.0.recv().await
    }

    /// Waits for all of it: the text, the tokens, and what it took.
    pub async fn whole(mut self) -> Result<(String, Vec<Token>, FinishReason, Usage), NodeError> {
        let (mut all, mut tokens) = (String::new(), vec![]);
        while let Some(piece) = self.next().await {
            match piece? {
                Piece::Token(token) => {
                    all.push_str(&token.text);
                    tokens.push(token);
                }
                Piece::End { text, reason, usage } => return Ok((all + &text, tokens, reason, usage)),
            }
        }
        Err(NodeError::Panicked { during: "generating".into() })
    }
}

pub(super) fn begin(shared: Arc<Shared>, request: GenerateRequest, watch: Option<Watch>) -> Generation {
    spawn(async move |pieces| Running::new(&shared, &request, &pieces, watch)?.run().await)
}

/// Whoever reads the pieces of a generation.
pub(super) type Pieces = mpsc::Sender<Result<Piece, NodeError>>;

/// A generation by whatever says its pieces. It ends with whoever reads them.
pub(super) fn spawn<Said>(saying: impl FnOnce(Pieces) -> Said + Send + 'static) -> Generation
where
    Said: Future<Output = Result<(), NodeError>> + Send,
{
    let (pieces, read) = mpsc::channel(PIECES_MAX);
    tokio::spawn(async move {
        let generating = async {
            if let Err(error) = saying(pieces.clone()).await {
                // Whoever asked may have gone.
                let _ = pieces.send(Err(error)).await;
            }
        };
        // Nobody reads any more: whatever is under way is given up, and its memory is free.
        tokio::select! {
            () = generating => {}
            () = pieces.closed() => {}
        }
    });
    Generation(read)
}

/// A generation under way.
struct Running<'a> {
    shared: &'a Shared,
    request: &'a GenerateRequest,
    pieces: &'a Pieces,
    watch: Option<Watch>,
    /// The prompt, and what was generated.
    ids: Vec<u32>,
    prompt: usize,
    /// Tokens that there may be in the end.
    ids_max: usize,
    words: Words,
    stops: StopStrings,
    usage: Usage,
    costs: Costs,
    started: Instant,
}

impl<'a> Running<'a> {
    fn new(shared: &'a Shared, request: &'a GenerateRequest, pieces: &'a Pieces, watch: Option<Watch>) -> Result<Self, NodeError> {
        let started = Instant::now();
        let ids = tokens_of(shared, &request.prompt)?;
        let (prompt, positions) = (ids.len(), shared.spec.positions_max);
        let refused = |reason: String| failed(FailureCode::Malformed, reason);
        if !matches!(shared.spec.head, HeadSpec::LanguageModel { .. }) {
            return Err(refused(format!("a {} model embeds texts and does not generate; give a language model", shared.spec.family)));
        }
        if ids.is_empty() {
            return Err(refused("the prompt has no tokens; write at least one word".into()));
        }
        if prompt >= positions {
            let reason =
                format!("the prompt has {prompt} tokens and the model {positions} positions, one of which must be left; shorten it");
            return Err(failed(FailureCode::TooLong, reason));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= shared.spec.vocab) {
            return Err(refused(format!("token {id} is outside the model's vocabulary of {}", shared.spec.vocab)));
        }
        cutlayer_generation::check(&request.sampling, shared.spec.vocab as u32).map_err(|error| refused(error.to_string()))?;
        let stops = StopStrings::new(request.stop.clone()).map_err(|error| refused(error.to_string()))?;
        let ids_max = request.tokens_max.map_or(positions, |more| (prompt + more as usize).min(positions));
        let usage = Usage { prompt_tokens: prompt as u32, ..Usage::default() };
        let (words, costs) = (Words::new(&ids), Costs::default());
        Ok(Self { shared, request, pieces, watch, prompt, ids_max, words, stops, usage, costs, started, ids })
    }

    async fn run(mut self) -> Result<(), NodeError> {
        if self.ids_max == self.prompt {
            return self.end(FinishReason::Length).await;
        }
        let shared = self.shared;
        let depth_max = usize::from(shared.drafting.depth_max());
        let tokens_max = (self.ids_max + depth_max).min(shared.spec.positions_max) as u32;
        let (adapter, sampling) = (self.request.adapter.clone(), self.request.sampling.clone());
        // Whoever watches would see guesses that were wrong.
        let mut drafter = match self.watch {
            Some(_) => None,
            None => Drafter::new(&shared.drafting, shared.draft_model.as_ref(), &sampling, tokens_max).await,
        };
        let mut path = Path::new(shared, About { adapter, sampling, tokens_max, prompt_tokens: self.prompt, watch: self.watch.clone() });
        let mut seen = if self.watch.is_some() { PROMPT_WATCHED.min(self.prompt - 1) } else { 0 };
        let mut depth = Depth::new(depth_max as u32);
        let mut guesses: Vec<u32> = vec![];
        loop {
            let certain = self.ids.len();
            self.ids.extend(&guesses);
            let asked = Instant::now();
            let drawn = path.step(&self.ids, certain - 1 - std::mem::take(&mut seen)).await?;
            self.ids.truncate(certain);
            self.usage.rounds += 1;
            if self.usage.rounds == 1 {
                self.usage.first_token_ms = self.started.elapsed().as_secs_f64() * 1e3;
                self.usage.cached_tokens = path.found.unwrap_or(0);
            } else {
                self.costs.verified(asked.elapsed().as_secs_f64() * 1e3 - path.rtt_ms(), guesses.len());
            }
            let right = drawn.iter().zip(&guesses).take_while(|(drawn, guess)| drawn.id == **guess).count();
            depth.observe(guesses.len() as u32, right as u32);
            (self.usage.guessed, self.usage.guessed_right) =
                (self.usage.guessed + guesses.len() as u32, self.usage.guessed_right + right as u32);
            // Those that were guessed right, and the one after them.
            for token in drawn.into_iter().take(right + 1) {
                if let Some(reason) = self.take(token).await? {
                    return self.end(reason).await;
                }
            }
            guesses.clear();
            if let Some(drafter) = &mut drafter {
                let room = (self.ids_max - self.ids.len()).saturating_sub(1);
                let count = depth.choose(self.costs.of(path.rtt_ms())).min(room as u32) as usize;
                if count > 0 {
                    let started = Instant::now();
                    guesses = drafter.propose(&self.ids, count).await;
                    guesses.retain(|&id| (id as usize) < shared.spec.vocab);
                    self.costs.drafted(started.elapsed().as_secs_f64() * 1e3, guesses.len());
                }
            }
        }
    }

    /// Takes a token in, and shows what may be shown. Says whether it was the last.
    async fn take(&mut self, token: Drawn) -> Result<Option<FinishReason>, NodeError> {
        let Drawn { id, logprob, top } = token;
        if id as usize >= self.shared.spec.vocab {
            let reason = format!("the server drew token {id}, which the model does not have: is its model folder this one's?");
            return Err(failed(FailureCode::Internal, reason));
        }
        self.ids.push(id);
        self.usage.completion_tokens += 1;
        if self.shared.ends.contains(&id) && !self.request.ignore_end {
            return Ok(Some(FinishReason::Stop));
        }
        let text = match &self.shared.tokenizer {
            Some(tokenizer) => self.words.push(id, &|ids| tokenizer.decode(ids).unwrap_or_default()),
            None => String::new(),
        };
        let shown = self.stops.push(&text);
        // Whoever reads may have gone: then this task ends too.
        let _ = self.pieces.send(Ok(Piece::Token(Token { id, text: shown.text, logprob, top }))).await;
        Ok(match shown.stop {
            Some(_) => Some(FinishReason::Stop),
            None if self.ids.len() >= self.ids_max => Some(FinishReason::Length),
            None => None,
        })
    }

    async fn end(mut self, reason: FinishReason) -> Result<(), NodeError> {
        let mut text = String::new();
        if !self.stops.stopped() {
            let rest = match &self.shared.tokenizer {
                Some(tokenizer) => self.words.finish(&|ids| tokenizer.decode(ids).unwrap_or_default()),
                None => String::new(),
            };
            text = self.stops.push(&rest).text + &self.stops.finish();
        }
        self.usage.total_ms = self.started.elapsed().as_secs_f64() * 1e3;
        // Whoever reads may have gone.
        let _ = self.pieces.send(Ok(Piece::End { text, reason, usage: self.usage })).await;
        Ok(())
    }
}

pub(super) fn tokens_of(shared: &Shared, prompt: &Prompt) -> Result<Vec<u32>, NodeError> {
    let (text, add_special) = match prompt {
        Prompt::Tokens(ids) => return Ok(ids.clone()),
        Prompt::Text(text) => (text, true),
        Prompt::Template(text) => (text, false),
    };
    let Some(tokenizer) = &shared.tokenizer else {
        let reason = "the model folder has no tokenizer.json: give token ids, or a folder with one";
        return Err(failed(FailureCode::Malformed, reason.into()));
    };
    Ok(tokenizer.encode(text, add_special)?)
}

/// What rounds have cost, in milliseconds: running means.
#[derive(Clone, Copy, Debug, Default)]
struct Costs {
    verify: Option<f64>,
    row: Option<f64>,
    draft: Option<f64>,
}

fn mean(before: Option<f64>, now: f64) -> Option<f64> {
    Some(before.map_or(now, |before| before + NEW_SHARE * (now - before)))
}

impl Costs {
    /// A round without its round trip, that verified so many guesses.
    fn verified(&mut self, ms: f64, guesses: usize) {
        match (guesses, self.verify) {
            (0, _) | (_, None) => self.verify = mean(self.verify, ms.max(0.0)),
            (more, Some(base)) => self.row = mean(self.row, ((ms - base) / more as f64).max(0.0)),
        }
    }

    fn drafted(&mut self, ms: f64, guesses: usize) {
        self.draft = mean(self.draft, ms / guesses.max(1) as f64);
    }

    fn of(&self, rtt_ms: f64) -> RoundCosts {
        let [verify_base_ms, draft_ms, verify_row_ms] = [self.verify, self.draft, self.row].map(|cost| cost.unwrap_or(0.0));
        RoundCosts { rtt_ms, verify_base_ms, draft_ms, verify_row_ms }
    }
}
