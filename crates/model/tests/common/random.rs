//! Small models of every family with weights drawn from a seed: made anew by each test, the same everywhere.

use cutlayer_model::{Device, ExportDtype, Frozen, ModelFolder, Parts, Pretrainer, write_model};
use cutlayer_wire::{AdapterState, HostTensor};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// Weights this much larger than at the start of training make a wrong norm, bias or angle show.
const GAIN: f32 = 6.0;

/// A config of each family, with what is peculiar to it switched on.
pub fn configs() -> Vec<(&'static str, Value)> {
    let llama = |kind: &str, more: Value| {
        let mut config = json!({
            "model_type": kind, "hidden_act": "silu", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 96, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16
    });
    vec![
        (
            "llama",
            llama(
                "llama",
                json!({"architectures": ["LlamaForCausalLM"], "attention_bias": true, "mlp_bias": true, "rope_scaling": llama3}),
            ),
        ),
        ("mistral", llama("mistral", json!({"architectures": ["MistralForCausalLM"], "sliding_window": 5}))),
        ("qwen2", llama("qwen2", json!({"architectures": ["Qwen2ForCausalLM"], "head_dim": 12, "tie_word_embeddings": true}))),
        ("qwen3", llama("qwen3", json!({"architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "attention_bias": false}))),
        (
            "gpt2",
            json!({
                "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new", "n_embd": 48, "n_layer": 3,
                "n_head": 4, "n_positions": 64, "vocab_size": 96, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": true,
                "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2
            }),
        ),
        (
            "bert",
            json!({
                "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": 48,
                "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 96, "max_position_embeddings": 64,
                "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0, "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0, "num_labels": CLASSES
            }),
        ),
    ]
}

/// Classes of the BERT classifier.
pub const CLASSES: usize = 5;

/// Writes the model of `config` into `folder`.
pub fn write(config: &Value, folder: &Path) {
    let model = Pretrainer::new(config, 11, &Device::flex()).unwrap();
    let scaled = model.weights().into_iter().map(|(name, mut tensor)| {
        if tensor.shape.len() == 2 {
            tensor.values.iter_mut().for_each(|value| *value *= GAIN);
        } else {
            // Norms and biases start as ones and zeros: move them, so that leaving one out shows.
            tensor.values.iter_mut().enumerate().for_each(|(i, value)| *value += 0.2 * ((i * 7 % 11) as f32 / 11.0 - 0.4));
        }
        (name, tensor)
    });
    write_model(folder, config, scaled, ExportDtype::F32).unwrap();
}

/// The whole model in `folder`.
pub fn load(folder: &Path, device: &Device) -> Arc<Frozen> {
    let folder = ModelFolder::open(folder).unwrap();
    let blocks = cutlayer_model::read_spec(&folder).unwrap().blocks;
    Arc::new(Frozen::load(&folder, &Parts::whole(blocks), CLASSES, device).unwrap())
}

/// A fresh classifier's weights, as an adapter holds them.
pub fn classifier(hidden: usize) -> AdapterState {
    let values = |count: usize| (0..count).map(|i| ((i * 37 % 101) as f32 / 101.0 - 0.5) * 0.6).collect();
    AdapterState::from([
        ("base_model.model.classifier.weight".into(), HostTensor { shape: vec![CLASSES, hidden], values: values(CLASSES * hidden) }),
        ("base_model.model.classifier.bias".into(), HostTensor { shape: vec![CLASSES], values: values(CLASSES) }),
    ])
}

/// Two sequences of unlike length, in the vocabulary of [`configs`].
pub fn ids() -> (Vec<u32>, Vec<u32>) {
    let lengths = vec![13u32, 7];
    let ids = (0..20u32).map(|i| 3 + (i * i * 5 + i * 31) % 90).collect();
    (ids, lengths)
}
