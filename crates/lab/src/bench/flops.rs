//! How many floating-point operations a LoRA step cannot do without: the numerator of "achieved GFLOP/s".
//!
//! Two operations for each multiply-add of
//! - forward: every frozen projection over every token, `2 · parameters · tokens`;
//! - the gradient with respect to activations: the same again, less the first block's query, key and value projections, below
//!   which nothing is trained. There are no gradients of frozen weights;
//! - the head and its gradient, over the scored labels alone;
//! - attention: two products of `[tokens, head]` by `[head, tokens]` for each head and sequence forward, four backward; half of
//!   each where a token sees only those before it. What a kernel computes again to save memory is not counted;
//! - the adapters: `2 · rank · (inputs + outputs) · tokens` forward, twice that backward.
//!
//! Norms, activations, the softmax, the optimizer and everything else that is no matrix product count nothing.

use cutlayer_model::spec::{HeadSpec, ModelSpec, QkvSpec};

/// One batch of equally long sequences.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub sequences: u64,
    pub tokens_each: u64,
    /// Labels scored.
    pub scored: u64,
}

/// Operations of one training step of the uncut model; a cut adds none.
pub(super) fn of_step(spec: &ModelSpec, rank: u32, targets: &[String], load: Load) -> f64 {
    let block = &spec.block;
    let (blocks, tokens) = (spec.blocks as f64, (load.sequences * load.tokens_each) as f64);
    let size = |linear: &cutlayer_model::spec::LinearSpec| (linear.inputs * linear.outputs) as f64;
    let linears = block.linears();
    let layers = 2.0 * tokens * linears.iter().map(|linear| size(linear)).sum::<f64>() * blocks;
    let lowest = 2.0
        * tokens
        * match &block.qkv {
            QkvSpec::Separate(three) => three.iter().map(size).sum::<f64>(),
            QkvSpec::Fused(one) => size(one),
        };
    let pairs = (load.sequences * load.tokens_each * load.tokens_each) as f64 / if block.causal { 2.0 } else { 1.0 };
    let product = 2.0 * pairs * (block.heads * block.head_dim) as f64 * blocks;
    let trained = linears.iter().filter(|linear| targets.iter().any(|target| spec.is_target(linear, target)));
    let adapters = 2.0 * tokens * f64::from(rank) * trained.map(|linear| (linear.inputs + linear.outputs) as f64).sum::<f64>() * blocks;
    let head = match spec.head {
        HeadSpec::LanguageModel { .. } => 2.0 * load.scored as f64 * (spec.hidden * spec.vocab) as f64,
        HeadSpec::Classifier { .. } => 2.0 * load.sequences as f64 * (spec.hidden * spec.hidden) as f64,
    };
    2.0 * layers - lowest + 6.0 * product + 3.0 * adapters + 2.0 * head
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutlayer_model::{ModelFolder, read_spec};

    /// Goal: the count is what the opening says. Method: the Llama-tiny shape at 4 x 128, by hand.
    #[test]
    fn a_step_counts_what_it_must() {
        let folder = tempfile::tempdir().expect("a folder");
        crate::bench::write_shape("llama-tiny", folder.path()).expect("written");
        let spec = read_spec(&ModelFolder::open(folder.path()).expect("a model")).expect("a spec");
        let targets = ["q_proj".to_owned(), "v_proj".to_owned()];
        let counted = of_step(&spec, 8, &targets, Load { sequences: 4, tokens_each: 128, scored: 4 * 127 });
        let (tokens, qkv) = (512.0, 256.0 * 512.0);
        let layers = 2.0 * tokens * (qkv + 256.0 * 256.0 + 3.0 * 256.0 * 688.0) * 8.0;
        let attention = 6.0 * 4.0 * 128.0 * 128.0 * 256.0 * 8.0;
        let adapters = 3.0 * 2.0 * tokens * 8.0 * (512.0 + 384.0) * 8.0;
        let head = 2.0 * 2.0 * 508.0 * 256.0 * 4096.0;
        let expected = 2.0 * layers - 2.0 * tokens * qkv + attention + adapters + head;
        assert!((counted / expected - 1.0).abs() < 1e-9, "{counted} {expected}");
    }
}
