//! From a Hugging Face `config.json` to a [`ModelSpec`]: one small file per family.
//!
//! To add an architecture, write `fn spec(config: &Fields) -> Result<ModelSpec, ConfigError>` in its own file and list it
//! in [`spec`]. Nothing else changes.

mod bert;
mod gpt2;
mod llama;

use crate::spec::{Activation, ModelSpec, RotaryScaling, RotarySpec};
use serde_json::Value;

/// A `config.json` that does not describe a model we can run.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum ConfigError {
    /// No such family.
    #[error("architecture `{found}` is not supported; supported `model_type`s: {}", FAMILIES.join(", "))]
    UnknownArchitecture {
        /// The folder's `model_type`.
        found: String,
    },
    /// A needed field is absent.
    #[error("config.json lacks `{field}`; is it the config of a transformers model?")]
    Missing {
        /// Its name.
        field: String,
    },
    /// A field holds what we cannot run.
    #[error("config.json: `{field}` is {found}, but {needed}")]
    Unsupported {
        /// Its name.
        field: String,
        /// What it holds.
        found: String,
        /// What would do.
        needed: String,
    },
}

/// Every `model_type` that is understood.
pub const FAMILIES: [&str; 6] = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "bert"];

/// Largest size accepted from a config, so that a corrupt one cannot ask for the machine's memory.
const SIZE_MAX: u64 = 1 << 24;

/// Describes the model of `config`, the parsed `config.json`.
pub fn spec(config: &Value) -> Result<ModelSpec, ConfigError> {
    let fields = Fields(config);
    let family = fields.text("model_type")?;
    let spec = match family {
        "llama" => llama::spec(&fields, llama::Family::Llama),
        "mistral" => llama::spec(&fields, llama::Family::Mistral),
        "qwen2" => llama::spec(&fields, llama::Family::Qwen2),
        "qwen3" => llama::spec(&fields, llama::Family::Qwen3),
        "gpt2" => gpt2::spec(&fields),
        "bert" => bert::spec(&fields),
        other => Err(ConfigError::UnknownArchitecture { found: other.into() }),
    }?;
    check_heads(&spec)?;
    Ok(spec)
}

fn check_heads(spec: &ModelSpec) -> Result<(), ConfigError> {
    let block = &spec.block;
    if !block.heads.is_multiple_of(block.kv_heads) {
        return Err(unsupported("num_key_value_heads", block.kv_heads, &format!("it must divide the {} query heads", block.heads)));
    }
    if block.rotary.is_some() && !block.head_dim.is_multiple_of(2) {
        return Err(unsupported("head_dim", block.head_dim, "rotary positions need an even head size"));
    }
    Ok(())
}

fn unsupported(field: &str, found: impl ToString, needed: &str) -> ConfigError {
    ConfigError::Unsupported { field: field.into(), found: found.to_string(), needed: needed.into() }
}

/// Typed access to the fields of a config.
pub(crate) struct Fields<'a>(&'a Value);

impl Fields<'_> {
    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn text(&self, field: &str) -> Result<&str, ConfigError> {
        self.get(field).and_then(Value::as_str).ok_or(ConfigError::Missing { field: field.into() })
    }

    /// A positive size.
    fn size(&self, field: &str) -> Result<usize, ConfigError> {
        let value = self.get(field).ok_or(ConfigError::Missing { field: field.into() })?;
        match value.as_u64() {
            Some(size) if (1..=SIZE_MAX).contains(&size) => Ok(size as usize),
            _ => Err(unsupported(field, value, &format!("it must be a whole number from 1 to {SIZE_MAX}"))),
        }
    }

    fn size_or(&self, field: &str, default: usize) -> Result<usize, ConfigError> {
        if self.get(field).is_some() { self.size(field) } else { Ok(default) }
    }

    fn number_or(&self, field: &str, default: f64) -> f64 {
        self.get(field).and_then(Value::as_f64).unwrap_or(default)
    }

    fn flag_or(&self, field: &str, default: bool) -> bool {
        self.get(field).and_then(Value::as_bool).unwrap_or(default)
    }

    fn activation(&self, field: &str) -> Result<Activation, ConfigError> {
        match self.text(field)? {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => Err(unsupported(field, other, "the activations are silu, gelu, gelu_new and relu")),
        }
    }

    /// Rotary settings, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).
    fn rotary(&self) -> Result<RotarySpec, ConfigError> {
        let nested = Fields(self.get("rope_parameters").or(self.get("rope_scaling")).unwrap_or(&Value::Null));
        let theta = nested.number_or("rope_theta", self.number_or("rope_theta", 10_000.0));
        let kind = nested.text("rope_type").or(nested.text("type")).unwrap_or("default");
        let number =
            |field: &str| nested.get(field).and_then(Value::as_f64).ok_or(ConfigError::Missing { field: format!("rope_scaling.{field}") });
        let scaling = match kind {
            "default" => RotaryScaling::None,
            "linear" => RotaryScaling::Linear { factor: number("factor")? },
            "llama3" => RotaryScaling::Llama3 {
                factor: number("factor")?,
                low: number("low_freq_factor")?,
                high: number("high_freq_factor")?,
                original_positions: number("original_max_position_embeddings")?,
            },
            other => return Err(unsupported("rope_scaling", other, "the scalings are default, linear and llama3")),
        };
        Ok(RotarySpec { theta, scaling })
    }
}
