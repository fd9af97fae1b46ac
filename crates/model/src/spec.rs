//! The description of a model that the rest of the crate runs: sizes, wiring, and the names its checkpoint uses.
//!
//! One [`BlockSpec`] covers every family. A new architecture is a file in `arch/` that fills it in;
//! nothing here or below may ask which family it came from.

/// A whole model: what to read from its folder and how to run it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// The family's `model_type`, for messages.
    pub family: &'static str,
    /// Module path of the backbone in a checkpoint with a head, e.g. `model.`; a bare checkpoint omits it.
    pub prefix: &'static str,
    /// Module path of block `i` is `prefix + block_path + i`.
    pub block_path: &'static str,
    /// Vocabulary size `V`, in tokens.
    pub vocab: usize,
    /// Hidden size `D`.
    pub hidden: usize,
    /// Number of blocks `L`.
    pub blocks: usize,
    /// Longest sequence the position encoding covers, in tokens.
    pub positions_max: usize,
    /// How tokens become hidden states.
    pub embedding: EmbeddingSpec,
    /// Every block of the model.
    pub block: BlockSpec,
    /// What stands on top of the last block.
    pub head: HeadSpec,
}

/// Token (and position) embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingSpec {
    /// Name of the `[V, D]` table, without the prefix.
    pub tokens: &'static str,
    /// Name of the learned `[positions, D]` table, if positions are learned.
    pub positions: Option<&'static str>,
    /// Name and rows of the token-type table; only type 0 is used.
    pub token_types: Option<(&'static str, usize)>,
    /// Norm applied to the sum, if any.
    pub norm: Option<NormSpec>,
}

/// A root-mean-square or layer norm over the hidden size.
#[derive(Clone, Debug, PartialEq)]
pub struct NormSpec {
    /// Module path; `.weight` (and `.bias`) follow.
    pub path: &'static str,
    /// Which of the two.
    pub kind: NormKind,
    /// Added to the mean square or the variance.
    pub epsilon: f64,
}

/// The two norms in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + ε) · w` (Zhang and Sennrich 2019).
    Rms,
    /// `(x - mean) / sqrt(var + ε) · w + b` (Ba et al. 2016).
    Layer,
}

/// One frozen projection.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearSpec {
    /// Module path within the block, e.g. `self_attn.q_proj`.
    pub path: &'static str,
    /// Input features.
    pub inputs: usize,
    /// Output features.
    pub outputs: usize,
    /// Whether a bias of `[outputs]` follows.
    pub bias: bool,
    /// How the checkpoint stores the weight.
    pub layout: WeightLayout,
}

/// Order of a weight's two dimensions in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// `[outputs, inputs]`, as `torch.nn.Linear`.
    OutIn,
    /// `[inputs, outputs]`, as GPT-2's `Conv1D`.
    InOut,
}

/// Where the norms stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormOrder {
    /// `x + f(norm(x))`: the decoders.
    Pre,
    /// `norm(x + f(x))`: BERT.
    Post,
}

/// One transformer block: attention, then a feed-forward network.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple of it (grouped-query attention, Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Features per head.
    pub head_dim: usize,
    /// Where the norms stand.
    pub norm_order: NormOrder,
    /// Whether a token sees only those before it.
    pub causal: bool,
    /// Keys further back than this many tokens are not seen (Mistral).
    pub window: Option<usize>,
    /// Rotary position encoding, if any.
    pub rotary: Option<RotarySpec>,
    /// Norm of the attention.
    pub attention_norm: NormSpec,
    /// Query, key and value projections.
    pub qkv: QkvSpec,
    /// Per-head norms of queries and keys (Qwen3): the two module paths and ε.
    pub head_norms: Option<(&'static str, &'static str, f64)>,
    /// Output projection of the attention.
    pub output: LinearSpec,
    /// Norm of the feed-forward network.
    pub mlp_norm: NormSpec,
    /// Feed-forward network.
    pub mlp: MlpSpec,
    /// Its activation.
    pub activation: Activation,
}

/// Query, key and value projections: apart, or fused in one as GPT-2 has them.
#[derive(Clone, Debug, PartialEq)]
pub enum QkvSpec {
    /// Three projections.
    Separate([LinearSpec; 3]),
    /// One projection to `[q; k; v]`.
    Fused(LinearSpec),
}

/// Feed-forward network.
#[derive(Clone, Debug, PartialEq)]
pub enum MlpSpec {
    /// `down(act(gate(x)) · up(x))` (SwiGLU, Shazeer 2020): gate, up, down.
    Gated([LinearSpec; 3]),
    /// `down(act(up(x)))`: up, down.
    Plain([LinearSpec; 2]),
}

/// Activation functions of the feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// Exact GELU, by the error function.
    Gelu,
    /// GELU by its tanh approximation (`gelu_new`).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// Rotary position encoding (Su et al. 2021), half-split layout.
#[derive(Clone, Debug, PartialEq)]
pub struct RotarySpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// Change of the frequencies for longer contexts.
    pub scaling: RotaryScaling,
}

/// Frequency scalings of [`RotarySpec`].
#[derive(Clone, Debug, PartialEq)]
pub enum RotaryScaling {
    /// None.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided by `factor`, a smooth band between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_positions / low` are divided.
        low: f64,
        /// Wavelengths below `original_positions / high` are kept.
        high: f64,
        /// Context length of the original training, in tokens.
        original_positions: f64,
    },
}

/// What the last block feeds.
#[derive(Clone, Debug, PartialEq)]
pub enum HeadSpec {
    /// Final norm, then logits over the vocabulary.
    LanguageModel {
        /// Norm before the head.
        norm: NormSpec,
        /// Full name of the `[V, D]` head; never has the prefix.
        weight: &'static str,
        /// Whether the head is the embedding table.
        tied: bool,
    },
    /// First token, dense + tanh (the pooler), then a trained classifier.
    Classifier {
        /// Module path of the frozen pooler, without the prefix.
        pooler: &'static str,
        /// Module path of the classifier; never has the prefix.
        classifier: &'static str,
    },
}

impl BlockSpec {
    /// Every projection of the block, in running order.
    pub fn linears(&self) -> Vec<&LinearSpec> {
        let mut all: Vec<&LinearSpec> = match &self.qkv {
            QkvSpec::Separate(three) => three.iter().collect(),
            QkvSpec::Fused(one) => vec![one],
        };
        all.push(&self.output);
        match &self.mlp {
            MlpSpec::Gated(three) => all.extend(three),
            MlpSpec::Plain(two) => all.extend(two),
        }
        all
    }
}

impl ModelSpec {
    /// Module path of projection `linear` of block `index`, e.g. `model.layers.3.self_attn.q_proj`.
    pub fn linear_path(&self, index: usize, linear: &LinearSpec) -> String {
        format!("{}{}{index}.{}", self.prefix, self.block_path, linear.path)
    }

    /// Whether LoRA target `target` names `linear`: PEFT's rule, the whole path or a suffix after a dot.
    pub fn is_target(&self, linear: &LinearSpec, target: &str) -> bool {
        linear.path == target || linear.path.ends_with(&format!(".{target}"))
    }
}
