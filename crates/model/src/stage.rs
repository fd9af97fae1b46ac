//! A contiguous run of layers with its adapter: what a client or a server computes in one step.
//!
//! `forward` keeps the tape of a step, `backward` spends it, `update` applies what it gave. A whole model is a stage too,
//! the one that starts at the tokens and ends at the loss.

use crate::block::Surroundings;
use crate::bound::Bounds;
use crate::frozen::Frozen;
use crate::head::{Loss, Part};
use crate::lora::{Adapter, AdapterError, shapes};
use crate::optimizer::{self, Gradients};
use crate::rows::Rows;
use burn::tensor::{DType, Tensor};
use cutlayer_wire::{AdapterState, EvalSums, LoraSpec, OptimizerSpec, StepId};
use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most steps of one stage whose backward is still owed, or whose gradients wait for an update.
pub const TAPES_MAX: usize = 64;

/// Names a step on one stage. Clients number their steps alike, so on a stage that they share each step carries its client;
/// a stage of one client calls it 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TapeId {
    /// Index of the client.
    pub client: u32,
    /// Its step.
    pub step: StepId,
}

impl From<StepId> for TapeId {
    fn from(step: StepId) -> Self {
        Self { client: 0, step }
    }
}

/// A step that cannot be taken.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum StageError {
    /// Nothing was run forward under this id, or its gradient came already.
    #[error("{step} has no tape here: it was never run forward, or its gradient came before")]
    NoTape {
        /// The step.
        step: StepId,
    },
    /// Too many steps wait for their gradient or their update.
    #[error("{step} refused: {TAPES_MAX} steps already wait for their gradient or their update")]
    TooManyTapes {
        /// The step.
        step: StepId,
    },
    /// Gradient or activations of the wrong shape.
    #[error("{step}: tensor is {found:?}, expected {expected:?}")]
    Shape {
        /// The step.
        step: StepId,
        /// Its shape.
        found: Vec<usize>,
        /// The shape expected.
        expected: Vec<usize>,
    },
    /// A token id outside the vocabulary, or a label outside the classes.
    #[error("{step}: id {id} is outside 0..{bound}; do tokenizer and model belong together?")]
    OutOfRange {
        /// The step.
        step: StepId,
        /// The id.
        id: i64,
        /// The bound.
        bound: usize,
    },
    /// The loss is not a number.
    #[error("{step}: the loss is {loss}; lower the learning rate, or look for bad data")]
    Diverged {
        /// The step.
        step: StepId,
        /// The loss.
        loss: String,
    },
}

/// What enters a stage.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// Token ids of all sequences, ragged `[n]`.
    Tokens(&'a [u32]),
    /// Hidden states from upstream; whether upstream wants the gradient.
    Hidden(Tensor<2>, bool),
}

/// What a step is scored by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Labels<'a> {
    /// One per token (the token after it; negative: not scored) or, for a classifier, one per sequence.
    pub values: &'a [i32],
    /// This batch's part of its step's scored labels, by which the mean loss is scaled before it is differentiated: the gradients of the
    /// micro-batches of a step then add up to that of the step's own mean. 1 for a step that is one batch.
    pub share: f64,
}

impl<'a> From<&'a [i32]> for Labels<'a> {
    fn from(values: &'a [i32]) -> Self {
        Self { values, share: 1.0 }
    }
}

impl<'a> From<&'a Vec<i32>> for Labels<'a> {
    fn from(values: &'a Vec<i32>) -> Self {
        Self::from(values.as_slice())
    }
}

/// How a step is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Keep the tape; draw dropout from this seed.
    Train {
        /// Seed of the dropout of this step.
        dropout_seed: u64,
    },
    /// No tape, no dropout.
    Evaluate,
}

impl Mode {
    /// Whether a tape is kept, and the seed of the dropout.
    pub(crate) fn split(self) -> (bool, u64) {
        match self {
            Mode::Train { dropout_seed } => (true, dropout_seed),
            Mode::Evaluate => (false, 0),
        }
    }
}

/// What the forward pass of a step keeps for its backward.
struct Tape {
    /// The input, where upstream wants its gradient.
    leaf: Option<Tensor<2>>,
    output: Tensor<2>,
    adapter: Bounds,
    /// With checkpointing: the input of each block, from which the block is run again.
    checkpoints: Option<Checkpoints>,
}

