//! How one side computes: its own choice, of which the other side learns nothing.

use crate::error::NodeError;
use cutlayer_model::{Device, DeviceChoice, Frozen, ModelFolder, Parts, Precision};
use std::sync::Arc;

/// Where and how a side runs its layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ComputeConfig {
    /// Where.
    pub device: DeviceChoice,
    /// What the frozen layers are held and multiplied in.
    pub precision: Precision,
    /// Whether a block keeps only its input and is run again on the way back, to save memory.
    pub checkpointing: bool,
}

impl ComputeConfig {
    /// Reads `parts` of the model onto `device`, which was opened from this.
    pub(crate) fn load(&self, folder: &ModelFolder, parts: &Parts, labels: usize, device: &Device) -> Result<Arc<Frozen>, NodeError> {
        Ok(Arc::new(Frozen::load_as(self.precision, folder, parts, labels, device)?))
    }
}
