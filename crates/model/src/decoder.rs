//! Generation: blocks run over new rows alone, beside the keys and values that a paged cache keeps of the rows before (Kwon et al. 2023).
//!
//! Rows of many sequences are computed at once, each through its own adapter, from its own first block to its own last. What a row gives
//! does not depend on the rows beside it, nor on how many came at once: on a CPU with our own products (`ops/flex`) to the bit, so that a
//! prompt computed again, a run of guesses verified and a token alone agree exactly.

use crate::block::{AngleTable, Beside, heads};
use crate::bound::join;
use crate::frozen::Frozen;
use crate::head::Head;
use crate::lora::{Adapter, AdapterError, download, shapes};
use crate::ops::{CachePlan, Factors, Groups, Sequence as CacheSequence, in_pool, is_cpu};
use burn::tensor::{DType, Device, Tensor, TensorData};
use cutlayer_wire::{AdapterState, LoraSpec, PAGE_TOKENS};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Rows that cannot be computed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// Beyond the position encoding.
    #[error("a sequence of {tokens} tokens exceeds the model's {positions_max} positions; shorten the prompt or ask for fewer tokens")]
    TooLong {
        /// Its length.
        tokens: usize,
        /// The model's bound.
        positions_max: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token {id} is outside 0..{vocab}; do tokenizer and model belong together?")]
    Vocabulary {
        /// The id.
        id: u32,
        /// The vocabulary.
        vocab: usize,
    },
    /// No rows, or hidden states of another width.
    #[error("rows are {found:?}, expected some, each {hidden} wide")]
    Shape {
        /// What came.
        found: Vec<usize>,
        /// The hidden size.
        hidden: usize,
    },
    /// Blocks that are not here.
    #[error("blocks {from}..{to} are not among the {first}..{last} that this side holds")]
    Blocks {
        /// First asked for.
        from: usize,
        /// The one after the last.
        to: usize,
        /// First held.
        first: usize,
        /// The one after the last.
        last: usize,
    },
    /// Too few pages for the rows: a mistake of the caller's.
    #[error("{rows} rows up to position {end} need more pages than the {pages} given")]
    Pages {
        /// Rows.
        rows: usize,
        /// Where they end.
        end: usize,
        /// Pages given.
        pages: usize,
    },
}

/// An adapter laid out for generation: the factors beside each projection, stacked and scaled once. Clones share them.
#[derive(Clone, Debug)]
pub struct LaidAdapter(Arc<BTreeMap<String, (Tensor<2>, Tensor<2>)>>);

impl LaidAdapter {
    /// The part of `state` that belongs to `blocks` of the frozen layers. What it holds of other blocks is passed over.
    pub fn new(frozen: &Frozen, blocks: Range<usize>, lora: &LoraSpec, state: &AdapterState) -> Result<Self, AdapterError> {
        let all = shapes(frozen.spec(), lora, 0..frozen.spec().blocks, false, 0)?;
        if let Some(key) = state.keys().find(|key| !all.contains_key(*key)) {
            return Err(AdapterError::Unexpected { key: key.clone() });
        }
        let own = shapes(frozen.spec(), lora, blocks.clone(), false, 0)?;
        let state = state.iter().filter(|(key, _)| own.contains_key(*key)).map(|(key, tensor)| (key.clone(), tensor.clone())).collect();
        let bound = Adapter::new(lora, &own, &state, frozen.device())?.bind(false, 0, frozen.activations());
        let mut laid = BTreeMap::new();
        for linear in blocks.flat_map(|index| frozen.block(index).linears()) {
            if let Some(factors) = bound.factors(&linear.parts, 0..linear.parts.len()) {
                laid.insert(linear.parts[0].0.clone(), factors);
            }
        }
        Ok(Self(Arc::new(laid)))
    }
}

/// What enters the first block.
#[derive(Clone, Debug)]
pub enum Entering<'a> {
    /// Token ids.
    Tokens(&'a [u32]),
    /// Hidden states `[rows, d]`.
    Hidden(Tensor<2>),
}

