//! Where a training step stands in the run. Both sides count it alike, so that learning rate and dropout agree at every cut.

use cutlayer_wire::{FrameKind, Plan, RoundId, StepId, rounding_seed};

/// Which side of the cut sends a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    Client = 0,
    Server = 0x80,
}

/// The seed of a frame's rounding by chance: the run's, and no other frame's.
pub(crate) fn frame_seed(plan: &Plan, client: u32, step: StepId, kind: FrameKind, sender: Sender) -> u64 {
    rounding_seed(plan.seed, client, step.0, kind as u8 | sender as u8)
}

/// A micro-batch's place: its round, how many of the client's steps came before its own in that round, and which part of it it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepClock {
    pub round: RoundId,
    pub index: u32,
    /// Which of the step's micro-batches.
    pub micro: u32,
}

impl StepClock {
    /// Where the id of a step says that it stands.
    pub fn of(step: StepId) -> Self {
        Self { round: step.round(), index: step.index(), micro: step.micro() }
    }

    /// Steps before this one in the whole run; a round that was skipped counts as run.
    fn before(self, plan: &Plan) -> u32 {
        self.round.0.saturating_sub(1).saturating_mul(plan.local_steps).saturating_add(self.index)
    }

    /// The learning rate of the plan's schedule here.
    pub fn learning_rate(self, plan: &Plan) -> f64 {
        f64::from(plan.optimizer.learning_rate_at(self.before(plan), plan.total_steps()))
    }

    /// A seed for the dropout that no other micro-batch, step or client of the run has.
    pub fn dropout_seed(self, plan: &Plan, client: u32) -> u64 {
        let place = (u64::from(client) << 32) | u64::from(self.before(plan));
        // SplitMix64 (Steele et al. 2014): neighbouring places give unrelated seeds.
        let mut z = plan.seed.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = z.wrapping_add(u64::from(self.micro).wrapping_mul(0xd1b5_4a32_d192_ed03));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
