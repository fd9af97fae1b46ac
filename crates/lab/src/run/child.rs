//! A process of the run: its lines, its log, its end. Dies with this process, whatever kills that.
//!
//! A child is asked to stop by closing its standard input, which also happens by itself when this process is killed; one
//! that does not listen is killed when its handle is dropped. The only other signal is the one of [`Child::kill`].

use crate::error::LabError;
use crate::memory::peak_bytes;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

/// Lines of all children that may wait to be read; more, and the children wait.
pub(crate) const LINES_MAX: usize = 1024;

/// Last lines of a log shown when its process dies.
const TAIL_LINES: usize = 12;
/// Bytes read from the end of a log to find them.
const TAIL_BYTES: u64 = 16 << 10;

/// Which process of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// The server.
    Server,
    /// The client with this index.
    Client(u32),
}

impl Who {
    /// What its log, its keys and its state are called.
    pub fn process(self) -> String {
        match self {
            Self::Server => "server".into(),
            Self::Client(client) => format!("client-{client}"),
        }
    }
}

/// What a process says.
#[derive(Debug)]
pub(crate) enum Said {
    /// A line on its standard output.
    Line(String),
    /// It is gone.
    Exited(std::io::Result<ExitStatus>),
}

/// A running process.
pub(crate) struct Child {
    name: String,
    log: PathBuf,
    id: Option<u32>,
    stdin: Option<ChildStdin>,
    killed: Arc<Notify>,
    follower: JoinHandle<()>,
}

impl Child {
    /// Starts `program`; what it says arrives at `said`, its standard error goes to the end of `log`.
    pub fn spawn(
        (who, name): (Who, String),
        program: &Path,
        arguments: &[OsString],
        log: PathBuf,
        said: mpsc::Sender<(Who, Said)>,
    ) -> Result<Self, LabError> {
        let stderr = File::options().create(true).append(true).open(&log).map_err(LabError::write(&log))?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).kill_on_drop(true);
        let mut process = command.spawn().map_err(|source| LabError::Spawn { name: name.clone(), source })?;
        let (id, stdin) = (process.id(), process.stdin.take());
        let mut lines = BufReader::new(process.stdout.take().expect("it was asked for a pipe")).lines();
        let killed = Arc::new(Notify::new());
        let asked = killed.clone();
        let follower = tokio::spawn(async move {
            tokio::select! {
                () = forward_lines(who, &mut lines, &said) => {}
                () = asked.notified() => {
                    // One that is gone cannot be killed; its status says how it went. What it said before still counts.
                    let _ = process.start_kill();
                    forward_lines(who, &mut lines, &said).await;
                }
            }
            // The run may have ended without waiting.
            let _ = said.send((who, Said::Exited(process.wait().await))).await;
        });
        Ok(Self { name, log, id, stdin, killed, follower })
    }

    /// Kills it at once, as `kill -9` does; that it is gone is said like any other end.
    pub fn kill(&self) {
        self.killed.notify_one();
    }

    /// Asks it to end with what it has.
    pub fn ask_to_stop(&mut self) {
        self.stdin = None;
    }

    /// The most memory it has held so far, where the system says.
    pub fn peak_bytes(&self) -> Option<u64> {
        self.id.and_then(|id| peak_bytes(Some(id)))
    }

    /// The error that says how it died.
    pub fn death(&self, status: &std::io::Result<ExitStatus>) -> LabError {
        let (words, code) = match status {
            Ok(status) => (status.to_string(), status.code()),
            Err(error) => (error.to_string(), None),
        };
        LabError::Died { name: self.name.clone(), status: words, code, log: self.log.clone(), tail: self.log_tail() }
    }

    /// The error that says what it did not do in time.
    pub fn silence(&self, what: &'static str, waited_s: u64) -> LabError {
        LabError::Silent { name: self.name.clone(), what, waited_s, log: self.log.clone(), tail: self.log_tail() }
    }

    /// The last lines of its log.
    fn log_tail(&self) -> String {
        read_tail(&self.log).unwrap_or_default()
    }
}

/// Dropping the follower drops the process, and that kills it.
impl Drop for Child {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

async fn forward_lines(who: Who, lines: &mut Lines<BufReader<ChildStdout>>, said: &mpsc::Sender<(Who, Said)>) {
    while let Ok(Some(line)) = lines.next_line().await {
        if said.send((who, Said::Line(line))).await.is_err() {
            return;
        }
    }
}

fn read_tail(log: &Path) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    let bytes = file.metadata()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    let text = String::from_utf8_lossy(&tail);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::time::Duration;

    fn shell(script: &str, log: &Path) -> (Child, mpsc::Receiver<(Who, Said)>) {
        let (said, heard) = mpsc::channel(LINES_MAX);
        let arguments = ["-c".into(), script.into()];
        let named = (Who::Client(3), "client-3".to_owned());
        (Child::spawn(named, Path::new("/bin/sh"), &arguments, log.into(), said).expect("a shell"), heard)
    }

    async fn next(heard: &mut mpsc::Receiver<(Who, Said)>) -> Said {
        let waited = tokio::time::timeout(Duration::from_secs(20), heard.recv()).await;
        waited.expect("it says something in time").expect("it says something").1
    }

    /// Goal: lines arrive, and a death says how and shows the log. Method: a shell that says one thing and fails.
    #[tokio::test]
    async fn a_death_is_explained() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (child, mut heard) = shell("echo hello; echo the reason >&2; exit 3", &folder.path().join("log"));
        assert!(matches!(next(&mut heard).await, Said::Line(line) if line == "hello"));
        let Said::Exited(status) = next(&mut heard).await else { panic!("it exits") };
        let error = child.death(&status).to_string();
        assert!(error.contains("client-3") && error.contains("the reason") && error.contains("log"), "{error}");
    }

    /// Goal: a child is asked to stop without a signal. Method: one that waits for its input to end.
    #[tokio::test]
    async fn closing_its_input_asks_it_to_stop() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut child, mut heard) = shell("cat >/dev/null; echo stopped", &folder.path().join("log"));
        child.ask_to_stop();
        assert!(matches!(next(&mut heard).await, Said::Line(line) if line == "stopped"));
    }

    /// Goal: a killed child cannot resist, and what it said before is heard. Method: one that ignores what can be ignored.
    #[tokio::test]
    async fn a_killed_child_is_heard_out() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (child, mut heard) = shell("trap '' TERM INT HUP; echo last words; exec sleep 600", &folder.path().join("log"));
        assert!(matches!(next(&mut heard).await, Said::Line(line) if line == "last words"));
        child.kill();
        let Said::Exited(Ok(status)) = next(&mut heard).await else { panic!("it exits") };
        assert_eq!(status.code(), None, "ended by a signal");
    }

    /// Goal: no process outlives its handle. Method: drop one that would sleep on, and look for it.
    #[tokio::test]
    async fn a_dropped_child_is_killed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (child, mut heard) = shell("echo $$; exec sleep 600", &folder.path().join("log"));
        let Said::Line(id) = next(&mut heard).await else { panic!("it says its id") };
        drop(child);
        for _ in 0..200 {
            let state = std::fs::read_to_string(format!("/proc/{}/stat", id.trim()));
            if !state.is_ok_and(|state| !state.contains(") Z ")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("process {id} is still there");
    }
}