/// New rows of one sequence.
#[derive(Clone, Debug)]
pub struct Feed<'a> {
    /// What runs beside the frozen layers.
    pub adapter: Option<&'a LaidAdapter>,
    /// Blocks to run.
    pub blocks: Range<usize>,
    /// The rows.
    pub entering: Entering<'a>,
    /// Where in the sequence the first stands; the cache holds what is before. An encoder's sequence comes whole, at 0.
    pub position: u32,
    /// Pages of the cache, [`PAGE_TOKENS`] tokens each, from the sequence's first token on; an encoder needs none.
    pub pages: &'a [u32],
}

impl Feed<'_> {
    fn rows(&self) -> usize {
        match &self.entering {
            Entering::Tokens(ids) => ids.len(),
            Entering::Hidden(hidden) => hidden.dims()[0],
        }
    }
}

/// Frozen blocks with a paged cache of keys and values.
pub struct Decoder {
    frozen: Arc<Frozen>,
    blocks: Range<usize>,
    /// One for each block, `[pages·PAGE_TOKENS, 2·k·e]`; taken out while it is written.
    pools: Vec<Option<Tensor<2>>>,
    angles: Option<AngleTable>,
}

/// Bytes that a page takes over `blocks` blocks: keys and values of its tokens, in the type of activations.
pub fn page_bytes(frozen: &Frozen, blocks: usize) -> u64 {
    let spec = &frozen.spec().block;
    let width = if frozen.activations() == DType::F32 { 4 } else { 2 };
    (PAGE_TOKENS as usize * 2 * spec.kv_heads * spec.head_dim * width * blocks) as u64
}

impl Decoder {
    /// Over `blocks` of the frozen layers, with a cache of `pages` pages. On a CPU a page takes memory from its first use on.
    pub fn new(frozen: Arc<Frozen>, blocks: Range<usize>, pages: u32) -> Self {
        let spec = &frozen.spec().block;
        let slots = if spec.causal { pages as usize * PAGE_TOKENS as usize } else { 0 };
        let width = 2 * spec.kv_heads * spec.head_dim;
        // On a CPU zeros that nobody has written take no memory: the system gives a page at its first use.
        let zeros = || TensorData::new(vec![0.0f32; slots * width], [slots, width]);
        let pool = || match is_cpu(frozen.device()) {
            true => Some(Tensor::from_data(zeros(), frozen.device())),
            false => Some(Tensor::zeros([slots, width], (frozen.device(), frozen.activations()))),
        };
        let pools = blocks.clone().map(|_| pool()).collect();
        let angles = spec.rotary.as_ref().map(|rotary| AngleTable::new(rotary, spec.head_dim));
        Self { blocks, pools, angles, frozen }
    }

    /// The frozen layers.
    pub fn frozen(&self) -> &Arc<Frozen> {
        &self.frozen
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        self.frozen.device()
    }

    /// Runs each feed's rows through its blocks; returns their hidden states, `[rows, d]` each, in the order given.
    ///
    /// The caller has checked each feed with [`Decoder::check`]; one that was not is a panic.
    pub fn run(&mut self, feeds: &[Feed]) -> Vec<Tensor<2>> {
        feeds.iter().for_each(|feed| self.check(feed).expect("feeds are checked before they are run together"));
        if is_cpu(self.frozen.device()) { in_pool(|| self.run_checked(feeds)) } else { self.run_checked(feeds) }
    }

