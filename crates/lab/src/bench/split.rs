//! A step's time, split: from what both ends told of it to one row a phase. Every microsecond is in exactly one row.

use super::report::StepRow;
use super::step::median;
use crate::error::LabError;
use cutlayer_node::{Event, Phases};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// One step as one end saw it, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct End {
    pub wait_ms: f64,
    pub compute_ms: f64,
    pub phases: Phases,
}

/// One step as both ends saw it. An uncut step has no client.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Step {
    pub tokens: u32,
    pub scored: u32,
    pub loss: Option<f64>,
    pub bytes: (u64, u64),
    pub client: Option<End>,
    pub server: End,
}

impl Step {
    /// From the client's first block to its update; uncut, the computation.
    pub fn total_ms(&self) -> f64 {
        self.client.map_or(self.server.compute_ms, |client| client.wait_ms + client.compute_ms)
    }

    fn client(&self) -> End {
        self.client.unwrap_or_default()
    }

    /// What the client waited for that was neither the server's computation nor its queue.
    fn wire_ms(&self) -> f64 {
        (self.client().wait_ms - self.server.wait_ms - self.server.compute_ms).max(0.0)
    }
}

/// A line of the metrics, of which only the teller is not the event's.
#[derive(Deserialize)]
struct Teller {
    from: String,
}

/// Reads both ends' steps, in order; one that only one end told of is left out.
pub(super) fn read_steps(metrics: &Path) -> Result<Vec<Step>, LabError> {
    let text = std::fs::read_to_string(metrics).map_err(LabError::write(metrics))?;
    let (mut clients, mut servers) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        let (Ok(Teller { from }), Ok(event)) = (serde_json::from_str(line), serde_json::from_str::<Event>(line)) else { continue };
        let Event::Step { round, step, loss, tokens, scored, bytes_up, bytes_down, wait_ms, compute_ms, phases, .. } = event else {
            continue;
        };
        let end = End { wait_ms, compute_ms, phases: phases.unwrap_or_default() };
        match from.as_str() {
            "server" | "central" => {
                let told = Step { tokens, scored, loss, bytes: (bytes_up, bytes_down), client: None, server: end };
                servers.insert((round, step), (from == "central", told));
            }
            _ => {
                clients.insert((round, step), end);
            }
        }
    }
    let both = servers.into_iter().filter_map(|(key, (uncut, told))| {
        let client = clients.get(&key).copied();
        (uncut || client.is_some()).then_some(Step { client, ..told })
    });
    Ok(both.collect())
}

type Read = fn(&Step) -> f64;

fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

/// In the order in which a step goes through them.
const SPLIT: &[(&str, &str, Read)] = &[
    ("client", "forward", |step| ms(step.client().phases.forward_us)),
    ("client", "encode", |step| ms(step.client().phases.encode_us)),
    ("network", "wire", Step::wire_ms),
    ("server", "queue", |step| step.server.wait_ms),
    ("server", "decode", |step| ms(step.server.phases.decode_us)),
    ("server", "forward", |step| ms(step.server.phases.forward_us)),
    ("server", "loss", |step| ms(step.server.phases.loss_us)),
    ("server", "backward", |step| ms(step.server.phases.backward_us)),
    ("server", "optimizer", |step| ms(step.server.phases.optimizer_us)),
    ("server", "encode", |step| ms(step.server.phases.encode_us)),
    ("client", "decode", |step| ms(step.client().phases.decode_us)),
    ("client", "backward", |step| ms(step.client().phases.backward_us)),
    ("client", "optimizer", |step| ms(step.client().phases.optimizer_us)),
    ("server", "rest", |step| rest(&step.server)),
    ("client", "rest", |step| rest(&step.client())),
];

const UNCUT: &[(&str, &str, Read)] = &[
    ("uncut", "forward", |step| ms(step.server.phases.forward_us)),
    ("uncut", "loss", |step| ms(step.server.phases.loss_us)),
    ("uncut", "backward", |step| ms(step.server.phases.backward_us)),
    ("uncut", "optimizer", |step| ms(step.server.phases.optimizer_us)),
    ("uncut", "rest", |step| rest(&step.server)),
];

