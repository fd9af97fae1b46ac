//! The sequences of a worker: their pages, their rows in line, and one pass for all whose turn it is.
//!
//! Owned by the worker's thread. A sequence that fails harms no other: what it asks is checked before it joins a pass.

use super::worker::{Came, Command, Counts, Job, Leaving, Opening, Outcome};
use cutlayer_generation::{PageError, PagePool, SequenceId, Turns, Work, draw};
use cutlayer_model::{Decoder, Entering, Feed, Frozen, LaidAdapter, Tensor, encoding};
use cutlayer_wire::{FailureCode, PAGE_TOKENS, Wanted};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Rows of one pass: enough that the weights are worth reading, few enough that nobody waits long for a token.
const PASS_ROWS_MAX: u32 = 512;
/// Rows of prompts in a pass that also decodes: what decoding waits for.
const PROMPT_ROWS_MAX: u32 = 256;
/// Silence after which a sequence gives its pages to whoever needs them, though it came earlier.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// Rows that are decoded or verified together; more are of a prompt.
const DECODED_ROWS_MAX: u32 = 32;
/// Jobs of a sequence that may wait.
const JOBS_MAX: usize = 64;

/// What a worker is given.
pub(crate) struct WorkerConfig {
    pub frozen: Arc<Frozen>,
    /// Blocks that it runs.
    pub blocks: Range<usize>,
    /// Pages of its cache.
    pub pages: u32,
    /// Sequences that may be open.
    pub sequences_max: usize,
}

/// One open sequence.
struct Sequence {
    /// Whether it needs pages: without blocks, or in an encoder, nothing is kept.
    paged: bool,
    /// When it last asked for something.
    asked: Instant,
    owner: u64,
    adapter: Option<LaidAdapter>,
    blocks: Range<usize>,
    leaving: Leaving,
    tokens_max: u32,
    pages: SequenceId,
    jobs: VecDeque<Waiting>,
}

/// A job in line, and what its first rows gave.
struct Waiting {
    job: Job,
    /// Rows of the job.
    rows: u32,
    /// Its hidden states, once they were read.
    read: Option<Tensor<2>>,
    /// Rows done.
    done: u32,
    /// Wanted hidden states so far.
    hidden: Vec<Tensor<2>>,
    answer: oneshot::Sender<Outcome>,
}

/// All of a worker.
pub(crate) struct Sequences {
    decoder: Decoder,
    pool: PagePool,
    open: BTreeMap<u64, Sequence>,
    turns: Turns,
    sequences_max: usize,
    /// Those of the pass before, that have not asked since.
    last: BTreeSet<u64>,
    /// Those of the pass under way.
    passing: Vec<u64>,
    /// Since when the time of this pass was not counted.
    busy_since: Instant,
    /// Those that wait for others' memory, and their rows.
    parked: Vec<(u64, u32)>,
    counts: Arc<Counts>,
    /// Whether the model keeps anything of the rows before: an encoder does not.
    causal: bool,
    /// Rows of a pass at most.
    rows_max: u32,
}

impl Sequences {
    pub fn new(config: WorkerConfig, counts: Arc<Counts>) -> Self {
        let causal = config.frozen.spec().block.causal;
        // An encoder's sequence comes whole: a token sees those after it too.
        let whole = if causal { 0 } else { config.frozen.spec().positions_max as u32 };
        let decoder = Decoder::new(config.frozen, config.blocks, config.pages);
        Self {
            decoder,
            pool: PagePool::new(config.pages),
            open: BTreeMap::new(),
            turns: Turns::default(),
            sequences_max: config.sequences_max,
            last: BTreeSet::new(),
            passing: vec![],
            busy_since: Instant::now(),
            parked: vec![],
            counts,
            causal,
            rows_max: PASS_ROWS_MAX.max(whole),
        }
    }

    /// Whether anybody waits for a pass.
    pub fn has_work(&self) -> bool {
        self.turns.waiting() > 0
    }

    /// Whether some of the last pass have not asked again.
    pub fn awaits_last(&self) -> bool {
        !self.last.is_empty()
    }

