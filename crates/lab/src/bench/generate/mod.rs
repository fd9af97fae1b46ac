//! `bench generate`: what generating takes on this machine, by the host and the device that people run.
//!
//! Everything that is compared runs in turn, in one process over loopback QUIC; where memory is asked for, and in one row of `split`,
//! the host is a process of its own.

mod drafts;
mod memory;
mod place;
mod sessions;
mod speed;
mod split;
mod table;
mod take;

use super::ground::device_name;
use super::step::{BenchOptions, Subject};
use crate::error::LabError;
use crate::manifest::Machine;
use crate::memory::peak_bytes;
use cutlayer_model::{DeviceChoice, Precision};
use cutlayer_node::Drafting;
use place::Place;
use serde::Serialize;

pub use drafts::DraftRow;
pub use memory::{MemoryFound, MemoryRow};
pub use sessions::SessionsRow;
pub use speed::{PrefixRow, UncutFound};
pub use split::SplitRow;
pub use table::generate_table;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerateWhat {
    /// Prefill and decode of the uncut model, one sequence.
    Uncut,
    /// What the cut costs a token, in time and bytes.
    Split,
    /// Many sequences together against the same in turn.
    Sessions,
    /// Drafts over a far link, against none.
    Drafts,
    /// Memory of both sides while many tokens are generated.
    Memory,
    /// The first token of a prompt that was seen before, against one that was not.
    Prefix,
}

/// All of a measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateBench {
    /// What is measured.
    pub what: GenerateWhat,
    /// The model; a tokenizer is needed for drafts on prompts of text only.
    pub subject: Subject,
    /// Blocks on the device, from the bottom.
    pub cut: u16,
    /// Blocks on the device from the top, in the rows that are U-shaped.
    pub tail: u16,
    /// Tokens of a prompt.
    pub prompt: u32,
    /// Tokens generated after it.
    pub new: u32,
    /// Times that each thing is measured; medians are of these.
    pub repeats: u32,
    /// Sequences at once.
    pub sessions: u32,
    /// Tokens to generate in all, where memory is watched.
    pub tokens: u32,
    /// Round trip of the far link, in milliseconds.
    pub rtt_ms: u32,
    /// What guesses, and what people call it.
    pub drafts: Vec<(String, Drafting)>,
    /// Prompts to guess after; made-up tokens where there are none.
    pub texts: Vec<String>,
    /// Where to compute, on both sides.
    pub device: DeviceChoice,
    /// What frozen layers are held and multiplied in, on both sides.
    pub precision: Precision,
}

/// What it came to.
#[derive(Clone, Debug, Serialize)]
pub struct GenerateReport {
    /// The model's folder, or the name of its shape.
    pub model: String,
    /// What frozen layers are held and multiplied in.
    pub precision: String,
    /// Tokens of a prompt.
    pub prompt: u32,
    /// Tokens generated after it.
    pub new: u32,
    /// Times that each thing was measured.
    pub repeats: u32,
    /// The device, as it was asked for.
    pub device: String,
    /// The device, as its maker calls it.
    pub device_name: String,
    /// The machine.
    pub machine: Machine,
    /// Threads that each side computed with.
    pub threads: usize,
    /// Processes that ran or waited for a core when it began, as a mean over a minute: above 0.5, somebody else was busy.
    pub load_before: Option<f64>,
    /// The most memory that this process held.
    pub peak_bytes: Option<u64>,
    /// The numbers.
    #[serde(flatten)]
    pub found: GenerateFound,
}

/// The numbers of each kind.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GenerateFound {
    /// One sequence of the uncut model.
    Uncut(UncutFound),
    /// A row for each way to cut.
    Split(Vec<SplitRow>),
    /// Alone and with a host.
    Sessions(Vec<SessionsRow>),
    /// A row for each draft.
    Drafts(Vec<DraftRow>),
    /// Both sides' memory.
    Memory(MemoryFound),
    /// Alone and with a host.
    Prefix(Vec<PrefixRow>),
}

/// Measures.
pub async fn bench_generate(bench: &GenerateBench, options: &BenchOptions) -> Result<GenerateReport, LabError> {
    let load_before = load();
    let place = Place::new(bench, options)?;
    let found = match bench.what {
        GenerateWhat::Uncut => GenerateFound::Uncut(speed::uncut(bench, &place).await?),
        GenerateWhat::Split => GenerateFound::Split(split::split(bench, &place).await?),
        GenerateWhat::Sessions => GenerateFound::Sessions(sessions::sessions(bench, &place).await?),
        GenerateWhat::Drafts => GenerateFound::Drafts(drafts::drafts(bench, &place).await?),
        GenerateWhat::Memory => GenerateFound::Memory(memory::memory(bench, &place).await?),
        GenerateWhat::Prefix => GenerateFound::Prefix(speed::prefix(bench, &place).await?),
    };
    let machine = Machine::here();
    Ok(GenerateReport {
        model: match &bench.subject {
            Subject::Folder(path) => path.display().to_string(),
            Subject::Shape(name) => format!("{name} (random weights)"),
        },
        precision: bench.precision.to_string(),
        prompt: bench.prompt,
        new: bench.new,
        repeats: bench.repeats,
        device: bench.device.to_string(),
        device_name: device_name(bench.device, machine.cpu.as_deref()),
        machine,
        threads: options.threads,
        load_before,
        peak_bytes: peak_bytes(None),
        found,
    })
}

/// The system's mean over the last minute, where it says.
fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}
