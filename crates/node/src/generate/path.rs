//! From tokens to the tokens after them, wherever the blocks are: all on the device, or the first here, the rest on the host, and in a
//! U-shape the last here again.
//!
//! A step names all tokens of the sequence and which of its last rows are to be answered. All sides hold the same rows of it; a side that
//! lost some is brought up again, with the others, from the longest prefix that all still have.

use super::device::{Here, Shared};
use super::line::{Live, is_gone};
use super::prefix::PrefixNames;
use super::worker::{Came, Job, Leaving, Opening, Outcome, Seat, Watch};
use crate::error::NodeError;
use cutlayer_generation::History;
use cutlayer_transport::{GenerateReceiver, GenerateSender, LinkError};
use cutlayer_wire::{
    DeviceRecord, Drawn, FailureCode, Open, PAGE_TOKENS, PREFIX_PAGES_MAX, PageDigest, RecordLimits, RowsRecord, SamplingSpec,
    ServerRecord, Wanted,
};
use std::ops::Range;
use std::sync::Arc;

/// Rows of a prompt that travel at once: the next are computed meanwhile.
const CHUNK_ROWS: usize = 256;
/// Times that a sequence may lose its rows to others in one step.
const FORGOTTEN_MAX: u32 = 100;

/// One sequence on its way through the model.
pub(super) struct Path<'a> {
    shared: &'a Shared,
    about: About,
    names: PrefixNames,
    sides: Option<Sides>,
    /// Tokens that were found in the caches when it was first opened.
    pub found: Option<u32>,
}

/// What stays the same for a sequence.
pub(super) struct About {
    pub adapter: Option<String>,
    pub sampling: SamplingSpec,
    /// Tokens that it may grow to, guesses included.
    pub tokens_max: u32,
    pub prompt_tokens: usize,
    /// Sees the logits of all rows that are answered, where tokens are drawn here.
    pub watch: Option<Watch>,
}

/// The sides of an open sequence.
struct Sides {
    front: Seat,
    remote: Option<Remote>,
    tail: Option<Seat>,
    /// Rows that all hold.
    held: usize,
    /// Full pages that all know by name.
    published: usize,
}

struct Remote {
    live: Arc<Live>,
    sender: GenerateSender<DeviceRecord>,
    receiver: GenerateReceiver<ServerRecord>,
    /// Whether it has said what it holds.
    greeted: bool,
}

/// Why a step was not taken.
enum Missed {
    Lost(Arc<Live>, NodeError),
    /// A side gave the sequence's rows up for others.
    Forgotten,
    Fatal(NodeError),
}

impl<E: Into<NodeError>> From<E> for Missed {
    fn from(error: E) -> Self {
        Self::Fatal(error.into())
    }
}

/// Rows that are computed at once, and what is wanted of them in the end.
#[derive(Clone)]
struct Chunk {
    rows: Range<usize>,
    wanted: Wanted,
    digests: Vec<PageDigest>,
}

pub(super) fn failed(code: FailureCode, reason: String) -> NodeError {
    NodeError::Generation { code, reason }
}

impl<'a> Path<'a> {
    pub fn new(shared: &'a Shared, about: About) -> Self {
        let names = shared.names(about.adapter.as_deref());
        Self { shared, about, names, sides: None, found: None }
    }

    /// The tokens that follow `ids[answered..]`, one for each: that after `ids[answered]` is certain, the others only as far as `ids` guessed
    /// right. Rows before `answered` that are not held are computed on the way.
    pub async fn step(&mut self, ids: &[u32], answered: usize) -> Result<Vec<Drawn>, NodeError> {
        let mut forgotten = 0;
        loop {
            match self.try_step(ids, answered).await {
                Ok(drawn) => return Ok(drawn),
                Err(Missed::Fatal(error)) => return Err(error),
                Err(Missed::Lost(live, error)) => {
                    let line = self.shared.line.as_ref().expect("only a connection can be lost");
                    line.recover(&live, error).await?;
                }
                Err(Missed::Forgotten) if forgotten < FORGOTTEN_MAX => forgotten += 1,
                Err(Missed::Forgotten) => {
                    let reason = format!("its rows gave way to others' {forgotten} times; try again when less is under way");
                    return Err(failed(FailureCode::Busy, reason));
                }
            }
        }
    }

