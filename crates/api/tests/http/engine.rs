//! An engine that says its prompt again, byte for byte, and draws other letters when it is hot: enough to show every shape of the API.
//!
//! It knows a few prompts by heart that fail in their own way; see [`Echo::generate`].

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use cutlayer_api::*;
use futures_util::{FutureExt, StreamExt, stream};

/// Longest sequence of the generating models.
pub const CONTEXT_TOKENS: u32 = 4096;
/// What ends a text.
const END: u32 = 256;
const DIMENSIONS: usize = 8;
/// A template in ChatML's form.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}\
    {% if messages[0].role == 'assistant' %}{{ raise_exception('the user speaks first') }}{% endif %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The engine, with what a test wants to know of it.
#[derive(Default)]
pub struct Echo {
    /// The newest request, as it came.
    pub asked: Mutex<Option<Generate>>,
    /// Streams that are open.
    pub open: Arc<AtomicUsize>,
    /// Most streams that were open at once.
    pub open_most: AtomicUsize,
}

impl Engine for Echo {
    fn models(&self) -> Vec<ModelCard> {
        let generates = ["echo", "org/plain", "bare"].map(|id| (id, ModelKind::Generates));
        let embeds = ("embed", ModelKind::Embeds { dimensions: DIMENSIONS as u32 });
        let card = |(id, kind): (&str, ModelKind)| ModelCard {
            id: id.to_owned(),
            created_unix_s: 1_700_000_000,
            kind,
            context_tokens: CONTEXT_TOKENS,
            fingerprint: "fp_echo".to_owned(),
        };
        generates.into_iter().chain([embeds]).map(card).collect()
    }

    /// `fail:..` fails at once, `break:..` after two tokens, `hang:..` goes on for ever without a word after two tokens, `flood:..` for
    /// ever with many. Ask for them with temperature 0: a hot answer may end before.
    fn generate(&self, request: Generate) -> BoxStream<'static, Result<Piece, EngineError>> {
        *self.asked.lock().unwrap() = Some(request.clone());
        let open = Open::new(&self.open, &self.open_most);
        let tokens = match tokens(&request.prompt) {
            Ok(tokens) => tokens,
            Err(error) => return stream::iter([Err(error)]).boxed(),
        };
        let asked = tokens.len() as u64 + u64::from(request.tokens_max.unwrap_or(1));
        if asked > u64::from(CONTEXT_TOKENS) {
            return stream::iter([Err(EngineError::TooLong { tokens: asked, context_tokens: CONTEXT_TOKENS })]).boxed();
        }
        let text = String::from_utf8_lossy(&tokens).into_owned();
        if let Some(how) = text.strip_prefix("fail:") {
            return stream::iter([Err(failure(how))]).boxed();
        }
        let said = stream::iter(Saying::new(request, tokens).map(Ok));
        let (how, _) = text.split_once(':').unwrap_or_default();
        let pieces = match how {
            "break" => said.take(2).chain(stream::iter([Err(EngineError::Failed("the cable".to_owned()))])).boxed(),
            "vanish" => said.take(2).boxed(),
            "panic" => said.take(2).chain(stream::once(async { panic!("a mistake of the engine's") })).boxed(),
            "hang" => said.take(2).chain(stream::pending()).boxed(),
            "flood" => stream::repeat_with(|| Ok(Piece::Token(Token { text: "x".repeat(1000), ..Token::default() }))).boxed(),
            _ => said.boxed(),
        };
        // The guard goes where the stream goes.
        pieces.map(move |piece| (&open, piece).1).boxed()
    }

    fn embed(&self, request: Embed) -> BoxFuture<'static, Result<Embeddings, EngineError>> {
        async move {
            let mut embeddings = Embeddings { vectors: vec![], prompt_tokens: 0 };
            for input in &request.inputs {
                let tokens = tokens(input)?;
                let mut vector = vec![0.0_f32; DIMENSIONS];
                tokens.iter().for_each(|byte| vector[*byte as usize % DIMENSIONS] += 1.0);
                embeddings.prompt_tokens += tokens.len() as u64;
                embeddings.vectors.push(vector);
            }
            Ok(embeddings)
        }
        .boxed()
    }

    fn chat_template(&self, model: &str) -> Option<Arc<ChatTemplate>> {
        match model {
            "echo" => Some(Arc::new(ChatTemplate::new(CHATML, BTreeMap::new()).unwrap())),
            "org/plain" => Some(Arc::new(ChatTemplate::plain())),
            _ => None,
        }
    }
}

