//! Guessing tokens ahead, so that one round trip to the host yields several (Leviathan et al. 2023).
//!
//! A guess costs correctness nothing: the host draws at each position what it would have drawn anyway, and guesses are kept only where they
//! are the same. So what is generated is the same with any draft, or none, greedy or not.

use super::worker::{Came, Job, Leaving, Opening, Outcome, Seat, Worker};
use cutlayer_generation::{Draft, History, NgramDraft};
use cutlayer_wire::{SamplingSpec, Wanted};
use std::ops::Range;
use std::path::PathBuf;

/// Fewest and most tokens that must have come before, for what followed them to be a guess.
const NGRAM: (usize, usize) = (2, 5);

/// What guesses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Drafting {
    /// Nothing.
    #[default]
    Off,
    /// What followed the last few tokens when they came before (prompt lookup, Saxena 2023).
    Ngram {
        /// Most tokens ahead.
        depth_max: u16,
    },
    /// A small model with the same tokens.
    Model {
        /// Its folder.
        folder: PathBuf,
        /// Most tokens ahead.
        depth_max: u16,
    },
    /// The device's own first blocks, with the model's head on them.
    Exit {
        /// How many of them.
        blocks: u16,
        /// Most tokens ahead.
        depth_max: u16,
    },
}

impl Drafting {
    /// Most tokens ahead.
    pub fn depth_max(&self) -> u16 {
        match self {
            Self::Off => 0,
            Self::Ngram { depth_max } | Self::Model { depth_max, .. } | Self::Exit { depth_max, .. } => *depth_max,
        }
    }
}

/// A model that guesses for all sequences of a device.
pub(super) struct DraftModel {
    pub worker: Worker,
    pub blocks: Range<usize>,
}

/// What guesses for one sequence.
pub(super) enum Drafter {
    Ngram(NgramDraft),
    Model { seat: Seat, fed: Vec<u32> },
}

impl Drafter {
    /// `None` where nothing guesses, or cannot now: guesses are never needed.
    pub async fn new(drafting: &Drafting, model: Option<&DraftModel>, sampling: &SamplingSpec, tokens_max: u32) -> Option<Self> {
        match (drafting, model) {
            (Drafting::Off, _) => None,
            (Drafting::Ngram { .. }, _) => Some(Self::Ngram(NgramDraft::new(NGRAM.0, NGRAM.1).expect("the bounds are in order"))),
            (_, None) => None,
            (_, Some(DraftModel { worker, blocks })) => {
                // Drawn as the host draws, with the same chance: where the models agree so do the draws.
                let leaving = Leaving::Drawn(SamplingSpec { logprobs: None, ..sampling.clone() }, History::unseen(0));
                let opening = Opening { owner: 0, scope: 0, adapter: None, blocks: blocks.clone(), leaving, tokens_max, prefix: vec![] };
                let seat = worker.open(opening).await.ok()?;
                Some(Self::Model { seat, fed: vec![] })
            }
        }
    }

    /// Up to `count` tokens that may follow `ids`.
    pub async fn propose(&mut self, ids: &[u32], count: usize) -> Vec<u32> {
        match self {
            Self::Ngram(draft) => draft.propose(ids, count),
            Self::Model { seat, fed } => {
                let common = fed.iter().zip(ids).take_while(|(fed, id)| fed == id).count().min(ids.len() - 1);
                let (mut guesses, mut from) = (vec![], common);
                *fed = ids.to_vec();
                while guesses.len() < count {
                    let job =
                        Job { position: from as u32, came: Came::Tokens(fed[from..].to_vec()), wanted: Wanted::Last, digests: vec![] };
                    match seat.run(job).await {
                        Outcome::Drawn(drawn) if drawn.len() == 1 => {
                            from = fed.len();
                            fed.push(drawn[0].id);
                            guesses.push(drawn[0].id);
                        }
                        // It lost its rows to others, or is at its end: it guesses again later.
                        _ => {
                            fed.clear();
                            break;
                        }
                    }
                }
                // The last guess was drawn, not fed.
                if !guesses.is_empty() {
                    fed.pop();
                }
                guesses
            }
        }
    }
}
