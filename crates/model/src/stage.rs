//! A contiguous run of layers with its adapter: what a client or a server computes in one step.
//!
//! `forward` keeps the tape of a step, `backward` spends it, `update` applies what it gave. A whole model is a stage too,
//! the one that starts at the tokens and ends at the loss.

use crate::block::Surroundings;
use crate::frozen::Frozen;
use crate::head::Loss;
use crate::lora::{Adapter, AdapterError, Bound, shapes};
use crate::optimizer::{self, Gradients};
use crate::rows::Rows;
use burn::tensor::{DType, Tensor};
use cutlayer_wire::{AdapterState, EvalSums, LoraSpec, OptimizerSpec, StepId};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most steps of one stage whose backward is still owed.
pub const TAPES_MAX: usize = 64;

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
    /// Too many steps wait for their gradient.
    #[error("{step} refused: {TAPES_MAX} steps already wait for their gradient")]
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

/// What the forward pass of a step keeps for its backward.
struct Tape {
    /// The input, where upstream wants its gradient.
    leaf: Option<Tensor<2>>,
    output: Tensor<2>,
    adapter: Bound,
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
    tapes: BTreeMap<StepId, Tape>,
    gradients: Gradients,
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
        let (tapes, gradients, times) = (BTreeMap::new(), Gradients::new(), LossTimes::default());
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

    /// Runs `blocks` and keeps the tape for `step`; returns the hidden states `[n, d]`, off the tape.
    pub fn forward(&mut self, step: StepId, blocks: Range<usize>, input: Input, rows: &Rows, mode: Mode) -> Result<Tensor<2>, StageError> {
        let tape = self.run(step, blocks, input, rows, mode)?;
        let result = tape.output.clone().inner().cast(DType::F32);
        if let Mode::Train { .. } = mode {
            if self.tapes.len() >= TAPES_MAX {
                return Err(StageError::TooManyTapes { step });
            }
            self.tapes.insert(step, tape);
        }
        Ok(result)
    }

    /// Spends the tape of `step` on the gradient of its output `[n, d]`; returns the gradient owed upstream, if it was wanted.
    pub fn backward(&mut self, step: StepId, gradient_nd: Tensor<2>) -> Result<Option<Tensor<2>>, StageError> {
        let tape = self.tapes.remove(&step).ok_or(StageError::NoTape { step })?;
        let (found, expected) = (gradient_nd.dims(), tape.output.dims());
        if found != expected {
            return Err(StageError::Shape { step, found: found.to_vec(), expected: expected.to_vec() });
        }
        let gradient_nd = gradient_nd.cast(self.frozen.activations());
        Ok(self.spend(tape, gradient_nd).map(|gradient| gradient.cast(DType::F32)))
    }

