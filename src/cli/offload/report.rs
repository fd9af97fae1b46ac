//! What a fitted policy gives, beside what it is held against.

use super::FitArgs;
use super::measure::{PowerArgs, Score};
use cutlayer_generation::offload::{Budget, Example, Fit, Outcome};
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;

/// All of `report.json`.
#[derive(Serialize)]
pub(super) struct Report {
    data: PathBuf,
    questions: usize,
    score: &'static str,
    budget: Budget,
    local_model: PathBuf,
    large_model: PathBuf,
    /// Whether the large model was asked over a network.
    has_host: bool,
    /// Joules are modelled by these.
    power: PowerArgs,
    /// Everything by the large model, and the compact one never asked: what a device without one does.
    never_asked: Outcome,
    fit: Fit,
}

impl Report {
    pub fn new(args: &FitArgs, score: Score, budget: Budget, examples: &[Example], fit: Fit) -> Self {
        Self {
            data: args.questions.file().clone(),
            questions: examples.len(),
            score: score.name(),
            budget,
            local_model: args.local_model.clone(),
            large_model: args.generator.model.model.clone(),
            has_host: args.generator.has_host(),
            power: args.power,
            never_asked: never_asked(examples),
            fit,
        }
    }

    /// For people.
    pub fn table(&self) -> String {
        let fit = &self.fit;
        let rows = [
            ("all on the device", fit.always_local),
            ("all by the large model", self.never_asked),
            ("all asked of both", fit.always_edge),
            ("the policy", fit.chosen.outcome),
            ("as many by chance", fit.random),
            ("an oracle", fit.oracle),
        ];
        let mut text = format!("{:<24}{:>9}{:>11}{:>13}{:>11}{:>11}\n", "", "local", self.score, "latency ms", "energy J", "bytes");
        for (name, Outcome { share_local, accuracy, latency_ms, energy_j, bytes }) in rows {
            let local = format!("{:.1} %", share_local * 100.0);
            let _ = writeln!(text, "{name:<24}{local:>9}{accuracy:>11.4}{latency_ms:>13.2}{energy_j:>11.4}{bytes:>11.0}");
        }
        let (threshold, auc, aurc, error) = (fit.chosen.threshold, fit.auc, fit.aurc, fit.calibration_error);
        let _ = write!(
            text,
            "{} questions; kept from a confidence of {threshold:.3} on; AUC {auc:.3}, area under risk and coverage {aurc:.3}, \
             calibration error {error:.3}\njoules are modelled: {} W while the device computes, {} W while {} Mbit/s carry the bytes",
            self.questions, self.power.device_watts, self.power.radio_watts, self.power.radio_mbps
        );
        text
    }
}

/// Costs of the large model alone.
fn never_asked(examples: &[Example]) -> Outcome {
    let mean = |of: &dyn Fn(&Example) -> f64| examples.iter().map(of).sum::<f64>() / examples.len() as f64;
    Outcome {
        share_local: 0.0,
        accuracy: mean(&|example| example.edge_right),
        latency_ms: mean(&|example| example.edge.latency_ms - example.local.latency_ms),
        energy_j: mean(&|example| example.edge.energy_j - example.local.energy_j),
        bytes: mean(&|example| example.edge.bytes),
    }
}
