//! Named shapes with random weights: what can be timed without downloading anything. The sizes are those of real models, and of
//! `shared/peers/gen_model.py`.

use crate::error::LabError;
use cutlayer_model::{ExportDtype, write_model};
use cutlayer_wire::HostTensor;
use serde_json::{Value, json};
use std::path::Path;

/// The shapes that have a name here.
pub const SHAPES: [&str; 5] = ["llama-tiny", "smollm2-135m", "gpt2", "minilm", "llama-1b"];

/// Half the width of the weights' distribution: uniform, with the standard deviation 0.02 of fresh models.
const WEIGHT_MAX: f32 = 0.034_641;

/// A model in numbers. GPT-2 and BERT have as many key and value heads as query heads.
struct Sizes {
    family: Family,
    hidden: usize,
    blocks: usize,
    heads: usize,
    kv_heads: usize,
    inner: usize,
    vocab: usize,
    positions: usize,
    /// Base of the rotary frequencies.
    theta: f64,
    /// Whether the head is the embedding.
    tied: bool,
}

#[derive(Clone, Copy)]
enum Family {
    Llama,
    Gpt2,
    Bert,
}

/// Writes the model of shape `name` into `folder`, with weights drawn from a fixed seed, one tensor at a time. No tokenizer.
pub fn write_shape(name: &str, folder: &Path) -> Result<(), LabError> {
    let sizes = sizes(name).ok_or_else(|| LabError::UnknownShape { found: name.into() })?;
    let tensors = sizes.tensors().into_iter().map(|(name, shape)| {
        let values = fresh(&name, &shape);
        (name, HostTensor { shape, values })
    });
    write_model(folder, &sizes.config(), tensors, ExportDtype::F32)?;
    Ok(())
}

fn sizes(name: &str) -> Option<Sizes> {
    let llama = |hidden, blocks, heads, kv_heads, inner, vocab| Sizes {
        family: Family::Llama,
        hidden,
        blocks,
        heads,
        kv_heads,
        inner,
        vocab,
        positions: 2048,
        theta: 1e4,
        tied: false,
    };
    let plain = |family, hidden, blocks, heads, vocab, positions| {
        let (kv_heads, inner, theta, tied) = (heads, 4 * hidden, 0.0, true);
        Sizes { family, hidden, blocks, heads, kv_heads, inner, vocab, positions, theta, tied }
    };
    Some(match name {
        "llama-tiny" => llama(256, 8, 8, 4, 688, 4096),
        "smollm2-135m" => Sizes { positions: 8192, theta: 1e5, tied: true, ..llama(576, 30, 9, 3, 1536, 49152) },
        "llama-1b" => llama(2048, 22, 32, 4, 5632, 32000),
        "gpt2" => plain(Family::Gpt2, 768, 12, 12, 50257, 1024),
        "minilm" => plain(Family::Bert, 384, 6, 12, 30522, 512),
        _ => return None,
    })
}

impl Sizes {
    fn config(&self) -> Value {
        let Self { hidden, blocks, heads, kv_heads, inner, vocab, positions, theta, tied, .. } = self;
        match self.family {
            Family::Llama => json!({
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": false,
                "mlp_bias": false, "hidden_size": hidden, "num_hidden_layers": blocks, "num_attention_heads": heads,
                "num_key_value_heads": kv_heads, "head_dim": hidden / heads, "intermediate_size": inner, "vocab_size": vocab,
                "max_position_embeddings": positions, "rms_norm_eps": 1e-5, "rope_theta": theta, "rope_scaling": null,
                "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2
            }),
            Family::Gpt2 => json!({
                "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new", "n_embd": hidden,
                "n_layer": blocks, "n_head": heads, "n_positions": positions, "n_ctx": positions, "vocab_size": vocab,
                "layer_norm_epsilon": 1e-5, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 0,
                "eos_token_id": 0, "tie_word_embeddings": tied
            }),
            Family::Bert => json!({
                "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": hidden,
                "num_hidden_layers": blocks, "num_attention_heads": heads, "intermediate_size": inner, "vocab_size": vocab,
                "max_position_embeddings": positions, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
                "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "position_embedding_type": "absolute", "pad_token_id": 0
            }),
        }
    }