    /// Milliseconds to the host and back; 0 where everything is here.
    pub fn rtt_ms(&self) -> f64 {
        self.sides.as_ref().and_then(|sides| sides.remote.as_ref()).map_or(0.0, |remote| remote.live.rtt_ms())
    }

    async fn try_step(&mut self, ids: &[u32], answered: usize) -> Result<Vec<Drawn>, Missed> {
        // Rows of the prompt may be asked for their logits: what follows them is certain too.
        let certain = &ids[..(answered + 1).max(self.about.prompt_tokens)];
        let named = &ids[..=answered];
        // Taken out: a side that fails is not kept, for what it holds is unknown.
        let mut sides = match self.sides.take() {
            Some(sides) => sides,
            None => self.open(certain, named).await?,
        };
        let names = self.names.of(named);
        let from = sides.held.min(answered);
        let chunks = chunks(from, answered, ids.len(), names, &mut sides.published);
        let drawn = sides.run(self.shared, ids, &chunks).await?;
        sides.held = ids.len();
        self.sides = Some(sides);
        Ok(drawn)
    }

    /// Opens all sides at the longest prefix that all of them have.
    async fn open(&mut self, certain: &[u32], named: &[u32]) -> Result<Sides, Missed> {
        let shared = self.shared;
        // The last row is always computed: nobody keeps its answer.
        let known = self.names.of(&named[..named.len() - 1]);
        let mut prefix = known[..known.len().min(PREFIX_PAGES_MAX)].to_vec();
        let here = async |prefix: &[PageDigest]| -> Result<(Seat, Option<Seat>), NodeError> {
            let front = self.seat(&shared.front, prefix, certain, shared.line.is_some()).await?;
            let tail = match &shared.tail {
                Some(tail) => Some(self.seat(tail, prefix, certain, false).await?),
                None => None,
            };
            Ok((front, tail))
        };
        let (mut front, mut tail) = here(&prefix).await?;
        let held = |front: &Seat, tail: &Option<Seat>| front.held.min(tail.as_ref().map_or(u32::MAX, |tail| tail.held));
        prefix.truncate((held(&front, &tail) / PAGE_TOKENS) as usize);
        let mut remote = None;
        if let Some(line) = &shared.line {
            let live = line.live().await?;
            let (opened, found) = match self.open_remote(&live, &prefix, certain).await {
                Ok(opened) => opened,
                Err(error) => return Err(missed(&live, error)),
            };
            prefix.truncate((found / PAGE_TOKENS) as usize);
            remote = Some(opened);
        }
        let (pages, all) = (prefix.len(), prefix.len() * PAGE_TOKENS as usize);
        if held(&front, &tail) as usize != all {
            // One after the other: a seat that is dropped gives its pages back before the next is opened.
            drop((front, tail));
            (front, tail) = here(&prefix).await?;
            if held(&front, &tail) as usize != all {
                return Err(Missed::Forgotten);
            }
        }
        self.found.get_or_insert(all as u32);
        Ok(Sides { front, remote, tail, held: all, published: pages })
    }

    /// A seat with a worker of this device.
    async fn seat(&self, here: &Here, prefix: &[PageDigest], certain: &[u32], passes_on: bool) -> Result<Seat, NodeError> {
        let (sampling, prompt) = (self.about.sampling.clone(), self.about.prompt_tokens);
        let leaving = if passes_on {
            Leaving::Encoded(self.shared.encoding)
        } else {
            let mut history = History::new(&certain[..prompt]);
            certain[prompt..].iter().for_each(|&id| history.push(id));
            match &self.about.watch {
                Some(watch) => Leaving::Watched(sampling, history, watch.clone()),
                None => Leaving::Drawn(sampling, history),
            }
        };
        let opening = Opening {
            owner: 0,
            scope: 0,
            adapter: here.adapter(self.about.adapter.as_deref())?,
            blocks: here.blocks.clone(),
            leaving,
            tokens_max: self.about.tokens_max,
            prefix: prefix.to_vec(),
        };
        here.worker.open(opening).await.map_err(|(code, reason)| failed(code, reason))
    }

