//! LoRA adapters (Hu et al. 2021): trained factors that run beside the frozen weights, `y = x·W + s·(x·Aᵀ)·Bᵀ`.
//!
//! Parameters keep PEFT's names and shapes, `A [r, in]` and `B [out, r]`, so that what is trained, sent, averaged and
//! saved is one thing. The dense product `A·B` is never formed.

use crate::bound::Bound;
use crate::optimizer::decimal;
use crate::spec::{HeadSpec, LinearSpec, ModelSpec};
use burn::tensor::{DType, Device, Tensor, TensorData};
use cutlayer_wire::{AdapterState, HostTensor, LoraSpec};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// Every PEFT key starts so.
pub const KEY_PREFIX: &str = "base_model.model.";

/// An adapter that does not fit the model.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum AdapterError {
    /// A target names no projection.
    #[error("adapter target `{target}` names no projection of a {family} block; the projections are {}", known.join(", "))]
    UnknownTarget {
        /// The target.
        target: String,
        /// The model's family.
        family: &'static str,
        /// What there is.
        known: Vec<String>,
    },
    /// A tensor is absent.
    #[error("the adapter lacks `{key}`; it was made for other targets, layers or another model")]
    Missing {
        /// Its key.
        key: String,
    },
    /// A tensor belongs nowhere.
    #[error("the adapter holds `{key}`, which this model and these targets do not have")]
    Unexpected {
        /// Its key.
        key: String,
    },
    /// A tensor of another shape: another rank, or another model.
    #[error("adapter tensor `{key}` is {found:?}, expected {expected:?}; check the rank and the base model")]
    Shape {
        /// Its key.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape expected.
        expected: Vec<usize>,
    },
    /// NaN or infinity.
    #[error("adapter tensor `{key}` holds a NaN or an infinity")]
    NotFinite {
        /// Its key.
        key: String,
    },
}

/// Key of factor `A` of the projection at `path`.
pub(crate) fn key_a(path: &str) -> String {
    format!("{KEY_PREFIX}{path}.lora_A.weight")
}

/// Key of factor `B` of the projection at `path`.
pub(crate) fn key_b(path: &str) -> String {
    format!("{KEY_PREFIX}{path}.lora_B.weight")
}

/// Names and shapes of every tensor trained in `blocks` and, if `head`, in a classifier of `labels` classes.
pub fn shapes(
    model: &ModelSpec,
    lora: &LoraSpec,
    blocks: impl Iterator<Item = usize>,
    head: bool,
    labels: usize,
) -> Result<BTreeMap<String, Vec<usize>>, AdapterError> {
    let linears = model.block.linears();
    for target in &lora.targets {
        if !linears.iter().any(|linear| model.is_target(linear, target)) {
            let known = linears.iter().map(|linear| linear.path.to_string()).collect();
            return Err(AdapterError::UnknownTarget { target: target.clone(), family: model.family, known });
        }
    }
    let targeted: Vec<&LinearSpec> =
        linears.into_iter().filter(|linear| lora.targets.iter().any(|target| model.is_target(linear, target))).collect();
    let rank = lora.rank as usize;
    let mut all = BTreeMap::new();
    for index in blocks {
        for linear in &targeted {
            let path = model.linear_path(index, linear);
            all.insert(key_a(&path), vec![rank, linear.inputs]);
            all.insert(key_b(&path), vec![linear.outputs, rank]);
        }
    }
    if let (true, HeadSpec::Classifier { classifier, .. }) = (head, &model.head) {
        all.insert(format!("{KEY_PREFIX}{classifier}.weight"), vec![labels, model.hidden]);
        all.insert(format!("{KEY_PREFIX}{classifier}.bias"), vec![labels]);
    }
    Ok(all)
}

/// Starting values by PEFT's rule: `A` uniform in ±1/√in (Kaiming with a = √5), `B` zero; a classifier normal with
/// standard deviation 0.02 and zero bias, as BERT's. Each tensor's values depend on the seed and its own key alone, so
/// that every side and every cut starts from the same adapter.
pub fn initial(shapes: &BTreeMap<String, Vec<usize>>, seed: u64) -> AdapterState {
    shapes
        .iter()
        .map(|(key, shape)| {
            let count: usize = shape.iter().product();
            let mut random = random_for(seed, key);
            let values: Vec<f32> = if key.ends_with("lora_A.weight") {
                let bound = 1.0 / (shape[1] as f32).sqrt();
                (0..count).map(|_| random.random_range(-bound..bound)).collect()
            } else if key.ends_with("lora_B.weight") || key.ends_with(".bias") {
                vec![0.0; count]
            } else {
                (0..count).map(|_| 0.02 * normal(&mut random)).collect()
            };
            (key.clone(), HostTensor { shape: shape.clone(), values })
        })
        .collect()
}

/// A generator that depends on `seed` and `name` alone.
pub(crate) fn random_for(seed: u64, name: &str) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}

