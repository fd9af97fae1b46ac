//! BERT encoders with a sequence-classification head: LayerNorm after, learned positions, attention both ways.

use super::{ConfigError, Fields, unsupported};
use crate::spec::{
    BlockSpec, EmbeddingSpec, HeadSpec, LinearSpec, MlpSpec, ModelSpec, NormKind, NormOrder, NormSpec, QkvSpec, WeightLayout,
};

pub(super) fn spec(config: &Fields) -> Result<ModelSpec, ConfigError> {
    let hidden = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    let inner = config.size("intermediate_size")?;
    let epsilon = config.number_or("layer_norm_eps", 1e-12);
    let positions = config.text("position_embedding_type").unwrap_or("absolute");
    if positions != "absolute" {
        return Err(unsupported("position_embedding_type", positions, "only absolute positions are supported"));
    }
    let linear = |path, inputs, outputs| LinearSpec { path, inputs, outputs, bias: true, layout: WeightLayout::OutIn };
    let norm = |path| NormSpec { path, kind: NormKind::Layer, epsilon };
    Ok(ModelSpec {
        family: "bert",
        prefix: "bert.",
        block_path: "encoder.layer.",
        vocab: config.size("vocab_size")?,
        hidden,
        blocks: config.size("num_hidden_layers")?,
        positions_max: config.size("max_position_embeddings")?,
        embedding: EmbeddingSpec {
            tokens: "embeddings.word_embeddings.weight",
            positions: Some("embeddings.position_embeddings.weight"),
            token_types: Some(("embeddings.token_type_embeddings.weight", config.size_or("type_vocab_size", 2)?)),
            norm: Some(norm("embeddings.LayerNorm")),
        },
        block: BlockSpec {
            heads,
            kv_heads: heads,
            head_dim: hidden / heads,
            norm_order: NormOrder::Post,
            causal: false,
            window: None,
            rotary: None,
            attention_norm: norm("attention.output.LayerNorm"),
            qkv: QkvSpec::Separate([
                linear("attention.self.query", hidden, hidden),
                linear("attention.self.key", hidden, hidden),
                linear("attention.self.value", hidden, hidden),
            ]),
            head_norms: None,
            output: linear("attention.output.dense", hidden, hidden),
            mlp_norm: norm("output.LayerNorm"),
            mlp: MlpSpec::Plain([linear("intermediate.dense", hidden, inner), linear("output.dense", inner, hidden)]),
            activation: config.activation("hidden_act")?,
        },
        head: HeadSpec::Classifier { pooler: "pooler.dense", classifier: "classifier" },
    })
}