    /// Names and shapes, as the checkpoints of the family have them.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = List::default();
        match self.family {
            Family::Llama => self.llama(&mut list),
            Family::Gpt2 => self.gpt2(&mut list),
            Family::Bert => self.bert(&mut list),
        }
        list.0
    }

    fn llama(&self, list: &mut List) {
        let (hidden, inner, narrow) = (self.hidden, self.inner, self.hidden / self.heads * self.kv_heads);
        list.matrix("model.embed_tokens", self.vocab, hidden);
        for block in 0..self.blocks {
            let path = |part: &str| format!("model.layers.{block}.{part}");
            for (part, rows) in [("q_proj", hidden), ("k_proj", narrow), ("v_proj", narrow), ("o_proj", hidden)] {
                list.matrix(&path(&format!("self_attn.{part}")), rows, hidden);
            }
            for (part, rows, columns) in [("gate_proj", inner, hidden), ("up_proj", inner, hidden), ("down_proj", hidden, inner)] {
                list.matrix(&path(&format!("mlp.{part}")), rows, columns);
            }
            for part in ["input_layernorm", "post_attention_layernorm"] {
                list.vector(&path(part), ".weight", hidden);
            }
        }
        list.vector("model.norm", ".weight", hidden);
        if !self.tied {
            list.matrix("lm_head", self.vocab, hidden);
        }
    }

    fn gpt2(&self, list: &mut List) {
        let (hidden, inner) = (self.hidden, self.inner);
        list.matrix("transformer.wte", self.vocab, hidden);
        list.matrix("transformer.wpe", self.positions, hidden);
        for block in 0..self.blocks {
            let path = |part: &str| format!("transformer.h.{block}.{part}");
            list.norm(&path("ln_1"), hidden);
            list.norm(&path("ln_2"), hidden);
            // GPT-2 stores its projections [inputs, outputs].
            let projections = [
                ("attn.c_attn", hidden, 3 * hidden),
                ("attn.c_proj", hidden, hidden),
                ("mlp.c_fc", hidden, inner),
                ("mlp.c_proj", inner, hidden),
            ];
            for (part, inputs, outputs) in projections {
                list.matrix(&path(part), inputs, outputs);
                list.vector(&path(part), ".bias", outputs);
            }
        }
        list.norm("transformer.ln_f", hidden);
    }

    fn bert(&self, list: &mut List) {
        let (hidden, inner) = (self.hidden, self.inner);
        for (part, rows) in [("word", self.vocab), ("position", self.positions), ("token_type", 2)] {
            list.matrix(&format!("bert.embeddings.{part}_embeddings"), rows, hidden);
        }
        list.norm("bert.embeddings.LayerNorm", hidden);
        for block in 0..self.blocks {
            let path = |part: &str| format!("bert.encoder.layer.{block}.{part}");
            let attention =
                ["self.query", "self.key", "self.value", "output.dense"].map(|part| (format!("attention.{part}"), hidden, hidden));
            let rest = [("intermediate.dense".to_owned(), inner, hidden), ("output.dense".to_owned(), hidden, inner)];
            for (part, rows, columns) in attention.into_iter().chain(rest) {
                list.matrix(&path(&part), rows, columns);
                list.vector(&path(&part), ".bias", rows);
            }
            list.norm(&path("attention.output.LayerNorm"), hidden);
            list.norm(&path("output.LayerNorm"), hidden);
        }
        list.matrix("bert.pooler.dense", hidden, hidden);
        list.vector("bert.pooler.dense", ".bias", hidden);
    }
}

/// Names and shapes, in order.
#[derive(Default)]
struct List(Vec<(String, Vec<usize>)>);

impl List {
    fn matrix(&mut self, path: &str, rows: usize, columns: usize) {
        self.0.push((format!("{path}.weight"), vec![rows, columns]));
    }

    fn vector(&mut self, path: &str, end: &str, width: usize) {
        self.0.push((format!("{path}{end}"), vec![width]));
    }

    fn norm(&mut self, path: &str, width: usize) {
        self.vector(path, ".weight", width);
        self.vector(path, ".bias", width);
    }
}

/// Matrices uniform, norms one, biases zero; the same name gives the same values.
fn fresh(name: &str, shape: &[usize]) -> Vec<f32> {
    let count = shape.iter().product();
    if shape.len() == 1 {
        return vec![if name.ends_with(".bias") { 0.0 } else { 1.0 }; count];
    }
    let mut state = blake3::hash(name.as_bytes()).as_bytes().iter().take(8).fold(0u64, |all, byte| (all << 8) | u64::from(*byte));
    let mut next = || {
        // SplitMix64 (Steele et al. 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32;
        WEIGHT_MAX * (2.0 * unit - 1.0)
    };
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutlayer_model::{DeviceChoice, Frozen, ModelFolder, Parts, read_spec};

    /// Goal: what is written is a model of the family that can be loaded whole. Method: each family, made small.
    #[test]
    fn every_family_loads() {
        for name in SHAPES {
            // A family with fewer key and value heads keeps fewer.
            let kv_heads = |sizes: &Sizes| if sizes.kv_heads == sizes.heads { 4 } else { 2 };
            let small =
                |sizes: Sizes| Sizes { hidden: 32, blocks: 2, heads: 4, kv_heads: kv_heads(&sizes), inner: 48, vocab: 300, ..sizes };
            let sizes = small(sizes(name).expect("a shape"));
            let folder = tempfile::tempdir().expect("a folder");
            let tensors = sizes.tensors().into_iter().map(|(name, shape)| {
                let values = fresh(&name, &shape);
                (name, HostTensor { shape, values })
            });
            let inner = json!({ "n_inner": 48 });
            let mut config = sizes.config();
            config.as_object_mut().expect("an object").extend(inner.as_object().expect("an object").clone());
            write_model(folder.path(), &config, tensors, ExportDtype::F32).expect("written");
            let model = ModelFolder::open(folder.path()).expect("a model");
            let spec = read_spec(&model).expect("a spec");
            assert_eq!((spec.blocks, spec.hidden), (2, 32));
            let device = DeviceChoice::Cpu.open().expect("a CPU");
            if let Err(error) = Frozen::load(&model, &Parts::whole(2), 0, &device) {
                panic!("{name}: {error}");
            }
        }
    }

    /// Goal: the sizes are the named models'. Method: count the 135M shape's parameters, and look for the unknown.
    #[test]
    fn sizes_are_those_of_the_name() {
        let count = |name| sizes(name).expect("a shape").tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>();
        assert_eq!(count("smollm2-135m"), 134_515_008);
        assert_eq!(count("gpt2"), 124_439_808);
        assert!(matches!(write_shape("llama-9b", Path::new("/nowhere")), Err(LabError::UnknownShape { .. })));
    }

    /// Goal: weights have the spread that they are said to have. Method: mean and deviation of many.
    #[test]
    fn weights_are_spread() {
        let values = fresh("a.weight", &[100, 100]);
        let mean = values.iter().sum::<f32>() / 1e4;
        let deviation = (values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / 1e4).sqrt();
        assert!(mean.abs() < 1e-3 && (deviation - 0.02).abs() < 5e-4, "{mean} {deviation}");
        assert_eq!(fresh("a.bias", &[2]), [0.0, 0.0]);
    }
}