    /// Opens the sequence on the host. Where there is nothing to ask for, its answer is not waited for.
    async fn open_remote(&self, live: &Arc<Live>, prefix: &[PageDigest], certain: &[u32]) -> Result<(Remote, u32), NodeError> {
        let line = self.shared.line.as_ref().expect("asked for");
        let prompt = self.about.prompt_tokens;
        if let Some(name) = self.about.adapter.as_ref().filter(|name| !live.adapters.contains(name)) {
            let known = live.adapters.join(", ");
            return Err(failed(FailureCode::Adapter, format!("the server has no adapter {name}; it has: {known}")));
        }
        let draws_there = self.shared.tail.is_none();
        let open = Open {
            adapter: self.about.adapter.clone(),
            sampling: draws_there.then(|| self.about.sampling.clone()),
            tokens_max: self.about.tokens_max,
            prefix: prefix.to_vec(),
            generated: if draws_there { (prompt as u32, certain[prompt..].to_vec()) } else { (0, vec![]) },
        };
        let (mut sender, receiver) = line.stream(live).await?.split();
        sender.send(DeviceRecord::Open(open)).await?;
        let mut remote = Remote { live: live.clone(), sender, receiver, greeted: false };
        let held = if prefix.is_empty() { 0 } else { remote.greet(&self.shared.limits).await? };
        Ok((remote, held))
    }
}

/// The rows `from..to` in chunks, of which those from `answered` on are answered; `names` are those of all full pages that are certain.
fn chunks(from: usize, answered: usize, to: usize, names: &[PageDigest], published: &mut usize) -> Vec<Chunk> {
    let mut ends: Vec<(usize, Wanted)> = vec![];
    // One answer is the last row's; several have a chunk of their own.
    let (split, wanted) = if answered + 1 == to { (to, Wanted::Last) } else { (answered, Wanted::All) };
    ends.extend((from + CHUNK_ROWS..split).step_by(CHUNK_ROWS).map(|end| (end, Wanted::None)));
    if split < to && split > from {
        ends.push((split, Wanted::None));
    }
    ends.push((to, wanted));
    let mut from = from;
    let chunk = |(end, wanted): (usize, Wanted)| {
        let full = (end / PAGE_TOKENS as usize).min(names.len()).max(*published);
        let digests = names[*published..full].to_vec();
        *published = full;
        let rows = from..end;
        from = end;
        Chunk { rows, wanted, digests }
    };
    ends.into_iter().map(chunk).collect()
}

