//! `runs/NAME/`: everything a run leaves behind. Never overwrites an earlier run.

use crate::config::RunConfig;
use crate::error::LabError;
use cutlayer_durable::write_durably;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The run file with every default written out and every path absolute; `cutlayer run` takes it again.
pub const RESOLVED_FILE: &str = "resolved.toml";
/// Versions, machine, seeds and fingerprints.
pub const MANIFEST_FILE: &str = "manifest.json";
/// One event a line.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// The table at the end, for programs.
pub const SUMMARY_FILE: &str = "summary.json";
/// One log for each process.
pub const LOGS_FOLDER: &str = "logs";
/// The last global adapter, as a PEFT folder.
pub const ADAPTER_FOLDER: &str = "adapter";
/// The processes' keys; removed when the run ends.
pub const KEYS_FOLDER: &str = "keys";

/// What processes keep to start again from; removed when the run ended well.
pub const STATE_FOLDER: &str = "state";

/// Numbered successors tried before giving up.
const FOLDERS_MAX: u32 = 9999;

/// The folder of one run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Makes `runs/NAME`, or `runs/NAME-2` and so on where that exists.
    pub fn create(runs: &Path, name: &str) -> Result<Self, LabError> {
        fs::create_dir_all(runs).map_err(LabError::write(runs))?;
        let runs = std::path::absolute(runs).map_err(LabError::write(runs))?;
        for number in 1..=FOLDERS_MAX {
            let path = runs.join(if number == 1 { name.to_owned() } else { format!("{name}-{number}") });
            // Making it and looking whether it is there are one call, so that two runs at once get two folders.
            match fs::create_dir(&path) {
                Ok(()) => {
                    let logs = path.join(LOGS_FOLDER);
                    fs::create_dir(&logs).map_err(LabError::write(&logs))?;
                    return Ok(Self { path });
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(LabError::write(&path)(error)),
            }
        }
        Err(LabError::FolderTaken { folder: runs.join(name), tried: FOLDERS_MAX })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved run file.
    pub fn resolved(&self) -> PathBuf {
        self.path.join(RESOLVED_FILE)
    }

    /// The last global adapter.
    pub fn adapter(&self) -> PathBuf {
        self.path.join(ADAPTER_FOLDER)
    }

    /// The log of a process.
    pub fn log(&self, process: &str) -> PathBuf {
        self.path.join(LOGS_FOLDER).join(format!("{process}.log"))
    }

    /// The keys of a process.
    pub fn keys(&self, process: &str) -> PathBuf {
        self.path.join(KEYS_FOLDER).join(process)
    }

    /// What a process keeps to start again from.
    pub fn state(&self, process: &str) -> PathBuf {
        self.path.join(STATE_FOLDER).join(process)
    }

    /// Saves the run file.
    pub fn save_config(&self, config: &RunConfig) -> Result<(), LabError> {
        let path = self.resolved();
        write_durably(&path, config.to_toml()?.as_bytes()).map_err(LabError::write(&path))
    }

    /// Saves a value as indented JSON.
    pub fn save_json(&self, file: &str, value: &impl Serialize) -> Result<(), LabError> {
        let path = self.path.join(file);
        let text = serde_json::to_string_pretty(value).expect("our own values have string keys") + "\n";
        write_durably(&path, text.as_bytes()).map_err(LabError::write(&path))
    }

    /// Opens `metrics.jsonl`.
    pub(crate) fn metrics(&self) -> Result<MetricsFile, LabError> {
        let path = self.path.join(METRICS_FILE);
        let file = File::create_new(&path).map_err(LabError::write(&path))?;
        Ok(MetricsFile { path, file: BufWriter::new(file) })
    }

    /// Forgets the keys: they were this run's alone, and the folder may be passed on.
    pub(crate) fn remove_keys(&self) {
        self.remove(KEYS_FOLDER, "it holds this run's private keys");
    }

    /// Clears what processes kept to start again from: the run is over.
    pub(crate) fn remove_state(&self) {
        self.remove(STATE_FOLDER, "nobody needs it any more");
    }

    fn remove(&self, part: &str, why: &str) {
        let folder = self.path.join(part);
        if let Err(error) = fs::remove_dir_all(&folder)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {error}; {why}", folder.display());
        }
    }
}

/// `metrics.jsonl`, being written.
pub(crate) struct MetricsFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl MetricsFile {
    /// Appends one line and hands it to the system, so that a killed run leaves whole lines.
    pub fn append(&mut self, value: &impl Serialize) -> Result<(), LabError> {
        let line = serde_json::to_string(value).expect("our own values have string keys");
        let written = writeln!(self.file, "{line}").and_then(|()| self.file.flush());
        written.map_err(LabError::write(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: no run is ever overwritten. Method: the same name three times.
    #[test]
    fn a_name_taken_gets_a_number() {
        let runs = tempfile::tempdir().expect("a temporary folder");
        for expected in ["sea", "sea-2", "sea-3"] {
            let folder = RunFolder::create(runs.path(), "sea").expect("created");
            assert_eq!(folder.path().file_name(), Some(expected.as_ref()));
            assert!(folder.path().join(LOGS_FOLDER).is_dir());
        }
    }

    /// Goal: every line of the metrics is whole when it is there. Method: read beside the writer.
    #[test]
    fn metrics_are_lines() {
        let runs = tempfile::tempdir().expect("a temporary folder");
        let folder = RunFolder::create(runs.path(), "sea").expect("created");
        let mut metrics = folder.metrics().expect("created");
        metrics.append(&serde_json::json!({"a": 1})).expect("written");
        metrics.append(&serde_json::json!({"a": 2})).expect("written");
        assert_eq!(fs::read_to_string(folder.path().join(METRICS_FILE)).expect("read"), "{\"a\":1}\n{\"a\":2}\n");
    }
}