    /// How long to wait for the next word; `None` for as long as it takes. Where somebody waits for memory, another may soon have been
    /// silent for long enough to lose its own.
    pub fn patience(&self) -> Option<Duration> {
        (!self.parked.is_empty()).then_some(SILENCE_MAX)
    }

    /// Lets those who wait for memory try again.
    pub fn call_back(&mut self) {
        for (id, rows) in std::mem::take(&mut self.parked) {
            if let Some(sequence) = self.open.get(&id).filter(|sequence| !sequence.jobs.is_empty()) {
                self.turns.push(work(id, sequence.owner, rows, self.causal));
            }
        }
    }

    /// Hears a word.
    pub fn take(&mut self, command: Command) {
        self.hear(command);
        self.call_back();
    }

    fn hear(&mut self, command: Command) {
        match command {
            Command::Open(id, opening, answer) => {
                // Whoever asked may have gone; the seat's end follows.
                let _ = answer.send(self.admit(id, *opening));
            }
            Command::Job(id, job, answer) => self.line_up(id, *job, answer),
            Command::Close(id) => self.close(id),
        }
    }

    fn admit(&mut self, id: u64, opening: Opening) -> Result<u32, (FailureCode, String)> {
        let Opening { owner, scope, adapter, blocks, leaving, tokens_max, prefix } = opening;
        if self.open.len() >= self.sequences_max {
            return Err((FailureCode::Busy, format!("{} sequences are open already; try again later", self.open.len())));
        }
        let (positions_max, room) = (self.decoder.frozen().spec().positions_max, self.pool.pages().saturating_mul(PAGE_TOKENS));
        if tokens_max as usize > positions_max {
            let reason = format!("{tokens_max} tokens exceed the model's {positions_max} positions; shorten the prompt or ask for fewer");
            return Err((FailureCode::TooLong, reason));
        }
        let paged = self.causal && !blocks.is_empty();
        if paged && tokens_max > room {
            let reason = format!("{tokens_max} tokens exceed the {room} that the cache has room for; give it more memory");
            return Err((FailureCode::TooLong, reason));
        }
        if let Leaving::Drawn(sampling, _) | Leaving::Watched(sampling, ..) = &leaving {
            let vocab = self.decoder.frozen().spec().vocab;
            cutlayer_generation::check(sampling, vocab as u32).map_err(|error| (FailureCode::Malformed, error.to_string()))?;
        }
        let malformed = |error: PageError| (FailureCode::Malformed, error.to_string());
        let (mut pages, held) = self.pool.open(scope, &prefix).map_err(malformed)?;
        let found = &prefix[..(held / PAGE_TOKENS) as usize];
        if found.len() < prefix.len() {
            // Pages that are not here are named again when they are.
            self.pool.close(pages);
            (pages, _) = self.pool.open(scope, found).map_err(malformed)?;
        }
        self.counts.found.fetch_add(held.into(), Ordering::Relaxed);
        // What keeps nothing lacks nothing.
        let held = if paged { held } else { prefix.len() as u32 * PAGE_TOKENS };
        self.open.insert(
            id,
            Sequence { paged, asked: Instant::now(), owner, adapter, blocks, leaving, tokens_max, pages, jobs: VecDeque::new() },
        );
        Ok(held)
    }

    fn line_up(&mut self, id: u64, job: Job, answer: oneshot::Sender<Outcome>) {
        self.last.remove(&id);
        let Some(sequence) = self.open.get_mut(&id) else {
            let _ = answer.send(Outcome::Failed(FailureCode::Internal, "this sequence was not opened".into()));
            return;
        };
        sequence.asked = Instant::now();
        let (rows, end) = (job.came.rows(), u64::from(job.position) + u64::from(job.came.rows()));
        let refusal = if rows == 0 || sequence.jobs.len() >= JOBS_MAX {
            Some((FailureCode::Malformed, format!("{rows} rows with {} requests under way", sequence.jobs.len())))
        } else if end > sequence.tokens_max.into() {
            Some((FailureCode::TooLong, format!("{end} tokens exceed the {} that were asked for", sequence.tokens_max)))
        } else {
            None
        };
        if let Some((code, reason)) = refusal {
            let _ = answer.send(Outcome::Failed(code, reason));
            return;
        }
        sequence.jobs.push_back(Waiting { job, rows, read: None, done: 0, hidden: vec![], answer });
        if sequence.jobs.len() == 1 {
            self.turns.push(work(id, sequence.owner, rows, self.causal));
        }
    }

