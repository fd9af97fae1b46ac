//! The sections of a run file, one struct each. Every key but the model's path is optional; the values used
//! for absent keys stand in `defaults.rs`, and a saved run writes all of them out.

use super::cuts::Cuts;
use super::defaults;
use cutlayer_data::DataSpec;
use cutlayer_model::{DeviceChoice, Precision};
use cutlayer_transport::{Changes, Profile};
use cutlayer_wire::{Encoding, Layout, Schedule, ServerAdapters, StepOrder, Weighting};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// `[model]`: the frozen base and where the adapter starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default = "defaults::model", deny_unknown_fields)]
pub struct ModelSection {
    /// Folder as Hugging Face lays it out.
    pub path: Option<PathBuf>,
    /// PEFT folder to start from; absent, PEFT's initialisation from the seed.
    pub adapter: Option<PathBuf>,
}

/// `[adapter]`: what is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default = "defaults::adapter", deny_unknown_fields)]
pub struct AdapterSection {
    /// Inner dimension of the factors.
    pub rank: u32,
    /// Numerator of the scale.
    pub alpha: f32,
    /// Divide by the root of the rank.
    pub rslora: bool,
    /// Probability of dropping an input of the adapter.
    pub dropout: f32,
    /// Projections by their Hugging Face names.
    pub targets: Vec<String>,
}

/// Whether the model is cut at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Clients and a server, each a process.
    Split,
    /// The uncut model in one process, over the same batches in the same order.
    Central,
}

/// `[split]`: where the model is cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default = "defaults::split", deny_unknown_fields)]
pub struct SplitSection {
    /// Cut or not.
    pub mode: Mode,
    /// Blocks on the client: one number for all, or a list with one for each.
    pub cut: Cuts,
    /// Blocks at the end that the client keeps, with the final norm, the head and the labels (U-shaped); absent, the
    /// server has them all (vanilla). 0 keeps norm and head alone.
    pub tail: Option<u16>,
    /// Whose adapters the server trains.
    pub server_adapters: ServerAdapters,
    /// In what order it serves.
    pub step_order: StepOrder,
}

/// What is learned, as a run file says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskName {
    /// The next token.
    CausalLm,
    /// One class for a text.
    Classify,
}

/// `[train]`: how much, and of what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default = "defaults::train", deny_unknown_fields)]
pub struct TrainSection {
    /// What is learned.
    pub task: TaskName,
    /// Classes, in order; absent, those found in the data, sorted.
    pub labels: Vec<String>,
    /// Rounds in the run.
    pub rounds: u32,
    /// Steps of a client in a round.
    pub local_steps: u32,
    /// Sequences in a batch.
    pub sequences: u32,
    /// Longest sequence, in tokens.
    pub tokens_max: u32,
    /// A fixed number of sequences (padded), or as many as fit in `sequences * tokens_max` tokens (packed).
    pub layout: Layout,
    /// Put sequences of similar length into one batch: less padding, less shuffling.
    pub group_by_length: bool,
    /// Rounds between evaluations; 0 evaluates only at both ends.
    pub evaluate_every: u32,
    /// Parts of a batch that are in flight together: the next is computed while the first is on the wire. They change nothing else.
    pub micro_batches: u16,
    /// Whether a step waits for the gradient of the one before.
    pub pipeline: PipelineMode,
}

/// What a client does while a gradient is on its way, as a run file says it: `exact`, or `stale=2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PipelineMode {
    /// It waits: every step starts from what the one before left.
    Exact,
    /// It goes on, this many steps ahead.
    Stale(u16),
}

impl PipelineMode {
    /// Steps that a client may run ahead.
    pub fn staleness(self) -> u16 {
        match self {
            Self::Exact => 0,
            Self::Stale(steps) => steps,
        }
    }
}

impl TryFrom<String> for PipelineMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "exact" {
            return Ok(Self::Exact);
        }
        let steps = text.strip_prefix("stale=").and_then(|steps| steps.parse().ok()).filter(|steps| *steps > 0);
        steps.map(Self::Stale).ok_or_else(|| format!("train.pipeline is {text:?}: write \"exact\", or \"stale=1\" or more"))
    }
}

impl From<PipelineMode> for String {
    fn from(mode: PipelineMode) -> Self {
        match mode {
            PipelineMode::Exact => "exact".into(),
            PipelineMode::Stale(steps) => format!("stale={steps}"),
        }
    }
}

/// The update rule, as a run file says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    #[serde(rename = "adamw")]
    AdamW,
    /// Plain gradient descent.
    Sgd,
}

