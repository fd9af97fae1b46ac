//! The Llama family and its relatives: RMSNorm before, rotary positions, grouped-query attention, SwiGLU.

use super::{ConfigError, Fields};
use crate::spec::{
    BlockSpec, EmbeddingSpec, HeadSpec, LinearSpec, MlpSpec, ModelSpec, NormKind, NormOrder, NormSpec, QkvSpec, WeightLayout,
};

/// Relatives that differ in biases, head norms and the attention window alone.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

pub(super) fn spec(config: &Fields, family: Family) -> Result<ModelSpec, ConfigError> {
    let hidden = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    let kv_heads = config.size_or("num_key_value_heads", heads)?;
    let head_dim = config.size_or("head_dim", hidden / heads)?;
    let inner = config.size("intermediate_size")?;
    let epsilon = config.number_or("rms_norm_eps", 1e-6);

    let output_bias = matches!(family, Family::Llama | Family::Qwen3) && config.flag_or("attention_bias", false);
    let input_bias = output_bias || family == Family::Qwen2;
    let mlp_bias = family == Family::Llama && config.flag_or("mlp_bias", false);
    let windowed = match family {
        Family::Mistral => true,
        Family::Qwen2 | Family::Qwen3 => config.flag_or("use_sliding_window", false),
        Family::Llama => false,
    };
    let window = if windowed { config.get("sliding_window").and_then(|w| w.as_u64()).map(|w| w as usize) } else { None };

    let linear = |path, inputs, outputs, bias| LinearSpec { path, inputs, outputs, bias, layout: WeightLayout::OutIn };
    let norm = |path| NormSpec { path, kind: NormKind::Rms, epsilon };
    Ok(ModelSpec {
        family: match family {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        },
        prefix: "model.",
        block_path: "layers.",
        vocab: config.size("vocab_size")?,
        hidden,
        blocks: config.size("num_hidden_layers")?,
        positions_max: config.size_or("max_position_embeddings", 2048)?,
        embedding: EmbeddingSpec { tokens: "embed_tokens.weight", positions: None, token_types: None, norm: None },
        block: BlockSpec {
            heads,
            kv_heads,
            head_dim,
            norm_order: NormOrder::Pre,
            causal: true,
            window,
            rotary: Some(config.rotary()?),
            attention_norm: norm("input_layernorm"),
            qkv: QkvSpec::Separate([
                linear("self_attn.q_proj", hidden, heads * head_dim, input_bias),
                linear("self_attn.k_proj", hidden, kv_heads * head_dim, input_bias),
                linear("self_attn.v_proj", hidden, kv_heads * head_dim, input_bias),
            ]),
            head_norms: (family == Family::Qwen3).then_some(("self_attn.q_norm", "self_attn.k_norm", epsilon)),
            output: linear("self_attn.o_proj", heads * head_dim, hidden, output_bias),
            mlp_norm: norm("post_attention_layernorm"),
            mlp: MlpSpec::Gated([
                linear("mlp.gate_proj", hidden, inner, mlp_bias),
                linear("mlp.up_proj", hidden, inner, mlp_bias),
                linear("mlp.down_proj", inner, hidden, mlp_bias),
            ]),
            activation: config.activation("hidden_act")?,
        },
        head: HeadSpec::LanguageModel { norm: norm("norm"), weight: "lm_head.weight", tied: config.flag_or("tie_word_embeddings", false) },
    })
}
