//! Goal: the program does for a person what it says. Method: the real binary as real processes over real files, on the
//! shipped model; what a person reads and the exit code are asserted, never internals.
//!
//! It must need no network beyond loopback, and leave nothing behind.

#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/chaos.rs"]
mod chaos;
#[path = "cli/endpoint.rs"]
mod endpoint;
#[path = "cli/generate.rs"]
mod generate;
#[path = "cli/harness.rs"]
mod harness;
#[path = "cli/keys.rs"]
mod keys;
#[path = "cli/link.rs"]
mod link;
#[path = "cli/offload.rs"]
mod offload;
#[path = "cli/refusals.rs"]
mod refusals;
#[path = "cli/runs.rs"]
mod runs;

use harness::{Desk, NO_NAMESPACES, model, root};
use std::process::Command;

/// Goal: a healthy machine is called healthy, and an ill one is not. Method: the shipped model, then a folder that is not there.
#[test]
fn doctor_tells_the_healthy_from_the_ill() {
    let desk = Desk::new();
    let healthy = desk.ends(&["doctor", "--format", "json", "--model", &model()]);
    healthy.check(0, &["OK    QUIC on loopback", "OK    model:", "llama of 6 blocks"]);
    assert_eq!(healthy.json()["healthy"], true);
    let ill = desk.ends(&["doctor", "--model", "/nowhere"]);
    assert_eq!(ill.code, Some(3), "{ill:?}");
    assert!(ill.stdout.contains("FAIL  model: there is no model folder at /nowhere; fetch one with `cutlayer pull ORG/NAME`"), "{ill:?}");
}

/// Goal: shells can complete every command. Method: the script for bash, read by bash where there is one.
#[test]
fn completions_are_a_script() {
    let desk = Desk::new();
    let script = desk.ends(&["completions", "bash"]);
    script.check(0, &[]);
    for word in ["_cutlayer()", "serve", "--server-id", "revoke"] {
        assert!(script.stdout.contains(word), "{word}");
    }
    let file = desk.path("cutlayer.bash");
    std::fs::write(&file, &script.stdout).expect("a script");
    if let Ok(status) = Command::new("bash").arg("-n").arg(&file).status() {
        assert!(status.success(), "bash does not read it");
    }
}

/// Goal: the exit codes are documented by the program itself. Method: its table, for people and for programs.
#[test]
fn exit_codes_are_documented() {
    let table = Desk::new().ends(&["exit-codes", "--format", "json"]);
    for code in ["0", "2", "3", "4", "5", "6", "130"] {
        assert!(table.json().get(code).is_some(), "{code}: {table:?}");
    }
}

/// Goal: a run spans machines. Method: two network namespaces and a veth pair, by `tests/netns.sh`; needs root.
#[test]
fn a_run_spans_two_network_namespaces() {
    if !cfg!(target_os = "linux") {
        eprintln!("SKIPPED: network namespaces are Linux's");
        return;
    }
    let script = root().join("tests/netns.sh");
    let output = Command::new("bash").arg(&script).arg(env!("CARGO_BIN_EXE_cutlayer")).output().expect("bash");
    let (said, complaints) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(NO_NAMESPACES) {
        eprintln!("SKIPPED: {} {}", said.trim(), complaints.trim());
        return;
    }
    assert!(output.status.success(), "{said}\n{complaints}");
    eprintln!("{said}");
}
