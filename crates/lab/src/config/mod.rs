//! The run file: one TOML document that says everything about a run, read once, checked whole, saved beside the results.
//!
//! Reading never touches the model or the data: what those hold is found out by who uses them.

mod chaos;
mod cuts;
mod defaults;
mod error;
mod overrides;
mod paths;
mod plan;
mod sections;

pub use chaos::{Chaos, ChaosError, MishapKind, MishapRate, Victims};
pub use cuts::Cuts;
pub use error::ConfigError;
pub use paths::{DATA_VARIABLE, data_folder};
pub use sections::{
    AdapterSection, ClientSection, ClientsSection, EncodingWord, LinkSection, Mode, ModelSection, OptimizerName, OptimizerSection,
    PipelineMode, ServerSection, SplitSection, TaskName, TrainSection,
};

use cutlayer_data::DataSpec;
use cutlayer_transport::{Changes, Conditions, Profile};
use cutlayer_wire::{ADAPTER_COLUMNS, Carried, Encoding, EncodingError};
use serde::{Deserialize, Serialize};
use std::path::Path;
use toml::Table;

/// Largest run file read, in bytes.
pub const RUN_FILE_BYTES_MAX: u64 = 4 << 20;

/// Most clients of one run; each is a process.
pub const CLIENTS_MAX: u32 = 4096;

/// A run file, read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the run and of its folder; absent, the file's.
    #[serde(default)]
    pub name: String,
    /// Where all randomness comes from.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// What `run` lets go wrong, such as `kill=1/2m,partition=5s`; absent, nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chaos: Option<Chaos>,
    /// The frozen base.
    #[serde(default = "defaults::model")]
    pub model: ModelSection,
    /// What is trained.
    #[serde(default = "defaults::adapter")]
    pub adapter: AdapterSection,
    /// Where the model is cut.
    #[serde(default = "defaults::split")]
    pub split: SplitSection,
    /// How much, and of what.
    #[serde(default = "defaults::train")]
    pub train: TrainSection,
    /// The update rule.
    #[serde(default = "defaults::optimizer")]
    pub optimizer: OptimizerSection,
    /// The records.
    pub data: Option<DataSpec>,
    /// What clients have in common.
    #[serde(default = "defaults::clients")]
    pub clients: ClientsSection,
    /// The server.
    #[serde(default = "defaults::server")]
    pub server: ServerSection,
    /// The network.
    #[serde(default = "defaults::link")]
    pub link: LinkSection,
    /// What single clients have of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub client: Vec<ClientSection>,
}

impl RunConfig {
    /// Reads a run file, applies `overrides` (`a.b=c`), makes its paths absolute and checks it.
    pub fn load(file: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let text = read_bounded(file)?;
        // First by itself, because an error here can point at line and column.
        let _: Self = toml::from_str(&text).map_err(|error| ConfigError::parse(file, &error))?;
        let root: Table = toml::from_str(&text).map_err(|error| ConfigError::parse(file, &error))?;
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Self::finish(root, overrides, folder, &stem)
    }

    /// A run described by overrides alone, over the defaults. Relative paths start at the current folder.
    pub fn from_overrides(overrides: &[String]) -> Result<Self, ConfigError> {
        Self::finish(Table::new(), overrides, Path::new("."), "run")
    }

    fn finish(mut root: Table, overrides: &[String], folder: &Path, stem: &str) -> Result<Self, ConfigError> {
        for change in overrides {
            overrides::apply(&mut root, change)?;
        }
        let mut config: Self = root.try_into().map_err(|error| ConfigError::overridden(overrides, &error))?;
        if config.name.is_empty() {
            config.name = stem.into();
        }
        config.fill_adamw_keys();
        paths::make_absolute(&mut config, folder)?;
        config.check()?;
        Ok(config)
    }

