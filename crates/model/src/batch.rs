//! One forward and backward for the steps of several stages: the frozen weights are read once, each client's rows go through its own adapter.
//!
//! Hidden states are ragged, so that another client is more rows. A client joins at the block that follows its cut. What comes out is what
//! each would have got alone: on a CPU with our own products (`ops/flex`) to the bit, elsewhere to floating-point tolerance.

use crate::block::Surroundings;
use crate::bound::{BackwardPass, Bound, Bounds};
use crate::head::{Loss, Part};
use crate::rows::Rows;
use crate::spec::{MlpSpec, ModelSpec};
use crate::stage::{Input, Labels, Mode, Stage, StageError, TapeId};
use burn::tensor::{DType, Tensor};
use cutlayer_wire::EvalSums;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that the tape of a training step keeps of `tokens` tokens through `blocks` blocks, in f32: what a batch is bounded by.
///
/// A token keeps, in each block, what its backward reads again: the block's input and the input of the second norm, both norms' outputs,
/// which projections with an adapter read, queries, keys, values and what attention makes of them, and the feed-forward network's inside
/// before and after its activation: `4d + (2h + 2k)·e + (p + 1)·f`, with `p` projections into its width `f`. Without adapters on some of the
/// projections it is less.
pub fn tape_bytes(spec: &ModelSpec, blocks: usize, tokens: usize) -> u64 {
    let block = &spec.block;
    let attention = 2 * (block.heads + block.kv_heads) * block.head_dim;
    let inside = match &block.mlp {
        MlpSpec::Gated([_, _, down]) => 3 * down.inputs,
        MlpSpec::Plain([_, down]) => 2 * down.inputs,
    };
    (4 * (4 * spec.hidden + attention + inside) * blocks * tokens) as u64
}

/// One client's step of a batch: what [`Stage::loss`] takes, and the stage.
pub struct Joint<'a> {
    /// The client's stage. All stages of a batch share their frozen layers.
    pub stage: &'a mut Stage,
    /// Names the step on it.
    pub id: TapeId,
    /// Blocks to run. All steps of a batch end at the same one.
    pub blocks: Range<usize>,
    /// What enters them.
    pub input: Input<'a>,
    /// Its sequences.
    pub rows: &'a Rows,
    /// What they are scored by.
    pub labels: Labels<'a>,
    /// Training and evaluation may share a batch.
    pub mode: Mode,
}

/// What a step gives: its sums, and the gradient owed upstream where it was wanted.
type Outcome = Result<(EvalSums, Option<Tensor<2>>), StageError>;

/// [`Stage::loss`] of several steps as one; outcomes in the order given. A step that fails harms no other.
///
/// Steps of a stage that checkpoints or is timed are run by themselves.
pub fn losses(steps: Vec<Joint>) -> Vec<Outcome> {
    let mut outcomes: Vec<Option<Outcome>> = vec![];
    let mut entered = vec![];
    for (place, step) in steps.into_iter().enumerate() {
        outcomes.push(None);
        if step.stage.goes_alone() {
            let Joint { stage, id, blocks, input, rows, labels, mode } = step;
            outcomes[place] = Some(stage.loss(id, blocks, input, rows, labels, mode));
            continue;
        }
        match Entered::new(place, step) {
            Ok(step) => entered.push(step),
            Err(error) => outcomes[place] = Some(Err(error)),
        }
    }
    if !entered.is_empty() {
        // Those that join later stand below those that came earlier.
        entered.sort_by_key(|step| step.blocks.start);
        for (place, outcome) in together(entered) {
            outcomes[place] = Some(outcome);
        }
    }
    outcomes.into_iter().map(|outcome| outcome.expect("each step has one")).collect()
}

/// A step whose input was checked.
struct Entered<'a> {
    place: usize,
    stage: &'a mut Stage,
    id: TapeId,
    blocks: Range<usize>,
    rows: &'a Rows,
    labels: Labels<'a>,
    mode: Mode,
    leaf: Option<Tensor<2>>,
    hidden: Tensor<2>,
}