/// Counts a stream while it lives.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(open: &Arc<AtomicUsize>, most: &AtomicUsize) -> Self {
        most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        Self(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn failure(how: &str) -> EngineError {
    match how {
        "busy" => EngineError::Busy { retry_after_s: 7 },
        "gone" => EngineError::Gone("nobody answers".to_owned()),
        "refused" => EngineError::Refused { reason: "echo cannot".to_owned(), param: Some("echo".to_owned()) },
        "unknown" => EngineError::UnknownModel("echo".to_owned()),
        "panic" => panic!("a mistake of the engine's"),
        _ => EngineError::Failed("out of order".to_owned()),
    }
}

/// Tokens are bytes.
fn tokens(prompt: &Prompt) -> Result<Vec<u8>, EngineError> {
    let refused = |token: &u32| EngineError::Refused { reason: format!("{token} is no token"), param: Some("prompt".to_owned()) };
    match prompt {
        Prompt::Text { text, .. } => Ok(text.clone().into_bytes()),
        Prompt::Tokens(tokens) => tokens.iter().map(|token| u8::try_from(*token).map_err(|_| refused(token))).collect(),
    }
}

/// One answer, piece by piece.
struct Saying {
    request: Generate,
    prompt: Vec<u8>,
    said: Vec<u8>,
    /// Bytes that are not yet text, and text that may yet be a stop string.
    half: Vec<u8>,
    held: String,
    ready: VecDeque<Piece>,
    over: bool,
}

impl Saying {
    fn new(request: Generate, prompt: Vec<u8>) -> Self {
        let mut saying = Self { request, prompt, said: vec![], half: vec![], held: String::new(), ready: VecDeque::new(), over: false };
        if saying.request.echo {
            for (index, byte) in saying.prompt.clone().into_iter().enumerate() {
                let text = saying.characters(byte);
                let logprob = (index > 0).then_some(-1.5);
                let scored = saying.request.sampling.logprobs.map(|_| Scored { bytes: vec![byte], logprob });
                saying.ready.push_back(Piece::Prompt(Token { id: u32::from(byte), text, scored, top: vec![] }));
            }
            saying.half.clear();
        }
        saying
    }

    fn end(&mut self, reason: FinishReason, text: String) -> Piece {
        self.over = true;
        let (prompt_tokens, completion_tokens) = (self.prompt.len() as u64, self.said.len() as u64);
        Piece::End { reason, usage: Usage { prompt_tokens, completion_tokens, cached_tokens: prompt_tokens / 2 }, text }
    }

    /// The text that a byte completes.
    fn characters(&mut self, byte: u8) -> String {
        self.half.push(byte);
        match std::str::from_utf8(&self.half) {
            Ok(text) => {
                let text = text.to_owned();
                self.half.clear();
                text
            }
            Err(error) if error.error_len().is_none() => String::new(),
            Err(_) => String::from_utf8_lossy(&std::mem::take(&mut self.half)).into_owned(),
        }
    }

    /// Log-probabilities of what may come next, best first: the prompt's next byte is the likeliest by far.
    fn likeliest(&self) -> Vec<(u32, f32)> {
        let target = self.prompt.get(self.said.len()).map_or(END, |byte| u32::from(*byte));
        let mut candidates: Vec<u32> = b" etaoinshrdlu".iter().map(|byte| u32::from(*byte)).chain([END]).collect();
        if !candidates.contains(&target) {
            candidates.push(target);
        }
        let biases = &self.request.sampling.logit_bias;
        let logit = |token: u32| {
            let noise = (hash((&self.said, token)) % 1000) as f32 / 250.0;
            let bias: f32 = biases.iter().filter(|(biased, _)| *biased == token).map(|(_, bias)| bias).sum();
            noise + bias + if token == target { 5.0 } else { 0.0 }
        };
        let mut logits: Vec<(u32, f32)> = candidates.into_iter().map(|token| (token, logit(token))).collect();
        logits.sort_by(|left, right| right.1.total_cmp(&left.1));
        let most = logits[0].1;
        let sum = logits.iter().map(|(_, logit)| (logit - most).exp()).sum::<f32>().ln() + most;
        logits.into_iter().map(|(token, logit)| (token, logit - sum)).collect()
    }

    fn draw(&self, likeliest: &[(u32, f32)]) -> (u32, f32) {
        let sampling = &self.request.sampling;
        if sampling.temperature == 0.0 || sampling.top_k == 1 {
            return likeliest[0];
        }
        let weights: Vec<f32> = likeliest.iter().map(|(_, logprob)| (logprob / sampling.temperature).exp()).collect();
        let mut left = (hash((sampling.seed, self.said.len())) % 100_000) as f32 / 100_000.0 * weights.iter().sum::<f32>();
        let chosen = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        likeliest[chosen.unwrap_or(0)]
    }

    /// Gives text out up to where a stop string may begin; the second says whether one is there.
    fn let_go(&mut self) -> (String, bool) {
        let stops = &self.request.stop;
        if let Some(at) = stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let may_begin = |at: &usize| stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let at = self.held.char_indices().map(|(at, _)| at).find(may_begin).unwrap_or(self.held.len());
        let rest = self.held.split_off(at);
        (std::mem::replace(&mut self.held, rest), false)
    }
}

impl Iterator for Saying {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if let Some(piece) = self.ready.pop_front() {
            return Some(piece);
        }
        if self.over {
            return None;
        }
        let room = CONTEXT_TOKENS as usize - self.prompt.len();
        if self.said.len() >= self.request.tokens_max.map_or(room, |most| room.min(most as usize)) {
            let half = String::from_utf8_lossy(&std::mem::take(&mut self.half)).into_owned();
            let text = std::mem::take(&mut self.held) + &half;
            return Some(self.end(FinishReason::Length, text));
        }
        let likeliest = self.likeliest();
        let (id, logprob) = self.draw(&likeliest);
        let Ok(byte) = u8::try_from(id) else {
            let text = std::mem::take(&mut self.held);
            return Some(self.end(FinishReason::Stop, text));
        };
        self.said.push(byte);
        let characters = self.characters(byte);
        self.held.push_str(&characters);
        let (text, stopped) = self.let_go();
        let bytes = |token: u32| u8::try_from(token).map_or(b"<end>".to_vec(), |byte| vec![byte]);
        let scored = |(token, logprob): (u32, f32)| Scored { bytes: bytes(token), logprob: Some(logprob) };
        let count = self.request.sampling.logprobs;
        let top = likeliest.iter().take(usize::from(count.unwrap_or(0))).map(|one| scored(*one)).collect();
        let token = Token { id, text, scored: count.map(|_| scored((id, logprob))), top };
        if stopped {
            let end = self.end(FinishReason::Stop, String::new());
            self.ready.push_back(end);
        }
        Some(Piece::Token(token))
    }
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
