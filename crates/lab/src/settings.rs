//! From one run file to what each node of the run is told.

use crate::config::{ConfigError, EncodingWord, RunConfig, ServerSection, TaskName};
use cutlayer_node::{Auto, CentralConfig, ClientData, ComputeConfig, JoinConfig, ServeConfig};
use cutlayer_transport::{Lane, LinkConfig};
use cutlayer_wire::{CutPoint, LinkFacts, PeerId, Plan, Task};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

impl RunConfig {
    /// The plan the server dictates, validated. A classifier's labels must be known by now ([`crate::resolve_labels`]).
    pub fn plan(&self) -> Result<Plan, ConfigError> {
        let plan = self.plan_for(self.task()?)?;
        plan.validate().map_err(ConfigError::Plan)?;
        Ok(plan)
    }

    /// What is learned.
    pub fn task(&self) -> Result<Task, ConfigError> {
        match self.train.task {
            TaskName::CausalLm => Ok(Task::CausalLm),
            TaskName::Classify if self.train.labels.is_empty() => {
                let remedy = "list the classes in order, or give [data] so that they are found there";
                Err(ConfigError::Missing { key: "train.labels", remedy })
            }
            TaskName::Classify => Ok(Task::Classify { labels: self.train.labels.clone() }),
        }
    }

    /// The model's folder.
    pub fn model_path(&self) -> Result<PathBuf, ConfigError> {
        let remedy = "give the model's folder: `path = \"..\"` under [model], or --model DIR";
        self.model.path.clone().ok_or(ConfigError::Missing { key: "model.path", remedy })
    }

    /// Updates that make a round.
    fn updates_min(&self) -> u32 {
        let sampled = if self.clients.per_round == 0 { self.clients.count } else { self.clients.per_round };
        if self.server.updates_min == 0 { sampled.div_ceil(2) } else { self.server.updates_min }
    }

    /// Blocks that client `index` runs from the bottom.
    fn cut_of(&self, index: u32) -> u16 {
        let own = self.client_section(index).cut;
        own.or_else(|| self.split.cut.of(index as usize)).expect("the list of cuts was checked to cover every client")
    }

    /// Blocks that client `index` runs from the top, if it has the head.
    fn tail_of(&self, index: u32) -> Option<u16> {
        self.client_section(index).tail.or(self.split.tail)
    }

    /// The lowest block that some client leaves to the server: the server holds no block below it.
    fn first_block(&self) -> u16 {
        (0..self.clients.count).map(|index| self.cut_of(index)).min().unwrap_or(0)
    }

    /// Whether some client leaves the head to the server.
    fn has_server_head(&self) -> bool {
        (0..self.clients.count).any(|index| self.tail_of(index).is_none())
    }

    /// What the link is sized for.
    pub fn link_config(&self) -> LinkConfig {
        LinkConfig {
            bandwidth_mbit: self.link.bandwidth_mbit,
            rtt_ms: self.link.rtt_ms,
            idle_timeout: Duration::from_secs(self.link.idle_timeout_s),
            step_wait: Duration::from_secs(self.link.step_timeout_s),
            ..LinkConfig::default()
        }
    }

    /// What the server is told; it writes its adapters under `out`.
    pub fn serve_config(&self, out: PathBuf) -> Result<ServeConfig, ConfigError> {
        Ok(ServeConfig {
            listen: self.server.listen,
            model: self.model_path()?,
            compute: self.server_compute(),
            plan: self.plan()?,
            aggregator: self.server.aggregator.clone(),
            starting_adapter: self.model.adapter.clone(),
            clients_expected: self.clients.count,
            clients_per_round: self.clients.per_round,
            updates_min: self.updates_min(),
            join_deadline: Duration::from_secs(self.server.join_deadline_s),
            round_deadline: Duration::from_secs(self.server.round_deadline_s),
            reconnect: Duration::from_secs(self.server.reconnect_s),
            state: None,
            auto: self.auto()?,
            activations: self.link.activations,
            gradients: self.link.gradients,
            adapters: self.link.adapters,
            first_block: self.first_block(),
            head: self.has_server_head(),
            link: self.link_config(),
            out,
            phases: false,
            batch_bytes_max: if self.server.batching { self.server.batch_memory_mib << 20 } else { 0 },
        })
    }

    /// What the server is told where it finds the encodings itself: each client's link, as it is emulated or said to be.
    fn auto(&self) -> Result<Option<Auto>, ConfigError> {
        let said = LinkFacts {
            up_mbit: self.link.bandwidth_mbit.into(),
            down_mbit: self.link.bandwidth_mbit.into(),
            rtt_ms: self.link.rtt_ms.into(),
        };
        let facts = |index: u32| {
            let Some(link) = self.client_link(index)? else { return Ok(said) };
            let mbit = |lane: &Lane| lane.rate.map_or(f64::INFINITY, |rate| rate.bps() as f64 * 1e-6);
            let rtt = link.up.delay.duration() + link.down.delay.duration();
            Ok(LinkFacts { up_mbit: mbit(&link.up), down_mbit: mbit(&link.down), rtt_ms: rtt.as_secs_f64() * 1e3 })
        };
        self.link
            .encoding
            .map(|EncodingWord::Auto| {
                let links = (0..self.clients.count).map(facts).collect::<Result<Vec<LinkFacts>, ConfigError>>()?;
                Ok(Auto { quality_budget: self.link.quality_budget, links })
            })
            .transpose()
    }

    fn server_compute(&self) -> ComputeConfig {
        let ServerSection { device, precision, checkpointing, .. } = self.server;
        ComputeConfig { device, precision, checkpointing }
    }

    /// What client `index` is told.
    pub fn join_config(&self, index: u32, server: SocketAddr, server_id: PeerId, token: Option<String>) -> Result<JoinConfig, ConfigError> {
        if index >= self.clients.count {
            return Err(ConfigError::NoSuchClient { client: index, clients: self.clients.count });
        }
        let own = self.client_section(index);
        Ok(JoinConfig {
            server,
            server_id,
            token,
            model: self.model_path()?,
            compute: ComputeConfig {
                device: own.device.unwrap_or(self.clients.device),
                precision: own.precision.unwrap_or(self.clients.precision),
                checkpointing: own.checkpointing.unwrap_or(self.clients.checkpointing),
            },
            cut: CutPoint(self.cut_of(index)),
            tail: self.tail_of(index),
            name: self.client_name(index),
            link: self.link_config(),
            reconnect: Duration::from_secs(self.link.reconnect_s),
            state: None,
            out: None,
            phases: false,
        })
    }

    /// What the uncut run is told; it writes its adapters under `out`.
    pub fn central_config(&self, clients: Vec<ClientData>, out: PathBuf) -> Result<CentralConfig, ConfigError> {
        Ok(CentralConfig {
            model: self.model_path()?,
            compute: self.server_compute(),
            plan: self.plan()?,
            starting_adapter: self.model.adapter.clone(),
            clients,
            out,
            phases: false,
        })
    }
}
