//! `cutlayer bench`: steps both ways, and generating, in words and as JSON.

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

/// Arguments of a short generation.
const SHORT: [&str; 7] = ["--prompt", "20", "--new", "4", "--repeats", "1", "--quiet"];

/// Goal: generating is measured uncut and cut, and cutting is seen to change no token. Method: the shipped model; the objects' numbers.
#[test]
fn generating_is_told_uncut_and_cut() {
    let desk = Desk::new();
    let bench = desk.ends(&[&["bench", "generate", "uncut", &model(), "--format", "json"], &SHORT[..]].concat());
    bench.check(0, &[]);
    let report = bench.json();
    for number in ["prefill_tok_s", "decode_tok_s", "first_token_ms", "busy_ms"] {
        assert!(report["uncut"][number].as_f64().is_some_and(|value| value > 0.0), "{number}: {report}");
    }
    let bench = desk.ends(&[&["bench", "generate", "split", &model(), "--cut", "2", "--format", "json"], &SHORT[..]].concat());
    bench.check(0, &[]);
    let report = bench.json();
    let rows = report["split"].as_array().expect("rows");
    assert_eq!(rows.len(), 6, "{report}");
    assert!(rows[..3].iter().all(|row| row["same_tokens"] == true), "lossless cuts: {report}");
    assert!(rows[1..].iter().all(|row| row["token_ms"].as_f64() >= row["device_ms"].as_f64()), "{report}");
    // Hidden 128: a header of 12, four bytes a number, a page's name every sixteen tokens; a token comes back in 16.
    assert_eq!((&rows[1]["record_bytes"][0], &rows[1]["record_bytes"][1]), (&(12.0 + 128.0 * 4.0 + 1.0).into(), &16.0.into()));
}

/// Goal: many sequences, drafts and prompts seen before are measured. Method: each once, small, and what must hold whatever the time.
#[test]
fn what_sharing_and_guessing_save_is_told() {
    let desk = Desk::new();
    let run = |what: &str, more: &[&str]| {
        let bench = desk.ends(&[&["bench", "generate", what, &model(), "--cut", "2", "--format", "json"], more, &SHORT[..]].concat());
        bench.check(0, &[]);
        bench.json()
    };
    let sessions = run("sessions", &["--sessions", "3"]);
    let rows = sessions["sessions"].as_array().expect("rows");
    assert!(rows.iter().all(|row| row["ratio"].as_f64() > Some(0.0) && row["shared"].as_f64() >= Some(1.0)), "{sessions}");
    let prefix = run("prefix", &[]);
    // A page of the twenty tokens; the rest is computed again.
    assert!(prefix["prefix"].as_array().expect("rows").iter().all(|row| row["cached"] == 16), "{prefix}");
    let drafts = run("drafts", &["--rtt-ms", "2", "--draft", "ngram", "--draft", "exit:1"]);
    let rows = drafts["drafts"].as_array().expect("rows");
    assert_eq!(rows.len(), 3, "{drafts}");
    assert!(rows.iter().all(|row| row["same_tokens"] == true && row["tokens"] == 4), "{drafts}");
    let memory = run("memory", &["--tokens", "40", "--sessions", "2"]);
    assert!(memory["memory"]["rows"].as_array().is_some_and(|rows| rows.len() > 2), "{memory}");
}

/// Goal: what cannot be generated is refused in a sentence. Method: too long, no such draft, prompts that are none.
#[test]
fn what_cannot_be_generated_is_refused() {
    let desk = Desk::new();
    let refused = |what: &str, more: &[&str], words: &str| {
        let bench = desk.ends(&[&["bench", "generate", what, &model()], more].concat());
        assert!(bench.code != Some(0) && bench.stderr.contains(words), "no `{words}`: {}", bench.stderr);
    };
    refused("uncut", &["--prompt", "9000"], "positions; lower --prompt or --new");
    refused("drafts", &["--draft", "exit:many"], "exit:BLOCKS");
    let file = desk.path("prompts.jsonl");
    std::fs::write(&file, "{\"completion\": \"none\"}\n").expect("written");
    refused("drafts", &["--prompts", file.to_str().expect("a path")], "no `prompt`");
}
