//! The client's half of a step: the first blocks and, in a U-shape, the last ones with the loss.
//!
//! Owned by the client's compute thread. Frames in, frames out; it knows no socket.

use crate::compute_config::ComputeConfig;
use crate::edge::share;
use crate::error::NodeError;
use crate::phases::{Phase, PhaseClock, Phases};
use crate::schedule::{Sender, StepClock, frame_seed};
use crate::visits::{Visits, samples};
use cutlayer_data::Batch;
use cutlayer_model::{Device, Input, Labels, Mode, ModelFolder, Moments, Parts, Rows, Stage, Tensor, encoding, lora};
use cutlayer_wire::{AdapterState, Encoding, EvalSums, Frame, FrameFlags, FrameKind, HostTensor, Plan, StepId};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// What the two sides agreed on at hello.
#[derive(Clone, Debug)]
pub(crate) struct Agreement {
    pub plan: Plan,
    pub activations: Encoding,
    pub gradients: Encoding,
    /// Encoding of updates.
    pub adapters: Encoding,
    /// This client's index.
    pub client: u32,
    pub cut: usize,
    /// Blocks at the end on the client; `None` for a vanilla split.
    pub tail: Option<usize>,
    /// Whether to time the phases of a step; this side's own wish.
    pub phases: bool,
    /// How it computes; this side's own choice.
    pub compute: ComputeConfig,
}

/// The client's layers, adapters and optimizers.
pub(crate) struct ClientSide {
    agreed: Agreement,
    front: Stage,
    tail: Option<Stage>,
    front_blocks: Range<usize>,
    tail_blocks: Range<usize>,
    clock: PhaseClock,
    visits: Visits,
}

/// A step between its frames.
#[derive(Clone, Debug)]
pub(crate) struct Doing {
    pub step: StepId,
    pub clock: StepClock,
    pub batch: Arc<Batch>,
    pub rows: Rows,
    pub train: bool,
    /// Micro-batches of the step, and what is scored in all of them.
    pub whole: (u16, u32),
}

impl ClientSide {
    /// Reads the client's layers from `folder` and puts the starting adapter of `plan` on them.
    pub fn load(folder: &ModelFolder, device: &Device, agreed: Agreement) -> Result<Self, NodeError> {
        let blocks = cutlayer_model::read_spec(folder)?.blocks;
        let labels = crate::prepare::classes(&agreed.plan.task);
        let frozen = agreed.compute.load(folder, &Parts::client(blocks, agreed.cut, agreed.tail), labels, device)?;
        let front_blocks = 0..agreed.cut;
        let tail_blocks = blocks - agreed.tail.unwrap_or(0)..blocks;
        let plan = &agreed.plan;
        let stage = |trained: Range<usize>, head: bool| -> Result<Stage, NodeError> {
            let shapes = lora::shapes(frozen.spec(), &plan.adapter, trained.clone(), head, labels)?;
            let mut stage = Stage::new(frozen.clone(), trained, head, &plan.adapter, &lora::initial(&shapes, plan.seed))?;
            stage.set_checkpointing(agreed.compute.checkpointing);
            Ok(stage)
        };
        let front = stage(front_blocks.clone(), false)?;
        let tail = agreed.tail.map(|_| stage(tail_blocks.clone(), true)).transpose()?;
        let clock = PhaseClock::new(agreed.phases, device);
        let visits = Visits::of(agreed.activations, agreed.gradients);
        Ok(Self { front, tail, front_blocks, tail_blocks, clock, visits, agreed })
    }

    /// The phases since they were last taken; `None` where they are not timed.
    pub fn take_phases(&mut self) -> Option<Phases> {
        self.clock.take()
    }

    /// Bytes the adapter takes as f32, and the number of its values.
    pub fn adapter_values(&self) -> u64 {
        self.state().values().map(|tensor| tensor.values.len() as u64).sum()
    }

    /// What is trained here.
    pub fn state(&self) -> AdapterState {
        let tail = self.tail.iter().flat_map(|tail| tail.adapter().state());
        self.front.adapter().state().into_iter().chain(tail).collect()
    }

