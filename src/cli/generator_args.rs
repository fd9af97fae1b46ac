//! What `generate`, `chat` and `api` have in common: a model, perhaps a host for its upper blocks, and how tokens are drawn.

use super::exit::{Exit, Failure};
use super::keys::KeyStore;
use super::network::resolve;
use super::output::Output;
use clap::Args;
use cutlayer_model::{DeviceChoice, ModelFolder, PeftFolder, Precision};
use cutlayer_node::{ComputeConfig, Drafting, Embedder, EventSink, Generator, GeneratorConfig, NamedAdapter, NodeError, Remote};
use cutlayer_transport::{Identity, LinkConfig};
use cutlayer_wire::{CutPoint, Encoding, PeerId, SamplingSpec};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The model and how it is computed, on either side.
#[derive(Args, Clone, Debug)]
pub(crate) struct ModelArgs {
    /// Model folder as Hugging Face lays it out
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// An adapter (PEFT folder) and the name that requests give it; for a split model, on both sides under one name (repeatable)
    #[arg(long = "adapter", value_name = "NAME=DIR")]
    adapters: Vec<String>,
    /// Where to compute: cpu, wgpu[:n], cuda[:n] or auto
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Cpu)]
    device: DeviceChoice,
    /// What the frozen layers are held and multiplied in: f32, bf16 or, on a GPU, f16
    #[arg(long, default_value_t = Precision::F32)]
    precision: Precision,
    /// Memory for the keys and values of all sequences, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    cache_mib: u32,
    /// Sequences open at once
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub sessions_max: u32,
}

impl ModelArgs {
    pub fn compute(&self) -> ComputeConfig {
        ComputeConfig { device: self.device, precision: self.precision, checkpointing: false }
    }

    pub fn cache_bytes(&self) -> u64 {
        u64::from(self.cache_mib) << 20
    }

    pub fn adapters(&self) -> anyhow::Result<Vec<NamedAdapter>> {
        let one = |text: &String| {
            let wrong = || Failure::because(Exit::Usage, format!("--adapter {text}: write NAME=DIR, such as tales=runs/tales/adapter"));
            let (name, folder) = text.split_once('=').filter(|(name, folder)| !name.is_empty() && !folder.is_empty()).ok_or_else(wrong)?;
            Ok(NamedAdapter { name: name.into(), folder: folder.into() })
        };
        self.adapters.iter().map(one).collect()
    }
}

/// Where generating happens.
#[derive(Args, Clone, Debug)]
pub(crate) struct GeneratorArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Host that runs the upper blocks, as `cutlayer host` printed it; without one, the whole model runs here
    #[arg(long, value_name = "HOST:PORT", requires = "server_id")]
    server: Option<String>,
    /// The host's key, as it printed it
    #[arg(long, value_name = "KEY", requires = "server")]
    server_id: Option<PeerId>,
    /// Single-use token, where the host does not know this machine's key yet
    #[arg(long, requires = "server")]
    token: Option<String>,
    /// Blocks to run here, from the bottom; 0 sends embeddings, which are the prompt's tokens under another name
    #[arg(long, value_name = "BLOCKS", default_value_t = 1)]
    cut: u16,
    /// Blocks to run here from the top, with the head: tokens are then drawn here (0 is the head alone)
    #[arg(long, value_name = "BLOCKS", requires = "server")]
    tail: Option<u16>,
    /// How hidden states travel: f32, bf16, int8, int4/64+hadamard ..
    #[arg(long, default_value = "f32", requires = "server")]
    encoding: Encoding,
    /// Guess tokens ahead to hide the round trip: off, ngram, exit:BLOCKS (the device's own first blocks) or a small model's folder
    #[arg(long, value_name = "HOW", default_value = "off")]
    draft: String,
    /// Most tokens to guess ahead
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    draft_max: u16,
    /// How long to look for a host that is out of reach, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    reconnect_s: u64,
    /// What the link is sized for: its round trip, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 20)]
    rtt_ms: u32,
    #[command(flatten)]
    keys: KeyStore,
}

impl GeneratorArgs {
    /// The generator that they describe.
    pub async fn open(&self, output: &Output, events: EventSink) -> anyhow::Result<Generator> {
        self.open_with(output, events, |_| ()).await
    }

    /// The same with something changed.
    pub async fn open_with(
        &self,
        output: &Output,
        events: EventSink,
        change: impl FnOnce(&mut GeneratorConfig),
    ) -> anyhow::Result<Generator> {
        let (mut config, identity) = self.config(output)?;
        change(&mut config);
        Ok(Generator::open(config, identity.into(), events).await?)
    }

