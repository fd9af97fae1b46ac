//! Examples to batches, epoch after epoch, in an order that only the seed decides.
//!
//! An epoch's batches are a function of `(seed, epoch)`, so the whole state is two counters, and a resumed
//! batcher gives exactly the batches that the interrupted one would have given.

use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::error::DataError;
use crate::example::{Example, Target};
use crate::rng::Seeded;

/// How examples share a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// At most `sequences` examples.
    Padded,
    /// As many examples as fit in `sequences * tokens_max` tokens, end to end.
    Packed,
}

/// The size of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchShape {
    /// Examples in a padded batch.
    pub sequences: u32,
    /// The longest example, in tokens.
    pub tokens_max: u32,
    /// Padded or packed.
    pub layout: Layout,
    /// Put examples of similar length together, which pads less and shuffles less. Packed batches ignore it.
    pub group_by_length: bool,
}

/// Batches drawn together before they are sorted by length: wide enough to pad little, narrow enough to shuffle.
const GROUP_BATCHES: usize = 32;

/// Where a batcher stands; serialise it to resume exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatcherState {
    /// Which examples, shape and seed this is a state of.
    pub fingerprint: String,
    /// The epoch, from 0.
    pub epoch: u64,
    /// How many batches of that epoch were given.
    pub given: u64,
}

/// Endless batches of shuffled examples. Each epoch gives every example once; its last batch may be smaller.
pub struct Batcher {
    examples: Vec<Example>,
    shape: BatchShape,
    seed: u64,
    fingerprint: String,
    epoch: u64,
    given: usize,
    /// This epoch's batches, as indices of examples.
    plan: Vec<Vec<usize>>,
}

impl Batcher {
    /// A batcher at the start of epoch 0.
    pub fn new(examples: Vec<Example>, shape: BatchShape, seed: u64) -> Result<Self, DataError> {
        check(&examples, &shape)?;
        let fingerprint = fingerprint(&examples, &shape, seed);
        let plan = epoch_plan(&examples, &shape, seed, 0);
        Ok(Self { examples, shape, seed, fingerprint, epoch: 0, given: 0, plan })
    }

    /// The next batch; the next epoch's first after an epoch's last.
    pub fn next_batch(&mut self) -> Batch {
        if self.given == self.plan.len() {
            self.epoch += 1;
            self.given = 0;
            self.plan = epoch_plan(&self.examples, &self.shape, self.seed, self.epoch);
        }
        let chosen = &self.plan[self.given];
        self.given += 1;
        Batch::of(chosen.iter().map(|index| &self.examples[*index]))
    }

    /// The epoch of the last batch given, from 0.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many batches this epoch has. Packed epochs may differ by a batch or two.
    pub fn batches_in_epoch(&self) -> usize {
        self.plan.len()
    }

    /// The examples it draws from.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// Where it stands.
    pub fn state(&self) -> BatcherState {
        BatcherState { fingerprint: self.fingerprint.clone(), epoch: self.epoch, given: self.given as u64 }
    }

    /// Goes to where `state` was taken. Refused where it was taken of other examples, another shape or seed.
    pub fn restore(&mut self, state: &BatcherState) -> Result<(), DataError> {
        if state.fingerprint != self.fingerprint {
            let (saved, here) = (state.fingerprint.clone(), self.fingerprint.clone());
            return Err(DataError::OtherExamples { saved, here });
        }
        let plan = epoch_plan(&self.examples, &self.shape, self.seed, state.epoch);
        if state.given > plan.len() as u64 {
            let reason = format!("the saved state is at batch {} of an epoch of {}", state.given, plan.len());
            return Err(DataError::BadBatch(reason));
        }
        (self.epoch, self.given, self.plan) = (state.epoch, state.given as usize, plan);
        Ok(())
    }
}

/// Every example once, in batches of similar length: for evaluation, where the order does not matter.
pub fn evaluation_batches(examples: &[Example], shape: &BatchShape) -> Result<Vec<Batch>, DataError> {
    check(examples, shape)?;
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|index| examples[*index].tokens.len());
    let batches = cut(&order, examples, shape);
    Ok(batches.iter().map(|batch| Batch::of(batch.iter().map(|index| &examples[*index]))).collect())
}

fn check(examples: &[Example], shape: &BatchShape) -> Result<(), DataError> {
    let bad = |reason: String| Err(DataError::BadBatch(reason));
    if examples.is_empty() {
        return bad("there are no examples; every record was skipped, or there was none".to_owned());
    }
    if shape.sequences == 0 {
        return bad("a batch of 0 sequences; use at least 1".to_owned());
    }
    let classes = examples.iter().filter(|example| matches!(example.target, Target::Class(_))).count();
    if classes != 0 && classes != examples.len() {
        return bad("some examples predict tokens and others a class; use one task".to_owned());
    }
    for (index, example) in examples.iter().enumerate() {
        let tokens = example.tokens.len();
        if tokens == 0 || tokens > shape.tokens_max as usize {
            return bad(format!("example {index} has {tokens} tokens; 1 to {} are allowed", shape.tokens_max));
        }
        if matches!(example.target, Target::Next { from } if from == 0 || from >= tokens) {
            return bad(format!("example {index} scores from a position outside 1..{tokens}"));
        }
    }
    Ok(())
}

/// The batches of one epoch.
fn epoch_plan(examples: &[Example], shape: &BatchShape, seed: u64, epoch: u64) -> Vec<Vec<usize>> {
    let mut rng = Seeded::new(seed, "epoch", epoch);
    let mut order: Vec<usize> = (0..examples.len()).collect();
    rng.shuffle(&mut order);
    if shape.layout == Layout::Packed || !shape.group_by_length {
        return cut(&order, examples, shape);
    }
    for group in order.chunks_mut(shape.sequences as usize * GROUP_BATCHES) {
        group.sort_by_key(|index| examples[*index].tokens.len());
    }
    let mut batches = cut(&order, examples, shape);
    rng.shuffle(&mut batches);
    batches
}

/// Cuts an order into batches.
fn cut(order: &[usize], examples: &[Example], shape: &BatchShape) -> Vec<Vec<usize>> {
    if shape.layout == Layout::Padded {
        return order.chunks(shape.sequences as usize).map(<[usize]>::to_vec).collect();
    }
    let tokens_max = shape.sequences as usize * shape.tokens_max as usize;
    let mut batches = Vec::new();
    let (mut batch, mut tokens) = (Vec::new(), 0);
    for index in order {
        let length = examples[*index].tokens.len();
        if tokens + length > tokens_max {
            batches.push(std::mem::take(&mut batch));
            tokens = 0;
        }
        batch.push(*index);
        tokens += length;
    }
    batches.push(batch);
    batches
}

/// A short digest of everything the batches depend on.
fn fingerprint(examples: &[Example], shape: &BatchShape, seed: u64) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut word = |value: u64| {
        hasher.update(&value.to_le_bytes());
    };
    word(seed);
    let flags = [shape.layout == Layout::Packed, shape.group_by_length].map(u32::from);
    [shape.sequences, shape.tokens_max, flags[0], flags[1]].iter().for_each(|value| word(u64::from(*value)));
    for example in examples {
        match example.target {
            Target::Next { from } => word(from as u64),
            Target::Class(class) => word(u64::MAX - u64::from(class)),
        }
        word(example.tokens.len() as u64);
        example.tokens.iter().for_each(|id| word(u64::from(*id)));
    }
    hasher.finalize().to_hex()[..16].to_owned()
}
