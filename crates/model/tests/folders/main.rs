//! Model and adapter folders on disk: what is read, what is refused, what is written and merged.

mod export;
mod folder;
mod merge;
mod peer;
mod peft;
mod support;
