//! One thread that computes for all sequences of a side: whoever has rows waiting shares the next pass over the weights.
//!
//! The same on the device (its first blocks, its last, a draft, a whole small model) and on the server: what enters are token ids or
//! hidden states, what leaves are hidden states or drawn tokens. It knows no socket. A sequence's memory is pages of one cache; one that has to give
//! way loses them, hears of it at its next rows, and is fed again from there: what it then computes is the same to the bit.

use super::sequences::{Sequences, WorkerConfig};
use cutlayer_generation::History;
use cutlayer_model::LaidAdapter;
use cutlayer_wire::{Drawn, Encoding, FailureCode, PageDigest, SamplingSpec, Wanted};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Longest wait for the sequences of the last pass to come back, so that they share the next one too.
const GATHER_MAX: Duration = Duration::from_millis(2);
/// Part of the last pass that may be spent so.
const GATHER_SHARE: u32 = 8;

/// What a sequence is to the worker.
pub(crate) struct Opening {
    /// Whose it is: owners take turns.
    pub owner: u64,
    /// Prefixes are found again within a scope only: one peer, one adapter.
    pub scope: u64,
    pub adapter: Option<LaidAdapter>,
    /// Blocks to run.
    pub blocks: Range<usize>,
    pub leaving: Leaving,
    /// Tokens that it may grow to.
    pub tokens_max: u32,
    /// Pages that may be in the cache still.
    pub prefix: Vec<PageDigest>,
}

/// What becomes of the rows that are wanted.
pub(crate) enum Leaving {
    /// Hidden states, encoded.
    Encoded(Encoding),
    /// Tokens, drawn so after these.
    Drawn(SamplingSpec, History),
    /// The same, with someone who sees the logits. What the prompt says already is seen, not drawn.
    Watched(SamplingSpec, History, Watch),
}

/// Sees the logits of rows that are answered, before penalties: the row's position, its logits, and the token that was drawn after it.
pub(crate) type Watch = Arc<dyn Fn(u32, &[f32], Option<u32>) + Send + Sync>;

/// Rows to compute.
pub(crate) struct Job {
    /// Where the first stands; what is cached from there on is forgotten.
    pub position: u32,
    pub came: Came,
    pub wanted: Wanted,
    /// Names of the next full pages that are final.
    pub digests: Vec<PageDigest>,
}

/// How rows come.
pub(crate) enum Came {
    /// Token ids.
    Tokens(Vec<u32>),
    /// So many rows of hidden states.
    Encoded(Encoding, Vec<u8>, u32),
}

impl Came {
    pub fn rows(&self) -> u32 {
        match self {
            Self::Tokens(ids) => ids.len() as u32,
            Self::Encoded(_, _, rows) => *rows,
        }
    }
}

/// What a job gave.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Nothing was wanted.
    Done,
    /// Tokens after the rows wanted.
    Drawn(Vec<Drawn>),
    /// Hidden states of so many rows.
    Encoded(u16, Vec<u8>),
    /// The rows before are gone: it holds so many.
    Held(u32),
    /// It cannot be computed.
    Failed(FailureCode, String),
}

/// A word to the thread.
pub(super) enum Command {
    Open(u64, Box<Opening>, oneshot::Sender<Result<u32, (FailureCode, String)>>),
    Job(u64, Box<Job>, oneshot::Sender<Outcome>),
    Close(u64),
}

/// What a worker has done, for those who watch it.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Passes over the weights.
    pub passes: AtomicU64,
    /// Rows in them.
    pub rows: AtomicU64,
    /// Sequences in them.
    pub sequences: AtomicU64,
    /// Time spent in them, in microseconds.
    pub busy_us: AtomicU64,
    /// Sequences whose pages were taken.
    pub evicted: AtomicU64,
    /// Tokens of prefixes that were found in the cache.
    pub found: AtomicU64,
    /// Pages in use now.
    pub pages: AtomicU64,
}

/// What a side has computed for sequences since it began, or between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Passes over the weights.
    pub passes: u64,
    /// Rows in them: tokens of prompts, tokens that were decoded, and guesses.
    pub rows: u64,
    /// Sequences in them: over passes, how many shared one.
    pub sequences: u64,
    /// Time in them, in microseconds, from reading what came to each answer.
    pub busy_us: u64,
    /// Sequences whose pages were taken for others.
    pub evicted: u64,
    /// Tokens of prefixes that were found in the cache.
    pub found: u64,
    /// Pages of the cache in use now.
    pub pages: u64,
}

