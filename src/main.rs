//! The `cutlayer` command: arguments to a run file, a run file to `node` or `lab`. Decides nothing else.

#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

/// Large tensors come and go at every step: an allocator that keeps its pages is worth a third of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
