//! Who answers: what `generate`, `chat` and `api` have in common beside the model.

use super::exit::{Exit, Failure};
use super::generator_args::GeneratorArgs;
use super::output::Output;
use clap::{Args, ValueEnum};
use cutlayer_generation::offload::Policy;
use cutlayer_node::{Drafting, EventSink, Generator, GeneratorConfig, MemoryConfig, Offloader};
use cutlayer_wire::CutPoint;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// On this device, whole: by the local model, or by the model itself without one
    Local,
    /// Cut: the first blocks here, the rest on the host
    Split,
    /// On the host: only the embedding is here, and the host sees tokens under another name
    Edge,
    /// By the local model where the policy finds it sure enough, else cut
    Auto,
}

/// Flags of offloading.
#[derive(Args, Clone, Debug)]
pub(crate) struct OffloadArgs {
    /// Where to answer; without it split with --server, local without
    #[arg(long, value_enum, value_name = "WHERE")]
    mode: Option<Mode>,
    /// Folder of a compact model that answers on this device, whole
    #[arg(long, value_name = "DIR")]
    local_model: Option<PathBuf>,
    /// What decides in mode auto, as `cutlayer offload fit` wrote it
    #[arg(long, value_name = "FILE", requires = "local_model")]
    policy: Option<PathBuf>,
    /// Answer a question that was asked before from memory, and one that is much alike: folder of the encoder that compares them
    #[arg(long, value_name = "DIR")]
    remember: Option<PathBuf>,
    /// How much alike is enough to be the same question, as a cosine
    #[arg(long, value_name = "COSINE", default_value_t = 0.95, requires = "remember")]
    remember_alike: f32,
    /// Most answers to remember
    #[arg(long, value_name = "N", default_value_t = 1000, requires = "remember")]
    remember_max: usize,
}

/// What `cutlayer offload fit` leaves for mode auto.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PolicyFile {
    /// The compact model that it was fitted on.
    pub local: String,
    /// How answers were scored.
    pub score: String,
    /// What decides.
    pub policy: Policy,
}

impl OffloadArgs {
    /// Opens whoever answers.
    pub async fn open(&self, generator: &GeneratorArgs, output: &Output, events: EventSink) -> anyhow::Result<Offloader> {
        let offloader = match self.mode(generator)? {
            Mode::Local if self.local_model.is_none() => Offloader::one(generator.open_with(output, events.clone(), whole).await?),
            Mode::Local => Offloader::one(self.local(generator, output, events.clone()).await?),
            Mode::Split => Offloader::one(generator.open(output, events.clone()).await?),
            Mode::Edge => Offloader::one(generator.open_with(output, events.clone(), at_the_edge).await?),
            Mode::Auto => {
                let local = self.local(generator, output, events.clone()).await?;
                let policy = self.policy(&local)?;
                Offloader::auto(local, generator.open(output, events.clone()).await?, policy)?
            }
        };
        let Some(folder) = &self.remember else { return Ok(offloader) };
        let embedder = generator.open_encoder(folder, output, events).await?;
        Ok(offloader.remembering(embedder, MemoryConfig { alike_min: self.remember_alike, entries_max: self.remember_max })?)
    }

    fn mode(&self, generator: &GeneratorArgs) -> anyhow::Result<Mode> {
        let usage = |words: &str| Err(Failure::because(Exit::Usage, words));
        match (self.mode, generator.has_host()) {
            (None, true) => Ok(Mode::Split),
            (None, false) => Ok(Mode::Local),
            (Some(Mode::Split | Mode::Edge), false) => usage("modes split and edge need a host: give --server and --server-id"),
            (Some(Mode::Auto), _) if self.local_model.is_none() || self.policy.is_none() => {
                usage("mode auto needs --local-model DIR and --policy FILE; `cutlayer offload fit` makes the policy")
            }
            (Some(mode), _) => Ok(mode),
        }
    }

    async fn local(&self, generator: &GeneratorArgs, output: &Output, events: EventSink) -> anyhow::Result<Generator> {
        let folder = self.local_model.as_ref().expect("asked for");
        open_local(folder, generator, output, events).await
    }

    fn policy(&self, local: &Generator) -> anyhow::Result<Policy> {
        let path = self.policy.as_ref().expect("mode auto needs it");
        let refused = |error: &dyn std::fmt::Display| {
            Failure::because(Exit::ModelOrData, format!("{}: no policy of `cutlayer offload fit`: {error}", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|error| refused(&error))?;
        let file: PolicyFile = serde_json::from_str(&text).map_err(|error| refused(&error))?;
        if file.local != local.base().to_string() {
            let words = format!("{}: fitted on another local model; fit one on this with `cutlayer offload fit`", path.display());
            return Err(Failure::because(Exit::ModelOrData, words));
        }
        Ok(file.policy)
    }
}

/// A compact model, on this device whole.
pub(crate) async fn open_local(folder: &Path, generator: &GeneratorArgs, output: &Output, events: EventSink) -> anyhow::Result<Generator> {
    generator.open_with(output, events, |config| alone(config, folder)).await
}

/// Another model than the one the flags are about, here whole: its adapters and drafts are not that one's.
fn alone(config: &mut GeneratorConfig, folder: &Path) {
    whole(config);
    config.model = folder.into();
    config.adapters = vec![];
    config.drafting = Drafting::Off;
}

fn whole(config: &mut GeneratorConfig) {
    config.remote = None;
}

fn at_the_edge(config: &mut GeneratorConfig) {
    if let Some(remote) = &mut config.remote {
        (remote.cut, remote.tail) = (CutPoint(0), None);
    }
}