impl<'a> Entered<'a> {
    fn new(place: usize, step: Joint<'a>) -> Result<Self, StageError> {
        let Joint { stage, id, blocks, input, rows, labels, mode } = step;
        stage.check_room(id, mode)?;
        stage.check_labels(id.step, rows, labels.values)?;
        let (leaf, hidden) = stage.enter(id.step, input, rows, mode.split().0)?;
        Ok(Self { place, stage, id, blocks, rows, labels, mode, leaf, hidden })
    }
}

/// Runs steps in the order of their first blocks.
fn together(steps: Vec<Entered>) -> Vec<(usize, Outcome)> {
    let frozen = steps[0].stage.frozen().clone();
    let end = steps[0].blocks.end;
    assert!(steps.iter().all(|step| Arc::ptr_eq(step.stage.frozen(), &frozen)), "the steps of a batch share their frozen layers");
    assert!(steps.iter().all(|step| step.blocks.end == end && step.blocks.start <= end), "and the block that they end at");
    let (spec, kernels, activations) = (&frozen.spec().block, frozen.kernels(), frozen.activations());

    let (mut bounds, mut lengths, mut waiting) = (Bounds::default(), vec![], steps.iter().peekable());
    let (mut output, mut around): (Option<Tensor<2>>, Option<Surroundings>) = (None, None);
    for index in steps[0].blocks.start..=end {
        let mut rows: Vec<Tensor<2>> = output.take().into_iter().collect();
        let before = bounds.rows();
        while let Some(step) = waiting.next_if(|step| step.blocks.start == index) {
            let (train, dropout_seed) = step.mode.split();
            bounds.join(step.stage.adapter().bind(train, dropout_seed, activations), step.rows.tokens());
            lengths.extend_from_slice(step.rows.lengths());
            rows.push(step.hidden.clone());
        }
        if bounds.rows() > before {
            around = Some(Surroundings::new(spec, &Rows::joined(&lengths), kernels, activations, frozen.device()));
        }
        let hidden = if rows.len() == 1 { rows.remove(0) } else { Tensor::cat(rows, 0) };
        output = Some(match &around {
            Some(around) if index < end => frozen.block(index).forward(spec, hidden, around, &bounds),
            _ => hidden,
        });
    }
    let output = output.expect("a batch has rows");

    let tracked = output.is_tracked();
    let top = output.clone().inner();
    let top = if tracked { top.autodiff().require_grad() } else { top };
    let parts: Vec<Part> = steps.iter().map(|step| Part { rows: step.rows, labels: step.labels }).collect();
    let Loss { objective, sums } = frozen.head().loss(kernels, top.clone(), &parts, &bounds);
    let mut taken = vec![];
    if let Some(objective) = objective.filter(Tensor::is_tracked) {
        let mut above = objective.backward();
        if let (true, Some(gradient)) = (tracked, top.grad_remove(&mut above)) {
            taken.push((output * gradient).sum().backward());
        }
        taken.push(above);
    }
    let steps = steps.into_iter().zip(bounds.iter()).zip(sums);
    steps.map(|((step, (_, bound)), sums)| (step.place, step.finish(bound, sums, &mut taken))).collect()
}

impl Entered<'_> {
    /// Takes out of the backward passes what is this step's.
    fn finish(self, bound: &Bound, sums: EvalSums, taken: &mut [BackwardPass]) -> Outcome {
        if !sums.loss_sum.is_finite() {
            return Err(StageError::Diverged { step: self.id.step, loss: sums.loss_sum.to_string() });
        }
        let is_scored = self.mode != Mode::Evaluate && sums.scored > 0;
        if is_scored {
            self.stage.keep(self.id, taken.iter_mut().flat_map(|taken| bound.take_gradients(taken)).collect());
        }
        let device = self.stage.frozen().device();
        let upstream = self.leaf.map(|leaf| {
            let gradient = is_scored.then(|| taken.iter_mut().find_map(|taken| leaf.grad_remove(taken))).flatten();
            gradient.map_or_else(|| Tensor::zeros(leaf.dims(), device), |gradient| gradient.cast(DType::F32))
        });
        Ok((sums, upstream))
    }
}
