//! What a coordinator is in the middle of.

use std::collections::{BTreeMap, BTreeSet};

use cutlayer_wire::{EvalSums, PeerId, RoundId};

use super::event::RoundSummary;
use crate::update::Update;

/// A client's place in the run. Ordered by index first: keys are random, indices repeat from run to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seat {
    pub(super) client: u32,
    pub(super) peer: PeerId,
}

/// One thing at a time.
#[derive(Debug)]
pub(super) enum Phase {
    /// Too few clients are connected.
    Gathering { since_ms: u64, needed: usize, started: bool },
    /// Clients train; updates come in.
    Training(Training),
    /// The server's own part is asked for.
    Collecting(Collecting),
    /// Clients score the newest adapter.
    Evaluating(Evaluating),
    /// Nothing more happens.
    Finished,
}

#[derive(Debug)]
pub(super) struct Training {
    pub(super) round: RoundId,
    pub(super) since_ms: u64,
    pub(super) pending: BTreeSet<Seat>,
    pub(super) accepted: BTreeMap<Seat, Update>,
    pub(super) summary: RoundSummary,
}

#[derive(Debug)]
pub(super) struct Collecting {
    pub(super) round: RoundId,
    pub(super) since_ms: u64,
    pub(super) accepted: BTreeMap<Seat, Update>,
    pub(super) summary: RoundSummary,
}

#[derive(Debug)]
pub(super) struct Evaluating {
    pub(super) round: RoundId,
    pub(super) since_ms: u64,
    pub(super) pending: BTreeSet<Seat>,
    pub(super) scores: BTreeMap<Seat, EvalSums>,
}
