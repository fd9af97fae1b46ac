//! A desk to work at: a folder of its own, and the binary as processes whose words end up in files there.
//!
//! It must never leave a process behind, nor wait without a bound.

use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for anything. A test takes seconds; a machine that also compiles may need more.
const WAIT: Duration = Duration::from_secs(100);
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What `netns.sh` exits with where it may not make namespaces.
pub const NO_NAMESPACES: i32 = 77;

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The shipped model.
pub fn model() -> String {
    root().join("models/quickstart").display().to_string()
}

/// A file of the shipped corpus.
pub fn corpus(file: &str) -> String {
    root().join("models/quickstart/corpus").join(file).display().to_string()
}

/// A folder, removed in the end.
pub struct Desk {
    folder: TempDir,
    started: AtomicU32,
}

impl Desk {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), started: AtomicU32::new(0) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a small run file of the name `NAME.toml`: two clients, two rounds, a second or two.
    pub fn run_file(&self, name: &str) -> String {
        let file = self.path(&format!("{name}.toml"));
        let text = format!(
            r#"
seed = 5
model = {{ path = "{model}" }}
split = {{ cut = 2 }}
train = {{ rounds = 2, local_steps = 4, sequences = 4, tokens_max = 96 }}
optimizer = {{ learning_rate = 5e-3 }}
clients = {{ count = 2 }}
[data]
source = {{ path = "{train}", prompt = "prompt", completion = "completion", records_max = 120 }}
held_out = {{ source = {{ path = "{held_out}", prompt = "prompt", completion = "completion", records_max = 40 }} }}
partition = "iid"
"#,
            model = model(),
            train = corpus("train.jsonl"),
            held_out = corpus("heldout.jsonl"),
        );
        fs::write(&file, text).expect("a run file");
        file.display().to_string()
    }

    /// Starts the binary, in this folder and a process group of its own, as a shell would.
    pub fn starts(&self, arguments: &[&str]) -> Process {
        self.starts_with(arguments, Stdio::null())
    }

    /// The same, with this text to read.
    pub fn starts_reading(&self, arguments: &[&str], text: &str) -> Process {
        let file = self.path(&format!("{}.in", self.started.load(Ordering::Relaxed)));
        fs::write(&file, text).expect("a file");
        self.starts_from(arguments, File::open(&file).expect("a file"))
    }

    /// The same, with this file to read.
    pub fn starts_from(&self, arguments: &[&str], file: File) -> Process {
        self.starts_with(arguments, file.into())
    }

    fn starts_with(&self, arguments: &[&str], stdin: Stdio) -> Process {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let (stdout, stderr) = (self.path(&format!("{number}.out")), self.path(&format!("{number}.err")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_cutlayer"));
        command.args(arguments).current_dir(self.folder.path()).env_remove("RUST_LOG").env_remove("CUTLAYER_KEYS");
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.stdin(stdin).stdout(File::create(&stdout).expect("a file")).stderr(File::create(&stderr).expect("a file"));
        let words = arguments.join(" ");
        Process { child: command.spawn().expect("the binary starts"), words, stdout, stderr }
    }

    /// Runs the binary to its end.
    pub fn ends(&self, arguments: &[&str]) -> Ended {
        self.starts(arguments).ends()
    }
}

/// A process that runs; killed when it is forgotten.
pub struct Process {
    child: Child,
    words: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// What it said so far on standard error.
    pub fn said(&self) -> String {
        read(&self.stderr)
    }

    /// Waits until it has said `words`; returns everything said.
    pub fn until_said(&mut self, words: &str) -> String {
        let (stderr, stdout) = (self.stderr.clone(), self.stdout.clone());
        let said = || Some(read(&stderr)).filter(|said| said.contains(words));
        let what = format!("`{words}` from `{}`", self.words);
        wait_for(&what, || said().or_else(|| self.has_ended().then(|| format!("{}{}", read(&stderr), read(&stdout)))))
    }

    /// Waits until that many bytes are on its standard output.
    pub fn until_printed(&self, bytes: u64) {
        let what = format!("{bytes} B from `{}`", self.words);
        wait_for(&what, || fs::metadata(&self.stdout).ok().filter(|about| about.len() >= bytes));
    }

    /// Ends it at once, as `kill -9` does.
    pub fn kill_9(mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// Sends a signal to it and its children, as a terminal does.
    pub fn signal_group(&self, signal: &str) {
        kill(&[signal, "--", &format!("-{}", self.child.id())]);
    }

    /// Waits for its end.
    pub fn ends(mut self) -> Ended {
        let what = format!("the end of `{}`", self.words);
        let status = wait_for(&what, || self.child.try_wait().expect("our own child"));
        Ended { words: self.words.clone(), code: status.code(), stdout: read(&self.stdout), stderr: read(&self.stderr) }
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that ended.
#[derive(Debug)]
pub struct Ended {
    pub words: String,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// The exit code, and sentences that standard error must hold.
    #[track_caller]
    pub fn check(&self, code: i32, sentences: &[&str]) {
        let Self { words, stdout, stderr, .. } = self;
        let told = format!("`{words}` ended with {:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}", self.code);
        assert_eq!(self.code, Some(code), "{told}");
        for sentence in sentences {
            assert!(stderr.contains(sentence), "no `{sentence}`: {told}");
        }
        assert!(!stderr.contains("panicked"), "{told}");
    }

    /// The one object on standard output.
    #[track_caller]
    pub fn json(&self) -> Value {
        let value: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert!(value.is_object(), "{value}");
        value
    }
}

/// Looks until there is something, within bounds.
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < WAIT, "waited {} s for {what}", WAIT.as_secs());
        std::thread::sleep(LOOK_EVERY);
    }
}

/// `kill` with these arguments.
pub fn kill(arguments: &[&str]) {
    let status = Command::new("kill").args(arguments).status().expect("kill");
    assert!(status.success(), "kill {arguments:?}");
}

/// A file that is being written may end within a letter.
fn read(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).expect("a file of ours")).into_owned()
}