struct Checkpoints {
    inputs: Vec<(usize, Tensor<2>)>,
    around: Surroundings,
}

/// How long the parts of [`Stage::loss`] took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossTimes {
    /// The blocks, forward.
    pub forward: Duration,
    /// The head: logits, loss, and the gradient of the last hidden states where it is taken with them.
    pub loss: Duration,
    /// Everything else of the backward pass.
    pub backward: Duration,
}

/// Blocks `range` of a frozen model, with an adapter and its optimizer.
pub struct Stage {
    frozen: Arc<Frozen>,
    adapter: Adapter,
    tapes: BTreeMap<TapeId, Tape>,
    /// What the backward pass of each step gave, until an update takes it.
    gradients: BTreeMap<TapeId, Gradients>,
    checkpointing: bool,
    timed: bool,
    times: LossTimes,
}

impl Stage {
    /// A stage over `frozen` that trains the targets of `lora` in blocks `trained` and, if it ends in a `head` that is a
    /// classifier, that too.
    pub fn new(
        frozen: Arc<Frozen>,
        trained: Range<usize>,
        head: bool,
        lora: &LoraSpec,
        state: &AdapterState,
    ) -> Result<Self, AdapterError> {
        let shapes = shapes(frozen.spec(), lora, trained, head, frozen.labels())?;
        let adapter = Adapter::new(lora, &shapes, state, frozen.device())?;
        let (tapes, gradients, times) = (BTreeMap::new(), BTreeMap::new(), LossTimes::default());
        Ok(Self { frozen, adapter, tapes, gradients, checkpointing: false, timed: false, times })
    }

    /// Whether a training step keeps only the input of each block and runs the block again on the way back: a third more time, for a
    /// small part of the memory (Chen et al. 2016). The gradients are the same.
    pub fn set_checkpointing(&mut self, on: bool) {
        self.checkpointing = on;
    }

    /// Whether [`Stage::loss`] waits for the device after each of its parts, so that [`Stage::loss_times`] can tell them apart.
    pub fn set_timed(&mut self, on: bool) {
        self.timed = on;
    }

    /// The parts of the last [`Stage::loss`]; zeros unless timed.
    pub fn loss_times(&self) -> LossTimes {
        self.times
    }

    /// The adapter.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// The adapter, to load or reset.
    pub fn adapter_mut(&mut self) -> &mut Adapter {
        &mut self.adapter
    }

    /// The frozen layers behind it.
    pub fn frozen(&self) -> &Arc<Frozen> {
        &self.frozen
    }

    /// Runs `blocks` and keeps the tape for `id`; returns the hidden states `[n, d]`, off the tape.
    pub fn forward(
        &mut self,
        id: impl Into<TapeId>,
        blocks: Range<usize>,
        input: Input,
        rows: &Rows,
        mode: Mode,
    ) -> Result<Tensor<2>, StageError> {
        let id = id.into();
        self.check_room(id, mode)?;
        let tape = self.run(id.step, blocks, input, rows, mode)?;
        let result = tape.output.clone().inner().cast(DType::F32);
        if let Mode::Train { .. } = mode {
            self.tapes.insert(id, tape);
        }
        Ok(result)
    }

    /// Spends the tape of `id` on the gradient of its output `[n, d]`; returns the gradient owed upstream, if it was wanted.
    pub fn backward(&mut self, id: impl Into<TapeId>, gradient_nd: Tensor<2>) -> Result<Option<Tensor<2>>, StageError> {
        let id = id.into();
        let step = id.step;
        let tape = self.tapes.remove(&id).ok_or(StageError::NoTape { step })?;
        let (found, expected) = (gradient_nd.dims(), tape.output.dims());
        if found != expected {
            return Err(StageError::Shape { step, found: found.to_vec(), expected: expected.to_vec() });
        }
        let gradient_nd = gradient_nd.cast(self.frozen.activations());
        Ok(self.spend(id, tape, gradient_nd).map(|gradient| gradient.cast(DType::F32)))
    }

