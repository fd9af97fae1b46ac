//! The server's half of a step: one frozen base, and an adapter for each client or one for all.
//!
//! Owned by the server's compute thread. Frames in, frames out; it knows no socket.

mod steps;
#[cfg(test)]
mod tests;

use crate::answers::Answers;
use crate::auto::Encodings;
use crate::compute_config::ComputeConfig;
use crate::error::NodeError;
use crate::phases::{PhaseClock, Phases};
use crate::side::load_whole;
use crate::visits::Remembered;
use cutlayer_federation::{Source, Update};
use cutlayer_model::{Device, Frozen, ModelFolder, Moments, Parts, Rows, Stage, TapeId, lora};
use cutlayer_wire::{AdapterState, HostTensor, PeerId, Plan, RoundId, ServerAdapters, StepId};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
pub(crate) use steps::{Opened, share};

/// What a client did in the round, as the server saw it: the bound on the weight it may claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
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
    /// The round it trains; `None` once that is closed, or before the first.
    round: Option<RoundId>,
    /// Whether its update of that round is in: no step that is still under way changes what belongs to it.
    updated: bool,
    /// U-shaped steps between Hidden and Gradient.
    doing: BTreeMap<StepId, Rows>,
    /// Steps of which some micro-batches' gradients wait for the others'.
    begun: BTreeMap<u32, Vec<StepId>>,
    answers: Answers,
    /// What it remembers of the client's samples.
    known: Remembered,
    encodings: Encodings,
}

/// The server's layers and adapters.
pub(crate) struct Edge {
    plan: Plan,
    frozen: Arc<Frozen>,
    labels: usize,
    shared: Option<Stage>,
    seats: BTreeMap<u32, Seat>,
    /// Adapters of clients that left and whose seat is another's: their updates may count.
    departed: Vec<(PeerId, AdapterState)>,
    global: AdapterState,
    /// The round that left it.
    installed: RoundId,
    /// What optimizers knew when the server was last stopped, for clients that come back.
    kept: BTreeMap<u32, Moments>,
    clock: PhaseClock,
    checkpointing: bool,
    /// Clients that share what is kept of answers.
    clients: u32,
}

/// What a server's side of a run is, between two rounds, beside the global adapter.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct EdgeState {
    /// What the optimizer of each client's part knows; empty where it is forgotten at each round.
    pub clients: BTreeMap<u32, Moments>,
    /// The shared part and what its optimizer knows.
    pub shared: Option<(AdapterState, Moments)>,
}

