//! Why a node cannot start, or had to end.

use cutlayer_data::DataError;
use cutlayer_durable::CheckpointError;
use cutlayer_federation::{ConfigError, UnknownAggregator};
use cutlayer_model::encoding::TensorError;
use cutlayer_model::{AdapterError, DeviceError, FolderError, LoadError, PeftError, RowsError, StageError};
use cutlayer_transport::LinkError;
use cutlayer_wire::{AdapterFrameError, EncodingError, FailureCode, FrameError, MemoryError, PlanError, RefusalCode, SessionError, StepId};
use std::net::SocketAddr;
use std::path::PathBuf;

impl NodeError {
    /// Whether the way to the peer is lost, and connecting again can help.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self, Self::Link(error) if error.is_lost())
    }
}

/// A node that ended without finishing its job.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The model folder.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A file of the model folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// An adapter folder.
    #[error(transparent)]
    Peft(#[from] PeftError),
    /// The plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A batch.
    #[error(transparent)]
    Batch(#[from] RowsError),
    /// A step.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// A tensor from the peer.
    #[error("{step}: {source}")]
    Tensor {
        /// The step.
        step: StepId,
        /// What is wrong with it.
        source: TensorError,
    },
    /// An encoding that the model is too wide, too narrow or of the wrong width for.
    #[error("the run's encoding does not suit the model: {0}")]
    Encoding(#[from] EncodingError),
    /// An update from the peer, or one of ours that cannot be sent.
    #[error(transparent)]
    Update(#[from] AdapterFrameError),
    /// Samples that the two sides do not remember alike.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A frame from the peer.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The network.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The peer broke the order of the session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The rounds.
    #[error(transparent)]
    Rounds(#[from] ConfigError),
    /// No such aggregator.
    #[error(transparent)]
    Aggregator(#[from] UnknownAggregator),
    /// The server would not have this client.
    #[error("the server refused this client ({code:?}): {reason}")]
    Refused {
        /// Why, as a code.
        code: RefusalCode,
        /// Why, in words.
        reason: String,
    },
    /// The peer could not do a step.
    #[error("{step} failed on the server: {reason}")]
    StepFailed {
        /// The step.
        step: StepId,
        /// Why.
        reason: String,
    },
    /// A cut that the model does not have.
    #[error("cut {cut} with {tail} tail blocks does not fit a model of {blocks} blocks; cut + tail may be at most {blocks}")]
    Cut {
        /// The cut.
        cut: u16,
        /// Blocks at the end.
        tail: u16,
        /// The model's blocks.
        blocks: usize,
    },
    /// Task and model do not go together.
    #[error("{0}")]
    Task(String),
    /// A panic on a compute thread: a bug, or a device that failed.
    #[error("the compute thread panicked during {during}; see the message above, and please report it")]
    Panicked {
        /// The job.
        during: String,
    },
    /// No thread to be had.
    #[error("the compute thread did not start: {0}")]
    Thread(std::io::Error),
    /// Files of the run.
    #[error("cannot write {}: {source}; check the disk and its permissions", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Checkpoints.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A checkpoint that is of something else.
    #[error("{}: {reason}; give another folder with --state, or start anew without what is in it", folder.display())]
    OtherRun {
        /// The folder.
        folder: PathBuf,
        /// What differs.
        reason: String,
    },
    /// The server did not come back.
    #[error("the server at {addr} was gone for {waited_s} s ({reason}); start this client again with the same --state when it is back")]
    Gone {
        /// Where it was.
        addr: SocketAddr,
        /// How long it was waited for.
        waited_s: u64,
        /// How it was lost.
        reason: String,
    },
    /// A sequence that could not be generated, or not to its end.
    #[error("{reason}")]
    Generation {
        /// For programs.
        code: FailureCode,
        /// For people.
        reason: String,
    },
    /// The run ended before it was done.
    #[error("the run ended early: {reason}")]
    Ended {
        /// Why.
        reason: String,
    },
}
