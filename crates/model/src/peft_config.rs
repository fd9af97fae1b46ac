//! `adapter_config.json`: from PEFT's fields to [`PeftConfig`] and back.

use crate::peft::{PeftConfig, PeftError, PeftTask};
use cutlayer_wire::LoraSpec;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Fields that turn on something cutlayer has not; each must be absent or empty.
const FIELDS_OFF: [&str; 19] = [
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "exclude_modules",
    "kasa_config",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
    "auto_mapping",
];

/// Initialisations that leave the base weights as they are; the others move part of them into the adapter.
const INITIALISATIONS_KEPT: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Reads the configuration; `file` is its path, for messages.
pub(crate) fn config_from_json(json: &Value, file: &Path) -> Result<PeftConfig, PeftError> {
    let fields = Fields { json, file };
    fields.check_supported()?;
    let lora = LoraSpec {
        rank: fields.rank()?,
        alpha: fields.number("lora_alpha", 8.0)?,
        rslora: fields.flag("use_rslora")?,
        dropout: fields.number("lora_dropout", 0.0)?,
        targets: fields.targets()?,
    };
    lora.validate().map_err(|source| PeftError::Lora { file: file.into(), source })?;
    Ok(PeftConfig {
        lora,
        task: fields.task()?,
        base_model: fields.text("base_model_name_or_path")?.map(str::to_owned),
        fan_in_fan_out: fields.flag("fan_in_fan_out")?,
        modules_to_save: fields.list("modules_to_save")?,
        labels: Vec::new(),
    })
}

/// The configuration as PEFT reads it, without the fields that would only repeat its defaults or our version of it.
pub(crate) fn config_to_json(config: &PeftConfig) -> Value {
    let task = config.task.map(|task| match task {
        PeftTask::CausalLm => "CAUSAL_LM",
        PeftTask::SequenceClassification => "SEQ_CLS",
    });
    let modules = (!config.modules_to_save.is_empty()).then_some(&config.modules_to_save);
    json!({
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": config.base_model,
        "inference_mode": true,
        "r": config.lora.rank,
        "lora_alpha": shortest(config.lora.alpha),
        "use_rslora": config.lora.rslora,
        "lora_dropout": shortest(config.lora.dropout),
        "target_modules": config.lora.targets,
        "modules_to_save": modules,
        "fan_in_fan_out": config.fan_in_fan_out,
        "bias": "none",
        "use_dora": false,
        "init_lora_weights": true,
        "rank_pattern": {},
        "alpha_pattern": {},
        "layers_to_transform": null,
        "layers_pattern": null,
    })
}

/// The number with the fewest digits that reads back as `value`: 16 rather than 16.0, 0.1 rather than 0.10000000149.
fn shortest(value: f32) -> Value {
    let text = value.to_string();
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text} is a finite number: the plan was validated"))
}

struct Fields<'a> {
    json: &'a Value,
    file: &'a Path,
}

impl<'a> Fields<'a> {
    fn get(&self, field: &str) -> Option<&'a Value> {
        self.json.get(field).filter(|value| !value.is_null())
    }

    fn wrong(&self, field: &str, needed: &str) -> PeftError {
        let found = self.get(field).map_or("absent".into(), abbreviated);
        PeftError::Field { file: self.file.into(), field: field.into(), found, needed: needed.into() }
    }

    fn unsupported(&self, field: &str, remedy: &str) -> PeftError {
        let found = self.get(field).map_or("absent".into(), abbreviated);
        PeftError::Unsupported { file: self.file.into(), field: field.into(), found, remedy: remedy.into() }
    }

    fn check_supported(&self) -> Result<(), PeftError> {
        match self.text("peft_type")? {
            Some("LORA") => {}
            Some(_) => return Err(self.unsupported("peft_type", "only LORA adapters are read")),
            None => return Err(self.wrong("peft_type", "\"LORA\"")),
        }
        if self.text("bias")?.is_some_and(|bias| bias != "none") {
            return Err(self.unsupported("bias", "train the adapter with bias=\"none\""));
        }
        let kept = match self.get("init_lora_weights") {
            Some(Value::String(name)) => INITIALISATIONS_KEPT.contains(&name.as_str()),
            _ => true,
        };
        if !kept {
            let remedy =
                "it changes the base weights: save the adapter with `path_initial_model_for_weight_conversion`, or merge it in PEFT";
            return Err(self.unsupported("init_lora_weights", remedy));
        }
        match FIELDS_OFF.iter().find(|field| self.get(field).is_some_and(|value| !is_off(value))) {
            Some(field) => Err(self.unsupported(field, "train the adapter without it, or merge it in PEFT")),
            None => Ok(()),
        }
    }

    fn rank(&self) -> Result<u32, PeftError> {
        let rank = self.get("r").and_then(Value::as_u64).and_then(|rank| u32::try_from(rank).ok());
        rank.filter(|&rank| rank > 0).ok_or_else(|| self.wrong("r", "a whole number above 0"))
    }

    fn number(&self, field: &str, default: f32) -> Result<f32, PeftError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => {
                let number = value.as_f64().map(|number| number as f32);
                number.filter(|number| number.is_finite()).ok_or_else(|| self.wrong(field, "a number"))
            }
        }
    }

    fn flag(&self, field: &str) -> Result<bool, PeftError> {
        self.get(field).map_or(Ok(false), |value| value.as_bool().ok_or_else(|| self.wrong(field, "true or false")))
    }

    fn text(&self, field: &str) -> Result<Option<&'a str>, PeftError> {
        self.get(field).map(|value| value.as_str().ok_or_else(|| self.wrong(field, "a string"))).transpose()
    }

    fn list(&self, field: &str) -> Result<Vec<String>, PeftError> {
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        let strings = value.as_array().and_then(|items| items.iter().map(|item| item.as_str().map(str::to_owned)).collect());
        let strings: Vec<String> = strings.ok_or_else(|| self.wrong(field, "a list of names"))?;
        // PEFT repeats the names that it adds by itself.
        let mut names = BTreeSet::new();
        Ok(strings.into_iter().filter(|name| names.insert(name.clone())).collect())
    }

    fn targets(&self) -> Result<Vec<String>, PeftError> {
        let targets = match self.get("target_modules") {
            Some(Value::String(text)) if text == "all-linear" => {
                return Err(self.unsupported("target_modules", "list the projections by name, as PEFT does when it saves"));
            }
            Some(Value::String(text)) if is_name(text) => vec![text.clone()],
            Some(Value::String(_)) => {
                return Err(self.unsupported("target_modules", "list the projections by name instead of by a regular expression"));
            }
            _ => self.list("target_modules")?,
        };
        if targets.is_empty() { Err(self.wrong("target_modules", "a list of projection names")) } else { Ok(targets) }
    }

    fn task(&self) -> Result<Option<PeftTask>, PeftError> {
        match self.text("task_type")? {
            None => Ok(None),
            Some("CAUSAL_LM") => Ok(Some(PeftTask::CausalLm)),
            Some("SEQ_CLS") => Ok(Some(PeftTask::SequenceClassification)),
            Some(_) => Err(self.unsupported("task_type", "the tasks are CAUSAL_LM and SEQ_CLS")),
        }
    }
}

/// Whether a feature's field leaves it off.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// Whether a target string is one module name rather than a regular expression.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// A value short enough for a message.
fn abbreviated(value: &Value) -> String {
    const LETTERS_MAX: usize = 80;
    let text = value.to_string();
    if text.chars().count() <= LETTERS_MAX { text } else { format!("{}…", text.chars().take(LETTERS_MAX).collect::<String>()) }
}
