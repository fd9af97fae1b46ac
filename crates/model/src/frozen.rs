//! The frozen base: the layers that a side runs, read from a model folder, shared by every adapter on it.
//!
//! Only the tensors of the asked parts are read and held; the headers of the rest are checked, so that a folder that does
//! not fit its own config is refused whole.

use crate::arch::{self, ConfigError};
use crate::block::{Block, Linear, Mlp, Norm};
use crate::folder::{FolderError, ModelFolder};
use crate::head::Head;
use crate::ops::Kernels;
use crate::precision::{Precision, Types};
use crate::rows::{Rows, indices};
use crate::spec::{HeadSpec, LinearSpec, MlpSpec, ModelSpec, NormKind, NormSpec, QkvSpec, WeightLayout};
use burn::tensor::{DType, Device, Tensor, TensorData};
use std::collections::BTreeMap;

/// A model that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The device lacks the precision.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// The folder or a tensor in it.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The config.
    #[error("{folder}: {source}")]
    Config {
        /// The folder.
        folder: String,
        /// What is wrong.
        source: ConfigError,
    },
    /// The config promises a tensor that is not there.
    #[error("{folder}: tensor `{name}` is missing; the download is incomplete, or config.json belongs to another model")]
    MissingTensor {
        /// The folder.
        folder: String,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the config implies.
    #[error("{folder}: tensor `{name}` is {found:?}, but config.json implies {expected:?}")]
    TensorShape {
        /// The folder.
        folder: String,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape implied.
        expected: Vec<usize>,
    },
    /// A tensor that the architecture does not have.
    #[error(
        "{folder}: tensor `{name}` has no place in a {family} model; config.json belongs to another model, or the architecture differs"
    )]
    ExtraTensor {
        /// The folder.
        folder: String,
        /// The tensor.
        name: String,
        /// The family.
        family: &'static str,
    },
    /// Tokenizer and vocabulary disagree.
    #[error(
        "{folder}: tokenizer.json has ids up to {tokenizer}, but the model's vocabulary ends at {vocab}; they belong to different models"
    )]
    Vocabulary {
        /// The folder.
        folder: String,
        /// Largest id and one.
        tokenizer: usize,
        /// Vocabulary size.
        vocab: usize,
    },
}

/// Which layers of a model a side runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// The token embedding.
    pub embedding: bool,
    /// The blocks, by index.
    pub blocks: Vec<usize>,
    /// Final norm and head.
    pub head: bool,
}

impl Parts {
    /// The whole model of `blocks` blocks.
    pub fn whole(blocks: usize) -> Self {
        Self { embedding: true, blocks: (0..blocks).collect(), head: true }
    }

    /// A client's: embedding and `0..cut`, and in a U-shape the last `tail` blocks and the head.
    pub fn client(blocks: usize, cut: usize, tail: Option<usize>) -> Self {
        let tail_blocks = tail.map_or(blocks..blocks, |tail| blocks - tail..blocks);
        Self { embedding: true, blocks: (0..cut).chain(tail_blocks).collect(), head: tail.is_some() }
    }
}

/// The frozen layers of one side, on its device.
#[derive(Debug)]
pub struct Frozen {
    spec: ModelSpec,
    device: Device,
    labels: usize,
    kernels: Kernels,
    types: Types,
    embedding: Option<Embedding>,
    blocks: BTreeMap<usize, Block>,
    head: Option<Head>,
}

#[derive(Clone, Debug)]
struct Embedding {
    tokens: Tensor<2>,
    positions: Option<Tensor<2>>,
    token_type: Option<Tensor<1>>,
    norm: Option<Norm>,
}

/// Reads and checks what a folder's config describes.
pub fn read_spec(folder: &ModelFolder) -> Result<ModelSpec, LoadError> {
    let name = folder.path().display().to_string();
    let spec = arch::spec(folder.config_json()).map_err(|source| LoadError::Config { folder: name.clone(), source })?;
    match folder.vocab_of_tokenizer()? {
        Some(tokenizer) if tokenizer > spec.vocab => Err(LoadError::Vocabulary { folder: name, tokenizer, vocab: spec.vocab }),
        _ => Ok(spec),
    }
}