impl Work {
    /// What came after `before`; pages are those in use now.
    pub fn since(self, before: Self) -> Self {
        Self {
            passes: self.passes - before.passes,
            rows: self.rows - before.rows,
            sequences: self.sequences - before.sequences,
            busy_us: self.busy_us - before.busy_us,
            evicted: self.evicted - before.evicted,
            found: self.found - before.found,
            pages: self.pages,
        }
    }
}

impl Counts {
    /// As it stands.
    pub fn work(&self) -> Work {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Work {
            passes: now(&self.passes),
            rows: now(&self.rows),
            sequences: now(&self.sequences),
            busy_us: now(&self.busy_us),
            evicted: now(&self.evicted),
            found: now(&self.found),
            pages: now(&self.pages),
        }
    }
}

/// A handle on the thread. Clones share it; it ends with the last one and the last seat.
#[derive(Clone)]
pub(crate) struct Worker {
    commands: mpsc::Sender<Command>,
    next: Arc<AtomicU64>,
    counts: Arc<Counts>,
}

/// A sequence's place with a worker; dropping it gives everything back.
pub(crate) struct Seat {
    id: u64,
    worker: Worker,
    /// Tokens that were in the cache when it was opened.
    pub held: u32,
}

impl Drop for Seat {
    fn drop(&mut self) {
        // A worker that ended has nothing to give back.
        let _ = self.worker.commands.send(Command::Close(self.id));
    }
}

impl Seat {
    /// Hands rows over; they wait for their turn. An answer that does not come means that the worker ended.
    ///
    /// What waits is bounded by whoever calls: a sequence has a few jobs under way at most.
    pub fn send(&self, job: Job) -> oneshot::Receiver<Outcome> {
        let (answer, outcome) = oneshot::channel();
        // To a worker that ended: the receiver hears of it.
        let _ = self.worker.commands.send(Command::Job(self.id, Box::new(job), answer));
        outcome
    }

    /// The same, waited for.
    pub async fn run(&self, job: Job) -> Outcome {
        ended(self.send(job).await)
    }
}

/// The outcome, or that there will be none.
pub(crate) fn ended(outcome: Result<Outcome, oneshot::error::RecvError>) -> Outcome {
    outcome.unwrap_or_else(|_| Outcome::Failed(FailureCode::Internal, "the computation ended".into()))
}

impl Worker {
    /// Starts the thread.
    pub fn start(name: &str, config: WorkerConfig) -> std::io::Result<Self> {
        let (commands, queue) = mpsc::channel();
        let counts = Arc::new(Counts::default());
        let seen = counts.clone();
        std::thread::Builder::new().name(name.into()).spawn(move || compute(&mut Sequences::new(config, seen), queue))?;
        Ok(Self { commands, next: Arc::default(), counts })
    }

    /// What it has done.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Opens a sequence.
    pub async fn open(&self, opening: Opening) -> Result<Seat, (FailureCode, String)> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, opened) = oneshot::channel();
        let gone = || (FailureCode::Internal, "the computation ended".to_owned());
        self.commands.send(Command::Open(id, Box::new(opening), answer)).map_err(|_| gone())?;
        // The seat is there before its answer, so that it is given back even if nobody waits for that.
        let mut seat = Seat { id, worker: self.clone(), held: 0 };
        seat.held = opened.await.map_err(|_| gone())??;
        Ok(seat)
    }
}

/// Takes words and computes until nobody is left to speak.
fn compute(sequences: &mut Sequences, queue: mpsc::Receiver<Command>) {
    let mut gather_until = Instant::now();
    loop {
        while let Ok(command) = queue.try_recv() {
            sequences.take(command);
        }
        let patience = if !sequences.has_work() {
            sequences.patience()
        } else if sequences.awaits_last() {
            // Those of the last pass are about to come back: a pass costs nearly the same with them.
            Some(gather_until.saturating_duration_since(Instant::now()))
        } else {
            Some(Duration::ZERO)
        };
        let heard = match patience {
            Some(Duration::ZERO) => Err(RecvTimeoutError::Timeout),
            Some(patience) => queue.recv_timeout(patience),
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match heard {
            Ok(command) => {
                sequences.take(command);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => sequences.call_back(),
        }
        let started = Instant::now();
        if catch_unwind(AssertUnwindSafe(|| sequences.pass())).is_err() {
            sequences.fail_pass();
        }
        gather_until = Instant::now() + (started.elapsed() / GATHER_SHARE).min(GATHER_MAX);
    }
}
