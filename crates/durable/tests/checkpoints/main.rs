//! Goal: the last good checkpoint is found again after whatever happens to a process or a disk, and nothing else is taken for it.
//!
//! Method: `store` harms a folder in every way; `processes` shares, kills and starves those who write to it.

#[cfg(unix)]
mod processes;
mod store;
mod support;
