//! Golden values from transformers and PEFT (`../shared/fixtures`), and a split model to hold against them.
#![allow(dead_code, clippy::unwrap_used)]

pub mod random;

use cutlayer_model::{Device, DeviceChoice, Frozen, Input, Mode, ModelFolder, Parts, Rows, Stage, Tensor, lora, read_spec};
use cutlayer_wire::{AdapterState, HostTensor, LoraSpec, OptimizerKind, OptimizerSpec, Schedule, StepId};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the shared data lies: `$CUTLAYER_DATA`, else `../shared/data` beside the repository.
pub fn shared_data() -> PathBuf {
    std::env::var_os("CUTLAYER_DATA").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"), PathBuf::from)
}

/// A golden case, or a loud skip where the fixtures are not on this machine.
pub fn case(model: &str, name: &str) -> Option<Case> {
    let root = shared_data().join("../fixtures").join(model);
    if !root.exists() {
        eprintln!("SKIPPED {model}/{name}: {} is not there; set CUTLAYER_DATA to the shared data folder", root.display());
        return None;
    }
    Some(Case::open(&root.join("model"), &root.join(name)))
}

/// The device under test: `$CUTLAYER_TEST_DEVICE`, else the CPU.
pub fn device() -> Device {
    let choice: DeviceChoice = std::env::var("CUTLAYER_TEST_DEVICE").as_deref().unwrap_or("cpu").parse().expect("a device");
    choice.open().expect("the device under test starts")
}

/// Tensors of a safetensors file, integers as f32.
pub fn tensors(path: &Path) -> AdapterState {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let values = match view.dtype() {
                Dtype::F32 => view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
                Dtype::F64 => view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
                Dtype::I64 => view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
                other => panic!("{name} is {other:?}"),
            };
            (name, HostTensor { shape: view.shape().to_vec(), values })
        })
        .collect()
}

/// One batch as the crate takes it: ids, and for each token the label of the one after it.
#[derive(Clone)]
pub struct Batch {
    pub ids: Vec<u32>,
    pub labels: Vec<i32>,
    pub lengths: Vec<u32>,
}

impl Batch {
    pub fn joined(batches: &[&Batch]) -> Batch {
        Batch {
            ids: batches.iter().flat_map(|b| b.ids.clone()).collect(),
            labels: batches.iter().flat_map(|b| b.labels.clone()).collect(),
            lengths: batches.iter().flat_map(|b| b.lengths.clone()).collect(),
        }
    }

    pub fn rows(&self) -> Rows {
        Rows::new(&self.lengths, usize::MAX).unwrap()
    }

    pub fn scored(&self) -> usize {
        self.labels.iter().filter(|&&label| label >= 0).count()
    }
}

/// A golden case.
pub struct Case {
    pub model: PathBuf,
    pub folder: PathBuf,
    pub oracle: Value,
    pub lora: LoraSpec,
    pub optimizer: OptimizerSpec,
    pub initial: AdapterState,
    pub batches: Vec<Batch>,
    pub blocks: usize,
}

impl Case {
    pub fn open(model: &Path, folder: &Path) -> Case {
        let oracle: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("oracle.json")).unwrap()).unwrap();
        let spec = read_spec(&ModelFolder::open(model).unwrap()).unwrap();
        let number = |value: &Value| value.as_f64().unwrap() as f32;
        let (lora, adamw) = (&oracle["lora"], &oracle["adamw"]);
        let lora = LoraSpec {
            rank: lora["r"].as_u64().unwrap() as u32,
            alpha: number(&lora["alpha"]),
            rslora: false,
            dropout: 0.0,
            targets: lora["targets"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().into()).collect(),
        };
        let kind = OptimizerKind::AdamW {
            beta1: number(&adamw["betas"][0]),
            beta2: number(&adamw["betas"][1]),
            eps: number(&adamw["eps"]),
            weight_decay: number(&adamw["weight_decay"]),
        };
        let optimizer = OptimizerSpec {
            kind,
            learning_rate: number(&adamw["lr"]),
            schedule: Schedule::Constant,
            warmup_steps: 0,
            clip_norm: None,
            reset_each_round: true,
        };
        let data = tensors(&folder.join("data.safetensors"));
        let initial = tensors(&folder.join("adapter_init/adapter_model.safetensors"));
        Case { model: model.into(), batches: batches(&data), lora, optimizer, initial, oracle, folder: folder.into(), blocks: spec.blocks }
    }

    pub fn golden(&self, file: &str) -> AdapterState {
        tensors(&self.folder.join(file))
    }

    pub fn load(&self, parts: &Parts, device: &Device) -> Arc<Frozen> {
        Arc::new(Frozen::load(&ModelFolder::open(&self.model).unwrap(), parts, 0, device).unwrap())
    }

    /// The model split at `cut` with a tail of `tail` blocks (`None`: vanilla).
    pub fn split(&self, cut: usize, tail: Option<usize>, device: &Device) -> Split {
        let end = self.blocks - tail.unwrap_or(0);
        let client = self.load(&Parts::client(self.blocks, cut, tail), device);
        let server = self.load(&Parts { embedding: false, blocks: (cut..end).collect(), head: tail.is_none() }, device);
        let stage = |frozen: &Arc<Frozen>, blocks: std::ops::Range<usize>, state: &AdapterState| {
            let shapes = lora::shapes(frozen.spec(), &self.lora, blocks.clone(), false, 0).unwrap();
            let part = state.iter().filter(|(key, _)| shapes.contains_key(*key)).map(|(k, v)| (k.clone(), v.clone())).collect();
            Stage::new(frozen.clone(), blocks, false, &self.lora, &part).unwrap()
        };
        Split {
            cut,
            end,
            blocks: self.blocks,
            front: stage(&client, 0..cut, &self.initial),
            middle: stage(&server, cut..end, &self.initial),
            tail: tail.map(|_| stage(&client, end..self.blocks, &self.initial)),
            steps: 0,
        }
    }
}