    /// Refuses rows that cannot be computed, so that they harm no other.
    pub fn check(&self, feed: &Feed) -> Result<(), DecodeError> {
        let spec = self.frozen.spec();
        let (rows, Range { start: from, end: to }) = (feed.rows(), feed.blocks.clone());
        match &feed.entering {
            Entering::Tokens(ids) => {
                if let Some(&id) = ids.iter().find(|&&id| id as usize >= spec.vocab) {
                    return Err(DecodeError::Vocabulary { id, vocab: spec.vocab });
                }
            }
            Entering::Hidden(hidden) if hidden.dims()[1] != spec.hidden => {
                return Err(DecodeError::Shape { found: hidden.dims().to_vec(), hidden: spec.hidden });
            }
            Entering::Hidden(_) => {}
        }
        if rows == 0 {
            return Err(DecodeError::Shape { found: vec![0], hidden: spec.hidden });
        }
        let end = feed.position as usize + rows;
        if end > spec.positions_max {
            return Err(DecodeError::TooLong { tokens: end, positions_max: spec.positions_max });
        }
        if from < to && (from < self.blocks.start || to > self.blocks.end) {
            return Err(DecodeError::Blocks { from, to, first: self.blocks.start, last: self.blocks.end });
        }
        if spec.block.causal && from < to && feed.pages.len() * (PAGE_TOKENS as usize) < end {
            return Err(DecodeError::Pages { rows, end, pages: feed.pages.len() });
        }
        Ok(())
    }

    fn run_checked(&mut self, feeds: &[Feed]) -> Vec<Tensor<2>> {
        let mut done: Vec<Option<Tensor<2>>> = feeds.iter().map(|feed| Some(self.enter(feed))).collect();
        let first = feeds.iter().map(|feed| feed.blocks.start).min().unwrap_or(0);
        let last = feeds.iter().map(|feed| feed.blocks.end).max().unwrap_or(0);
        let mut together: Option<Together> = None;
        for index in first..last {
            let active: Vec<usize> = (0..feeds.len()).filter(|&place| feeds[place].blocks.contains(&index)).collect();
            if active.is_empty() {
                continue;
            }
            // Sequences join at the block after their cut, and leave at the one before their tail.
            if together.as_ref().is_none_or(|together| together.places != active) {
                if let Some(together) = together.take() {
                    together.part(feeds, &mut done);
                }
                together = Some(self.gather(feeds, active, &mut done));
            }
            let together = together.as_mut().expect("just gathered");
            together.hidden = Some(self.block(index, together));
        }
        if let Some(together) = together {
            together.part(feeds, &mut done);
        }
        done.into_iter().map(|hidden| hidden.expect("every feed has rows")).collect()
    }

    fn enter(&self, feed: &Feed) -> Tensor<2> {
        match &feed.entering {
            Entering::Tokens(ids) => {
                let at: Vec<u32> = (feed.position..).take(ids.len()).collect();
                self.frozen.embed(ids, &at)
            }
            Entering::Hidden(hidden) => hidden.clone().cast(self.frozen.activations()),
        }
    }

    /// The rows of some feeds one after another, with what their blocks share.
    fn gather(&mut self, feeds: &[Feed], places: Vec<usize>, done: &mut [Option<Tensor<2>>]) -> Together {
        let (mut rows, mut hidden, mut positions) = (0, vec![], vec![]);
        let (mut sequences, mut laid) = (vec![], vec![]);
        for &place in &places {
            let feed = &feeds[place];
            let own = rows..rows + feed.rows();
            rows = own.end;
            hidden.push(done[place].take().expect("a feed is in one place"));
            positions.extend((feed.position..).take(own.len()));
            sequences.push(CacheSequence { rows: own.clone(), position: feed.position, pages: feed.pages.to_vec() });
            laid.extend(feed.adapter.map(|adapter| (own, adapter.clone())));
        }
        let (device, activations) = (self.frozen.device().clone(), self.frozen.activations());
        let angles = self.angles.as_mut().map(|table| table.of(&positions, activations, &device));
        let spec = &self.frozen.spec().block;
        let sight = if spec.causal {
            Sight::Cache(CachePlan::new(sequences, spec.window))
        } else {
            let lengths: Vec<u32> = sequences.iter().map(|sequence| sequence.rows.len() as u32).collect();
            let rows = crate::rows::Rows::joined(&lengths);
            Sight::Whole(crate::block::Surroundings::new(spec, &rows, self.frozen.kernels(), activations, &device))
        };
        Together { places, hidden: Some(join(hidden, 0)), angles, sight, laid: Laid(merge(laid)) }
    }