impl Frozen {
    /// Reads `parts` of the model in `folder` onto `device`, in f32; a classifier there has `labels` classes.
    pub fn load(folder: &ModelFolder, parts: &Parts, labels: usize, device: &Device) -> Result<Self, LoadError> {
        Self::load_as(Precision::F32, folder, parts, labels, device)
    }

    /// The same in `precision`.
    pub fn load_as(precision: Precision, folder: &ModelFolder, parts: &Parts, labels: usize, device: &Device) -> Result<Self, LoadError> {
        let types = precision.types(device)?;
        let spec = read_spec(folder)?;
        let (prefix, table) = check_names(folder, &spec)?;
        let source = FromFolder { folder, device };
        Self::assemble(spec, &source, prefix, table, parts, labels, device, Kernels::on(device), types)
    }

    /// The whole model on tensors at hand, by their full names: for training every weight of a small model.
    pub(crate) fn on(spec: &ModelSpec, tensors: &BTreeMap<String, Tensor<2>>, device: &Device) -> Result<Self, LoadError> {
        let table = format!("{}{}", spec.prefix, spec.embedding.tokens);
        Self::assemble(
            spec.clone(),
            tensors,
            spec.prefix,
            table,
            &Parts::whole(spec.blocks),
            0,
            device,
            Kernels::Composed,
            Types { matrices: DType::F32, activations: DType::F32 },
        )
    }

    #[allow(clippy::too_many_arguments, reason = "private, called twice")]
    fn assemble(
        spec: ModelSpec,
        source: &dyn Source,
        prefix: &'static str,
        table: String,
        parts: &Parts,
        labels: usize,
        device: &Device,
        kernels: Kernels,
        types: Types,
    ) -> Result<Self, LoadError> {
        let reader = Reader { source, spec: &spec, prefix, table, types };
        let embedding = parts.embedding.then(|| reader.embedding()).transpose()?;
        let blocks = parts.blocks.iter().map(|&index| Ok((index, reader.block(index)?))).collect::<Result<_, LoadError>>()?;
        let head = if parts.head { Some(reader.head(embedding.as_ref())?) } else { None };
        Ok(Self { device: device.clone(), labels, kernels, types, embedding, blocks, head, spec })
    }

    /// The same layers, computed by other kernels: to hold one against the other.
    pub fn with_kernels(self, kernels: Kernels) -> Self {
        Self { kernels, ..self }
    }

    /// What computes them.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// What activations are computed in.
    pub(crate) fn activations(&self) -> DType {
        self.types.activations
    }

    /// The model's description.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Classes of the classifier; 0 for a language model.
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// How many labels a batch carries, and the bound on each.
    pub(crate) fn label_bounds(&self, rows: &Rows) -> (usize, usize) {
        match self.spec.head {
            HeadSpec::LanguageModel { .. } => (rows.tokens(), self.spec.vocab),
            HeadSpec::Classifier { .. } => (rows.lengths().len(), self.labels),
        }
    }

    /// Hidden states `[n, d]` of the ids, each at its position.
    pub(crate) fn embed(&self, ids: &[u32], at: &[u32]) -> Tensor<2> {
        let embedding = self.embedding.as_ref().expect("a stage that takes tokens was loaded with the embedding");
        let mut hidden = embedding.tokens.clone().select(0, indices(ids, &self.device)).cast(self.types.activations);
        if let Some(positions) = &embedding.positions {
            hidden = hidden + positions.clone().select(0, indices(at, &self.device));
        }
        if let Some(token_type) = &embedding.token_type {
            hidden = hidden + token_type.clone().unsqueeze();
        }
        match &embedding.norm {
            Some(norm) => norm.forward(self.kernels, hidden),
            None => hidden,
        }
    }

    pub(crate) fn block(&self, index: usize) -> &Block {
        self.blocks.get(&index).expect("a stage runs only blocks that were loaded")
    }

