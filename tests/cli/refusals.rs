//! Input that cannot be used: each time a sentence that names it, and the documented exit code.

use crate::harness::{Desk, model};
use std::fs;

/// Goal: half an adapter is never taken for one. Method: a good one, cut short, wherever an adapter may be given.
#[test]
fn a_truncated_adapter_is_named() {
    let desk = Desk::new();
    let file = desk.run_file("cut");
    desk.ends(&["run", &file, "--set", "train.local_steps=1", "--set", "train.rounds=1"]).check(0, &[]);
    let tensors = desk.path("runs/cut/adapter/adapter_model.safetensors");
    let whole = fs::read(&tensors).expect("an adapter");
    fs::write(&tensors, &whole[..5000]).expect("half of it");
    let adapter = desk.path("runs/cut/adapter").display().to_string();
    let sentence = format!("{} is cut short: 5000 bytes, where its header needs {}", tensors.display(), whole.len());
    desk.ends(&["eval", &file, "--adapter", &adapter]).check(3, &[&sentence]);
    desk.ends(&["merge", "--model", &model(), "--adapter", &adapter, "--out", "merged"]).check(3, &[&sentence]);
    assert!(!desk.path("merged").exists(), "nothing is left of a merge that failed");
    let run = desk.ends(&["run", &file, "--set", &format!("model.adapter={adapter}"), "--format", "json"]);
    run.check(3, &[&sentence]);
    assert_eq!(run.json()["exit_code"], 3);
}

/// Goal: a slip in a run is found, named and explained. Method: each kind of slip, by its exit code and its words.
#[test]
fn slips_in_a_run_are_explained() {
    let desk = Desk::new();
    let file = desk.run_file("slip");
    let misspelt = fs::read_to_string(&file).expect("a run file").replace("seed = 5", "sede = 5");
    fs::write(desk.path("misspelt.toml"), misspelt).expect("a run file");
    let check = |arguments: &[&str], code: i32, sentences: &[&str]| {
        desk.ends(&[&["run", "--quiet"], arguments].concat()).check(code, sentences);
    };
    check(&["misspelt.toml"], 2, &["error: misspelt.toml:", "line 2, column 1", "unknown field `sede`, expected one of `name`, `seed`"]);
    check(&["none.toml"], 2, &["cannot read the run file none.toml", "`experiments/` holds some to start from"]);
    check(&[&file, "--set", "train.round=3"], 2, &["with --set train.round=3: unknown field `round`, expected one of `task`"]);
    check(&[&file, "--set", "train.rounds"], 2, &["--set train.rounds: it has no `=`; write --set optimizer.learning_rate=3e-4"]);
    check(&[&file, "--set", "train.rounds=many"], 2, &["with --set train.rounds=many: invalid type: string \"many\", expected u32"]);
    check(&[&file, "--model", "/nowhere"], 3, &["there is no model folder at /nowhere; fetch one with `cutlayer pull ORG/NAME`"]);
    check(&[&file, "--set", "data.source.path=/none.jsonl"], 3, &["cannot read /none.jsonl", "check the path"]);
    assert!(!desk.path("runs").exists(), "all that was found before a folder was made");
    let too_large = "cut 9 with 0 tail blocks does not fit a model of 6 blocks; cut + tail may be at most 6";
    check(&[&file, "--set", "split.cut=9"], 2, &[too_large]);
}
