//! GPT-2: LayerNorm before, learned positions, one fused projection for q, k and v, GELU; weights stored `[in, out]`.

use super::{ConfigError, Fields, unsupported};
use crate::spec::{
    BlockSpec, EmbeddingSpec, HeadSpec, LinearSpec, MlpSpec, ModelSpec, NormKind, NormOrder, NormSpec, QkvSpec, WeightLayout,
};

pub(super) fn spec(config: &Fields) -> Result<ModelSpec, ConfigError> {
    let hidden = config.size("n_embd")?;
    let heads = config.size("n_head")?;
    let inner = config.size_or("n_inner", 4 * hidden)?;
    let epsilon = config.number_or("layer_norm_epsilon", 1e-5);
    if config.flag_or("scale_attn_by_inverse_layer_idx", false) {
        return Err(unsupported("scale_attn_by_inverse_layer_idx", true, "only the plain scale 1/sqrt(head size) is supported"));
    }
    let linear = |path, inputs, outputs| LinearSpec { path, inputs, outputs, bias: true, layout: WeightLayout::InOut };
    let norm = |path| NormSpec { path, kind: NormKind::Layer, epsilon };
    Ok(ModelSpec {
        family: "gpt2",
        prefix: "transformer.",
        block_path: "h.",
        vocab: config.size("vocab_size")?,
        hidden,
        blocks: config.size("n_layer")?,
        positions_max: config.size("n_positions")?,
        embedding: EmbeddingSpec { tokens: "wte.weight", positions: Some("wpe.weight"), token_types: None, norm: None },
        block: BlockSpec {
            heads,
            kv_heads: heads,
            head_dim: hidden / heads,
            norm_order: NormOrder::Pre,
            causal: true,
            window: None,
            rotary: None,
            attention_norm: norm("ln_1"),
            qkv: QkvSpec::Fused(linear("attn.c_attn", hidden, 3 * hidden)),
            head_norms: None,
            output: linear("attn.c_proj", hidden, hidden),
            mlp_norm: norm("ln_2"),
            mlp: MlpSpec::Plain([linear("mlp.c_fc", hidden, inner), linear("mlp.c_proj", inner, hidden)]),
            activation: config.activation("activation_function")?,
        },
        head: HeadSpec::LanguageModel { norm: norm("ln_f"), weight: "lm_head.weight", tied: config.flag_or("tie_word_embeddings", true) },
    })
}