    /// Whether a host was named.
    pub fn has_host(&self) -> bool {
        self.server.is_some()
    }

    /// What they describe, and this device's key.
    pub fn config(&self, output: &Output) -> anyhow::Result<(GeneratorConfig, Identity)> {
        let identity = self.keys.identity(output)?;
        let config = GeneratorConfig {
            model: self.model.model.clone(),
            compute: self.model.compute(),
            remote: self.remote()?,
            adapters: self.model.adapters()?,
            cache_bytes: self.model.cache_bytes(),
            sessions_max: self.model.sessions_max,
            drafting: drafting(&self.draft, self.draft_max)?,
            name: self.keys.name(),
        };
        Ok((config, identity))
    }

    /// An encoder that runs here whole, with the same device and precision.
    pub async fn open_encoder(&self, folder: &Path, output: &Output, events: EventSink) -> anyhow::Result<Embedder> {
        let identity = self.keys.identity(output)?;
        let config = GeneratorConfig {
            model: folder.into(),
            compute: self.model.compute(),
            remote: None,
            adapters: vec![],
            cache_bytes: self.model.cache_bytes(),
            sessions_max: self.model.sessions_max,
            drafting: Drafting::Off,
            name: self.keys.name(),
        };
        Ok(Embedder::open(config, identity.into(), events).await?)
    }

    /// Changes with whatever changes the tokens of a seed: the model, the adapter, where it is cut and how that is computed and sent.
    pub fn fingerprint(&self, adapter: Option<&NamedAdapter>) -> anyhow::Result<String> {
        let base = ModelFolder::open(&self.model.model)?.base_hash()?;
        let ModelArgs { device, precision, .. } = self.model;
        let place = match self.server {
            Some(_) => format!("{} {:?} {}", self.cut, self.tail, self.encoding),
            None => "whole".into(),
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{base} {device} {precision} {place}").as_bytes());
        if let Some(adapter) = adapter {
            let (_, state) = PeftFolder::read(&adapter.folder).map_err(NodeError::from)?;
            for (key, tensor) in &state {
                hasher.update(format!("{key:?} {:?}", tensor.shape).as_bytes());
                for value in &tensor.values {
                    hasher.update(&value.to_le_bytes());
                }
            }
        }
        Ok(format!("fp_{}", &hasher.finalize().to_hex()[..12]))
    }

    fn remote(&self) -> anyhow::Result<Option<Remote>> {
        let (Some(server), Some(server_id)) = (&self.server, self.server_id) else { return Ok(None) };
        Ok(Some(Remote {
            server: resolve("--server", server)?,
            server_id,
            token: self.token.clone(),
            cut: CutPoint(self.cut),
            tail: self.tail,
            encoding: self.encoding,
            link: LinkConfig { rtt_ms: self.rtt_ms, ..LinkConfig::default() },
            reconnect: Duration::from_secs(self.reconnect_s),
        }))
    }
}

/// What `--draft` says.
pub(crate) fn drafting(text: &str, depth_max: u16) -> anyhow::Result<Drafting> {
    Ok(match text {
        "off" => Drafting::Off,
        "ngram" => Drafting::Ngram { depth_max },
        other => match other.strip_prefix("exit:") {
            Some(blocks) => {
                let wrong = |_| Failure::because(Exit::Usage, format!("--draft {other}: write exit:BLOCKS, such as exit:2"));
                Drafting::Exit { blocks: blocks.parse().map_err(wrong)?, depth_max }
            }
            None => Drafting::Model { folder: other.into(), depth_max },
        },
    })
}

/// How tokens are drawn, and when to stop.
#[derive(Args, Clone, Debug)]
pub(crate) struct SamplingArgs {
    /// The adapter to generate with, by name
    #[arg(long = "with", value_name = "NAME")]
    pub adapter: Option<String>,
    /// Tokens at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub tokens_max: u32,
    /// Logits are divided by it; 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Only so many of the likeliest tokens; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: u32,
    /// Only the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Only tokens with this share of the likeliest one's probability
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Tokens that were there before are made less likely by it. A host counts only what it drew, for it does not know the prompt
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Text that ends the answer (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

impl SamplingArgs {
    pub fn spec(&self) -> SamplingSpec {
        SamplingSpec {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            ..SamplingSpec::GREEDY
        }
    }
}
