//! The encodings of a client: those of the run, or those that suit its link best.
//!
//! What the operator says of a link decides, not what a moment measures: the same run file chooses the same encodings again.

use cutlayer_wire::{Choice, Encoding, EncodingPart, LinkFacts, Plan, StepFacts, choose};

/// What a client's tensors travel in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encodings {
    /// Activations, in both directions.
    pub activations: Encoding,
    /// Gradients, in both directions.
    pub gradients: Encoding,
    /// Updates and global adapters.
    pub adapters: Encoding,
}

/// Encodings found for each client.
#[derive(Clone, Debug, PartialEq)]
pub struct Auto {
    /// The share by which the final loss may be higher.
    pub quality_budget: f64,
    /// The links of the clients by their index; the last is that of all others.
    pub links: Vec<LinkFacts>,
}

impl Auto {
    /// What suits client `client` of a plan best; `None` where nothing is known of its link.
    pub(crate) fn choose(&self, client: u32, (plan, hidden): (&Plan, usize), u_shaped: bool, parts: &[EncodingPart]) -> Option<Choice> {
        let link = self.links.get(client as usize).or(self.links.last())?;
        let (tokens, hidden) = (plan.batch.batch_tokens_max(), u32::try_from(hidden).unwrap_or(u32::MAX));
        // What a step computes is not known before the first: then the wire alone decides, and coarse is never slower.
        let step = StepFacts { tokens, hidden, u_shaped, compute_ms: 0.0, slower: 1.0 };
        Some(choose(*link, step, self.quality_budget, parts))
    }
}

impl From<&Choice> for Encodings {
    fn from(choice: &Choice) -> Self {
        Self { activations: choice.activations, gradients: choice.gradients, adapters: choice.adapters }
    }
}