    /// Installs a global adapter: all of this side's tensors, and no other.
    pub fn install(&mut self, state: AdapterState) -> Result<(), NodeError> {
        let (front, tail): (BTreeMap<String, HostTensor>, AdapterState) =
            state.into_iter().partition(|(key, _)| self.front.adapter().holds(key));
        load_whole(&mut self.front, &front)?;
        match &mut self.tail {
            Some(stage) => load_whole(stage, &tail)?,
            None => {
                if let Some(key) = tail.into_keys().next() {
                    return Err(cutlayer_model::AdapterError::Unexpected { key }.into());
                }
            }
        }
        if self.agreed.plan.optimizer.reset_each_round {
            self.front.adapter_mut().reset_optimizer();
            self.tail.iter_mut().for_each(|tail| tail.adapter_mut().reset_optimizer());
        }
        self.front.forget_tapes();
        self.tail.iter_mut().for_each(Stage::forget_tapes);
        Ok(())
    }

    /// Starts a step: the rows of a batch.
    pub fn begin(&self, step: StepId, batch: Arc<Batch>, train: bool, whole: (u16, u32)) -> Result<Doing, NodeError> {
        let rows = Rows::new(&batch.lengths, self.front.frozen().spec().positions_max)?;
        Ok(Doing { step, clock: StepClock::of(step), batch, rows, train, whole })
    }

    /// The first blocks: the frame that opens the step.
    pub fn forward(&mut self, doing: &Doing) -> Result<Frame, NodeError> {
        // Nothing trained below the cut means no tape here and no gradient over the wire.
        let wants_gradient = doing.train && !self.front.adapter().is_empty();
        let mode = if wants_gradient { self.mode(doing) } else { Mode::Evaluate };
        let input = Input::Tokens(&doing.batch.ids);
        self.clock.start();
        let hidden = self.front.forward(doing.step, self.front_blocks.clone(), input, &doing.rows, mode)?;
        self.clock.end(Phase::Forward);
        let flags = FrameFlags::NONE.with_if(FrameFlags::TRAIN, doing.train).with_if(FrameFlags::NEEDS_GRADIENT, wants_gradient);
        let labels = if self.tail.is_some() { vec![] } else { doing.batch.labels.clone() };
        let width = self.front.frozen().spec().hidden as u32;
        let numbers = self.visits.number(&doing.batch);
        let payload = self.open(doing, &numbers, hidden)?;
        self.clock.end(Phase::Encode);
        let (round, lengths) = (doing.clock.round, doing.batch.lengths.clone());
        let frame = Frame::forward(doing.step, round, flags, self.agreed.activations, width, lengths, labels, payload);
        // Only a server that remembers what it left out of their gradients needs to know the samples.
        let numbered = wants_gradient && self.agreed.gradients.feeds_back();
        let frame = if numbered { frame.numbered(numbers) } else { frame };
        Ok(frame.micro(doing.whole.0, doing.whole.1))
    }

    /// U-shape: the last blocks and the loss, from the server's hidden states. Returns the sums and, in training, the gradient to send.
    pub fn finish(&mut self, doing: &Doing, hidden: &Frame) -> Result<(EvalSums, Option<Frame>), NodeError> {
        self.clock.start();
        let input = Input::Hidden(self.read(doing, hidden)?, doing.train);
        self.clock.end(Phase::Decode);
        let mode = self.mode(doing);
        let tail = self.tail.as_mut().expect("only a U-shaped client is sent hidden states");
        self.clock.start_loss(tail);
        let labels = Labels { values: &doing.batch.labels, share: share(&doing.batch.labels, doing.whole.0, doing.whole.1) };
        let (sums, gradient) = tail.loss(doing.step, self.tail_blocks.clone(), input, &doing.rows, labels, mode)?;
        self.clock.end_loss(tail);
        let Some(gradient) = gradient.filter(|_| doing.train) else { return Ok((sums, None)) };
        let payload = self.give(doing, gradient)?;
        self.clock.end(Phase::Encode);
        Ok((sums, Some(Frame::gradient(&hidden.header, self.agreed.gradients, EvalSums::default(), payload))))
    }

    /// The backward pass of the first blocks, from the server's gradient.
    pub fn backward(&mut self, doing: &Doing, gradient: &Frame) -> Result<(), NodeError> {
        self.clock.start();
        let gradient = self.read(doing, gradient)?;
        self.clock.end(Phase::Decode);
        self.front.backward(doing.step, gradient)?;
        self.clock.end(Phase::Backward);
        Ok(())
    }

