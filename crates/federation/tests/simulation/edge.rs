//! The server's half of the toy model: an adapter for each client, or one for all.

use std::collections::BTreeMap;
use std::ops::Range;

use cutlayer_federation::{Source, Update};
use cutlayer_wire::{AdapterState, Encoding, EvalSums, Frame, FrameFlags, PeerId, RoundId, ServerAdapters};

use crate::toy::{self, LAYERS};

/// What a client did in the round, as the server saw it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    pub sequences: u64,
    pub scored: u64,
}

struct Seat {
    peer: PeerId,
    layers: Range<u16>,
    own: Option<AdapterState>,
    work: Work,
    round: Option<RoundId>,
}

pub struct Edge {
    adapters: ServerAdapters,
    shared: AdapterState,
    seats: BTreeMap<u32, Seat>,
    /// What those trained who left: their updates may already count.
    gone: BTreeMap<PeerId, AdapterState>,
    global: AdapterState,
}

impl Edge {
    pub fn new(adapters: ServerAdapters, global: AdapterState) -> Self {
        let shared = toy::part(&global, 0..LAYERS);
        Self { adapters, shared, seats: BTreeMap::new(), gone: BTreeMap::new(), global }
    }

    pub fn seat(&mut self, number: u32, peer: PeerId, layers: Range<u16>) {
        let own = (self.adapters == ServerAdapters::PerClient).then(|| toy::part(&self.global, layers.clone()));
        self.seats.insert(number, Seat { peer, layers, own, work: Work::default(), round: None });
    }

    pub fn unseat(&mut self, number: u32, peer: PeerId) {
        let Some(seat) = self.seats.remove(&number) else { return };
        assert_eq!(seat.peer, peer, "a seat is its client's until the client's session has ended");
        if let Some(own) = seat.own {
            // What it trained first in the round is what its update belongs to: it is not asked again in the same round.
            self.gone.entry(peer).or_insert(own);
        }
    }

    pub fn begin_round(&mut self, number: u32, round: RoundId) {
        if let Some(seat) = self.seats.get_mut(&number) {
            (seat.work, seat.round) = (Work::default(), Some(round));
            // It trains this round in this session, whatever it did before.
            self.gone.remove(&seat.peer);
        }
    }

    pub fn round(&self, number: u32) -> Option<RoundId> {
        self.seats.get(&number)?.round
    }

    pub fn work(&self, number: u32) -> Work {
        self.seats.get(&number).map(|seat| seat.work).unwrap_or_default()
    }

    /// What round `round` left is in force: its steps, and those of rounds before, come too late from here on.
    pub fn install(&mut self, round: RoundId, global: AdapterState) {
        self.gone.clear();
        for seat in self.seats.values_mut() {
            seat.round = seat.round.filter(|under_way| *under_way > round);
            seat.own = seat.own.as_ref().map(|_| toy::part(&global, seat.layers.clone()));
        }
        self.shared = toy::part(&global, 0..LAYERS);
        self.global = global;
    }

    pub fn open(&mut self, number: u32, frame: &Frame, gradients: Encoding) -> Frame {
        let header = frame.header;
        let seat = self.seats.get_mut(&number).expect("a session has a seat until it ends");
        let values =
            header.encoding.decode(&frame.payload, header.tokens as usize, header.hidden as usize).expect("a frame that was checked");
        let sums = EvalSums { loss_sum: 1.0, scored: header.tokens.into(), correct: 0 };
        if !header.flags.has(FrameFlags::TRAIN) {
            return Frame::done(&header, sums);
        }
        seat.work.sequences += frame.lengths.len() as u64;
        seat.work.scored += sums.scored;
        let gradient = match &mut seat.own {
            Some(own) => toy::step_server(own, &values),
            None => {
                let mut part = toy::part(&self.shared, seat.layers.clone());
                let gradient = toy::step_server(&mut part, &values);
                self.shared.extend(part);
                gradient
            }
        };
        if header.flags.has(FrameFlags::NEEDS_GRADIENT) {
            Frame::gradient(
                &header,
                gradients,
                sums,
                gradients.encode(&gradient, header.hidden as usize, header.step.0).expect("rows of the hidden size"),
            )
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
            let seated = || self.seats.values().find(|seat| seat.peer == *peer)?.own.clone();
            let tensors = self.gone.get(peer).cloned().or_else(seated)?;
            Some(Update { source: Source::Client(*peer), round, weight: 0.0, tensors })
        };
        peers.iter().filter_map(part).collect()
    }
}
