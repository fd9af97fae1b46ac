//! What two cutlayer peers say to each other: ids, messages, frames, their bounds and their order.
//!
//! Pure data and pure state machines. This crate must never open a socket, read a clock or a file,
//! or name a tensor library: bytes come in as arguments and go out as values.

#![forbid(unsafe_code)]

mod adapter_error;
mod adapter_frame;
mod adapter_memory;
mod adapter_values;
mod choice;
mod codec;
mod encoding;
mod frame;
mod frame_error;
mod frame_header;
mod frame_limits;
mod generate;
mod ids;
mod memory;
mod message;
mod plan;
mod plan_parts;
mod record;
mod record_body;
mod record_error;
mod session;
mod tensor;

pub use adapter_error::AdapterFrameError;
pub use adapter_frame::{ADAPTER_HEADER_BYTES, ADAPTER_PAYLOAD_BYTES_MAX, AdapterFrame, AdapterHeader, AdapterLimits, MANIFEST_BYTES_MAX};
pub use adapter_memory::{GlobalReceiver, GlobalSender};
pub use adapter_values::ADAPTER_COLUMNS;
pub use choice::{Choice, LinkFacts, StepFacts, choose};
pub use codec::{CONTROL_BYTES_MAX, CONTROL_PREFIX_BYTES, CodecError, decode, encode};
pub use encoding::{Carried, DevicePart, Encoding, EncodingError, EncodingPart, rounding_seed};
pub use frame::{Frame, REASON_BYTES_MAX, shorten_reason};
pub use frame_error::{Bound, FrameError, LABEL_IGNORED};
pub use frame_header::{FRAME_HEADER_BYTES, FrameFlags, FrameHeader, FrameKind};
pub use frame_limits::{BodyPlan, FRAME_BYTES_MAX, FrameLimits};
pub use generate::{
    DeviceRecord, Drawn, FailureCode, LOGIT_BIASES_MAX, Open, PAGE_TOKENS, PREFIX_PAGES_MAX, PageDigest, RECORD_HEADER_BYTES,
    RECORD_ROWS_MAX, RecordLimits, RowsRecord, SamplingSpec, ServerRecord, TOP_LOGPROBS_MAX, Wanted,
};
pub use ids::{BaseHash, CutPoint, IdError, MICRO_BATCHES_MAX, PeerId, RoundId, STEPS_MAX, StepId};
pub use memory::{DifferenceReceiver, DifferenceSender, Differences, Feedback, MemoryBound, MemoryError, Sample};
pub use message::{
    ADAPTERS_MAX, Ask, ENCODINGS_MAX, EvalSums, Message, MessageError, NAME_BYTES_MAX, PROTOCOL_VERSION, RefusalCode, Resume, RunId,
};
pub use plan::{BatchSpec, Layout, Pipeline, Plan, ServerAdapters, StepOrder, Task, Weighting};
pub use plan_parts::{LoraSpec, OptimizerKind, OptimizerSpec, PlanError, Schedule};
pub use record::{POSITIONS_MAX, RECORD_DIGESTS_MAX, RecordHeader, RecordKind};
pub use record_body::Record;
pub use record_error::RecordError;
pub use session::{ClientSession, Phase, ServerSession, SessionError, SessionEvent};
pub use tensor::{AdapterState, HostTensor, ShapeError};
