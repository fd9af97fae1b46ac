//! Runs in which things go wrong: processes killed in earnest, networks cut, and what comes out all the same.

use crate::harness::Desk;
use serde_json::Value;
use std::fs;

/// What both runs take.
const LENGTH: [&str; 4] = ["--set", "train.rounds=10", "--set", "train.local_steps=8"];
/// Twelve mishaps within some four seconds, of each kind at least one: then the run is left alone, however slow the machine.
const CHAOS: &str = "kill=server:1/1s,kill=clients:1/700ms,partition=300ms@1/700ms,limit=12,seed=1";

/// Goal: where the mode is exact, what goes wrong leaves no trace in what is trained. Method: server and clients killed as by `kill -9`,
/// networks cut, with an adapter of the server's for each client and with one for all; held against the same run without, in the bytes of
/// the adapter and the loss of every round.
#[test]
#[cfg(unix)]
fn a_run_under_chaos_leaves_the_same_bytes() {
    for adapters in ["per_client", "shared"] {
        let desk = Desk::new();
        let file = desk.run_file("calm");
        let adapters = format!("split.server_adapters={adapters}");
        let common = [&["run", &file, "--format", "json", "--set", &adapters], &LENGTH[..]].concat();
        let calm = desk.ends(&common);
        calm.check(0, &["finished after 10 rounds"]);
        let wild = desk.ends(&[&common[..], &["--name", "wild", "--chaos", CHAOS]].concat());
        wild.check(0, &["chaos: killed server in round ", "chaos: started server again", "chaos: cut the network of client-", "finished"]);
        let (calm, wild) = (calm.json(), wild.json());
        for kind in ["server_kills", "client_kills", "cuts"] {
            assert!(wild["chaos"][kind].as_u64() > Some(0), "{kind}: {}", wild["chaos"]);
        }
        assert!(calm["chaos"].is_null(), "{}", calm["chaos"]);
        let losses = |run: &Value| run["rounds"].as_array().expect("rounds").iter().map(|round| round["loss"].clone()).collect::<Vec<_>>();
        assert_eq!(losses(&wild), losses(&calm));
        for part in ["adapter_model.safetensors", "adapter_config.json"] {
            let bytes = |run: &str| fs::read(desk.path("runs").join(run).join("adapter").join(part)).expect("an adapter");
            assert!(bytes("wild") == bytes("calm"), "{adapters}: another {part}");
        }
        let left = |run: &str| {
            let entries = fs::read_dir(desk.path("runs").join(run)).expect("a run folder");
            let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(left("wild"), left("calm"), "keys and states are removed");
        let parts = fs::read_dir(desk.path("runs/wild/adapter")).expect("an adapter").count();
        assert_eq!(parts, 2, "nothing half written stays beside the adapter");
    }
}

/// Goal: a slip in what shall go wrong is explained before anything is started. Method: an unknown word, and a run without processes.
#[test]
fn slips_in_chaos_are_explained() {
    let desk = Desk::new();
    let file = desk.run_file("slip");
    desk.ends(&["run", &file, "--chaos", "kil=1/2m"]).check(2, &["`kil=1/2m` is nothing that goes wrong here", "kill=server:1/1m"]);
    desk.ends(&["run", &file, "--chaos", "kill=1/2m", "--set", "split.mode=central"]).check(2, &["chaos is given", "one process"]);
    assert!(!desk.path("runs").exists());
}