    pub(crate) fn head(&self) -> &Head {
        self.head.as_ref().expect("a stage that ends at the loss was loaded with the head")
    }
}

/// Tensors that checkpoints carry and that hold nothing we run.
fn is_ignored(name: &str) -> bool {
    const SUFFIXES: [&str; 4] = ["rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "embeddings.position_ids"];
    const PREFIXES: [&str; 2] = ["cls.", "classifier."];
    SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Where tensors come from, by name: as `[rows, columns]`, or one row.
trait Source {
    fn read(&self, name: &str, shape: &[usize]) -> Result<Tensor<2>, LoadError>;
}

struct FromFolder<'a> {
    folder: &'a ModelFolder,
    device: &'a Device,
}

impl Source for FromFolder<'_> {
    fn read(&self, name: &str, shape: &[usize]) -> Result<Tensor<2>, LoadError> {
        let values = self.folder.read(name, shape)?.values;
        let columns = shape[shape.len() - 1];
        let rows = values.len() / columns.max(1);
        Ok(Tensor::from_data(TensorData::new(values, [rows, columns]), self.device))
    }
}

impl Source for BTreeMap<String, Tensor<2>> {
    fn read(&self, name: &str, _: &[usize]) -> Result<Tensor<2>, LoadError> {
        Ok(self.get(name).expect("made from `expected`").clone())
    }
}

/// The folder holds every tensor of the model in its shape, and no other. Returns the prefix its names have, and the
/// name of the embedding table.
fn check_names(folder: &ModelFolder, spec: &ModelSpec) -> Result<(&'static str, String), LoadError> {
    let first = format!("{}0.{}.weight", spec.block_path, spec.block.output.path);
    let prefix = if folder.contains(&first) { "" } else { spec.prefix };
    let mut table = format!("{prefix}{}", spec.embedding.tokens);
    let mut tied_copy = "";
    if let HeadSpec::LanguageModel { weight, tied: true, .. } = spec.head {
        tied_copy = weight;
        if !folder.contains(&table) && folder.contains(weight) {
            table = weight.into();
        }
    }
    let path = || folder.path().display().to_string();
    let expected = expected(spec, prefix, &table);
    for (name, shape) in &expected {
        match folder.shape(name) {
            None => return Err(LoadError::MissingTensor { folder: path(), name: name.clone() }),
            Some(found) if found != shape.as_slice() => {
                return Err(LoadError::TensorShape { folder: path(), name: name.clone(), found: found.to_vec(), expected: shape.clone() });
            }
            Some(_) => {}
        }
    }
    let known = |name: &str| expected.contains_key(name) || is_ignored(name) || name == tied_copy;
    match folder.names().find(|name| !known(name)) {
        Some(name) => Err(LoadError::ExtraTensor { folder: path(), name: name.to_string(), family: spec.family }),
        None => Ok((prefix, table)),
    }
}