impl Sides {
    async fn run(&mut self, shared: &Shared, ids: &[u32], chunks: &[Chunk]) -> Result<Vec<Drawn>, Missed> {
        let Some(remote) = &mut self.remote else {
            let mut drawn = vec![];
            for Chunk { rows, wanted, digests } in chunks.iter().cloned() {
                let job = Job { position: rows.start as u32, came: Came::Tokens(ids[rows].to_vec()), wanted, digests };
                drawn = taken(self.front.run(job).await)?;
            }
            return Ok(drawn);
        };
        // The tail's blocks need every row, its head alone only those that are answered.
        let every = shared.tail.as_ref().is_some_and(|tail| !tail.blocks.is_empty());
        let live = remote.live.clone();
        let (front, tail) = (&self.front, &self.tail);
        let sending = async {
            for Chunk { rows, wanted, digests } in chunks.iter().cloned() {
                let (position, count) = (rows.start as u32, rows.len() as u16);
                let job = Job { position, came: Came::Tokens(ids[rows].to_vec()), wanted: Wanted::All, digests: digests.clone() };
                let payload = match front.run(job).await {
                    Outcome::Encoded(_, payload) => payload,
                    other => return Err(taken(other).err().unwrap_or(Missed::Forgotten)),
                };
                let wanted = if every { Wanted::All } else { wanted };
                let record = RowsRecord { position, rows: count, wanted, digests, payload };
                remote.sender.send(DeviceRecord::Rows(record)).await.map_err(|error| missed(&live, error.into()))?;
            }
            Ok(())
        };
        let (receiver, greeted) = (&mut remote.receiver, &mut remote.greeted);
        let receiving = async {
            let mut drawn = vec![];
            for Chunk { rows, wanted, digests } in chunks.iter().cloned() {
                if wanted == Wanted::None && !every {
                    continue;
                }
                let first = if wanted == Wanted::Last && !every { rows.end - 1 } else { rows.start } as u32;
                let answer = next_answer(receiver, greeted, &shared.limits).await;
                match answer.map_err(|error| missed(&live, error))? {
                    ServerRecord::Tokens { position, drawn: tokens } if position == first && tail.is_none() => drawn = tokens,
                    ServerRecord::Rows { position, rows: count, payload } if position == first => {
                        let Some(tail) = tail else { return Err(out_of_turn("hidden states").into()) };
                        let job = Job { position, came: Came::Encoded(shared.encoding, payload, count.into()), wanted, digests };
                        drawn = taken(tail.run(job).await)?;
                    }
                    ServerRecord::Held(_) => return Err(Missed::Forgotten),
                    ServerRecord::Failed { code, reason } => return Err(failed(code, reason).into()),
                    _ => return Err(out_of_turn("an answer to something else").into()),
                }
            }
            Ok(drawn)
        };
        // At once: a server that answers is read from while more is sent.
        let ((), drawn) = tokio::try_join!(sending, receiving)?;
        let expected = match chunks.last() {
            Some(Chunk { rows, wanted: Wanted::All, .. }) => rows.len(),
            _ => 1,
        };
        if tail.is_none() && drawn.len() != expected {
            return Err(out_of_turn("another number of tokens").into());
        }
        Ok(drawn)
    }
}

impl Remote {
    /// Waits for the host to say what it holds.
    async fn greet(&mut self, limits: &RecordLimits) -> Result<u32, NodeError> {
        self.greeted = true;
        match heard(self.receiver.recv(limits).await)? {
            ServerRecord::Held(held) => Ok(held),
            ServerRecord::Failed { code, reason } => Err(failed(code, reason)),
            _ => Err(out_of_turn("something before it said what it holds")),
        }
    }
}

/// What the host says next, after what it said first where that was not waited for.
async fn next_answer(
    receiver: &mut GenerateReceiver<ServerRecord>,
    greeted: &mut bool,
    limits: &RecordLimits,
) -> Result<ServerRecord, NodeError> {
    let answer = heard(receiver.recv(limits).await)?;
    if std::mem::replace(greeted, true) || !matches!(answer, ServerRecord::Held(0)) {
        return Ok(answer);
    }
    heard(receiver.recv(limits).await)
}

pub(super) fn heard(record: Result<Option<ServerRecord>, LinkError>) -> Result<ServerRecord, NodeError> {
    let ended = || failed(FailureCode::Internal, "the host ended the sequence without a reason".into());
    record?.ok_or_else(ended)
}

fn missed(live: &Arc<Live>, error: NodeError) -> Missed {
    match error {
        // The host gave this sequence up, not the connection.
        NodeError::Link(LinkError::Cancelled { .. }) => Missed::Forgotten,
        error if is_gone(&error) => Missed::Lost(live.clone(), error),
        error => Missed::Fatal(error),
    }
}

pub(super) fn out_of_turn(what: &str) -> NodeError {
    NodeError::Ended { reason: format!("the server sent {what}: update the older of the two sides") }
}

/// What was drawn.
fn taken(outcome: Outcome) -> Result<Vec<Drawn>, Missed> {
    match outcome {
        Outcome::Drawn(drawn) => Ok(drawn),
        Outcome::Done => Ok(vec![]),
        Outcome::Held(_) => Err(Missed::Forgotten),
        Outcome::Failed(code, reason) => Err(failed(code, reason).into()),
        Outcome::Encoded(..) => unreachable!("a side that draws passes nothing on"),
    }
}