/// A standard normal value, by Box and Muller.
pub(crate) fn normal(random: &mut ChaCha8Rng) -> f32 {
    let (u, v): (f32, f32) = (1.0 - random.random::<f32>(), random.random());
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

/// One trained tensor on the device, as a matrix; a bias is one row.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Current value.
    pub value: Tensor<2>,
    /// Shape outside: PEFT's.
    pub shape: Vec<usize>,
    /// Mean of the gradients and of their squares, and the steps behind them (AdamW).
    pub(crate) moments: Option<(Tensor<2>, Tensor<2>, u32)>,
}

/// The trained tensors of one stage, on its device.
#[derive(Clone, Debug)]
pub struct Adapter {
    scale: f64,
    dropout: f64,
    parameters: BTreeMap<String, Parameter>,
}

impl Adapter {
    /// Puts `state` on `device`. It must hold exactly `shapes`, in finite numbers.
    pub fn new(
        lora: &LoraSpec,
        shapes: &BTreeMap<String, Vec<usize>>,
        state: &AdapterState,
        device: &Device,
    ) -> Result<Self, AdapterError> {
        Ok(Self { scale: f64::from(lora.scale()), dropout: decimal(lora.dropout), ..Self::plain(shapes, state, device)? })
    }

    /// Trained tensors that are no low-rank factors: every weight of a model that is pretrained.
    pub(crate) fn plain(shapes: &BTreeMap<String, Vec<usize>>, state: &AdapterState, device: &Device) -> Result<Self, AdapterError> {
        if let Some(key) = state.keys().find(|key| !shapes.contains_key(*key)) {
            return Err(AdapterError::Unexpected { key: key.clone() });
        }
        let mut parameters = BTreeMap::new();
        for (key, shape) in shapes {
            let tensor = state.get(key).ok_or_else(|| AdapterError::Missing { key: key.clone() })?;
            check(key, tensor, shape)?;
            parameters.insert(key.clone(), Parameter { value: upload(tensor, device), shape: shape.clone(), moments: None });
        }
        Ok(Self { scale: 0.0, dropout: 0.0, parameters })
    }

    /// Replaces the values of the tensors that `state` holds; unknown keys are refused, optimizer state stays.
    pub fn load(&mut self, state: &AdapterState) -> Result<(), AdapterError> {
        for (key, tensor) in state {
            let parameter = self.parameters.get(key).ok_or_else(|| AdapterError::Unexpected { key: key.clone() })?;
            check(key, tensor, &parameter.shape)?;
        }
        for (key, tensor) in state {
            let parameter = self.parameters.get_mut(key).expect("checked above");
            parameter.value = upload(tensor, &parameter.value.device());
        }
        Ok(())
    }

    /// Forgets what the optimizer knows.
    pub fn reset_optimizer(&mut self) {
        self.parameters.values_mut().for_each(|parameter| parameter.moments = None);
    }

    /// Current values, on the host.
    pub fn state(&self) -> AdapterState {
        self.parameters
            .iter()
            .map(|(key, parameter)| (key.clone(), HostTensor { shape: parameter.shape.clone(), values: download(parameter.value.clone()) }))
            .collect()
    }

    /// Keys of the tensors held.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.parameters.keys()
    }

    /// Whether the tensor at `key` is trained here.
    pub fn holds(&self, key: &str) -> bool {
        self.parameters.contains_key(key)
    }

    /// Whether nothing is trained here.
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }

    pub(crate) fn parameters(&self) -> &BTreeMap<String, Parameter> {
        &self.parameters
    }

    pub(crate) fn parameters_mut(&mut self) -> &mut BTreeMap<String, Parameter> {
        &mut self.parameters
    }

    /// The adapter for one step: with gradients to be taken if `train`, and dropout drawn from `dropout_seed`.
    pub(crate) fn bind(&self, train: bool, dropout_seed: u64, activations: DType) -> Bound {
        let leaf = |parameter: &Parameter| {
            if train { parameter.value.clone().autodiff().require_grad() } else { parameter.value.clone() }
        };
        let leaves = self.parameters.iter().map(|(key, parameter)| (key.clone(), leaf(parameter))).collect();
        Bound::new(leaves, self.scale, if train { self.dropout } else { 0.0 }, dropout_seed, activations)
    }
}

fn check(key: &str, tensor: &HostTensor, shape: &[usize]) -> Result<(), AdapterError> {
    if tensor.shape != shape {
        return Err(AdapterError::Shape { key: key.into(), found: tensor.shape.clone(), expected: shape.to_vec() });
    }
    if !tensor.is_finite() {
        return Err(AdapterError::NotFinite { key: key.into() });
    }
    Ok(())
}

fn upload(tensor: &HostTensor, device: &Device) -> Tensor<2> {
    let shape = match tensor.shape[..] {
        [rows, columns] => [rows, columns],
        _ => [1, tensor.values.len()],
    };
    Tensor::from_data(TensorData::new(tensor.values.clone(), shape), device)
}

/// A tensor's values on the host, row major.
pub(crate) fn download<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().expect("a float tensor reads as f32")
}