    fn close(&mut self, id: u64) {
        self.last.remove(&id);
        self.turns.cancel(id);
        if let Some(sequence) = self.open.remove(&id) {
            self.pool.close(sequence.pages);
        }
        self.count_pages();
    }

    /// Runs the rows of those whose turn it is.
    pub fn pass(&mut self) {
        self.busy_since = Instant::now();
        let turn = self.turns.next(self.rows_max, PROMPT_ROWS_MAX);
        self.passing.clear();
        let mut parts = vec![];
        for (id, rows) in turn {
            if let Some(part) = self.prepare(id, rows) {
                self.passing.push(id);
                parts.push(part);
            }
        }
        if parts.is_empty() {
            return;
        }
        let feeds: Vec<Feed> = parts.iter().map(|part| part.feed(&self.open, &self.pool)).collect();
        let hidden = self.decoder.run(&feeds);
        drop(feeds);
        self.count(&parts);
        self.finish(parts, hidden);
        self.last =
            std::mem::take(&mut self.passing).into_iter().filter(|id| self.open.get(id).is_some_and(|s| s.jobs.is_empty())).collect();
    }

    /// Finds room for the next `rows` rows of a sequence. What cannot be computed is answered here.
    fn prepare(&mut self, id: u64, rows: u32) -> Option<Part> {
        let sequence = self.open.get_mut(&id)?;
        let waiting = sequence.jobs.front_mut()?;
        let position = waiting.job.position + waiting.done;
        if sequence.paged {
            let held = self.pool.tokens(sequence.pages);
            if position > held {
                return self.answer(id, Outcome::Held(held));
            }
            if waiting.done == 0 && self.pool.truncate(sequence.pages, position).is_err() {
                let reason = format!("position {position} is within pages that were said to be final");
                return self.answer(id, Outcome::Failed(FailureCode::Malformed, reason));
            }
            if !self.make_room(id, position + rows) {
                self.parked.push((id, rows));
                return None;
            }
        }
        let sequence = self.open.get_mut(&id)?;
        let waiting = sequence.jobs.front_mut()?;
        let from = waiting.done;
        let entering = match waiting.part(from, rows, &self.decoder) {
            Ok(entering) => entering,
            Err(reason) => return self.answer(id, Outcome::Failed(FailureCode::Malformed, reason)),
        };
        waiting.done += rows;
        let part = Part { id, position, rows, entering };
        let checked = self.decoder.check(&part.feed(&self.open, &self.pool));
        match checked {
            Ok(()) => Some(part),
            Err(error) => {
                self.pool_back(id, position);
                self.answer(id, Outcome::Failed(FailureCode::Malformed, error.to_string()))
            }
        }
    }

    fn pool_back(&mut self, id: u64, position: u32) {
        if let Some(sequence) = self.open.get(&id).filter(|sequence| sequence.paged) {
            self.pool.truncate(sequence.pages, position).expect("it grew from there");
        }
    }

