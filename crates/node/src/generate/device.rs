//! The device: its own blocks, its way to the host, and any number of sequences at once.

use super::adapters::{NamedAdapter, lay};
use super::drafter::{DraftModel, Drafting};
use super::line::{About, Line};
use super::pages_of;
use super::path::failed;
use super::prefix::PrefixNames;
use super::sequence::{self, GenerateRequest, Generation};
use super::sequences::WorkerConfig;
use super::worker::{Watch, Work, Worker};
use crate::compute_config::ComputeConfig;
use crate::error::NodeError;
use crate::event::EventSink;
use cutlayer_data::Tokenizer;
use cutlayer_model::spec::{HeadSpec, ModelSpec};
use cutlayer_model::{Frozen, LaidAdapter, ModelFolder, Parts, page_bytes, read_spec};
use cutlayer_transport::{Identity, LinkConfig, LinkStats};
use cutlayer_wire::{BaseHash, CutPoint, Encoding, FailureCode, PeerId, RecordLimits};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What a device needs to generate.
#[derive(Clone, Debug)]
pub struct GeneratorConfig {
    /// Folder of the base model, the same as the host's.
    pub model: PathBuf,
    /// Where and how this side computes.
    pub compute: ComputeConfig,
    /// The host; `None` runs the whole model here.
    pub remote: Option<Remote>,
    /// Adapters that requests can ask for.
    pub adapters: Vec<NamedAdapter>,
    /// Bytes for the keys and values of all sequences here.
    pub cache_bytes: u64,
    /// Sequences open at once.
    pub sessions_max: u32,
    /// What guesses tokens ahead.
    pub drafting: Drafting,
    /// What people call this device.
    pub name: String,
}

/// The host, and what it is left.
#[derive(Clone, Debug, PartialEq)]
pub struct Remote {
    /// Its address.
    pub server: SocketAddr,
    /// Its identity, which the connection is pinned to.
    pub server_id: PeerId,
    /// A single-use token, at the first connection of a key that the host does not know.
    pub token: Option<String>,
    /// Blocks to run here from the bottom. With 0 the host sees embeddings, which are tokens under another name.
    pub cut: CutPoint,
    /// Blocks to run here from the top, with the head and the drawing of tokens (U-shape); `None` leaves both to the host.
    pub tail: Option<u16>,
    /// How hidden states travel, both ways.
    pub encoding: Encoding,
    /// The network.
    pub link: LinkConfig,
    /// How long to look for a host that is out of reach.
    pub reconnect: Duration,
}

/// Blocks of this device, computing for all sequences.
pub(super) struct Here {
    pub worker: Worker,
    pub blocks: Range<usize>,
    adapters: BTreeMap<String, LaidAdapter>,
}

impl Here {
    /// The part of an adapter that belongs here.
    pub fn adapter(&self, name: Option<&str>) -> Result<Option<LaidAdapter>, NodeError> {
        let Some(name) = name.filter(|_| !self.blocks.is_empty()) else { return Ok(None) };
        let found = self.adapters.get(name).cloned();
        let missing =
            || failed(FailureCode::Adapter, format!("this device has no adapter {name}; give its folder with --adapter {name}=DIR"));
        found.map(Some).ok_or_else(missing)
    }
}

/// What all sequences of a device share.
pub(super) struct Shared {
    /// The first blocks, or all of them.
    pub front: Here,
    /// The last ones, in a U-shape.
    pub tail: Option<Here>,
    pub line: Option<Line>,
    pub encoding: Encoding,
    pub limits: RecordLimits,
    pub drafting: Drafting,
    pub draft_model: Option<DraftModel>,
    pub tokenizer: Option<Tokenizer>,
    /// Tokens that end a text.
    pub ends: Vec<u32>,
    pub spec: ModelSpec,
    base: BaseHash,
    adapter_names: Vec<String>,
    /// Of the names of prefixes.
    key: [u8; 32],
    about: String,
}