/// `[optimizer]`: the same on both sides of the cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default = "defaults::optimizer", deny_unknown_fields)]
pub struct OptimizerSection {
    /// The rule.
    pub kind: OptimizerName,
    /// Peak rate.
    pub learning_rate: f32,
    /// Its course after warm-up.
    pub schedule: Schedule,
    /// Steps over which it rises.
    pub warmup_steps: u32,
    /// Largest norm of a side's gradient; absent, no clipping.
    pub clip_norm: Option<f32>,
    /// Forget moments when a round starts.
    pub reset_each_round: bool,
    /// AdamW alone: decay of the mean of gradients.
    pub beta1: Option<f32>,
    /// AdamW alone: decay of the mean of squares.
    pub beta2: Option<f32>,
    /// AdamW alone: added to the root.
    pub eps: Option<f32>,
    /// AdamW alone: decoupled decay.
    pub weight_decay: Option<f32>,
}

/// `[clients]`: how many, and what they have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default = "defaults::clients", deny_unknown_fields)]
pub struct ClientsSection {
    /// Clients in the run.
    pub count: u32,
    /// Clients sampled each round; 0 samples all.
    pub per_round: u32,
    /// Where they compute.
    pub device: DeviceChoice,
    /// What their frozen layers are held and multiplied in: f32, bf16 or, on a GPU, f16.
    pub precision: Precision,
    /// Whether they keep only each block's input and run the block again on the way back: less memory, a third more time.
    pub checkpointing: bool,
}

/// `[server]`: where it listens and how long it waits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default = "defaults::server", deny_unknown_fields)]
pub struct ServerSection {
    /// Address; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where it computes.
    pub device: DeviceChoice,
    /// What its frozen layers are held and multiplied in: f32, bf16 or, on a GPU, f16.
    pub precision: Precision,
    /// Whether it keeps only each block's input and runs the block again on the way back: less memory, a third more time.
    pub checkpointing: bool,
    /// Whether steps of different clients that wait at the same time are computed as one, where each has an adapter of its own on the server. It
    /// changes how fast they are, not what comes out.
    pub batching: bool,
    /// Memory for the tapes of the steps of one batch, in MiB; a step that needs more goes alone. About 34 kB a token and block at a
    /// hidden size of 576.
    pub batch_memory_mib: u64,
    /// How updates are folded.
    pub aggregator: String,
    /// What an update weighs.
    pub weighting: Weighting,
    /// Updates that make a round when the others are late or gone; 0 wants half of the sampled clients.
    pub updates_min: u32,
    /// How long it waits for all clients to join, in seconds.
    pub join_deadline_s: u64,
    /// How long it waits for a round's updates, in seconds.
    pub round_deadline_s: u64,
    /// How long a client whose connection is lost keeps its place in the round, in seconds.
    pub reconnect_s: u64,
}

/// What can stand in place of encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncodingWord {
    /// Found for each client.
    Auto,
}

/// `[link]`: what crosses the network and how wide that is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default = "defaults::link", deny_unknown_fields)]
pub struct LinkSection {
    /// `auto`: the server finds the encodings of each client, by its link and `quality_budget`, and says which.
    pub encoding: Option<EncodingWord>,
    /// With `auto`, the share by which the final loss may be higher than in f32, as `experiments/encodings` measured it.
    pub quality_budget: f64,
    /// Encoding of activations: f32, bf16, f16, int2 to int8, int4/64 for groups of 64 features, and after it any of +hadamard,
    /// +stochastic, +topk=0.05, +proj=64, +zstd, and, for activations alone, +delta or +moved=0.05, for gradients alone, +feedback.
    pub activations: Encoding,
    /// Encoding of gradients, in the same words.
    pub gradients: Encoding,
    /// Encoding of adapter updates: f32 sends an adapter whole, any other the difference from the global one that it started from.
    pub adapters: Encoding,
    /// Bandwidth that windows are sized for.
    pub bandwidth_mbit: u32,
    /// Round-trip time that windows are sized for.
    pub rtt_ms: u32,
    /// Silence after which a peer counts as lost, in seconds. Keep-alives fill a peer's pauses, so that a slow step is no silence.
    pub idle_timeout_s: u64,
    /// How long a peer may compute on one step, in seconds.
    pub step_timeout_s: u64,
    /// How long a client looks for a server that is out of reach, in seconds.
    pub reconnect_s: u64,
    /// The link that `run` emulates in front of each client that names none of its own; absent, none is.
    pub profile: Option<Profile>,
    /// Numbers in place of that profile's; without a profile, in place of `loopback`'s.
    pub emulate: Option<Changes>,
}

/// `[[client]]`: what one client has of its own. The n-th of these tables is about client n - 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientSection {
    /// What people call it; absent, `client-` and its index.
    pub name: Option<String>,
    /// Its cut.
    pub cut: Option<u16>,
    /// Its tail.
    pub tail: Option<u16>,
    /// Where it computes.
    pub device: Option<DeviceChoice>,
    /// What its frozen layers are held and multiplied in.
    pub precision: Option<Precision>,
    /// Whether it runs blocks again on the way back.
    pub checkpointing: Option<bool>,
    /// The link that `run` emulates in front of it, just as the profile is: `[link.emulate]` changes `link.profile` alone.
    pub profile: Option<Profile>,
    /// Records of its own, in place of a share of `[data]`.
    pub data: Option<DataSpec>,
}