/// What an end computed outside its phases: threads handed work, batches made, events told.
fn rest(end: &End) -> f64 {
    (end.compute_ms - ms(end.phases.total_us())).max(0.0)
}

/// One row a phase: its median, and its share of all the time of all steps. A phase that none of the steps knew is left out.
pub(super) fn rows(steps: &[Step], uncut: bool) -> Vec<StepRow> {
    let all: f64 = steps.iter().map(Step::total_ms).sum();
    let row = |(side, phase, read): &(&'static str, &'static str, Read)| {
        let sum: f64 = steps.iter().map(read).sum();
        (sum > 0.0).then(|| StepRow { side, phase, median_ms: median(steps.iter().map(read)), share: sum / all })
    };
    (if uncut { UNCUT } else { SPLIT }).iter().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(from: &str, step: u32, wait_ms: f64, compute_ms: f64, phases: Phases) -> String {
        let event = Event::Step {
            client: 0,
            round: 1,
            step,
            loss: Some(2.0),
            tokens: 16,
            rectangle: 16,
            scored: 14,
            bytes_up: 7,
            bytes_down: 5,
            wait_ms,
            compute_ms,
            phases: Some(phases),
        };
        let mut value = serde_json::to_value(&event).expect("JSON");
        value["at_s"] = 1.5.into();
        value["from"] = from.into();
        value.to_string()
    }

    /// Goal: the rows add up to the step, and a step that one end did not see is none. Method: two whole steps and a half.
    #[test]
    fn rows_add_up_to_the_step() {
        let client =
            Phases { forward_us: 3000, encode_us: 1000, decode_us: 500, backward_us: 4000, optimizer_us: 500, ..Phases::default() };
        let server = Phases { decode_us: 1000, backward_us: 60_000, optimizer_us: 2000, encode_us: 1000, ..Phases::default() };
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("metrics.jsonl");
        let joined = r#"{"at_s":0.1,"from":"server","event":"finished","rounds":1,"reason":"done"}"#.to_owned();
        let lines = [
            joined,
            line("server", 1, 0.5, 65.0, server),
            line("client-0", 1, 70.0, 10.0, client),
            line("server", 2, 0.5, 65.0, server),
            line("client-0", 2, 70.0, 10.0, client),
            line("server", 3, 0.5, 65.0, server),
        ];
        std::fs::write(&file, lines.join("\n")).expect("written");
        let steps = read_steps(&file).expect("read");
        assert_eq!(steps.len(), 2);
        assert_eq!((steps[0].total_ms(), steps[0].scored, steps[0].bytes), (80.0, 14, (7, 5)));
        let rows = rows(&steps, false);
        let (sum, share): (f64, f64) = rows.iter().fold((0.0, 0.0), |(ms, share), row| (ms + row.median_ms, share + row.share));
        assert!((sum - 80.0).abs() < 1e-9 && (share - 1.0).abs() < 1e-9, "{rows:?}");
        let wire = rows.iter().find(|row| row.phase == "wire").expect("a network");
        assert_eq!(wire.median_ms, 4.5);
        assert!(!rows.iter().any(|row| row.phase == "loss"), "nobody told it apart");
    }

    /// Goal: an uncut step has one side. Method: the line of a central run.
    #[test]
    fn uncut_steps_have_one_side() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("metrics.jsonl");
        let phases = Phases { forward_us: 4000, backward_us: 5000, ..Phases::default() };
        std::fs::write(&file, line("central", 1, 0.0, 10.0, phases)).expect("written");
        let steps = read_steps(&file).expect("read");
        let rows = rows(&steps, true);
        assert_eq!(
            rows.iter().map(|row| (row.phase, row.median_ms)).collect::<Vec<_>>(),
            [("forward", 4.0), ("backward", 5.0), ("rest", 1.0)]
        );
        assert_eq!(steps[0].total_ms(), 10.0);
    }
}