fn batches(data: &AdapterState) -> Vec<Batch> {
    let (ids, labels) = (&data["ids"], &data["labels"]);
    let [count, rows, width] = ids.shape[..] else { panic!("ids are [batches, rows, width]") };
    (0..count)
        .map(|index| {
            let range = index * rows * width..(index + 1) * rows * width;
            let labels: Vec<i32> = labels.values[range.clone()]
                .chunks(width)
                .flat_map(|row| row[1..].iter().map(|&label| label as i32).chain([-100]).collect::<Vec<_>>())
                .collect();
            Batch { ids: ids.values[range].iter().map(|&id| id as u32).collect(), labels, lengths: vec![width as u32; rows] }
        })
        .collect()
}

/// A model in two or three stages, run in lockstep without a network.
pub struct Split {
    cut: usize,
    end: usize,
    blocks: usize,
    pub front: Stage,
    pub middle: Stage,
    pub tail: Option<Stage>,
    steps: u64,
}

/// What one step showed.
pub struct Shown {
    pub loss: f64,
    pub activation: Vec<f32>,
    pub gradient: Vec<f32>,
}

impl Split {
    /// Forward and backward of one batch through all stages; gradients wait in the stages.
    pub fn step(&mut self, batch: &Batch) -> Shown {
        self.steps += 1;
        let (step, rows, mode) = (StepId(self.steps), batch.rows(), Mode::Train { dropout_seed: 0 });
        let activation = self.front.forward(step, 0..self.cut, Input::Tokens(&batch.ids), &rows, mode).unwrap();
        let into_middle = Input::Hidden(activation.clone(), true);
        let (sums, gradient) = match &mut self.tail {
            None => self.middle.loss(step, self.cut..self.blocks, into_middle, &rows, &batch.labels, mode).unwrap(),
            Some(tail) => {
                let hidden = self.middle.forward(step, self.cut..self.end, into_middle, &rows, mode).unwrap();
                let into_tail = Input::Hidden(hidden, true);
                let (sums, back) = tail.loss(step, self.end..self.blocks, into_tail, &rows, &batch.labels, mode).unwrap();
                (sums, self.middle.backward(step, back.unwrap()).unwrap())
            }
        };
        let gradient = gradient.unwrap();
        assert!(self.front.backward(step, gradient.clone()).unwrap().is_none());
        Shown { loss: sums.loss_sum / sums.scored as f64, activation: values(activation), gradient: values(gradient) }
    }

    pub fn stages(&mut self) -> impl Iterator<Item = &mut Stage> {
        [&mut self.front, &mut self.middle].into_iter().chain(self.tail.as_mut())
    }

    pub fn update(&mut self, optimizer: &OptimizerSpec) {
        let step = StepId(self.steps);
        for stage in self.stages() {
            stage.update(step..=step, optimizer, f64::from(optimizer.learning_rate));
        }
    }

    pub fn gradients(&mut self) -> AdapterState {
        let all: Vec<_> = self.stages().flat_map(|stage| stage.gradients()).collect();
        all.into_iter().map(|(key, g)| (key, HostTensor { shape: g.dims().to_vec(), values: values(g) })).collect()
    }

    pub fn state(&mut self) -> AdapterState {
        self.stages().flat_map(|stage| stage.adapter().state()).collect()
    }

    /// Logits of every token, through all stages.
    pub fn logits(&mut self, batch: &Batch) -> Vec<f32> {
        let (step, rows) = (StepId(0), batch.rows());
        let hidden = self.front.forward(step, 0..self.cut, Input::Tokens(&batch.ids), &rows, Mode::Evaluate).unwrap();
        match &mut self.tail {
            None => self.middle.logits(self.cut..self.blocks, Input::Hidden(hidden, false), &rows).unwrap(),
            Some(tail) => {
                let hidden = self.middle.forward(step, self.cut..self.end, Input::Hidden(hidden, false), &rows, Mode::Evaluate).unwrap();
                tail.logits(self.end..self.blocks, Input::Hidden(hidden, false), &rows).unwrap()
            }
        }
    }
}

/// Every way to split `blocks` blocks: vanilla at every cut, and every U-shape.
pub fn splits(blocks: usize) -> Vec<(usize, Option<usize>)> {
    let tails = |cut: usize| std::iter::once(None).chain((0..=blocks - cut).map(Some));
    (0..=blocks).flat_map(|cut| tails(cut).map(move |tail| (cut, tail))).collect()
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().unwrap()
}

/// Largest difference as a share of the expected values' scale.
pub fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len(), "sizes differ");
    let scale = expected.iter().fold(1e-30f32, |scale, value| scale.max(value.abs()));
    found.iter().zip(expected).fold(0.0f32, |worst, (f, e)| worst.max((f - e).abs() / scale))
}

pub fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    let error = error(found, expected);
    assert!(error <= tolerance, "{what}: off by {error:e} of its scale, allowed {tolerance:e}");
}
