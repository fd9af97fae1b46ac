//! Experiments: run files, the launcher that carries one out on this machine, and the records it leaves.
//!
//! Turns a [`RunConfig`] into what `node` takes and keeps what `node` tells. Trains nothing itself, and opens no
//! socket: emulated links are `transport`'s, and live as long as their run.

#![forbid(unsafe_code)]

mod bench;
mod config;
mod error;
mod folder;
mod manifest;
mod memory;
mod run;
mod settings;
mod shares;
mod threads;

pub use bench::{
    BatchBench, BatchReport, BenchOptions, DraftRow, GenerateBench, GenerateFound, GenerateReport, GenerateWhat, MemoryFound, MemoryRow,
    PrefixRow, SHAPES, SessionsRow, SplitRow, StepBench, StepReport, StepRow, Subject, UncutFound, batch_table, bench_batch,
    bench_generate, bench_step, generate_table, step_table, write_shape,
};
pub use config::{
    AdapterSection, CLIENTS_MAX, Chaos, ChaosError, ClientSection, ClientsSection, ConfigError, Cuts, DATA_VARIABLE, LinkSection,
    MishapKind, MishapRate, Mode, ModelSection, OptimizerName, OptimizerSection, PipelineMode, RunConfig, ServerSection, SplitSection,
    TaskName, TrainSection, Victims, data_folder,
};
pub use error::LabError;
pub use folder::{
    ADAPTER_FOLDER, KEYS_FOLDER, LOGS_FOLDER, MANIFEST_FILE, METRICS_FILE, RESOLVED_FILE, RunFolder, STATE_FOLDER, SUMMARY_FILE,
};
pub use manifest::{DataFile, EmulatedLink, GitState, Machine, Manifest};
pub use run::{ChaosCounts, ClientRow, RoundRow, RunOptions, Show, Summary, describe, run, tables};
pub use shares::{client_data, data_of_client, held_out, resolve_labels};
pub use threads::Threads;
