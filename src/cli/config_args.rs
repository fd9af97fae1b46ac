//! A run file, the flags that stand for its keys, and `--set` for all others.

use clap::Args;
use cutlayer_lab::{ConfigError, RunConfig};
use cutlayer_model::DeviceChoice;
use std::path::{Path, PathBuf};

/// A run as the command line describes it.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConfigArgs {
    /// Run file (TOML); without one, the defaults and the flags
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Set a key of the run file, such as optimizer.learning_rate=3e-4; its paths are relative to the run file
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Model folder as Hugging Face lays it out [key: model.path]
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Where to compute: cpu, wgpu[:n], cuda[:n] or auto [keys: clients.device, server.device]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
}

impl ConfigArgs {
    /// Reads the run file; flags count after it, `--set` after flags.
    pub fn load(&self, flags: &[String]) -> Result<RunConfig, ConfigError> {
        let mut changes = Vec::new();
        changes.extend(self.model.as_deref().map(|path| set_path("model.path", path)));
        for key in ["clients.device", "server.device"] {
            changes.extend(self.device.map(|device| set(key, device)));
        }
        changes.extend_from_slice(flags);
        changes.extend(self.set.iter().cloned());
        match &self.file {
            Some(file) => RunConfig::load(file, &changes),
            None => RunConfig::from_overrides(&changes),
        }
    }
}

/// The override that gives `key` a value.
pub(crate) fn set(key: &str, value: impl std::fmt::Display) -> String {
    format!("{key}={value}")
}

/// The override that gives `key` a path, which on the command line is relative to the current folder.
pub(crate) fn set_path(key: &str, path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
    format!("{key}={}", toml::Value::String(absolute.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a path with any letter in it survives. Method: quotes, spaces and an equals sign.
    #[test]
    fn paths_are_quoted() {
        let config = RunConfig::from_overrides(&[set_path("model.path", Path::new("/a \"b\" = c"))]).expect("a run");
        assert_eq!(config.model.path.as_deref(), Some(Path::new("/a \"b\" = c")));
    }
}