impl Shared {
    pub fn names(&self, adapter: Option<&str>) -> PrefixNames {
        PrefixNames::new(&self.key, &format!("{} {adapter:?}", self.about))
    }
}

/// Generates, alone or with a host. Clones share everything.
#[derive(Clone)]
pub struct Generator(Arc<Shared>);

impl Generator {
    /// Loads this side's layers. The host is looked for by the first request.
    pub async fn open(config: GeneratorConfig, identity: Arc<Identity>, events: EventSink) -> Result<Self, NodeError> {
        let loaded = tokio::task::spawn_blocking(move || Shared::load(config, identity, events)).await;
        Ok(Self(Arc::new(loaded.map_err(|_| NodeError::Panicked { during: "loading the model".into() })??)))
    }

    /// Begins to generate; tokens come as they are drawn. Dropping the stream cancels.
    ///
    /// Needs a tokio runtime.
    pub fn generate(&self, request: GenerateRequest) -> Generation {
        sequence::begin(self.0.clone(), request, None)
    }

    /// The same, with someone who sees the logits of the prompt's last rows and of every token.
    pub(super) fn generate_watched(&self, request: GenerateRequest, watch: Watch) -> Generation {
        sequence::begin(self.0.clone(), request, Some(watch))
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0
    }

    /// Names the base model.
    pub fn base(&self) -> BaseHash {
        self.0.base
    }

    /// Whether a host runs a part of it.
    pub fn has_host(&self) -> bool {
        self.0.line.is_some()
    }

    /// Looks for the host now, rather than at the first request.
    pub async fn connect(&self) -> Result<(), NodeError> {
        if let Some(line) = &self.0.line {
            line.live().await?;
        }
        Ok(())
    }

    /// Adapters that requests can ask for.
    pub fn adapters(&self) -> &[String] {
        &self.0.adapter_names
    }

    /// The model's tokenizer, if its folder has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.0.tokenizer.as_ref()
    }

    /// The model.
    pub fn spec(&self) -> &ModelSpec {
        &self.0.spec
    }

    /// What this side has computed, its first and its last blocks and what guesses together; pages are those of the first blocks.
    pub fn work(&self) -> Work {
        let shared = &self.0;
        let others = [shared.tail.as_ref().map(|tail| &tail.worker), shared.draft_model.as_ref().map(|draft| &draft.worker)];
        let front = shared.front.worker.counts().work();
        others.into_iter().flatten().fold(front, |all, worker| {
            let work = worker.counts().work();
            Work {
                passes: all.passes + work.passes,
                rows: all.rows + work.rows,
                sequences: all.sequences + work.sequences,
                busy_us: all.busy_us + work.busy_us,
                evicted: all.evicted + work.evicted,
                found: all.found + work.found,
                pages: all.pages,
            }
        })
    }

    /// What the connection to the host has carried; `None` without one.
    pub async fn link_stats(&self) -> Option<LinkStats> {
        match &self.0.line {
            Some(line) => line.stats().await,
            None => None,
        }
    }
}

