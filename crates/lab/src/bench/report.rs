//! What a measured step came to: for programs as it is, for people as a table.

use crate::manifest::Machine;
use crate::run::{bytes, table};
use serde::Serialize;

/// A measured step.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// The model's folder, or the name of its shape.
    pub model: String,
    /// Its family.
    pub family: &'static str,
    /// Its blocks.
    pub blocks: usize,
    /// Blocks on the client; nothing for the uncut model.
    pub cut: Option<u16>,
    /// Sequences in a batch.
    pub sequences: u32,
    /// Tokens in each.
    pub tokens: u32,
    /// Rank of the adapter.
    pub rank: u32,
    /// Projections with an adapter.
    pub targets: Vec<String>,
    /// Steps before the measured ones.
    pub warmup: u32,
    /// Steps measured.
    pub steps: usize,
    /// The device, as it was asked for.
    pub device: String,
    /// The device, as its maker calls it.
    pub device_name: String,
    /// Cores that a process may use.
    pub cores: usize,
    /// Threads that each side computed with.
    pub threads: usize,
    /// The machine.
    pub machine: Machine,
    /// Median of the steps.
    pub step_ms: f64,
    /// The best of them.
    pub step_ms_best: f64,
    /// Tokens a second, at the median.
    pub tokens_per_s: f64,
    /// Where the time goes.
    pub rows: Vec<StepRow>,
    /// Operations of a step that cannot be done without, in 10^9.
    pub gflop: f64,
    /// The same a second, at the median.
    pub gflops: f64,
    /// What a matrix multiplication alone reaches on this device, in the same run.
    pub gemm_gflops: f64,
    /// Bytes of tensors a step from the client.
    pub bytes_up: u64,
    /// Bytes of tensors a step to the client.
    pub bytes_down: u64,
    /// The most memory that each process held.
    pub peak_bytes: Peaks,
    /// Loss of the first measured step.
    pub loss_first: Option<f64>,
    /// Loss of the last.
    pub loss_last: Option<f64>,
}

/// One phase of the step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRow {
    /// Where it is computed.
    pub side: &'static str,
    /// What it is.
    pub phase: &'static str,
    /// Median over the steps.
    pub median_ms: f64,
    /// Its part of all steps' time.
    pub share: f64,
}

/// The most memory that each process held, where the system says.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Peaks {
    /// The client's.
    pub client: Option<u64>,
    /// The server's.
    pub server: Option<u64>,
    /// The one process's of an uncut run.
    pub uncut: Option<u64>,
}

/// The report for people.
pub fn step_table(report: &StepReport) -> String {
    let line = |row: &StepRow| {
        vec![row.side.to_owned(), row.phase.to_owned(), format!("{:.2}", row.median_ms), format!("{:.1} %", row.share * 100.0)]
    };
    let whole = vec!["step".into(), "median".into(), format!("{:.2}", report.step_ms), "100.0 %".into()];
    let rows = report.rows.iter().map(line).chain([whole]).collect();
    let mut rows = table(&["side", "phase", "ms", "share"], rows);
    if let Some(phase) = rows.column_mut(1) {
        phase.set_cell_alignment(comfy_table::CellAlignment::Left);
    }
    format!("{}\n{rows}\n{}", head(report), foot(report))
}

fn head(report: &StepReport) -> String {
    let StepReport { model, sequences, tokens, rank, steps, warmup, device, device_name, cores, threads, .. } = report;
    let how = report.cut.map_or("uncut, in one process".into(), |cut| format!("cut {cut} of {} over loopback QUIC", report.blocks));
    let targets = report.targets.join(", ");
    format!(
        "{model}: {how}, batch {sequences} x {tokens}, LoRA rank {rank} on {targets}\n\
         {steps} steps measured after {warmup}; device {device}: {device_name}; {cores} cores, {threads} threads"
    )
}

fn foot(report: &StepReport) -> String {
    let StepReport { step_ms, step_ms_best, tokens_per_s, gflop, gflops, gemm_gflops, .. } = report;
    let size = |peak: Option<u64>| peak.map_or("unknown".into(), bytes);
    let memory = match report.cut {
        None => size(report.peak_bytes.uncut),
        Some(_) => format!("client {}, server {}", size(report.peak_bytes.client), size(report.peak_bytes.server)),
    };
    let wire = report
        .cut
        .map_or(String::new(), |_| format!("\non the wire a step: {} up, {} down", bytes(report.bytes_up), bytes(report.bytes_down)));
    format!(
        "step:   {step_ms:.1} ms median, {step_ms_best:.1} ms best; {tokens_per_s:.0} tokens/s\n\
         work:   {gflop:.2} GFLOP a step, {gflops:.1} GFLOP/s: {:.1} % of the {gemm_gflops:.1} that a matrix multiplication reaches\n\
         memory: peak {memory}{wire}",
        gflops / gemm_gflops * 100.0
    )
}
