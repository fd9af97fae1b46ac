//! Who answers, as a person asks for it: a policy is fitted against a host, and then decides.

use crate::harness::{Desk, Process, corpus, model};
use serde_json::{Value, json};
use std::fs;

/// A host of the shipped model, and the flags with which a device called `device` gets to it once.
fn host(desk: &Desk) -> (Process, Vec<String>) {
    let mut host = desk.starts(&["host", "--model", &model(), "--listen", "127.0.0.1:0", "--keys", "host", "--invite", "device"]);
    let said = host.until_said("for a device whose key");
    let line = said.lines().find(|line| line.contains("--token")).unwrap_or_else(|| panic!("no invitation: {said}"));
    let flags = line.split_whitespace().map(str::to_owned).collect();
    (host, flags)
}

/// Sentences of what the shipped model learnt, each cut after some words, with the word after them: some of those it knows.
fn questions(desk: &Desk) -> String {
    let text = fs::read_to_string(corpus("pretrain.txt")).expect("the shipped corpus");
    let words = text.lines().filter(|line| !line.contains('|')).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let cut = words.filter(|words| words.len() > 9).take(80);
    let row = |words: Vec<&str>| json!({ "prompt": words[..8].join(" "), "completion": words[8] }).to_string() + "\n";
    let file = desk.path("questions.jsonl");
    fs::write(&file, cut.map(row).collect::<String>()).expect("a file");
    file.display().to_string()
}

fn read(desk: &Desk, file: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(desk.path(file)).expect("a file of the fit")).expect("JSON")
}

/// Goal: what was fitted decides. Method: a policy that has to keep half, asked with its threshold as it is, at nothing and out of reach.
#[test]
fn a_fitted_policy_decides_who_answers() {
    let desk = Desk::new();
    let (_host, flags) = host(&desk);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (model, data) = (model(), questions(&desk));
    let both = ["--local-model", &model, "--model", &model, "--keys", "device"];
    let fit = ["offload", "fit", "--format", "json", "--data", &data, "--tokens-max", "4"];
    let fitted = desk.ends(&[&fit[..], &both, &flags, &["--score", "prefix", "--local-share", "0.5", "--out", "fit"]].concat());
    fitted.check(0, &["all on the device", "the policy", "joules are modelled", "written to fit"]);
    let report = fitted.json();
    assert_eq!(report, read(&desk, "fit/report.json"));
    let share = |of: &str| report["fit"][of]["share_local"].as_f64().expect("a share");
    assert_eq!((share("always_local"), share("always_edge")), (1.0, 0.0));
    assert!(share("chosen") >= 0.5 && report["fit"]["curve"].as_array().expect("a curve").len() > 10, "{report}");
    assert!(report["never_asked"]["bytes"].as_f64() > Some(100.0) && report["fit"]["always_local"]["bytes"] == 0.0, "{report}");
    assert!(fs::read_to_string(desk.path("fit/curve.svg")).expect("a picture").contains("<polyline"));

    let mut policy = read(&desk, "fit/policy.json");
    // The token was spent by the fit: the host knows the key now.
    let flags = &flags[..flags.len() - 2];
    let ask = |policy: &str| {
        let generate =
            ["generate", "--format", "json", "--mode", "auto", "--policy", policy, "--tokens-max", "8", "weather | place: Penwell"];
        let ended = desk.ends(&[&generate[..], &both, flags].concat());
        ended.check(0, &[]);
        ended.json()
    };
    let confidence = ask("fit/policy.json")["confidence"].as_f64().expect("a confidence");
    assert!((0.0..=1.0).contains(&confidence), "{confidence}");
    for (threshold, by) in [(0.0, "device"), (2.0, "host")] {
        policy["policy"]["threshold"] = threshold.into();
        fs::write(desk.path("changed.json"), policy.to_string()).expect("a policy");
        let answered = ask("changed.json");
        assert_eq!(answered["answered_by"], by, "{answered}");
        assert_eq!(answered["confidence"].as_f64(), Some(confidence));
        assert_eq!(answered["bytes_sent"].as_u64() > Some(0), by == "host", "{answered}");
    }
    policy["local"] = "another".into();
    fs::write(desk.path("changed.json"), policy.to_string()).expect("a policy");
    let generate = ["generate", "--mode", "auto", "--policy", "changed.json", "weather"];
    desk.ends(&[&generate[..], &both, flags].concat()).check(3, &["changed.json: fitted on another local model"]);
}

/// Goal: a slip is explained. Method: each mode without what it needs, and fits that cannot be.
#[test]
fn slips_in_offloading_are_explained() {
    let desk = Desk::new();
    let (model, data) = (model(), corpus("heldout.jsonl"));
    let generate = |more: &[&str], code: i32, sentence: &str| {
        desk.ends(&[&["generate", "--model", &model, "--keys", "keys", "words"][..], more].concat()).check(code, &[sentence]);
    };
    generate(&["--mode", "split"], 2, "modes split and edge need a host: give --server and --server-id");
    generate(&["--mode", "auto"], 2, "mode auto needs --local-model DIR and --policy FILE; `cutlayer offload fit` makes the policy");
    generate(&["--mode", "auto", "--local-model", &model, "--policy", "none.json"], 3, "none.json: no policy of `cutlayer offload fit`");
    generate(&["--remember", &model], 2, "embeddings need an encoder's folder");
    let fit = |more: &[&str], code: i32, sentence: &str| {
        let all = ["offload", "fit", "--data", &data, "--local-model", &model, "--model", &model, "--keys", "keys", "--out", "fit"];
        desk.ends(&[&all[..], more].concat()).check(code, &[sentence]);
    };
    fit(&[], 2, "--accuracy <SHARE>");
    fit(&["--accuracy", "0.5", "--score", "choice"], 2, "score choice goes with --options COLUMN, and the others without");
    fit(&["--accuracy", "0.5", "--options", "domain"], 3, "is not among the options");
    fit(&["--accuracy", "0.5", "--records-max", "5", "--tokens-max", "2"], 2, "5 examples; give at least 50");
    assert!(!desk.path("fit").exists(), "nothing is left of a fit that failed");
}
