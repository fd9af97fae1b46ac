//! The server's half of a step: one frozen base, and an adapter for each client or one for all.
//!
//! Owned by the server's compute thread. Frames in, frames out; it knows no socket.

use crate::compute_config::ComputeConfig;
use crate::error::NodeError;
use crate::phases::{Phase, PhaseClock, Phases};
use crate::schedule::{Sender, StepClock, frame_seed};
use crate::side::load_whole;
use crate::visits::{Known, samples};
use cutlayer_federation::{Source, Update};
use cutlayer_model::{Device, Frozen, Input, Mode, ModelFolder, Parts, Rows, Stage, Tensor, encoding, lora};
use cutlayer_wire::{
    AdapterState, Encoding, EvalSums, Frame, FrameFlags, FrameKind, HostTensor, PeerId, Plan, RoundId, ServerAdapters, StepId,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// What a client did in the round, as the server saw it: the bound on the weight it may claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    pub steps: u32,
    pub sequences: u64,
    pub tokens: u64,
    /// Labels scored; `None` where the server does not see them (U-shape).
    pub scored: Option<u64>,
}

/// One client's place on the server.
struct Seat {
    peer: PeerId,
    /// Blocks the server runs for it.
    blocks: Range<usize>,
    head: bool,
    own: Option<Stage>,
    work: Work,
    gone: bool,
    /// U-shaped steps between Hidden and Gradient.
    doing: BTreeMap<StepId, (StepClock, Rows)>,
    /// What it remembers of the client's samples.
    known: Known,
}

/// The server's layers and adapters.
pub(crate) struct Edge {
    plan: Plan,
    gradients: Encoding,
    activations: Encoding,
    frozen: Arc<Frozen>,
    labels: usize,
    shared: Option<Stage>,
    seats: BTreeMap<u32, Seat>,
    global: AdapterState,
    clock: PhaseClock,
    checkpointing: bool,
}

impl Edge {
    /// Reads blocks `first..` of the model, and the head if `head`.
    pub fn load(
        folder: &ModelFolder,
        (compute, device): (ComputeConfig, &Device),
        plan: Plan,
        (activations, gradients): (Encoding, Encoding),
        first: usize,
        head: bool,
        global: AdapterState,
    ) -> Result<Self, NodeError> {
        let blocks = cutlayer_model::read_spec(folder)?.blocks;
        let labels = crate::prepare::classes(&plan.task);
        let parts = Parts { embedding: false, blocks: (first..blocks).collect(), head };
        let frozen = compute.load(folder, &parts, labels, device)?;
        let clock = PhaseClock::new(false, device);
        let (seats, checkpointing) = (BTreeMap::new(), compute.checkpointing);
        let mut edge = Self { plan, gradients, activations, frozen, labels, shared: None, seats, global, clock, checkpointing };
        if edge.plan.server_adapters == ServerAdapters::Shared {
            edge.shared = Some(edge.stage(first..blocks, head)?);
        }
        Ok(edge)
    }

    /// The same, with the phases of its steps timed if `asked`.
    pub fn timed(mut self, asked: bool) -> Self {
        self.clock = PhaseClock::new(asked, self.frozen.device());
        self
    }

    /// The phases since they were last taken; `None` where they are not timed.
    pub fn take_phases(&mut self) -> Option<Phases> {
        self.clock.take()
    }

    /// Gives a client its place.
    pub fn seat(&mut self, client: u32, peer: PeerId, cut: usize, tail: Option<usize>) -> Result<(), NodeError> {
        let blocks = cut..self.frozen.spec().blocks - tail.unwrap_or(0);
        let head = tail.is_none();
        let own = match self.plan.server_adapters {
            ServerAdapters::PerClient => Some(self.stage(blocks.clone(), head)?),
            ServerAdapters::Shared => None,
        };
        let seat = Seat {
            peer,
            blocks,
            head,
            own,
            work: Work::default(),
            gone: false,
            doing: BTreeMap::new(),
            known: Known::of(self.activations, self.gradients),
        };
        self.seats.insert(client, seat);
        Ok(())
    }

    /// Marks a client as gone. What it trained on the server stays until the next global adapter: its update may already count.
    pub fn unseat(&mut self, client: u32) {
        self.forget(client);
        self.seats.entry(client).and_modify(|seat| seat.gone = true);
    }

