//! Several processes and one folder: one owner at a time, `kill -9` at any moment, a disk that is full.
//!
//! Method: this program starts itself, as a test that does something only when told to by the environment.

use crate::support::{Words, names, sized, temporaries};
use cutlayer_durable::{CheckpointError, Store};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Says what the child is to do, and where.
const JOB: &str = "CUTLAYER_TEST_JOB";
const FOLDER: &str = "CUTLAYER_TEST_FOLDER";
/// Values in a checkpoint, 4 MB: enough for a kill to fall inside a write.
const VALUES: usize = 1_000_000;
/// Kills in a row.
const KILLS: u64 = 25;

/// The child's part; in the parent's run of all tests there is nothing to do.
#[test]
fn child() {
    let (Ok(job), Ok(folder)) = (std::env::var(JOB), std::env::var(FOLDER)) else { return };
    let store = Store::open(Path::new(&folder)).expect("the folder is free");
    match job.as_str() {
        "hold" => {
            println!("\nheld");
            std::io::stdin().read_to_end(&mut Vec::new()).expect("the parent closes it");
        }
        "save" => {
            let next = store.newest::<Words>("server", |_| true).expect("one is whole").map_or(1, |(number, _)| number + 1);
            for number in next.. {
                store.save("server", number, &sized(number, VALUES)).expect("written");
                println!("\nkept {number}");
            }
        }
        "overflow" => {
            store.save("server", 1, &sized(1, 100)).expect("this much fits");
            let error = store.save("server", 2, &sized(2, VALUES)).expect_err("this much does not");
            println!("\nrefused {error}");
        }
        other => panic!("no job is called {other}"),
    }
}

/// This program, as the test above, through a shell that may first limit it.
fn start(job: &str, folder: &Path, before: &str) -> Child {
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(format!("{before} exec \"$0\" \"$@\"")).arg(program).args([
        "--exact",
        "processes::child",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.env(JOB, job).env(FOLDER, folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().expect("a shell")
}

/// The next line of the child that starts so, without that start.
fn heard(out: &mut impl BufRead, start: &str) -> String {
    out.lines().map(|line| line.expect("text")).find_map(|line| line.strip_prefix(start).map(str::to_owned)).expect("the child says so")
}

fn output(child: &mut Child) -> BufReader<std::process::ChildStdout> {
    BufReader::new(child.stdout.take().expect("it was asked for a pipe"))
}

/// Goal: a folder has one owner. Method: open what another process holds, then again when that was killed.
#[test]
fn a_folder_has_one_owner() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut holder = start("hold", folder.path(), "");
    heard(&mut output(&mut holder), "held");
    let error = Store::open(folder.path()).expect_err("it is held");
    assert!(matches!(&error, CheckpointError::InUse { folder: named } if named == folder.path()), "{error}");
    holder.kill().and_then(|()| holder.wait()).expect("ended");
    let store = Store::open(folder.path()).expect("its owner is dead");
    assert!(matches!(Store::open(folder.path()), Err(CheckpointError::InUse { .. })), "and held again, within one process too");
    drop(store);
    Store::open(folder.path()).expect("free");
}

/// Goal: what was reported kept survives `kill -9`. Method: kill a process that saves without end, after a report or when a file is
/// seen half written; the newest is whole, and at least the last one reported. Then the next goes on from it.
#[test]
fn a_killed_process_loses_nothing_that_it_reported() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut interrupted = 0;
    for kill in 0..KILLS {
        let mut saver = start("save", folder.path(), "");
        let mut out = output(&mut saver);
        let mut reported: u64 = 0;
        for _ in 0..=kill % 3 {
            reported = heard(&mut out, "kept ").parse().expect("a number");
        }
        while kill % 2 == 0 && temporaries(folder.path()) == 0 {
            std::thread::yield_now();
        }
        saver.kill().and_then(|()| saver.wait()).expect("ended");
        // What it still said before it died was reported too.
        let rest = out.lines().map(|line| line.expect("text")).filter_map(|line| line.strip_prefix("kept ")?.parse().ok());
        reported = rest.last().unwrap_or(reported);
        interrupted += temporaries(folder.path());
        let store = Store::open(folder.path()).expect("its owner is dead");
        let (number, saved) = store.newest::<Words>("server", |_| true).expect("one is whole").expect("one was reported");
        assert!(number == reported || number == reported + 1, "reported {reported}, found {number}");
        assert_eq!(saved, sized(number, VALUES));
        assert_eq!(temporaries(folder.path()), 0, "swept");
    }
    assert!(interrupted > 0, "not one of {KILLS} kills fell inside a write");
}

/// Goal: a full disk harms nothing. Method: a process that may write no file beyond 16 kB, which to it is the same: its write
/// fails midway. The error names the file, nothing half written stays, and the one before it is whole.
#[test]
fn a_full_disk_leaves_the_last_good_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // 32 blocks of 512 B; without the trap, the system would kill it instead.
    let mut full = start("overflow", folder.path(), "trap '' XFSZ; ulimit -f 32;");
    let mut out = output(&mut full);
    let error = heard(&mut out, "refused ");
    assert!(full.wait().expect("ended").success());
    assert!(error.contains("server.2.safetensors") && error.contains("make room"), "{error}");
    assert_eq!(names(folder.path()), [".lock", "server.1.safetensors"]);
    let store = Store::open(folder.path()).expect("free");
    assert_eq!(store.newest::<Words>("server", |_| true).expect("whole"), Some((1, sized(1, 100))));
}
