//! What a merge will write: every tensor of the result, where its values come from, and what does not fit.
//!
//! Reads headers alone, so that a merge that cannot succeed writes nothing.

use crate::export::PlannedTensor;
use crate::folder::ModelFolder;
use crate::merge::MergeError;
use crate::peft::{AdapterKey, lora_key};
use crate::spec::{HeadSpec, ModelSpec, WeightLayout};
use cutlayer_wire::AdapterState;
use safetensors::Dtype;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

/// Modules that stand on a backbone, never inside it: they keep their names when the backbone gets its prefix.
const HEADS: [&str; 4] = ["lm_head", "classifier", "score", "cls"];

/// Modules that make a model a classifier.
pub(crate) const CLASSIFIERS: [&str; 2] = ["classifier", "score"];

/// One tensor of the result.
pub(crate) struct Part {
    pub(crate) planned: PlannedTensor,
    pub(crate) change: Change,
}

/// Where its values come from.
pub(crate) enum Change {
    /// The base's tensor of this name, untouched.
    Copy { stored: String },
    /// The base's tensor of this name plus the product of the factors under these keys.
    Fold { stored: String, key_a: String, key_b: String, layout: WeightLayout },
    /// The adapter's tensor under this key.
    Replace { key: String },
}

/// The inputs of a merge.
pub(crate) struct MergePlan<'a> {
    pub(crate) model: &'a ModelFolder,
    pub(crate) spec: &'a ModelSpec,
    pub(crate) state: &'a AdapterState,
    pub(crate) adapter_dir: &'a Path,
}