    /// Drops the steps of a client that are under way.
    fn forget(&mut self, client: u32) {
        let Some(seat) = self.seats.get_mut(&client) else { return };
        let Some(stage) = seat.own.as_mut().or(self.shared.as_mut()) else { return };
        for step in std::mem::take(&mut seat.doing).into_keys() {
            stage.forget(tape_of(client, step));
        }
    }

    /// Starts counting a client's work anew.
    pub fn begin_round(&mut self, client: u32) {
        self.forget(client);
        if let Some(seat) = self.seats.get_mut(&client) {
            seat.work = Work::default();
        }
    }

    /// What a client did since.
    pub fn work(&self, client: u32) -> Work {
        self.seats.get(&client).map(|seat| seat.work).unwrap_or_default()
    }

    /// Installs a new global adapter everywhere.
    pub fn install(&mut self, global: AdapterState) -> Result<(), NodeError> {
        let reset = self.plan.optimizer.reset_each_round;
        self.seats.retain(|_, seat| !seat.gone);
        for seat in self.seats.values_mut() {
            if let Some(stage) = &mut seat.own {
                load_whole(stage, &part(&global, stage))?;
                if reset {
                    stage.adapter_mut().reset_optimizer();
                }
            }
        }
        if let Some(stage) = &mut self.shared {
            // The shared part steps on through the rounds, its optimizer with it; aggregation may still have changed
            // layers that some clients train themselves.
            load_whole(stage, &part(&global, stage))?;
        }
        self.global = global;
        Ok(())
    }

    /// Answers the frame that opens a step: the gradient or the sums, or hidden states for a U-shaped client.
    pub fn open(&mut self, client: u32, frame: &Frame) -> Result<Frame, NodeError> {
        let header = frame.header;
        let (step, train) = (header.step, header.flags.has(FrameFlags::TRAIN));
        let rows = Rows::new(&frame.lengths, self.frozen.spec().positions_max)?;
        self.clock.start();
        let hidden = self.read_opening(client, frame, &rows)?;
        self.clock.end(Phase::Decode);
        let seat = self.seats.get_mut(&client).expect("a session has a seat until it ends");
        let clock = StepClock { round: header.round, index: seat.work.steps };
        let mode = if train { Mode::Train { dropout_seed: clock.dropout_seed(&self.plan, client) } } else { Mode::Evaluate };
        let input = Input::Hidden(hidden, train && header.flags.has(FrameFlags::NEEDS_GRADIENT));
        let blocks = seat.blocks.clone();
        if train {
            seat.work.steps += 1;
            seat.work.sequences += frame.lengths.len() as u64;
            seat.work.tokens += u64::from(header.tokens);
        }
        let stage = seat.own.as_mut().or(self.shared.as_mut()).expect("one of the two adapters");
        if !seat.head {
            let hidden = stage.forward(tape_of(client, step), blocks, input, &rows, mode)?;
            self.clock.end(Phase::Forward);
            if train {
                seat.doing.insert(step, (clock, rows));
            }
            let encoding = self.activations.forgetful();
            let payload = self.write(client, step, FrameKind::Hidden, encoding, hidden)?;
            self.clock.end(Phase::Encode);
            return Ok(Frame::hidden(&header, encoding, payload));
        }
        self.clock.start_loss(stage);
        let (sums, gradient) = stage.loss(step, blocks, input, &rows, &frame.labels, mode)?;
        self.clock.end_loss(stage);
        if train {
            seat.work.scored = Some(seat.work.scored.unwrap_or(0) + sums.scored);
            stage.update(&self.plan.optimizer, clock.learning_rate(&self.plan));
            self.clock.end(Phase::Optimizer);
        }
        let answer = self.answer(client, frame, gradient.filter(|_| train), sums)?;
        self.clock.end(Phase::Encode);
        Ok(answer)
    }

    /// Answers the gradient of a U-shaped step with the gradient at the cut.
    pub fn close(&mut self, client: u32, opened: &Frame, gradient: &Frame) -> Result<Frame, NodeError> {
        let step = opened.header.step;
        let seat = self.seats.get_mut(&client).expect("a session has a seat until it ends");
        let (clock, rows) = seat.doing.remove(&step).ok_or(cutlayer_model::StageError::NoTape { step })?;
        self.clock.start();
        let gradient = self.read(step, gradient, &rows)?;
        self.clock.end(Phase::Decode);
        let seat = self.seats.get_mut(&client).expect("looked up above");
        let stage = seat.own.as_mut().or(self.shared.as_mut()).expect("one of the two adapters");
        let upstream = stage.backward(tape_of(client, step), gradient)?;
        self.clock.end(Phase::Backward);
        stage.update(&self.plan.optimizer, clock.learning_rate(&self.plan));
        self.clock.end(Phase::Optimizer);
        let answer = self.answer(client, opened, upstream, EvalSums::default())?;
        self.clock.end(Phase::Encode);
        Ok(answer)
    }