    /// Runs `blocks` and the head, and in training the whole backward pass too: the last stage of a step.
    ///
    /// Labels are one per token (the token after it; negative: not scored) or, for a classifier, one per sequence.
    /// Returns the sums and the gradient owed upstream.
    pub fn loss(
        &mut self,
        step: StepId,
        blocks: Range<usize>,
        input: Input,
        rows: &Rows,
        labels: &[i32],
        mode: Mode,
    ) -> Result<(EvalSums, Option<Tensor<2>>), StageError> {
        self.check_labels(step, rows, labels)?;
        let started = Instant::now();
        let tape = self.run(step, blocks, input, rows, mode)?;
        self.times.forward = self.lap(started);
        let started = Instant::now();
        // The last hidden states are a leaf of the head's own small graph: what it gives them, the blocks take on.
        let tracked = mode != Mode::Evaluate && (tape.output.is_tracked() || tape.checkpoints.is_some());
        let top = tape.output.clone().inner();
        let top = if tracked { top.autodiff().require_grad() } else { top };
        let Loss { mean, sums } = self.frozen.head().loss(self.frozen.kernels(), top.clone(), rows, labels, &tape.adapter);
        self.times.loss = self.lap(started);
        if !sums.loss_sum.is_finite() {
            return Err(StageError::Diverged { step, loss: sums.loss_sum.to_string() });
        }
        let started = Instant::now();
        let upstream = match mean {
            Some(mean) if mode != Mode::Evaluate && mean.is_tracked() => {
                let gradient = self.differentiate(mean, Some(top), &tape.adapter);
                gradient.and_then(|gradient| self.spend(tape, gradient)).map(|gradient| gradient.cast(DType::F32))
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

    /// Gradients of the last backward pass, by key; they wait for [`Stage::update`].
    pub fn gradients(&self) -> &Gradients {
        &self.gradients
    }

    /// Applies the waiting gradients and clears them.
    pub fn update(&mut self, optimizer: &OptimizerSpec, learning_rate: f64) {
        optimizer::apply(optimizer, learning_rate, &mut self.adapter, std::mem::take(&mut self.gradients));
    }

    /// Drops the tape of `step`, if there is one.
    pub fn forget(&mut self, step: StepId) {
        self.tapes.remove(&step);
    }

    /// Drops the tapes of steps whose gradient will not come: their peer is gone or was told to stop.
    pub fn forget_tapes(&mut self) {
        self.tapes.clear();
    }

    fn run(&self, step: StepId, blocks: Range<usize>, input: Input, rows: &Rows, mode: Mode) -> Result<Tape, StageError> {
        let (train, dropout_seed) = match mode {
            Mode::Train { dropout_seed } => (true, dropout_seed),
            Mode::Evaluate => (false, 0),
        };
        let adapter = self.adapter.bind(train, dropout_seed, self.frozen.activations());
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
    fn spend(&mut self, tape: Tape, gradient_nd: Tensor<2>) -> Option<Tensor<2>> {
        let Tape { leaf, output, adapter, checkpoints } = tape;
        let Some(Checkpoints { inputs, around }) = checkpoints else {
            // Where nothing below this point is trained, there is nothing to do.
            return if output.is_tracked() { self.differentiate((output * gradient_nd).sum(), leaf, &adapter) } else { None };
        };
        let mut gradient_nd = gradient_nd;
        for (place, (index, input)) in inputs.into_iter().enumerate().rev() {
            let input = if place > 0 || leaf.is_some() { input.autodiff().require_grad() } else { input };
            let block = self.frozen.clone();
            let output = block.block(index).forward(&block.spec().block, input.clone(), &around, &adapter);
            if !output.is_tracked() {
                return None;
            }
            gradient_nd = self.differentiate((output * gradient_nd).sum(), Some(input), &adapter)?;
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

    fn enter(&self, step: StepId, input: Input, rows: &Rows, train: bool) -> Result<(Option<Tensor<2>>, Tensor<2>), StageError> {
        match input {
            Input::Tokens(ids) => {
                let vocab = self.frozen.spec().vocab;
                if ids.len() != rows.tokens() {
                    return Err(StageError::Shape { step, found: vec![ids.len()], expected: vec![rows.tokens()] });
                }
                if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab) {
                    return Err(StageError::OutOfRange { step, id: id.into(), bound: vocab });
                }
                Ok((None, self.frozen.embed(ids, rows)))
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

    fn check_labels(&self, step: StepId, rows: &Rows, labels: &[i32]) -> Result<(), StageError> {
        let (count, bound) = self.frozen.label_bounds(rows);
        if labels.len() != count {
            return Err(StageError::Shape { step, found: vec![labels.len()], expected: vec![count] });
        }
        match labels.iter().find(|&&label| label >= bound as i32) {
            Some(&id) => Err(StageError::OutOfRange { step, id: id.into(), bound }),
            None => Ok(()),
        }
    }

    fn differentiate(&mut self, loss: Tensor<1>, leaf: Option<Tensor<2>>, adapter: &Bound) -> Option<Tensor<2>> {
        let mut taken = loss.backward();
        for (key, parameter) in &adapter.leaves {
            if let Some(gradient) = parameter.grad_remove(&mut taken) {
                self.gradients.insert(key.clone(), gradient);
            }
        }
        leaf.filter(Tensor::is_require_grad).and_then(|leaf| leaf.grad_remove(&mut taken))
    }
}