impl MergePlan<'_> {
    /// Decides every tensor of the result before anything is written.
    pub(crate) fn parts(&self) -> Result<Vec<Part>, MergeError> {
        let mut changes: BTreeMap<String, Part> = BTreeMap::new();
        let mut prefixed = true;
        for key in self.state.keys() {
            let (parameter, fold) = match AdapterKey::parse(key) {
                Some(AdapterKey::LoraA(module)) => (format!("{module}.weight"), Some(module)),
                Some(AdapterKey::Saved(parameter)) => (parameter.to_owned(), None),
                // Found with its `A`.
                Some(AdapterKey::LoraB(_)) | None => continue,
            };
            self.check_untied(&parameter)?;
            let stored = self.stored_name(&parameter);
            prefixed &= stored.as_deref().is_none_or(|stored| stored == parameter);
            let part = match fold {
                Some(module) => self.fold(module, &parameter, stored)?,
                None => self.replace(key, &parameter, stored.as_deref())?,
            };
            changes.insert(parameter, part);
        }
        Ok(self.complete(changes, prefixed))
    }

    /// Adds the tensors that do not change, and orders all for the file: larger types first, which keeps every tensor aligned.
    fn complete(&self, changes: BTreeMap<String, Part>, prefixed: bool) -> Vec<Part> {
        let full_name = |stored: &str| {
            let head = HEADS.contains(&stored.split('.').next().unwrap_or_default());
            // Only a bare backbone under an adapter with full names is renamed.
            if prefixed || head || stored.starts_with(self.spec.prefix) {
                stored.to_owned()
            } else {
                format!("{}{stored}", self.spec.prefix)
            }
        };
        let unchanged = self.model.names().filter(|stored| !changes.contains_key(&full_name(stored)));
        let copies = unchanged.map(|stored| {
            let (_, entry) = self.model.entry(stored).expect("`names` lists what is there");
            let planned = PlannedTensor { name: full_name(stored), dtype: entry.dtype, shape: entry.shape.clone() };
            Part { planned, change: Change::Copy { stored: stored.into() } }
        });
        let mut parts: Vec<Part> = copies.collect();
        parts.extend(changes.into_values());
        parts.sort_by(|one, other| {
            let rank = |part: &Part| Reverse(part.planned.dtype.bitsize());
            rank(one).cmp(&rank(other)).then_with(|| one.planned.name.cmp(&other.planned.name))
        });
        parts
    }

    fn fold(&self, module: &str, parameter: &str, stored: Option<String>) -> Result<Part, MergeError> {
        let (adapter, base) = (self.adapter_dir.to_owned(), self.model.path().to_owned());
        let stored = stored.ok_or_else(|| MergeError::UnknownTarget { adapter: adapter.clone(), base, parameter: parameter.into() })?;
        let (_, entry) = self.model.entry(&stored).expect("`stored_name` found it");
        let layout = self.layout(module);
        let (key_a, key_b) = (lora_key(module, 'A'), lora_key(module, 'B'));
        let (inputs, outputs) = (self.state[&key_a].shape[1], self.state[&key_b].shape[0]);
        let adapter_shape = match layout {
            WeightLayout::OutIn => vec![outputs, inputs],
            WeightLayout::InOut => vec![inputs, outputs],
        };
        if adapter_shape != entry.shape {
            return Err(MergeError::Shape { adapter, parameter: parameter.into(), adapter_shape, base_shape: entry.shape.clone() });
        }
        let planned = PlannedTensor { name: parameter.into(), dtype: entry.dtype, shape: entry.shape.clone() };
        Ok(Part { planned, change: Change::Fold { stored, key_a, key_b, layout } })
    }

    fn replace(&self, key: &str, parameter: &str, stored: Option<&str>) -> Result<Part, MergeError> {
        let shape = &self.state[key].shape;
        let entry = stored.and_then(|stored| self.model.entry(stored)).map(|(_, entry)| entry);
        let head = HEADS.iter().any(|head| parameter.starts_with(&format!("{head}.")));
        match entry {
            // A head may be new, or have another number of classes; anything else must be there and fit.
            None if !head => {
                let (adapter, base) = (self.adapter_dir.to_owned(), self.model.path().to_owned());
                return Err(MergeError::UnknownTarget { adapter, base, parameter: parameter.into() });
            }
            Some(entry) if !head && entry.shape != *shape => {
                let (adapter, adapter_shape) = (self.adapter_dir.to_owned(), shape.clone());
                return Err(MergeError::Shape { adapter, parameter: parameter.into(), adapter_shape, base_shape: entry.shape.clone() });
            }
            _ => {}
        }
        if parameter.ends_with(".weight")
            && CLASSIFIERS.iter().any(|head| parameter.starts_with(head))
            && shape.last() != Some(&self.spec.hidden)
        {
            let adapter_shape = shape.clone();
            let base_shape = vec![shape.first().copied().unwrap_or_default(), self.spec.hidden];
            return Err(MergeError::Shape { adapter: self.adapter_dir.into(), parameter: parameter.into(), adapter_shape, base_shape });
        }
        let dtype = entry.map_or_else(|| self.float_dtype(), |entry| entry.dtype);
        let planned = PlannedTensor { name: parameter.into(), dtype, shape: shape.clone() };
        Ok(Part { planned, change: Change::Replace { key: key.into() } })
    }

    /// Name under which the base stores a parameter: a bare backbone leaves out its prefix.
    fn stored_name(&self, parameter: &str) -> Option<String> {
        let bare = parameter.strip_prefix(self.spec.prefix);
        [Some(parameter), bare].into_iter().flatten().find(|name| self.model.contains(name)).map(str::to_owned)
    }

    fn check_untied(&self, parameter: &str) -> Result<(), MergeError> {
        if let HeadSpec::LanguageModel { weight, tied: true, .. } = self.spec.head {
            let embedding = format!("{}{}", self.spec.prefix, self.spec.embedding.tokens);
            if parameter == weight || parameter == embedding {
                return Err(MergeError::Tied { adapter: self.adapter_dir.into(), parameter: parameter.into() });
            }
        }
        Ok(())
    }

    /// How the base stores the weight of a module: the layer decides, whatever `fan_in_fan_out` says, as in PEFT.
    fn layout(&self, module: &str) -> WeightLayout {
        let linears = self.spec.block.linears();
        let known = linears.iter().find(|linear| module == linear.path || module.ends_with(&format!(".{}", linear.path)));
        known.map_or(WeightLayout::OutIn, |linear| linear.layout)
    }

    /// Type for a new head: that of the base's floats.
    fn float_dtype(&self) -> Dtype {
        let mut dtypes = self.model.names().filter_map(|name| self.model.entry(name)).map(|(_, entry)| entry.dtype);
        dtypes.find(|dtype| matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)).unwrap_or(Dtype::F32)
    }
}
