//! Measurements of what cutlayer does on this machine. They run the program as people run it, and read what it tells.
//!
//! Only `batch` computes steps itself, by the calls that the server makes: sixteen clients on this machine would leave it little to measure.

mod batch;
mod flops;
mod generate;
mod ground;
mod report;
mod shape;
mod split;
mod step;

pub use batch::{BatchBench, BatchReport, batch_table, bench_batch};
pub use generate::{
    DraftRow, GenerateBench, GenerateFound, GenerateReport, GenerateWhat, MemoryFound, MemoryRow, PrefixRow, SessionsRow, SplitRow,
    UncutFound, bench_generate, generate_table,
};
pub use report::{StepReport, StepRow, step_table};
pub use shape::{SHAPES, write_shape};
pub use step::{BenchOptions, StepBench, Subject, bench_step};