    /// The whole file as it would be written, defaults included.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(|error| ConfigError::Write { reason: error.to_string() })
    }

    /// What client `index` has of its own; nothing where the file says nothing.
    pub fn client_section(&self, index: u32) -> ClientSection {
        self.client.get(index as usize).cloned().unwrap_or_default()
    }

    /// Name of client `index`.
    pub fn client_name(&self, index: u32) -> String {
        self.client_section(index).name.unwrap_or_else(|| format!("client-{index}"))
    }

    /// The link that `run` emulates in front of client `index`; nothing where the file asks for none, and no network is to be cut.
    pub fn client_link(&self, index: u32) -> Result<Option<Conditions>, ConfigError> {
        let link = match (self.client_section(index).profile, self.link.profile, &self.link.emulate) {
            (Some(own), _, _) => Changes::default().apply(own),
            (None, None, None) if !self.chaos.as_ref().is_some_and(Chaos::cuts_networks) => return Ok(None),
            (None, profile, changes) => changes.clone().unwrap_or_default().apply(profile.unwrap_or(Profile::Loopback)),
        };
        link.map(Some).map_err(ConfigError::Link)
    }

    /// Everything that can be told without the model and the data.
    fn check(&self) -> Result<(), ConfigError> {
        let count = self.clients.count;
        check_name(&self.name)?;
        require((1..=CLIENTS_MAX).contains(&count), "clients.count", count, "give 1 to 4096 clients")?;
        require(self.client.len() <= count as usize, "client", self.client.len(), "give at most clients.count [[client]] tables")?;
        if let Cuts::Each(cuts) = &self.split.cut {
            let remedy = "give one cut for each of clients.count clients, or a single number";
            require(cuts.len() == count as usize, "split.cut", format!("a list of {}", cuts.len()), remedy)?;
        }
        let uncut = self.split.mode == Mode::Central && self.chaos.is_some();
        require(!uncut, "chaos", "given", "an uncut run is one process, with no network and no state; drop it, or split.mode")?;
        let sampled = if self.clients.per_round == 0 { count } else { self.clients.per_round };
        require(sampled <= count, "clients.per_round", sampled, "give at most clients.count, or 0 for all")?;
        require(
            self.server.updates_min <= sampled,
            "server.updates_min",
            self.server.updates_min,
            "give at most the clients of a round, or 0 for all",
        )?;
        require(self.server.round_deadline_s > 0, "server.round_deadline_s", 0, "give the longest wait for a round in seconds")?;
        require(self.server.join_deadline_s > 0, "server.join_deadline_s", 0, "give the longest wait for clients in seconds")?;
        require(self.link.idle_timeout_s > 0, "link.idle_timeout_s", 0, "give the longest silence of a living peer in seconds")?;
        require(self.link.step_timeout_s > 0, "link.step_timeout_s", 0, "give a time longer than the slowest step")?;
        self.link.adapters.check_columns(ADAPTER_COLUMNS).map_err(|error| ConfigError::Invalid {
            key: "link.adapters",
            found: self.link.adapters.to_string(),
            remedy: error.to_string(),
        })?;
        for (key, encoding, what) in [
            ("link.activations", self.link.activations, Carried::Activations),
            ("link.gradients", self.link.gradients, Carried::Gradients),
            ("link.adapters", self.link.adapters, Carried::Adapters),
        ] {
            let refused = |error: EncodingError| ConfigError::Invalid { key, found: encoding.to_string(), remedy: error.to_string() };
            encoding.check_carries(what).map_err(refused)?;
        }
        let named =
            [self.link.activations, self.link.gradients, self.link.adapters].into_iter().find(|encoding| *encoding != Encoding::F32);
        if let (Some(EncodingWord::Auto), Some(named)) = (self.link.encoding, named) {
            return Err(ConfigError::Invalid {
                key: "link.encoding",
                found: format!("auto beside {named}"),
                remedy: "drop one of them".into(),
            });
        }
        let budget = self.link.quality_budget;
        require((0.0..=1.0).contains(&budget), "link.quality_budget", budget, "give a share of the loss, such as 0.005")?;
        cutlayer_federation::by_name(&self.server.aggregator).map(|_| ()).map_err(|error| ConfigError::Invalid {
            key: "server.aggregator",
            found: self.server.aggregator.clone(),
            remedy: error.to_string(),
        })?;
        self.check_clients()?;
        // Each is the common one or a profile as it is.
        self.client.iter().zip(0..).try_for_each(|(_, index)| self.client_link(index).map(drop))?;
        self.client_link(count - 1)?;
        // Every number of the plan; the labels of a classifier come from the data and are checked with it.
        self.plan_for(cutlayer_wire::Task::CausalLm)?.validate().map_err(ConfigError::Plan)
    }

    fn check_clients(&self) -> Result<(), ConfigError> {
        let own = self.client.iter().filter_map(|client| client.data.as_ref());
        let remedy = "these records are one client's own; drop the key";
        require(own.clone().all(|data| data.partition.is_none()), "client.data.partition", "given", remedy)?;
        let mut names = std::collections::BTreeSet::new();
        let twice = (0..self.clients.count).map(|index| self.client_name(index)).find(|name| !names.insert(name.clone()));
        require(
            twice.is_none(),
            "client.name",
            format_args!("`{}` twice", twice.clone().unwrap_or_default()),
            "give every client a name of its own",
        )
    }
}

fn read_bounded(file: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Read { file: file.into(), source };
    let bytes = std::fs::metadata(file).map_err(unreadable)?.len();
    if bytes > RUN_FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { file: file.into(), bytes, bytes_max: RUN_FILE_BYTES_MAX });
    }
    std::fs::read_to_string(file).map_err(unreadable)
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    let plain = |letter: char| letter.is_alphanumeric() || "-_.".contains(letter);
    let usable = !name.starts_with('.') && name.len() <= 100 && name.chars().all(plain);
    require(usable && !name.is_empty(), "name", name, "it names a folder: use up to 100 letters, digits, `-`, `_` and `.`")
}

fn require(holds: bool, key: &'static str, found: impl std::fmt::Display, remedy: &str) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Invalid { key, found: found.to_string(), remedy: remedy.into() }) }
}

#[cfg(test)]
mod tests;
