//! A whole experiment on this machine: a server process, a process for each client, and what they leave in a folder.

mod central;
mod chaos;
mod child;
mod launch;
mod links;
mod progress;
mod summary;
mod table;
mod words;

pub use chaos::ChaosCounts;
pub use progress::Show;
pub use summary::{ClientRow, RoundRow, Summary};
pub use table::tables;
pub(crate) use table::{bytes, table};
pub use words::describe;

use crate::config::{Mode, RunConfig};
use crate::error::LabError;
use crate::folder::{MANIFEST_FILE, MetricsFile, RunFolder, SUMMARY_FILE};
use crate::manifest::Manifest;
use crate::shares::{client_data, resolve_labels};
use crate::threads::Threads;
use chaos::ChaosLine;
use child::Who;
use cutlayer_node::{Event, Stop};
use links::LinkLine;
use progress::Progress;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;
use summary::Tally;

/// How an experiment is run, as opposed to what it is.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The `cutlayer` binary that children are started from.
    pub program: PathBuf,
    /// The folder that gets the run's folder.
    pub runs: PathBuf,
    /// What a person sees.
    pub show: Show,
    /// Whether each step tells its phases; on a GPU that costs the time to wait for it at each.
    pub phases: bool,
    /// Cores that the run's processes share ([`Threads`]).
    pub cores: usize,
}

/// Runs the experiment. `stop` ends it with what it has.
pub async fn run(mut config: RunConfig, options: &RunOptions, stop: &Stop) -> Result<Summary, LabError> {
    // What can be found wrong now is, before any folder is made or process started.
    resolve_labels(&mut config)?;
    config.plan()?;
    cutlayer_model::ModelFolder::open(&config.model_path()?).map_err(cutlayer_node::NodeError::from)?;
    let data = client_data(&config)?;
    let folder = RunFolder::create(&options.runs, &config.name)?;
    folder.save_config(&config)?;
    let name = folder_name(folder.path());
    folder.save_json(MANIFEST_FILE, &Manifest::of(&config, &name, Threads::of(&config, options.cores)))?;
    let mut record = Record::new(&folder, Progress::new(options.show, &config))?;
    if name != config.name {
        record.progress.note(&format!("the folder {} was taken; this run is {name}", config.name));
    }
    let outcome = match config.split.mode {
        Mode::Central => central::run(&config, options, data, &folder, &mut record, stop).await,
        Mode::Split => {
            drop(data);
            launch::run(&config, options, &folder, &mut record, stop).await
        }
    };
    record.progress.finish();
    folder.remove_keys();
    if outcome.is_ok() {
        folder.remove_state();
    }
    let summary = record.summary(&folder, name, stop);
    folder.save_json(SUMMARY_FILE, &summary)?;
    outcome.map(|()| summary)
}

fn folder_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What is kept and shown of a run while it goes on.
struct Record {
    started: Instant,
    metrics: MetricsFile,
    tally: Tally,
    progress: Progress,
}

/// One line of `metrics.jsonl`.
#[derive(Serialize)]
struct MetricsLine<'a> {
    /// Seconds since the run started.
    at_s: f64,
    /// The process that told.
    from: &'a str,
    #[serde(flatten)]
    event: &'a Event,
}

/// One more, of what `run` does to the run itself.
#[derive(Serialize)]
struct OwnLine<'a, T> {
    at_s: f64,
    from: &'static str,
    #[serde(flatten)]
    line: &'a T,
}

impl Record {
    fn new(folder: &RunFolder, progress: Progress) -> Result<Self, LabError> {
        Ok(Self { started: Instant::now(), metrics: folder.metrics()?, tally: Tally::default(), progress })
    }

    fn event(&mut self, who: Who, from: &str, event: &Event) -> Result<(), LabError> {
        self.metrics.append(&MetricsLine { at_s: self.started.elapsed().as_secs_f64(), from, event })?;
        self.tally.add(who, event);
        self.progress.event(who, event, &self.tally);
        Ok(())
    }

    /// Writes down the emulated link of a client, as it starts and as it ends.
    fn link(&mut self, line: &LinkLine) -> Result<(), LabError> {
        self.metrics.append(&OwnLine { at_s: self.started.elapsed().as_secs_f64(), from: "links", line })
    }

    /// Writes down what went wrong on purpose, and says it.
    fn chaos(&mut self, line: &ChaosLine) -> Result<(), LabError> {
        self.progress.note(&line.to_string());
        self.metrics.append(&OwnLine { at_s: self.started.elapsed().as_secs_f64(), from: "chaos", line })
    }

    fn summary(&self, folder: &RunFolder, name: String, stop: &Stop) -> Summary {
        let adapter = folder.adapter();
        Summary {
            name,
            folder: folder.path().into(),
            adapter: adapter.is_dir().then_some(adapter),
            interrupted: stop.is_triggered(),
            seconds: self.started.elapsed().as_secs_f64(),
            ..self.tally.summary()
        }
    }
}