    /// Applies what the backward passes of all micro-batches of `step` gave.
    pub fn update(&mut self, step: StepId) {
        let optimizer = &self.agreed.plan.optimizer;
        let learning_rate = StepClock::of(step).learning_rate(&self.agreed.plan);
        self.clock.start();
        self.front.update(step.siblings(), optimizer, learning_rate);
        self.tail.iter_mut().for_each(|tail| tail.update(step.siblings(), optimizer, learning_rate));
        self.clock.end(Phase::Optimizer);
    }

    /// What the optimizers know.
    pub fn moments(&self) -> Moments {
        let tail = self.tail.iter().flat_map(|tail| tail.adapter().moments());
        self.front.adapter().moments().into_iter().chain(tail).collect()
    }

    /// Makes them know exactly this. Steps under way are dropped: the round begins again.
    pub fn begin_again(&mut self, moments: Moments) -> Result<(), NodeError> {
        let (front, tail): (Moments, Moments) = moments.into_iter().partition(|(key, _)| self.front.adapter().holds(key));
        self.front.adapter_mut().set_moments(&front)?;
        self.front.forget_tapes();
        if let Some(stage) = &mut self.tail {
            stage.adapter_mut().set_moments(&tail)?;
            stage.forget_tapes();
        }
        self.forget_visits();
        Ok(())
    }

    fn mode(&self, doing: &Doing) -> Mode {
        if doing.train {
            Mode::Train { dropout_seed: doing.clock.dropout_seed(&self.agreed.plan, self.agreed.client) }
        } else {
            Mode::Evaluate
        }
    }

    /// The payload that opens a step: differences, where samples are remembered.
    fn open(&mut self, doing: &Doing, numbers: &[u64], hidden: Tensor<2>) -> Result<Vec<u8>, NodeError> {
        let Some(sender) = self.visits.activations() else {
            return self.write(doing, FrameKind::Forward, self.agreed.activations, hidden);
        };
        let seed = frame_seed(&self.agreed.plan, self.agreed.client, doing.step, FrameKind::Forward, Sender::Client);
        let [_, width] = hidden.dims();
        Ok(sender.pack(&samples(numbers, &doing.batch.lengths), &encoding::values(hidden), width, seed)?)
    }

    /// U-shape: the gradient at the tail, with what was left out of these samples before, where that is remembered.
    fn give(&mut self, doing: &Doing, gradient: Tensor<2>) -> Result<Vec<u8>, NodeError> {
        let numbers = self.visits.number(&doing.batch);
        let Some(feedback) = self.visits.gradients() else {
            return self.write(doing, FrameKind::Gradient, self.agreed.gradients, gradient);
        };
        let seed = frame_seed(&self.agreed.plan, self.agreed.client, doing.step, FrameKind::Gradient, Sender::Client);
        let [_, width] = gradient.dims();
        Ok(feedback.pack(&samples(&numbers, &doing.batch.lengths), &encoding::values(gradient), width, seed)?)
    }

    /// Drops the steps under way, whose answers will not come.
    pub fn forget_steps(&mut self) {
        self.front.forget_tapes();
        self.tail.iter_mut().for_each(Stage::forget_tapes);
        self.forget_visits();
    }

    /// Forgets what the server may not have seen.
    pub fn forget_visits(&mut self) {
        self.visits.forget();
    }

    fn write(&self, doing: &Doing, kind: FrameKind, encoding: Encoding, tensor: Tensor<2>) -> Result<Vec<u8>, NodeError> {
        let seed = frame_seed(&self.agreed.plan, self.agreed.client, doing.step, kind, Sender::Client);
        encoding::encode(encoding, tensor, seed).map_err(|source| NodeError::Tensor { step: doing.step, source })
    }

    fn read(&self, doing: &Doing, frame: &Frame) -> Result<Tensor<2>, NodeError> {
        let frozen = self.front.frozen();
        encoding::decode(frame.header.encoding, &frame.payload, doing.rows.tokens(), frozen.spec().hidden, frozen.device())
            .map_err(|source| NodeError::Tensor { step: doing.step, source })
    }
}

/// Loads every tensor of the stage; a global adapter that lacks one is refused.
pub(crate) fn load_whole(stage: &mut Stage, state: &AdapterState) -> Result<(), NodeError> {
    if let Some(key) = stage.adapter().keys().find(|key| !state.contains_key(*key)) {
        return Err(cutlayer_model::AdapterError::Missing { key: key.clone() }.into());
    }
    Ok(stage.adapter_mut().load(state)?)
}