/// Name and shape of every tensor of the whole model, in a checkpoint whose names begin with `prefix`.
pub(crate) fn expected(spec: &ModelSpec, prefix: &str, table: &str) -> BTreeMap<String, Vec<usize>> {
    let d = spec.hidden;
    let mut all = BTreeMap::from([(table.to_string(), vec![spec.vocab, d])]);
    let norm = |all: &mut BTreeMap<String, Vec<usize>>, path: String, kind: NormKind, size: usize| {
        all.insert(format!("{path}.weight"), vec![size]);
        if kind == NormKind::Layer {
            all.insert(format!("{path}.bias"), vec![size]);
        }
    };
    if let Some(name) = spec.embedding.positions {
        all.insert(format!("{prefix}{name}"), vec![spec.positions_max, d]);
    }
    if let Some((name, types)) = spec.embedding.token_types {
        all.insert(format!("{prefix}{name}"), vec![types, d]);
    }
    if let Some(spec) = &spec.embedding.norm {
        norm(&mut all, format!("{prefix}{}", spec.path), spec.kind, d);
    }
    for index in 0..spec.blocks {
        let block = format!("{prefix}{}{index}.", spec.block_path);
        norm(&mut all, format!("{block}{}", spec.block.attention_norm.path), spec.block.attention_norm.kind, d);
        norm(&mut all, format!("{block}{}", spec.block.mlp_norm.path), spec.block.mlp_norm.kind, d);
        if let Some((q, k, _)) = spec.block.head_norms {
            norm(&mut all, format!("{block}{q}"), NormKind::Rms, spec.block.head_dim);
            norm(&mut all, format!("{block}{k}"), NormKind::Rms, spec.block.head_dim);
        }
        for linear in spec.block.linears() {
            all.insert(format!("{block}{}.weight", linear.path), stored_shape(linear));
            if linear.bias {
                all.insert(format!("{block}{}.bias", linear.path), vec![linear.outputs]);
            }
        }
    }
    match &spec.head {
        HeadSpec::LanguageModel { norm: last, weight, tied } => {
            norm(&mut all, format!("{prefix}{}", last.path), last.kind, d);
            if !tied {
                all.insert((*weight).into(), vec![spec.vocab, d]);
            }
        }
        HeadSpec::Classifier { pooler, .. } => {
            all.insert(format!("{prefix}{pooler}.weight"), vec![d, d]);
            all.insert(format!("{prefix}{pooler}.bias"), vec![d]);
        }
    }
    all
}

/// Builds layers from a source by the names of a [`ModelSpec`].
struct Reader<'a> {
    source: &'a dyn Source,
    spec: &'a ModelSpec,
    /// `spec.prefix`, or nothing in a checkpoint of the bare backbone.
    prefix: &'static str,
    /// Full name of the embedding table: that of the head in a checkpoint that stores the tied matrix so.
    table: String,
    types: Types,
}

