//! Whole experiments: what they leave behind, and what ends them.

use crate::harness::{Desk, kill, model, wait_for};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Goal: a run leaves a better model and all that is to be known of it. Method: the folder, then eval and merge on it.
#[test]
fn a_run_leaves_a_better_model_and_its_record() {
    let desk = Desk::new();
    let run = desk.ends(&["run", &desk.run_file("small"), "--format", "json"]);
    run.check(0, &["client-0 joined with 60 records, 2 blocks", "round 2 done: 2 updates", "finished after 2 rounds"]);
    let summary = run.json();
    assert_eq!((&summary["rounds_done"], &summary["interrupted"]), (&Value::from(2), &Value::from(false)));
    assert_eq!(run.stdout.lines().count(), 1, "{}", run.stdout);

    let folder = desk.path("runs/small");
    assert_eq!(summary["folder"].as_str(), folder.canonicalize().expect("a run folder").to_str());
    let resolved: toml::Table = fs::read_to_string(folder.join("resolved.toml")).expect("a file").parse().expect("TOML");
    assert_eq!(resolved["optimizer"]["beta1"].as_float(), Some(0.9), "defaults are written out");
    let manifest: Value = serde_json::from_slice(&fs::read(folder.join("manifest.json")).expect("a file")).expect("JSON");
    assert!(manifest.to_string().contains(env!("CARGO_PKG_VERSION")), "{manifest}");
    for (kind, least) in [("joined", 2), ("step", 16), ("updated", 4), ("committed", 2), ("evaluated", 3), ("finished", 1)] {
        let found = events(&folder).iter().filter(|event| event["event"] == kind).count();
        assert!(found >= least, "{found} of {kind}");
    }
    assert!(!folder.join("keys").exists(), "no private key is kept");
    let bytes = fs::read(folder.join("adapter/adapter_model.safetensors")).expect("an adapter");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    assert_eq!(tensors.len(), 6 * 2 * 2, "two factors for q_proj and v_proj of six blocks");

    let (resolved, adapter) = (folder.join("resolved.toml"), folder.join("adapter"));
    let perplexity = |more: &[&str]| {
        let eval = desk.ends(&[&["eval", resolved.to_str().expect("a path"), "--format", "json"], more].concat());
        eval.check(0, &["40 records on cpu"]);
        eval.json()["perplexity"].as_f64().expect("a number")
    };
    let adapter = adapter.to_str().expect("a path");
    let (base, tuned) = (perplexity(&[]), perplexity(&["--adapter", adapter]));
    assert!(tuned < 0.8 * base, "{base} to {tuned}");
    let told = summary["rounds"][2]["perplexity"].as_f64().expect("a number");
    assert!((tuned / told - 1.0).abs() < 1e-4, "the run said {told}, eval says {tuned}");

    let merge = desk.ends(&["merge", "--model", &model(), "--adapter", adapter, "--out", "merged", "--format", "json"]);
    merge.check(0, &["12 of 56 tensors changed"]);
    let merged = perplexity(&["--model", desk.path("merged").to_str().expect("a path")]);
    assert!((merged / tuned - 1.0).abs() < 1e-2, "merged in the model's own encoding: {tuned} to {merged}");
}

/// Goal: nothing is overwritten, and a seed says everything. Method: one file twice, then another seed.
#[test]
fn the_same_seed_leaves_the_same_bytes_in_the_next_folder() {
    let desk = Desk::new();
    let file = desk.run_file("twice");
    desk.ends(&["run", &file]).check(0, &[]);
    let second = desk.ends(&["run", &file, "--format", "json"]);
    second.check(0, &["the folder twice was taken; this run is twice-2"]);
    assert_eq!(second.json()["name"], "twice-2");
    desk.ends(&["run", &file, "--set", "seed=6"]).check(0, &["this run is twice-3"]);
    assert!(adapter(&desk, "twice") == adapter(&desk, "twice-2"), "one seed, two adapters");
    assert!(adapter(&desk, "twice") != adapter(&desk, "twice-3"), "two seeds, one adapter");
}

/// Goal: how a side computes is its own affair: checkpointing changes no byte, bf16 a little, and what a device lacks ends in a sentence.
/// Method: one short run four ways.
#[test]
fn each_side_computes_as_it_is_told() {
    let desk = Desk::new();
    let file = desk.run_file("ways");
    let run = |more: &[&str]| desk.ends(&[&["run", &file, "--set", "train.rounds=1"], more].concat());
    run(&[]).check(0, &[]);
    run(&["--set", "clients.checkpointing=true", "--set", "server.checkpointing=true"]).check(0, &["this run is ways-2"]);
    run(&["--set", "clients.precision=bf16"]).check(0, &["this run is ways-3"]);
    assert!(adapter(&desk, "ways") == adapter(&desk, "ways-2"), "a block run again gives the same gradient");
    assert!(adapter(&desk, "ways") != adapter(&desk, "ways-3"), "bf16 rounds");
    run(&["--set", "server.precision=f16"]).check(3, &["precision f16 cannot be had here: a CPU computes in f32 or bf16; use f32"]);
    run(&["--set", "server.precision=f8"]).check(2, &["f8"]);
}

