//! The server's half of the toy model: an adapter for each client, or one for all, and what their optimizers keep.

use std::collections::BTreeMap;
use std::ops::Range;

use cutlayer_federation::{Source, Update};
use cutlayer_wire::{AdapterState, Encoding, EvalSums, Frame, FrameFlags, PeerId, RoundId, ServerAdapters};

use crate::toy::{self, LAYERS, Moment};

/// What a client did in the round, as the server saw it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    pub sequences: u64,
    pub scored: u64,
}

/// What the optimizers keep over rounds: it belongs to a commit as much as the adapter does.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    pub of_peers: BTreeMap<PeerId, Moment>,
    pub shared: Moment,
}

/// An adapter of one client's own, and its optimizer.
#[derive(Clone)]
struct Own {
    state: AdapterState,
    moment: Moment,
}

struct Seat {
    peer: PeerId,
    layers: Range<u16>,
    own: Option<Own>,
    /// Micro-batches of the step under way.
    held: Vec<Vec<f32>>,
    work: Work,
    round: Option<RoundId>,
}

pub struct Edge {
    adapters: ServerAdapters,
    shared: AdapterState,
    seats: BTreeMap<u32, Seat>,
    /// What those trained who left: their updates may already count.
    gone: BTreeMap<PeerId, Own>,
    global: AdapterState,
    moments: Moments,
}

impl Edge {
    pub fn new(adapters: ServerAdapters, global: AdapterState, moments: Moments) -> Self {
        let shared = toy::part(&global, 0..LAYERS);
        Self { adapters, shared, seats: BTreeMap::new(), gone: BTreeMap::new(), global, moments }
    }

    pub fn seat(&mut self, number: u32, peer: PeerId, layers: Range<u16>) {
        let own = (self.adapters == ServerAdapters::PerClient).then(|| Own {
            state: toy::part(&self.global, layers.clone()),
            moment: self.moments.of_peers.get(&peer).copied().unwrap_or_default(),
        });
        let seat = Seat { peer, layers, own, held: Vec::new(), work: Work::default(), round: None };
        assert!(self.seats.insert(number, seat).is_none(), "a seat is its client's until the coordinator knows that it left");
    }

    pub fn unseat(&mut self, number: u32) {
        let Some(seat) = self.seats.remove(&number) else { return };
        if let Some(own) = seat.own {
            // What it trained first in the round is what its update belongs to: it is not asked again in the same round.
            self.gone.entry(seat.peer).or_insert(own);
        }
    }

    pub fn begin_round(&mut self, number: u32, round: RoundId) {
        if let Some(seat) = self.seats.get_mut(&number) {
            (seat.work, seat.round) = (Work::default(), Some(round));
            seat.held.clear();
            // It trains this round in this seat, whatever it did before.
            self.gone.remove(&seat.peer);
        }
    }

    /// The client's update is in: no step of the round that is still under way changes what belongs to it.
    pub fn end_round(&mut self, number: u32) {
        if let Some(seat) = self.seats.get_mut(&number) {
            seat.round = None;
        }
    }

    pub fn round(&self, number: u32) -> Option<RoundId> {
        self.seats.get(&number)?.round
    }

    pub fn work(&self, number: u32) -> Work {
        self.seats.get(&number).map(|seat| seat.work).unwrap_or_default()
    }

    /// What the optimizers keep now: to be made durable together with the adapter.
    pub fn moments(&self) -> Moments {
        let mut moments = self.moments.clone();
        let gone = self.gone.iter().map(|(peer, own)| (*peer, own.moment));
        let seated = self.seats.values().filter_map(|seat| Some((seat.peer, seat.own.as_ref()?.moment)));
        moments.of_peers.extend(gone.chain(seated));
        moments
    }

    /// What round `round` left is in force: its steps, and those of rounds before, come too late from here on.
    pub fn install(&mut self, round: RoundId, global: AdapterState) {
        self.moments = self.moments();
        self.gone.clear();
        for seat in self.seats.values_mut() {
            seat.round = seat.round.filter(|under_way| *under_way > round);
            if let Some(own) = &mut seat.own {
                own.state = toy::part(&global, seat.layers.clone());
            }
        }
        self.shared = toy::part(&global, 0..LAYERS);
        self.global = global;
    }

    /// The server's half of one micro-batch; of a whole step with the last of them.
    pub fn open(&mut self, number: u32, frame: &Frame, gradients: Encoding) -> Frame {
        let header = frame.header;
        let seat = self.seats.get_mut(&number).expect("a step is computed while its client has a seat");
        let hidden = header.hidden as usize;
        let values = header.encoding.decode(&frame.payload, header.tokens as usize, hidden).expect("a frame that was checked");
        let sums = EvalSums { loss_sum: 1.0, scored: header.tokens.into(), correct: 0 };
        if !header.flags.has(FrameFlags::TRAIN) {
            return Frame::done(&header, sums);
        }
        seat.work.sequences += frame.lengths.len() as u64;
        seat.work.scored += sums.scored;
        let gradient = match &seat.own {
            Some(own) => toy::gradient(&own.state, &values),
            None => toy::gradient(&toy::part(&self.shared, seat.layers.clone()), &values),
        };
        seat.held.push(values);
        if is_last(&frame.header) {
            let held = std::mem::take(&mut seat.held);
            match &mut seat.own {
                Some(own) => toy::optimize(&mut own.state, &mut own.moment, &held),
                None => {
                    let mut part = toy::part(&self.shared, seat.layers.clone());
                    toy::optimize(&mut part, &mut self.moments.shared, &held);
                    self.shared.extend(part);
                }
            }
        }
        if header.flags.has(FrameFlags::NEEDS_GRADIENT) {
            let payload = gradients.encode(&gradient, hidden, header.step.0).expect("rows of the hidden size");
            Frame::gradient(&header, gradients, sums, payload)
        } else {
            Frame::done(&header, sums)
        }
    }

    /// The server's part of a round.
    pub fn parts(&self, round: RoundId, peers: &[PeerId]) -> Vec<Update> {
        if self.adapters == ServerAdapters::Shared {
            return vec![Update { source: Source::SharedServer, round, weight: 0.0, tensors: self.shared.clone() }];
        }
        let part = |peer: &PeerId| {
            let seated = || self.seats.values().find(|seat| seat.peer == *peer)?.own.as_ref();
            let own = self.gone.get(peer).or_else(seated)?;
            Some(Update { source: Source::Client(*peer), round, weight: 0.0, tensors: own.state.clone() })
        };
        peers.iter().filter_map(part).collect()
    }
}

/// Whether the optimizers step after this micro-batch.
pub fn is_last(header: &cutlayer_wire::FrameHeader) -> bool {
    header.step.micro() + 1 >= u32::from(header.micro_batches)
}
