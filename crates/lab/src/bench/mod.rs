//! Measurements of what cutlayer does on this machine. They run the program as people run it, and read what it tells.
//!
//! Nothing here computes a step: a number that came about in another way than in a run would say nothing about runs.

mod flops;
mod ground;
mod report;
mod shape;
mod split;
mod step;

pub use report::{StepReport, StepRow, step_table};
pub use shape::{SHAPES, write_shape};
pub use step::{BenchOptions, StepBench, Subject, bench_step};
