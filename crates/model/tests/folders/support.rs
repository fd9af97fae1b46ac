//! Small models and adapters made on the spot, and the paths of the shared ones.

use cutlayer_model::{ExportDtype, ModelFolder, write_model};
use cutlayer_wire::{AdapterState, HostTensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub const HIDDEN: usize = 8;
pub const VOCAB: usize = 16;

/// A new empty folder.
pub fn scratch() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// A tensor of repeatable values in (-1, 1) that depend on its name.
pub fn tensor(name: &str, shape: &[usize]) -> HostTensor {
    let mut state = name.bytes().fold(0x9e37_79b9_u32, |state, byte| state.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let count = shape.iter().product();
    HostTensor { shape: shape.into(), values: (0..count).map(|_| next()).collect() }
}

/// A model in memory: its config and its tensors.
#[derive(Clone)]
pub struct Model {
    pub config: Value,
    pub tensors: Vec<(String, HostTensor)>,
}

impl Model {
    fn new(config: Value, shapes: &[(String, Vec<usize>)]) -> Self {
        Self { config, tensors: shapes.iter().map(|(name, shape)| (name.clone(), tensor(name, shape))).collect() }
    }

    /// Writes it into `dir`.
    pub fn save(&self, dir: &Path, dtype: ExportDtype) -> ModelFolder {
        write_model(dir, &self.config, self.tensors.iter().cloned(), dtype).expect("the model can be written");
        ModelFolder::open(dir).expect("what we wrote opens")
    }
}

/// Two blocks of a Llama, with two query heads on one key-value head.
pub fn llama() -> Model {
    let inner = 12;
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN])];
    for block in 0..2 {
        let mut add = |name: &str, shape: &[usize]| shapes.push((format!("model.layers.{block}.{name}.weight"), shape.to_vec()));
        add("input_layernorm", &[HIDDEN]);
        add("self_attn.q_proj", &[HIDDEN, HIDDEN]);
        add("self_attn.k_proj", &[4, HIDDEN]);
        add("self_attn.v_proj", &[4, HIDDEN]);
        add("self_attn.o_proj", &[HIDDEN, HIDDEN]);
        add("post_attention_layernorm", &[HIDDEN]);
        add("mlp.gate_proj", &[inner, HIDDEN]);
        add("mlp.up_proj", &[inner, HIDDEN]);
        add("mlp.down_proj", &[HIDDEN, inner]);
    }
    shapes.push(("model.norm.weight".into(), vec![HIDDEN]));
    shapes.push(("lm_head.weight".into(), vec![VOCAB, HIDDEN]));
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": inner, "vocab_size": VOCAB,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "float32",
    });
    Model::new(config, &shapes)
}

/// One block of GPT-2, whose weights are stored `[in, out]`.
pub fn gpt2() -> Model {
    let mut shapes = vec![("transformer.wte.weight".to_owned(), vec![VOCAB, HIDDEN]), ("transformer.wpe.weight".into(), vec![32, HIDDEN])];
    let sizes =
        [("attn.c_attn", HIDDEN, 3 * HIDDEN), ("attn.c_proj", HIDDEN, HIDDEN), ("mlp.c_fc", HIDDEN, 32), ("mlp.c_proj", 32, HIDDEN)];
    for (name, inputs, outputs) in sizes {
        shapes.push((format!("transformer.h.0.{name}.weight"), vec![inputs, outputs]));
        shapes.push((format!("transformer.h.0.{name}.bias"), vec![outputs]));
    }
    for norm in ["h.0.ln_1", "h.0.ln_2", "ln_f"] {
        shapes.push((format!("transformer.{norm}.weight"), vec![HIDDEN]));
        shapes.push((format!("transformer.{norm}.bias"), vec![HIDDEN]));
    }
    let config = json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new", "n_embd": HIDDEN, "n_layer": 1, "n_head": 2,
        "n_positions": 32, "vocab_size": VOCAB, "layer_norm_epsilon": 1e-5,
    });
    Model::new(config, &shapes)
}

/// One block of a BERT backbone, without the prefix that it has under a head.
pub fn bare_bert() -> Model {
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("embeddings.position_embeddings.weight".into(), vec![32, HIDDEN]),
        ("embeddings.token_type_embeddings.weight".into(), vec![2, HIDDEN]),
    ];
    let mut linear = |name: &str, outputs: usize, inputs: usize| {
        shapes.push((format!("{name}.weight"), vec![outputs, inputs]));
        shapes.push((format!("{name}.bias"), vec![outputs]));
    };
    for name in ["self.query", "self.key", "self.value", "output.dense"] {
        linear(&format!("encoder.layer.0.attention.{name}"), HIDDEN, HIDDEN);
    }
    linear("encoder.layer.0.intermediate.dense", 32, HIDDEN);
    linear("encoder.layer.0.output.dense", HIDDEN, 32);
    linear("pooler.dense", HIDDEN, HIDDEN);
    for norm in ["embeddings.LayerNorm", "encoder.layer.0.attention.output.LayerNorm", "encoder.layer.0.output.LayerNorm"] {
        shapes.push((format!("{norm}.weight"), vec![HIDDEN]));
        shapes.push((format!("{norm}.bias"), vec![HIDDEN]));
    }
    let config = json!({
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": HIDDEN, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": VOCAB, "max_position_embeddings": 32, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    });
    Model::new(config, &shapes)
}

/// The factors of modules `(path, inputs, outputs)` at this rank.
pub fn factors(rank: usize, modules: &[(&str, usize, usize)]) -> AdapterState {
    let mut state = AdapterState::new();
    for &(module, inputs, outputs) in modules {
        for (letter, shape) in [("A", [rank, inputs]), ("B", [outputs, rank])] {
            let key = format!("base_model.model.{module}.lora_{letter}.weight");
            let values = tensor(&key, &shape);
            state.insert(key, values);
        }
    }
    state
}

/// Writes raw tensors as one safetensors file.
pub fn save_raw(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data).expect("data as long as its shape says");
        (name.to_string(), view)
    });
    let bytes = safetensors::serialize(views, None).expect("a file of small tensors");
    fs::write(path, bytes).expect("a writable folder");
}

/// Values as little-endian f32.
pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// `../shared` beside the repository, where the golden files lie; says so and gives nothing where it is absent.
pub fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is not on this machine", path.display());
    None
}

/// Checks that an error came and that its message names everything in `words`.
pub fn check_refused<T, E: std::fmt::Display>(result: Result<T, E>, words: &[&str]) {
    let message = result.err().expect("must be refused").to_string();
    for word in words {
        assert!(message.contains(word), "`{message}` does not name `{word}`");
    }
}