impl Edge {
    /// Reads blocks `first..` of the model, and the head if `head`.
    pub fn load(
        folder: &ModelFolder,
        (compute, device): (ComputeConfig, &Device),
        plan: Plan,
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
        let mut edge = Self {
            plan,
            frozen,
            labels,
            shared: None,
            seats,
            departed: vec![],
            global,
            installed: RoundId(0),
            kept: BTreeMap::new(),
            clock,
            checkpointing,
            clients: 1,
        };
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

    /// The same, as it was when `round` was committed.
    pub fn resumed(mut self, round: RoundId, state: EdgeState) -> Result<Self, NodeError> {
        self.installed = round;
        self.kept = state.clients;
        if let (Some(stage), Some((values, moments))) = (&mut self.shared, state.shared) {
            load_whole(stage, &values)?;
            stage.adapter_mut().set_moments(&moments)?;
        }
        Ok(self)
    }

    /// The same for a run of so many clients.
    pub fn shared_by(mut self, clients: u32) -> Self {
        self.clients = clients;
        self
    }

    /// What has to be kept to go on from here: between two rounds, the global adapter is all else.
    pub fn state(&self) -> EdgeState {
        let forgets = self.plan.optimizer.reset_each_round;
        let own = self.seats.iter().filter(|_| !forgets);
        let own = own.filter_map(|(client, seat)| Some((*client, seat.own.as_ref()?.adapter().moments())));
        // Clients that have not come back yet are not forgotten.
        let clients = self.kept.clone().into_iter().chain(own).collect();
        let shared = self.shared.as_ref().map(|stage| (stage.adapter().state(), stage.adapter().moments()));
        EdgeState { clients, shared }
    }

    /// The phases since they were last taken; `None` where they are not timed.
    pub fn take_phases(&mut self) -> Option<Phases> {
        self.clock.take()
    }

    /// Gives a client its place.
    pub fn seat(&mut self, client: u32, peer: PeerId, (cut, tail): (usize, Option<usize>), encodings: Encodings) -> Result<(), NodeError> {
        let blocks = cut..self.frozen.spec().blocks - tail.unwrap_or(0);
        let head = tail.is_none();
        let own = match self.plan.server_adapters {
            ServerAdapters::PerClient => Some(self.stage(blocks.clone(), head)?),
            ServerAdapters::Shared => None,
        };
        let mut seat = Seat {
            peer,
            blocks,
            head,
            own,
            work: Work::default(),
            gone: false,
            round: None,
            updated: false,
            doing: BTreeMap::new(),
            begun: BTreeMap::new(),
            answers: Answers::new(self.clients, self.plan.pipeline.in_flight()),
            known: Remembered::of(encodings),
            encodings,
        };
        if let (Some(stage), Some(moments)) = (&mut seat.own, self.kept.remove(&client)) {
            stage.adapter_mut().set_moments(&moments)?;
        }
        if let Some(before) = self.seats.insert(client, seat) {
            // What it trained belongs to an update that may be in already.
            self.departed.extend(before.own.map(|own| (before.peer, own.adapter().state())));
        }
        Ok(())
    }

    /// The client forgot what it sent before, so its samples travel whole again; a process that was started again.
    pub fn forget_samples(&mut self, client: u32) {
        if let Some(seat) = self.seats.get_mut(&client) {
            seat.known = Remembered::of(seat.encodings);
        }
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
        let begun = std::mem::take(&mut seat.begun).into_values().flatten();
        for step in std::mem::take(&mut seat.doing).into_keys().chain(begun) {
            stage.forget(TapeId { client, step });
        }
    }

    /// Starts a round of a client: its work is counted anew.
    pub fn begin_round(&mut self, client: u32, round: RoundId) {
        self.forget(client);
        if let Some(seat) = self.seats.get_mut(&client) {
            seat.work = Work::default();
            seat.round = Some(round);
            seat.updated = false;
            seat.answers.clear();
        }
    }

    /// A client's update of a round is here: its steps are over. Returns what it did in them.
    pub fn end_round(&mut self, client: u32, round: RoundId) -> Work {
        let Some(seat) = self.seats.get_mut(&client) else { return Work::default() };
        seat.updated |= seat.round == Some(round);
        seat.work
    }

    /// Installs the global adapter that `round` left, everywhere. Steps of that round that still wait come too late.
    pub fn install(&mut self, round: RoundId, global: AdapterState) -> Result<(), NodeError> {
        let reset = self.plan.optimizer.reset_each_round;
        self.installed = round;
        self.departed.clear();
        self.seats.keys().copied().collect::<Vec<u32>>().into_iter().for_each(|client| self.forget(client));
        self.seats.retain(|_, seat| !seat.gone);
        for seat in self.seats.values_mut() {
            // The next round may be begun before the last one's adapter is in force: its steps come after.
            if seat.round.is_none_or(|under_way| under_way <= round) {
                seat.round = None;
                seat.answers.clear();
            }
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

    /// The server's part of a round: each client's own adapter, or the one that all share. The federation weighs them.
    pub fn parts(&self, round: RoundId, peers: &[PeerId]) -> Vec<Update> {
        if let Some(shared) = &self.shared {
            return vec![Update { source: Source::SharedServer, round, weight: 0.0, tensors: shared.adapter().state() }];
        }
        let seated = self.seats.values().filter(|seat| seat.round == Some(round) || seat.gone);
        let seated = seated.filter_map(|seat| Some((seat.peer, seat.own.as_ref()?.adapter().state())));
        // Who left in the round and came back trained in the seat that it left.
        let all: BTreeMap<PeerId, AdapterState> = seated.chain(self.departed.iter().cloned()).collect();
        let counted = all.into_iter().filter(|(peer, _)| peers.contains(peer));
        counted.map(|(peer, tensors)| Update { source: Source::Client(peer), round, weight: 0.0, tensors }).collect()
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
}

/// The tensors of `global` that `stage` trains.
fn part(global: &AdapterState, stage: &Stage) -> BTreeMap<String, HostTensor> {
    stage.adapter().keys().filter_map(|key| Some((key.clone(), global.get(key)?.clone()))).collect()
}