    /// Runs `blocks` and the head, and in training the whole backward pass too: the last stage of a step.
    ///
    /// Returns the sums, of all that is scored here whatever its share, and the gradient owed upstream.
    pub fn loss<'a>(
        &mut self,
        id: impl Into<TapeId>,
        blocks: Range<usize>,
        input: Input,
        rows: &Rows,
        labels: impl Into<Labels<'a>>,
        mode: Mode,
    ) -> Result<(EvalSums, Option<Tensor<2>>), StageError> {
        let (id, labels) = (id.into(), labels.into());
        let step = id.step;
        self.check_room(id, mode)?;
        self.check_labels(step, rows, labels.values)?;
        let started = Instant::now();
        let tape = self.run(step, blocks, input, rows, mode)?;
        self.times.forward = self.lap(started);
        let started = Instant::now();
        // The last hidden states are a leaf of the head's own small graph: what it gives them, the blocks take on.
        let tracked = mode != Mode::Evaluate && (tape.output.is_tracked() || tape.checkpoints.is_some());
        let top = tape.output.clone().inner();
        let top = if tracked { top.autodiff().require_grad() } else { top };
        let scored = [Part { rows, labels }];
        let Loss { objective, sums } = self.frozen.head().loss(self.frozen.kernels(), top.clone(), &scored, &tape.adapter);
        let sums = sums[0];
        self.times.loss = self.lap(started);
        if !sums.loss_sum.is_finite() {
            return Err(StageError::Diverged { step, loss: sums.loss_sum.to_string() });
        }
        let started = Instant::now();
        let upstream = match objective {
            Some(objective) if mode != Mode::Evaluate && objective.is_tracked() => {
                let gradient = self.differentiate(id, objective, Some(top), &tape.adapter);
                gradient.and_then(|gradient| self.spend(id, tape, gradient)).map(|gradient| gradient.cast(DType::F32))
            }
            _ => tape.leaf.map(|leaf| Tensor::zeros(leaf.dims(), self.frozen.device())),
        };
        self.times.backward = self.lap(started);
        Ok((sums, upstream))
    }

    /// Logits of every token `[n, v]` or every sequence `[sequences, classes]`, ragged, on the host.
    pub fn logits(&self, blocks: Range<usize>, input: Input, rows: &Rows) -> Result<Vec<f32>, StageError> {
        let tape = self.run(StepId(0), blocks, input, rows, Mode::Evaluate)?;
        Ok(crate::lora::download(self.frozen.head().logits(self.frozen.kernels(), tape.output, rows, &tape.adapter)))
    }

    /// The gradients that wait for [`Stage::update`], by key: the sum over their steps, in the order of the steps.
    pub fn gradients(&self) -> Gradients {
        optimizer::sum(self.gradients.values().cloned())
    }

    /// Applies the gradients that `steps` left, as one step of the optimizer. Those of other steps stay.
    ///
    /// They are summed in the order of the steps, whatever the order in which they came.
    pub fn update(&mut self, steps: RangeInclusive<impl Into<TapeId>>, optimizer: &OptimizerSpec, learning_rate: f64) {
        let (first, last) = steps.into_inner();
        let (first, last) = (first.into(), last.into());
        let taken: Vec<Gradients> = self.gradients.extract_if(first..=last, |_, _| true).map(|(_, gradients)| gradients).collect();
        optimizer::apply(optimizer, learning_rate, &mut self.adapter, optimizer::sum(taken));
    }

    /// Drops what there is of a step: its tape, and its gradients.
    pub fn forget(&mut self, id: impl Into<TapeId>) {
        let id = id.into();
        self.tapes.remove(&id);
        self.gradients.remove(&id);
    }

    /// Drops all steps under way: their peers are gone or were told to stop.
    pub fn forget_tapes(&mut self) {
        self.tapes.clear();
        self.gradients.clear();
    }

    pub(crate) fn check_room(&self, id: TapeId, mode: Mode) -> Result<(), StageError> {
        match mode {
            Mode::Train { .. } if self.tapes.len() + self.gradients.len() >= TAPES_MAX => Err(StageError::TooManyTapes { step: id.step }),
            _ => Ok(()),
        }
    }

    fn run(&self, step: StepId, blocks: Range<usize>, input: Input, rows: &Rows, mode: Mode) -> Result<Tape, StageError> {
        let (train, dropout_seed) = mode.split();
        let adapter = Bounds::one(self.adapter.bind(train, dropout_seed, self.frozen.activations()), rows.tokens());
        let (leaf, mut output) = self.enter(step, input, rows, train)?;
        let spec = &self.frozen.spec().block;
        let around = Surroundings::new(spec, rows, self.frozen.kernels(), self.frozen.activations(), self.frozen.device());
        if !(train && self.checkpointing) {
            for index in blocks {
                output = self.frozen.block(index).forward(spec, output, &around, &adapter);
            }
            return Ok(Tape { leaf, output, adapter, checkpoints: None });
        }
        let (mut inputs, untracked) = (vec![], adapter.inner());
        output = output.inner();
        for index in blocks {
            inputs.push((index, output.clone()));
            output = self.frozen.block(index).forward(spec, output, &around, &untracked);
        }
        Ok(Tape { leaf, output, adapter, checkpoints: Some(Checkpoints { inputs, around }) })
    }

    /// The backward pass of a tape from the gradient of its output: that of the surrogate `sum(output · gradient)`.
    fn spend(&mut self, id: TapeId, tape: Tape, gradient_nd: Tensor<2>) -> Option<Tensor<2>> {
        let Tape { leaf, output, adapter, checkpoints } = tape;
        let Some(Checkpoints { inputs, around }) = checkpoints else {
            // Where nothing below this point is trained, there is nothing to do.
            return if output.is_tracked() { self.differentiate(id, (output * gradient_nd).sum(), leaf, &adapter) } else { None };
        };
        let mut gradient_nd = gradient_nd;
        for (place, (index, input)) in inputs.into_iter().enumerate().rev() {
            let input = if place > 0 || leaf.is_some() { input.autodiff().require_grad() } else { input };
            let block = self.frozen.clone();
            let output = block.block(index).forward(&block.spec().block, input.clone(), &around, &adapter);
            if !output.is_tracked() {
                return None;
            }
            gradient_nd = self.differentiate(id, (output * gradient_nd).sum(), Some(input), &adapter)?;
        }
        leaf.map(|_| gradient_nd)
    }

    fn lap(&self, started: Instant) -> Duration {
        if !self.timed {
            return Duration::ZERO;
        }
        // A device that cannot be waited for fails at its next operation, and says more there.
        let _ = self.frozen.device().sync();
        started.elapsed()
    }

    pub(crate) fn enter(&self, step: StepId, input: Input, rows: &Rows, train: bool) -> Result<(Option<Tensor<2>>, Tensor<2>), StageError> {
        match input {
            Input::Tokens(ids) => {
                let vocab = self.frozen.spec().vocab;
                if ids.len() != rows.tokens() {
                    return Err(StageError::Shape { step, found: vec![ids.len()], expected: vec![rows.tokens()] });
                }
                if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab) {
                    return Err(StageError::OutOfRange { step, id: id.into(), bound: vocab });
                }
                Ok((None, self.frozen.embed(ids, &rows.positions())))
            }
            Input::Hidden(hidden, wanted) => {
                let expected = [rows.tokens(), self.frozen.spec().hidden];
                if hidden.dims() != expected {
                    return Err(StageError::Shape { step, found: hidden.dims().to_vec(), expected: expected.to_vec() });
                }
                let hidden = hidden.cast(self.frozen.activations());
                if train && wanted {
                    let leaf = hidden.autodiff().require_grad();
                    Ok((Some(leaf.clone()), leaf))
                } else {
                    Ok((None, hidden))
                }
            }
        }
    }

    pub(crate) fn check_labels(&self, step: StepId, rows: &Rows, labels: &[i32]) -> Result<(), StageError> {
        let (count, bound) = self.frozen.label_bounds(rows);
        if labels.len() != count {
            return Err(StageError::Shape { step, found: vec![labels.len()], expected: vec![count] });
        }
        match labels.iter().find(|&&label| label >= bound as i32) {
            Some(&id) => Err(StageError::OutOfRange { step, id: id.into(), bound }),
            None => Ok(()),
        }
    }

    /// Adds to what waits for the update of a step.
    pub(crate) fn keep(&mut self, id: TapeId, gradients: Gradients) {
        self.gradients.entry(id).or_default().extend(gradients);
    }

    /// Whether its steps cannot be part of a batch: they are run in parts, or timed.
    pub(crate) fn goes_alone(&self) -> bool {
        self.checkpointing || self.timed
    }

    fn differentiate(&mut self, id: TapeId, loss: Tensor<1>, leaf: Option<Tensor<2>>, adapter: &Bounds) -> Option<Tensor<2>> {
        let mut taken = loss.backward();
        for (_, bound) in adapter.iter() {
            self.keep(id, bound.take_gradients(&mut taken));
        }
        leaf.filter(Tensor::is_require_grad).and_then(|leaf| leaf.grad_remove(&mut taken))
    }
}