    fn block(&mut self, index: usize, together: &mut Together) -> Tensor<2> {
        let frozen = self.frozen.clone();
        let (spec, kernels) = (&frozen.spec().block, frozen.kernels());
        let hidden = together.hidden.take().expect("put back after each block");
        let pool = &mut self.pools[index - self.blocks.start];
        let scale = 1.0 / (heads(spec).dim as f32).sqrt();
        let angles = together.angles.as_ref();
        frozen.block(index).run(spec, hidden, kernels, angles, &together.laid, |qkv, heads| match &together.sight {
            Sight::Whole(around) => kernels.attention(qkv, spec, around, heads),
            Sight::Cache(plan) => {
                let (mixed, written) = kernels.cached_attention(qkv, pool.take().expect("put back below"), plan.clone(), heads, scale);
                *pool = Some(written);
                mixed
            }
        })
    }

    /// Logits of some rows of hidden states, `[rows, v]`, row after row on the host.
    pub fn logits(&self, hidden: Vec<Tensor<2>>) -> Vec<f32> {
        let Head::LanguageModel { norm, table } = self.frozen.head() else {
            panic!("a classifier gives no next token");
        };
        let kernels = self.frozen.kernels();
        let product = || {
            let normed = norm.forward(kernels, join(hidden, 0));
            download(kernels.linear(normed, Some(table.clone().transpose()), None, None, None))
        };
        if is_cpu(self.frozen.device()) { in_pool(product) } else { product() }
    }
}

/// Feeds that run the same block together.
struct Together {
    places: Vec<usize>,
    hidden: Option<Tensor<2>>,
    angles: Option<crate::block::Angles>,
    sight: Sight,
    laid: Laid,
}

/// What a row sees.
enum Sight {
    /// The cached rows before it, and itself.
    Cache(CachePlan),
    /// An encoder's: its whole sequence.
    Whole(crate::block::Surroundings),
}

impl Together {
    /// Gives each feed its rows back.
    fn part(self, feeds: &[Feed], done: &mut [Option<Tensor<2>>]) {
        let hidden = self.hidden.expect("put back after each block");
        if let [place] = self.places[..] {
            done[place] = Some(hidden);
            return;
        }
        let mut from = 0;
        for place in self.places {
            let rows = feeds[place].rows();
            done[place] = Some(hidden.clone().narrow(0, from, rows));
            from += rows;
        }
    }
}

/// Adapters side by side, each on rows of its own.
struct Laid(Vec<(Range<usize>, LaidAdapter)>);

/// Neighbours with one adapter are one group.
fn merge(laid: Vec<(Range<usize>, LaidAdapter)>) -> Vec<(Range<usize>, LaidAdapter)> {
    let mut merged: Vec<(Range<usize>, LaidAdapter)> = vec![];
    for (rows, adapter) in laid {
        match merged.last_mut() {
            Some((before, same)) if before.end == rows.start && Arc::ptr_eq(&same.0, &adapter.0) => before.end = rows.end,
            _ => merged.push((rows, adapter)),
        }
    }
    merged
}

impl Beside for Laid {
    fn factors(&self, parts: &[(String, usize)]) -> Option<Factors> {
        let found = self.0.iter().filter_map(|(rows, adapter)| Some((rows, adapter.0.get(&parts[0].0)?)));
        let (mut all_a, mut ups, mut groups) = (vec![], vec![], vec![]);
        for (rows, (a, up)) in found {
            groups.push((rows.clone(), a.dims()[0]));
            all_a.push(a.clone());
            ups.push(up.clone());
        }
        (!all_a.is_empty()).then(|| Factors { a: join(all_a, 0), up: join(ups, 0), groups: Groups::new(groups) })
    }

    fn dropped(&self, _: &[(String, usize)], _: &Tensor<2>) -> Vec<(Tensor<2>, Factors)> {
        vec![]
    }
}

/// Whether what a row gives does not depend on the rows beside it, to the bit.
pub fn rows_are_exact(device: &Device) -> bool {
    is_cpu(device) && std::arch::is_x86_feature_detected!("avx512f")
}