    /// Grows a sequence to `tokens`. Where no page is left, those give way that have been silent for long, and then those that came later,
    /// the last of them first: the first that came always gets on, so that all do.
    fn make_room(&mut self, id: u64, tokens: u32) -> bool {
        loop {
            if self.pool.grow(self.open[&id].pages, tokens).is_ok() {
                return true;
            }
            let gives = |(other, sequence): &(&u64, &Sequence)| {
                let silent = sequence.jobs.is_empty() && sequence.asked.elapsed() > SILENCE_MAX;
                !self.passing.contains(other) && self.pool.tokens(sequence.pages) > 0 && (silent || **other > id)
            };
            let Some((_, victim)) = self.open.iter().rev().find(gives) else { return false };
            self.pool.evict(victim.pages);
            self.counts.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Answers the job in front and takes the next in line.
    fn answer<T>(&mut self, id: u64, outcome: Outcome) -> Option<T> {
        let sequence = self.open.get_mut(&id)?;
        let waiting = sequence.jobs.pop_front()?;
        // What is left of a job that failed.
        self.turns.cancel(id);
        // Whoever asked may have gone.
        let _ = waiting.answer.send(outcome);
        if let Some(next) = sequence.jobs.front() {
            self.turns.push(work(id, sequence.owner, next.job.came.rows(), self.causal));
        }
        None
    }

    /// Gives what the pass computed to those who asked.
    fn finish(&mut self, parts: Vec<Part>, hidden: Vec<Tensor<2>>) {
        let (mut drawing, mut rows) = (vec![], vec![]);
        for (part, hidden) in parts.into_iter().zip(hidden) {
            let Some(waiting) = self.open.get_mut(&part.id).and_then(|sequence| sequence.jobs.front_mut()) else { continue };
            let is_last = waiting.done == waiting.rows;
            match waiting.job.wanted {
                Wanted::All => waiting.hidden.push(hidden),
                Wanted::Last if is_last => waiting.hidden.push(hidden.narrow(0, part.rows as usize - 1, 1)),
                _ => {}
            }
            if !is_last {
                continue; // The turn keeps what is left of it.
            }
            let states = std::mem::take(&mut waiting.hidden);
            let digests = std::mem::take(&mut waiting.job.digests);
            let sequence = &self.open[&part.id];
            if sequence.paged && self.pool.publish(sequence.pages, &digests).is_err() {
                self.answer::<()>(part.id, Outcome::Failed(FailureCode::Malformed, "pages that are not full cannot be final".into()));
                continue;
            }
            match (&sequence.leaving, states.is_empty()) {
                (_, true) => {
                    self.count_busy();
                    self.answer::<()>(part.id, Outcome::Done);
                }
                (Leaving::Drawn(..) | Leaving::Watched(..), false) => {
                    drawing.push((part.id, states.iter().map(|state| state.dims()[0]).sum::<usize>()));
                    rows.extend(states);
                }
                (Leaving::Encoded(encoding), false) => {
                    let outcome = encoded(*encoding, states);
                    self.count_busy();
                    self.answer::<()>(part.id, outcome);
                }
            }
        }
        self.draw(drawing, rows);
    }

    /// Draws the tokens of all sequences that want some, from one product with the head.
    fn draw(&mut self, drawing: Vec<(u64, usize)>, rows: Vec<Tensor<2>>) {
        if rows.is_empty() {
            return;
        }
        let vocab = self.decoder.frozen().spec().vocab;
        let mut logits = self.decoder.logits(rows);
        let mut rows = logits.chunks_exact_mut(vocab);
        for (id, count) in drawing {
            let Some(sequence) = self.open.get_mut(&id) else { continue };
            let Some(job) = sequence.jobs.front().map(|waiting| &waiting.job) else { continue };
            let (sampling, history, watch) = match &mut sequence.leaving {
                Leaving::Drawn(sampling, history) => (sampling, history, None),
                Leaving::Watched(sampling, history, watch) => (sampling, history, Some(&*watch)),
                Leaving::Encoded(_) => continue,
            };
            // The last row of a job is the one that all wanted rows end at.
            let first = job.position + job.came.rows() - count as u32;
            history.truncate(first + 1);
            let mut drawn = Vec::with_capacity(count);
            for (row, logits) in (first..).zip(rows.by_ref().take(count)) {
                if let Some(watch) = watch.filter(|_| row + 1 < history.first()) {
                    watch(row, logits, None);
                    continue;
                }
                let seen = watch.map(|_| logits.to_vec());
                let token = draw(sampling, logits, row + 1, history);
                if let (Some(watch), Some(seen)) = (watch, seen) {
                    watch(row, &seen, Some(token.id));
                }
                history.push(token.id);
                drawn.push(token);
            }
            self.count_busy();
            self.answer::<()>(id, Outcome::Drawn(drawn));
        }
    }

    /// A pass that panicked costs those in it their sequences, and nobody else.
    pub fn fail_pass(&mut self) {
        for id in std::mem::take(&mut self.passing) {
            self.answer::<()>(id, Outcome::Failed(FailureCode::Internal, "the computation failed; the server's log says why".into()));
            self.close(id);
        }
    }

    fn count(&self, parts: &[Part]) {
        let counts = &self.counts;
        counts.passes.fetch_add(1, Ordering::Relaxed);
        counts.rows.fetch_add(parts.iter().map(|part| u64::from(part.rows)).sum(), Ordering::Relaxed);
        counts.sequences.fetch_add(parts.len() as u64, Ordering::Relaxed);
        self.count_pages();
    }

    /// Counts the time since it was last counted. Before each answer: whoever hears one finds all of it counted, with the head and the encoding.
    fn count_busy(&mut self) {
        let now = Instant::now();
        let busy = now - std::mem::replace(&mut self.busy_since, now);
        self.counts.busy_us.fetch_add(busy.as_micros() as u64, Ordering::Relaxed);
    }

    fn count_pages(&self) {
        let used = self.pool.pages() - self.pool.available();
        self.counts.pages.store(used.into(), Ordering::Relaxed);
    }
}

/// Rows that wait; few are decoded, many are of a prompt and may be cut where the model is causal.
fn work(sequence: u64, owner: u64, rows: u32, causal: bool) -> Work {
    Work { sequence, owner, rows, is_prefill: causal && rows > DECODED_ROWS_MAX }
}

/// Rows of one sequence in a pass.
struct Part {
    id: u64,
    position: u32,
    rows: u32,
    entering: Entered,
}

/// Rows, ready to enter.
#[allow(clippy::large_enum_variant, reason = "a tensor handle is some 250 bytes, and a pass has a few of these")]
enum Entered {
    Tokens(Vec<u32>),
    Hidden(Tensor<2>),
}

impl Part {
    fn feed<'a>(&'a self, open: &'a BTreeMap<u64, Sequence>, pool: &'a PagePool) -> Feed<'a> {
        let sequence = &open[&self.id];
        let entering = match &self.entering {
            Entered::Tokens(ids) => Entering::Tokens(ids),
            Entered::Hidden(hidden) => Entering::Hidden(hidden.clone()),
        };
        let (adapter, blocks) = (sequence.adapter.as_ref(), sequence.blocks.clone());
        Feed { adapter, blocks, entering, position: self.position, pages: pool.table(sequence.pages) }
    }
}