    /// The server's part of a round: each client's own adapter, or the one that all share. The federation weighs them.
    pub fn parts(&self, round: RoundId, peers: &[PeerId]) -> Vec<Update> {
        if let Some(shared) = &self.shared {
            return vec![Update { source: Source::SharedServer, round, weight: 0.0, tensors: shared.adapter().state() }];
        }
        let counted = self.seats.values().filter(|seat| peers.contains(&seat.peer));
        counted
            .filter_map(|seat| {
                let tensors = seat.own.as_ref()?.adapter().state();
                Some(Update { source: Source::Client(seat.peer), round, weight: 0.0, tensors })
            })
            .collect()
    }

    fn answer(&mut self, client: u32, opened: &Frame, gradient: Option<Tensor<2>>, sums: EvalSums) -> Result<Frame, NodeError> {
        let Some(gradient) = gradient else { return Ok(Frame::done(&opened.header, sums)) };
        let step = opened.header.step;
        let payload = match self.seats.get_mut(&client).and_then(|seat| seat.known.gradients()) {
            None => self.write(client, step, FrameKind::Gradient, self.gradients, gradient)?,
            Some(feedback) => {
                let seed = frame_seed(&self.plan, client, step, FrameKind::Gradient, Sender::Server);
                let [_, width] = gradient.dims();
                feedback.pack(&samples(&[], &opened.lengths), &encoding::values(gradient), width, seed)?
            }
        };
        Ok(Frame::gradient(&opened.header, self.gradients, sums, payload))
    }

    fn stage(&self, blocks: Range<usize>, head: bool) -> Result<Stage, NodeError> {
        let keys = self.keys(blocks.clone(), head);
        let state = keys.into_iter().filter_map(|key| self.global.get(&key).map(|tensor| (key.clone(), tensor.clone()))).collect();
        let mut stage = Stage::new(self.frozen.clone(), blocks, head, &self.plan.adapter, &state)?;
        stage.set_checkpointing(self.checkpointing);
        Ok(stage)
    }

    fn keys(&self, blocks: Range<usize>, head: bool) -> Vec<String> {
        let shapes = lora::shapes(self.frozen.spec(), &self.plan.adapter, blocks, head, self.labels);
        shapes.expect("the plan's targets were checked at the start").into_keys().collect()
    }

    fn write(&self, client: u32, step: StepId, kind: FrameKind, encoding: Encoding, tensor: Tensor<2>) -> Result<Vec<u8>, NodeError> {
        let seed = frame_seed(&self.plan, client, step, kind, Sender::Server);
        encoding::encode(encoding, tensor, seed).map_err(|source| NodeError::Tensor { step, source })
    }

    /// The activations that open a step: what the client's samples differ by, where they are remembered.
    fn read_opening(&mut self, client: u32, frame: &Frame, rows: &Rows) -> Result<Tensor<2>, NodeError> {
        let step = frame.header.step;
        let Some(known) = self.seats.get_mut(&client).and_then(|seat| seat.known.activations()) else {
            return self.read(step, frame, rows);
        };
        let hidden = self.frozen.spec().hidden;
        let values = known.unpack(&frame.payload, &frame.lengths, hidden)?;
        encoding::tensor(values, hidden, self.frozen.device()).map_err(|source| NodeError::Tensor { step, source })
    }

    fn read(&self, step: StepId, frame: &Frame, rows: &Rows) -> Result<Tensor<2>, NodeError> {
        encoding::decode(frame.header.encoding, &frame.payload, rows.tokens(), self.frozen.spec().hidden, self.frozen.device())
            .map_err(|source| NodeError::Tensor { step, source })
    }
}

/// Clients number their steps alike; on a stage that they share, each tape needs a name of its own.
fn tape_of(client: u32, step: StepId) -> StepId {
    StepId((u64::from(client) << 40) ^ step.0)
}

/// The tensors of `global` that `stage` trains.
fn part(global: &AdapterState, stage: &Stage) -> BTreeMap<String, HostTensor> {
    stage.adapter().keys().filter_map(|key| Some((key.clone(), global.get(key)?.clone()))).collect()
}
