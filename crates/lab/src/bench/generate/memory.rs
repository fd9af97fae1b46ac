//! Memory of both sides, each a process of its own, while sequences come and go.

use super::GenerateBench;
use super::place::{Place, Reach};
use super::take::{Prompts, request};
use crate::error::LabError;
use crate::memory::{peak_bytes, resident_bytes};
use cutlayer_node::Drafting;
use cutlayer_wire::Encoding;
use serde::Serialize;

/// Rows of the report.
const ROWS: u32 = 10;

/// Both sides' memory.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryFound {
    /// Sequences at once.
    pub sessions: u32,
    /// As it went.
    pub rows: Vec<MemoryRow>,
    /// The most that the device held.
    pub device_peak_bytes: Option<u64>,
    /// The most that the host held.
    pub host_peak_bytes: Option<u64>,
}

/// A moment.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MemoryRow {
    /// Tokens generated until then.
    pub tokens: u32,
    /// What the device held, which is the process that measures.
    pub device_bytes: Option<u64>,
    /// What the host held.
    pub host_bytes: Option<u64>,
}

pub(super) async fn memory(bench: &GenerateBench, place: &Place) -> Result<MemoryFound, LabError> {
    let process = place.host_process(bench.cut).await?;
    let reach = Reach { addr: process.addr, cut: bench.cut, tail: None, encoding: Encoding::INT8, rtt_ms: 1 };
    let generator = place.device(Some(reach), Drafting::Off).await?;
    let now = |tokens| MemoryRow { tokens, device_bytes: resident_bytes(None), host_bytes: resident_bytes(process.id) };
    let (mut prompts, mut tokens, mut rows) = (Prompts::default(), 0, vec![now(0)]);
    while tokens < bench.tokens {
        let some: Vec<_> = (0..bench.sessions).map(|_| prompts.next(bench.prompt, place.spec.vocab)).collect();
        let running: Vec<_> = some.into_iter().map(|prompt| generator.generate(request(prompt, bench.new))).collect();
        for generation in running {
            let (.., usage) = generation.whole().await?;
            tokens += usage.completion_tokens;
        }
        if tokens >= bench.tokens / ROWS * rows.len() as u32 {
            rows.push(now(tokens));
        }
    }
    Ok(MemoryFound { sessions: bench.sessions, rows, device_peak_bytes: peak_bytes(None), host_peak_bytes: peak_bytes(process.id) })
}