impl Waiting {
    /// Rows `from..from + rows` of what came. Bytes are read once.
    fn part(&mut self, from: u32, rows: u32, decoder: &Decoder) -> Result<Entered, String> {
        if let Came::Tokens(ids) = &self.job.came {
            return Ok(Entered::Tokens(ids[from as usize..(from + rows) as usize].to_vec()));
        }
        if let Came::Encoded(encoding, bytes, all) = &self.job.came
            && self.read.is_none()
        {
            let hidden = decoder.frozen().spec().hidden;
            let read = encoding::decode(*encoding, bytes, *all as usize, hidden, decoder.device());
            self.read = Some(read.map_err(|error| error.to_string())?);
        }
        let read = self.read.clone().expect("read above");
        Ok(Entered::Hidden(if rows == self.rows { read } else { read.narrow(0, from as usize, rows as usize) }))
    }
}

fn encoded(encoding: cutlayer_wire::Encoding, states: Vec<Tensor<2>>) -> Outcome {
    let rows: usize = states.iter().map(|state| state.dims()[0]).sum();
    let states = if states.len() == 1 { states } else { vec![Tensor::cat(states, 0)] };
    match states.into_iter().next().map(|state| encoding::encode(encoding, state, 0)) {
        Some(Ok(payload)) => Outcome::Encoded(rows as u16, payload),
        Some(Err(error)) => Outcome::Failed(FailureCode::Internal, error.to_string()),
        None => Outcome::Done,
    }
}