/// Goal: batches by length would pad less, and the run says how much. Method: the same data both ways, in the summary and the table.
#[test]
fn batches_by_length_pad_less() {
    let desk = Desk::new();
    let file = desk.run_file("lengths");
    let share = |grouped: &str| {
        let more = ["--set", "train.rounds=1", "--set", "train.local_steps=15", "--set", grouped, "--format", "json"];
        let run = desk.ends(&[&["run", &file], &more[..]].concat());
        run.check(0, &["padding"]);
        let summary = run.json();
        let (round, clients) = (&summary["rounds"][1], summary["clients"].as_array().expect("clients"));
        assert_eq!(round["padding_shares"]["1"], clients[1]["padding_share"], "one round: {summary}");
        round["padding_share"].as_f64().expect("a share")
    };
    let (mixed, grouped) = (share("train.group_by_length=false"), share("train.group_by_length=true"));
    assert!(0.0 < grouped && grouped < 0.7 * mixed, "{mixed} of a rectangle were padding, {grouped} by length");
}

/// Goal: a run outlives a client, and says who left. Method: SIGKILL in the middle of a round that one update is enough for.
#[test]
#[cfg(target_os = "linux")]
fn a_run_outlives_a_killed_client() {
    let desk = Desk::new();
    let more = ["--set", "server.updates_min=1", "--set", "train.rounds=3", "--set", "train.local_steps=20"];
    let run = desk.starts(&[&["run", &desk.run_file("orphan"), "--format", "json"], &more[..]].concat());
    let folder = desk.path("runs/orphan");
    wait_for("a step of client-1", || {
        let stepping = |event: &Value| event["event"] == "step" && event["from"] == "client-1" && event["step"] == 3;
        events(&folder).iter().any(stepping).then_some(())
    });
    kill(&["-9", &client_process(&folder, 1).to_string()]);
    let run = run.ends();
    run.check(0, &["client-1 died (signal: 9 (SIGKILL))", "the run goes on if enough clients are left", "client-1 left: "]);
    run.check(0, &["round 3 done: 1 updates", "finished after 3 rounds"]);
    let summary = run.json();
    assert_eq!(summary["rounds_done"], 3);
    assert!(summary["clients"][0]["left"].is_null() && summary["clients"][1]["left"].is_string(), "{summary}");
    assert!(!adapter(&desk, "orphan").is_empty());
}

/// Goal: Ctrl-C ends a run with what it has: the adapter of the last round that counted. Method: SIGINT to the whole group, as a
/// terminal sends it; then a run of just so many rounds leaves the same bytes.
#[test]
#[cfg(unix)]
fn an_interrupted_run_keeps_its_last_round() {
    let desk = Desk::new();
    let file = desk.run_file("stopped");
    let mut run = desk.starts(&["run", &file, "--set", "train.rounds=500", "--format", "json"]);
    run.until_said("round 2 done");
    run.signal_group("-INT");
    let run = run.ends();
    run.check(130, &["stopping with what there is; once more to kill", "stopped after "]);
    let summary = run.json();
    assert_eq!((&summary["interrupted"], &summary["reason"]), (&Value::from(true), &Value::from("the server was stopped")));
    let rounds = summary["rounds_done"].as_u64().expect("a number");
    assert!((2..500).contains(&rounds), "{rounds}");
    desk.ends(&["run", &file, "--name", "whole", "--set", &format!("train.rounds={rounds}")]).check(0, &[]);
    assert!(adapter(&desk, "stopped") == adapter(&desk, "whole"), "after {rounds} rounds");
}

/// Bytes of a run's adapter.
fn adapter(desk: &Desk, name: &str) -> Vec<u8> {
    fs::read(desk.path("runs").join(name).join("adapter/adapter_model.safetensors")).expect("an adapter")
}

/// Whole lines of `metrics.jsonl` so far.
fn events(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).expect("an event a line")).collect()
}

/// The process of a client, by its command line.
#[cfg(target_os = "linux")]
fn client_process(folder: &Path, client: u32) -> u32 {
    let (file, client) = (folder.join("resolved.toml"), client.to_string());
    let is_it = |process: &PathBuf| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.contains(&file.as_os_str().as_encoded_bytes())
            && words.windows(2).any(|pair| pair[0] == b"--client" && pair[1] == client.as_bytes())
    };
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(|entry| Some(entry.ok()?.path()));
    let process = processes.into_iter().find(is_it).expect("a process of that client");
    process.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a number")
}
