//! Adapters by name, laid out for the blocks that a side runs.

use crate::error::NodeError;
use cutlayer_model::{Frozen, LaidAdapter, PeftFolder};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

/// An adapter that requests can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedAdapter {
    /// Its name, the same on the device and on the server.
    pub name: String,
    /// Its PEFT folder: the whole adapter, or this side's layers of it.
    pub folder: PathBuf,
}

/// Reads each adapter's part of `blocks`.
pub(crate) fn lay(named: &[NamedAdapter], frozen: &Frozen, blocks: Range<usize>) -> Result<BTreeMap<String, LaidAdapter>, NodeError> {
    let mut laid = BTreeMap::new();
    for NamedAdapter { name, folder } in named {
        let (config, state) = PeftFolder::read(folder)?;
        let adapter = LaidAdapter::new(frozen, blocks.clone(), &config.lora, &state)?;
        if laid.insert(name.clone(), adapter).is_some() {
            return Err(NodeError::Task(format!("two adapters are called {name}; give each a name of its own")));
        }
    }
    Ok(laid)
}