impl Reader<'_> {
    /// A weight matrix or a table.
    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Tensor<2>, LoadError> {
        self.read_as(name, shape, self.types.matrices)
    }

    /// A vector, or a table that is added to activations.
    fn read<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor<D>, LoadError> {
        self.read_as(name, shape, self.types.activations)
    }

    fn block_prefix(&self, index: usize) -> String {
        format!("{}{}{index}.", self.prefix, self.spec.block_path)
    }

    fn read_as<const D: usize>(&self, name: &str, shape: [usize; D], kind: DType) -> Result<Tensor<D>, LoadError> {
        let tensor = self.source.read(name, &shape)?.reshape(shape);
        Ok(if kind == DType::F32 { tensor } else { tensor.cast(kind) })
    }

    fn embedding(&self) -> Result<Embedding, LoadError> {
        let (spec, d) = (&self.spec.embedding, self.spec.hidden);
        let prefix = self.prefix;
        let positions = spec.positions.map(|name| self.read(&format!("{prefix}{name}"), [self.spec.positions_max, d])).transpose()?;
        let token_type = spec
            .token_types
            .map(|(name, types)| Ok::<_, LoadError>(self.read::<2>(&format!("{prefix}{name}"), [types, d])?.narrow(0, 0, 1).reshape([d])))
            .transpose()?;
        let norm = spec.norm.as_ref().map(|norm| self.norm(prefix, norm, d)).transpose()?;
        Ok(Embedding { tokens: self.matrix(&self.table, [self.spec.vocab, d])?, positions, token_type, norm })
    }

    fn block(&self, index: usize) -> Result<Block, LoadError> {
        let (spec, d) = (&self.spec.block, self.spec.hidden);
        let prefix = self.block_prefix(index);
        let linear = |side_by_side: &[&LinearSpec]| self.linear(&prefix, index, side_by_side);
        let head_norm = |path: &'static str, epsilon| self.norm(&prefix, &NormSpec { path, kind: NormKind::Rms, epsilon }, spec.head_dim);
        Ok(Block {
            attention_norm: self.norm(&prefix, &spec.attention_norm, d)?,
            qkv: match &spec.qkv {
                QkvSpec::Separate([q, k, v]) => linear(&[q, k, v])?,
                QkvSpec::Fused(all) => linear(&[all])?,
            },
            head_norms: match spec.head_norms {
                Some((q, k, epsilon)) => Some((head_norm(q, epsilon)?, head_norm(k, epsilon)?)),
                None => None,
            },
            output: linear(&[&spec.output])?,
            mlp_norm: self.norm(&prefix, &spec.mlp_norm, d)?,
            mlp: match &spec.mlp {
                MlpSpec::Gated([gate, up, down]) => Mlp::Gated(linear(&[gate, up])?, linear(&[down])?),
                MlpSpec::Plain([up, down]) => Mlp::Plain(linear(&[up])?, linear(&[down])?),
            },
        })
    }

    fn head(&self, embedding: Option<&Embedding>) -> Result<Head, LoadError> {
        let (vocab, d) = (self.spec.vocab, self.spec.hidden);
        match &self.spec.head {
            HeadSpec::LanguageModel { norm, weight, tied } => {
                let table = match (tied, embedding) {
                    (true, Some(embedding)) => embedding.tokens.clone(),
                    (true, None) => self.matrix(&self.table, [vocab, d])?,
                    (false, _) => self.matrix(weight, [vocab, d])?,
                };
                Ok(Head::LanguageModel { norm: self.norm(self.prefix, norm, d)?, table })
            }
            HeadSpec::Classifier { pooler, classifier } => {
                let name = format!("{}{pooler}", self.prefix);
                let weight = self.matrix(&format!("{name}.weight"), [d, d])?;
                let bias = Some(self.read(&format!("{name}.bias"), [d])?);
                Ok(Head::Classifier {
                    pooler: Linear { parts: vec![(name, d)], weight: weight.transpose(), bias },
                    path: (*classifier).into(),
                })
            }
        }
    }

    fn norm(&self, prefix: &str, spec: &NormSpec, size: usize) -> Result<Norm, LoadError> {
        let name = format!("{prefix}{}", spec.path);
        let bias = match spec.kind {
            NormKind::Rms => None,
            NormKind::Layer => Some(self.read(&format!("{name}.bias"), [size])?),
        };
        Ok(Norm { epsilon: spec.epsilon, weight: self.read(&format!("{name}.weight"), [size])?, bias })
    }

    /// Projections of the same input as one matrix, packed once here.
    fn linear(&self, prefix: &str, index: usize, specs: &[&LinearSpec]) -> Result<Linear, LoadError> {
        let mut stored: Vec<Tensor<2>> = vec![];
        for spec in specs {
            let shape = stored_shape(spec);
            stored.push(self.matrix(&format!("{prefix}{}.weight", spec.path), [shape[0], shape[1]])?);
        }
        let weight = match specs[0].layout {
            WeightLayout::OutIn => side_by_side(stored, 0).transpose(),
            WeightLayout::InOut => side_by_side(stored, 1),
        };
        let bias = if specs.iter().any(|spec| spec.bias) {
            let mut parts: Vec<Tensor<1>> = vec![];
            for spec in specs {
                parts.push(match spec.bias {
                    true => self.read(&format!("{prefix}{}.bias", spec.path), [spec.outputs])?,
                    false => Tensor::<1>::zeros([spec.outputs], &weight.device().inner()).cast(self.types.activations),
                });
            }
            Some(side_by_side(parts, 0))
        } else {
            None
        };
        let parts = specs.iter().map(|spec| (self.spec.linear_path(index, spec), spec.outputs)).collect();
        Ok(Linear { parts, weight, bias })
    }
}

fn side_by_side<const D: usize>(mut parts: Vec<Tensor<D>>, dimension: usize) -> Tensor<D> {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, dimension) }
}

fn stored_shape(linear: &LinearSpec) -> Vec<usize> {
    match linear.layout {
        WeightLayout::OutIn => vec![linear.outputs, linear.inputs],
        WeightLayout::InOut => vec![linear.inputs, linear.outputs],
    }
}
