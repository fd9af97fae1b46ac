//! `cutlayer bench step`: both ways to take a step, in words and as JSON.

use crate::harness::{Desk, model};
use serde_json::Value;

const FEW: [&str; 8] = ["--sequences", "2", "--tokens", "16", "--steps", "2", "--warmup", "1"];

/// The rows of a report: side, phase and median.
fn rows(report: &Value) -> Vec<(&str, &str, f64)> {
    let rows = report["rows"].as_array().expect("rows");
    rows.iter()
        .map(|row| (row["side"].as_str().expect("a side"), row["phase"].as_str().expect("a phase"), row["median_ms"].as_f64().expect("ms")))
        .collect()
}

/// Goal: a split step is told phase by phase, to people and to programs. Method: a named shape; the table, the file, and their sum.
#[test]
fn a_split_step_is_told_by_phase() {
    let desk = Desk::new();
    let file = desk.path("step.json");
    let file = file.to_str().expect("a path");
    let bench = desk.ends(&[&["bench", "step", "--shape", "llama-tiny", "--cut", "3", "--json", file], &FEW[..]].concat());
    bench.check(0, &[]);
    for words in
        ["cut 3 of 8 over loopback QUIC", "2 steps measured after 1; device cpu: ", "client", "server", "encode", "GFLOP/s", "tokens/s"]
    {
        assert!(bench.stdout.contains(words), "no `{words}`: {}", bench.stdout);
    }
    let report: Value = serde_json::from_slice(&std::fs::read(file).expect("a file")).expect("JSON");
    let rows = rows(&report);
    let phases = ["forward", "encode", "decode", "backward", "optimizer"];
    for phase in phases {
        assert!(rows.iter().any(|row| (row.0, row.1) == ("client", phase) && row.2 > 0.0), "{phase}: {rows:?}");
    }
    for phase in ["decode", "optimizer", "encode"] {
        assert!(rows.iter().any(|row| (row.0, row.1) == ("server", phase) && row.2 > 0.0), "{phase}: {rows:?}");
    }
    let share: f64 = report["rows"].as_array().expect("rows").iter().map(|row| row["share"].as_f64().expect("a share")).sum();
    assert!((share - 1.0).abs() < 0.02, "the rows make up {share} of the step");
    assert_eq!((&report["steps"], &report["cut"], &report["bytes_up"]), (&2.into(), &3.into(), &(2 * 16 * 256 * 4).into()));
    for number in ["step_ms", "tokens_per_s", "gflops", "gemm_gflops"] {
        assert!(report[number].as_f64().is_some_and(|value| value > 0.0), "{number}: {report}");
    }
    if cfg!(target_os = "linux") {
        for side in ["client", "server"] {
            assert!(report["peak_bytes"][side].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{side}: {report}");
        }
    }
}

/// Goal: a model folder is measured uncut, and left as it is. Method: the shipped model; one JSON object on standard output.
#[test]
fn an_uncut_step_of_a_folder_is_one_object() {
    let desk = Desk::new();
    let bench = desk.ends(&[&["bench", "step", &model(), "--uncut", "--threads", "1", "--format", "json"], &FEW[..]].concat());
    bench.check(0, &["uncut, in one process, batch 2 x 16", " cores, 1 threads"]);
    let report = bench.json();
    assert!(report["cut"].is_null() && report["loss_first"].is_number(), "{report}");
    assert!(rows(&report).iter().all(|row| row.0 == "uncut"), "{report}");
    assert!(rows(&report).iter().any(|row| row.1 == "optimizer"), "{report}");
}

/// Goal: a classifier has a step too. Method: the smallest encoder, one step.
#[test]
fn an_encoder_has_a_step() {
    let desk = Desk::new();
    let bench = desk.ends(&["bench", "step", "--shape", "minilm", "--sequences", "2", "--tokens", "8", "--steps", "1", "--warmup", "0"]);
    bench.check(0, &[]);
    assert!(bench.stdout.contains("LoRA rank 8 on query, value"), "{}", bench.stdout);
}

/// Goal: what cannot be measured is refused in a sentence. Method: no subject, two, an unknown shape, and a cut above the model.
#[test]
fn what_cannot_be_measured_is_refused() {
    let desk = Desk::new();
    desk.ends(&["bench", "step"]).check(2, &["<DIR|--shape <NAME>>"]);
    desk.ends(&["bench", "step", &model(), "--shape", "gpt2"]).check(2, &["cannot be used with"]);
    desk.ends(&["bench", "step", "--shape", "llama-9b"]).check(2, &["llama-tiny, smollm2-135m, gpt2, minilm, llama-1b"]);
    desk.ends(&[&["bench", "step", &model(), "--cut", "99"], &FEW[..]].concat()).check(2, &["99"]);
}
