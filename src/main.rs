//! The `cutlayer` command: arguments to a run file, a run file to `node` or `lab`. Decides nothing else.

// Denied rather than forbidden: the allocator has one setting, and it is reached through C.
#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "one option of the allocator is set through its C interface")]
mod allocator;
mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    allocator::keep_pages();
    cli::main()
}