impl Shared {
    pub fn load(config: GeneratorConfig, identity: Arc<Identity>, events: EventSink) -> Result<Self, NodeError> {
        let folder = ModelFolder::open(&config.model)?;
        let spec = read_spec(&folder)?;
        let all = spec.blocks;
        let generates = matches!(spec.head, HeadSpec::LanguageModel { .. });
        let (cut, tail) = config.remote.as_ref().map_or((all, None), |remote| (remote.cut.0.into(), remote.tail.map(usize::from)));
        if cut + tail.unwrap_or(0) > all {
            return Err(NodeError::Cut { cut: cut as u16, tail: tail.unwrap_or(0) as u16, blocks: all });
        }
        let encoding = config.remote.as_ref().map_or(Encoding::F32, |remote| remote.encoding);
        encoding.check_columns(spec.hidden as u32)?;
        encoding.check_generates()?;
        let (whole, tail) = (config.remote.is_none(), tail.filter(|_| generates));
        let exit = if let Drafting::Exit { blocks, .. } = config.drafting { Some(usize::from(blocks)) } else { None };
        if let Some(exit) = exit.filter(|&exit| exit == 0 || exit > cut) {
            return Err(NodeError::Task(format!(
                "a draft from {exit} blocks needs 1 to {cut}, the blocks of this device; set the exit so"
            )));
        }
        let mut parts = if whole { Parts::whole(all) } else { Parts::client(all, cut, tail) };
        parts.head = (parts.head || exit.is_some()) && generates;
        let device = config.compute.device.open()?;
        let frozen = config.compute.load(&folder, &parts, 0, &device)?;
        let (front, tail) = (0..cut, tail.map(|tail| all - tail..all));
        let block_bytes = page_bytes(&frozen, cut + tail.as_ref().map_or(0, Range::len) + exit.unwrap_or(0));
        let pages = pages_of(config.cache_bytes, block_bytes);
        let here = |name: &str, blocks: Range<usize>| -> Result<Here, NodeError> {
            let adapters = lay(&config.adapters, &frozen, blocks.clone())?;
            Ok(Here { worker: start(name, &frozen, blocks.clone(), pages, config.sessions_max)?, blocks, adapters })
        };
        let base = folder.base_hash()?;
        let line = config.remote.clone().map(|remote| {
            let about = About { base, blocks: all as u16, hidden: spec.hidden as u32, name: config.name.clone() };
            Line::new(remote, identity.clone(), about, events)
        });
        let draft_model = match &config.drafting {
            Drafting::Exit { blocks, .. } => {
                let blocks = 0..usize::from(*blocks);
                Some(DraftModel { worker: start("draft", &frozen, blocks.clone(), pages, config.sessions_max)?, blocks })
            }
            Drafting::Model { folder, .. } => Some(draft_model(folder, &config, &spec)?),
            Drafting::Off | Drafting::Ngram { .. } => None,
        };
        let tokenizer = Tokenizer::open(&config.model).ok();
        let ends = match &tokenizer {
            Some(tokenizer) => tokenizer.ends()?,
            None => vec![],
        };
        let limits = RecordLimits { hidden: spec.hidden as u32, encoding, positions_max: spec.positions_max as u32 };
        Ok(Self {
            front: here("front", front)?,
            tail: tail.map(|blocks| here("tail", blocks)).transpose()?,
            line,
            encoding,
            limits,
            drafting: config.drafting.clone(),
            draft_model,
            tokenizer,
            ends,
            adapter_names: config.adapters.iter().map(|adapter| adapter.name.clone()).collect(),
            key: identity.derive("cutlayer 2026-11 names of prefixes"),
            about: format!("{base} {encoding} {cut}"),
            base,
            spec,
        })
    }
}

fn start(name: &str, frozen: &Arc<Frozen>, blocks: Range<usize>, pages: u32, sessions_max: u32) -> Result<Worker, NodeError> {
    let config = WorkerConfig { frozen: frozen.clone(), blocks, pages, sequences_max: sessions_max as usize };
    Worker::start(name, config).map_err(NodeError::Thread)
}

/// A small model that guesses for the large one: they must share their tokens.
fn draft_model(folder: &std::path::Path, config: &GeneratorConfig, spec: &ModelSpec) -> Result<DraftModel, NodeError> {
    let folder = ModelFolder::open(folder)?;
    let own = read_spec(&folder)?;
    if own.vocab != spec.vocab {
        let (theirs, ours) = (own.vocab, spec.vocab);
        return Err(NodeError::Task(format!("the draft model has {theirs} tokens, the model {ours}; a draft must share the tokenizer")));
    }
    let device = config.compute.device.open()?;
    let frozen = config.compute.load(&folder, &Parts::whole(own.blocks), 0, &device)?;
    let blocks = 0..own.blocks;
    let pages = pages_of(config.cache_bytes, page_bytes(&frozen, own.blocks));
    Ok(DraftModel { worker: start("draft", &frozen, blocks.clone(), pages, config.sessions_max)?, blocks })
}
