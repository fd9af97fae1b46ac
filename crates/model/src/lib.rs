//! Transformer stages, LoRA adapters and their optimizers, on burn: the only crate that names it.
//!
//! A [`ModelFolder`] is described by a [`spec::ModelSpec`]; [`Frozen`] holds the layers that one side runs; a [`Stage`] is a
//! run of layers with an adapter, and computes one side of the split step. This crate knows no socket and no clock.

#![allow(clippy::large_enum_variant, reason = "a tensor handle is some 200 bytes, and a model has a few hundred of these enums")]

mod arch;
mod batch;
mod block;
mod bound;
mod decoder;
mod device;
pub mod encoding;
mod export;
mod fingerprint;
mod folder;
mod frozen;
mod head;
mod json_file;
mod logits_file;
pub mod lora;
mod merge;
mod merge_plan;
mod moments;
mod ops;
pub mod optimizer;
mod peft;
mod peft_config;
mod precision;
mod pretrain;
mod rows;
pub mod spec;
mod stage;
mod tensor_file;
mod tokenizer_ids;

pub use arch::{ConfigError, FAMILIES};
pub use batch::{Joint, losses, tape_bytes};
pub use burn::tensor::{Device, Tensor, TensorData};
pub use decoder::{DecodeError, Decoder, Entering, Feed, LaidAdapter, page_bytes, rows_are_exact};
pub use device::{DeviceChoice, DeviceError, gemm_gflops};
pub use export::{ExportDtype, ExportError, write_model};
pub use folder::{FolderError, ModelFolder};
pub use frozen::{Frozen, LoadError, Parts, read_spec};
pub use head::IGNORED;
pub use json_file::JsonFileError;
pub use logits_file::write_logits;
pub use lora::{Adapter, AdapterError};
pub use merge::{MergeError, MergeReport, merge};
pub use moments::{Moment, Moments};
pub use ops::Kernels;
pub use peft::{PeftConfig, PeftError, PeftFolder, PeftTask};
pub use precision::Precision;
pub use pretrain::{PretrainError, Pretrainer};
pub use rows::{Rows, RowsError};
pub use stage::{Input, Labels, LossTimes, Mode, Stage, StageError, TAPES_MAX, TapeId};
pub use tensor_file::TensorFileError;
