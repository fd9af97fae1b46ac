//! Where a stage computes: a runtime value, `cpu`, `wgpu[:n]`, `cuda[:n]` or `auto`.

use crate::ops::Kernels;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A device as a user names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The CPU, by burn's flex backend.
    #[default]
    Cpu,
    /// The n-th GPU by Vulkan, Metal or DirectX.
    Wgpu(usize),
    /// The n-th NVIDIA GPU.
    Cuda(usize),
    /// The best there is: CUDA, then wgpu, then the CPU.
    Auto,
}

/// A device that cannot be had.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceError {
    /// Not a device.
    #[error("`{0}` is no device; write cpu, wgpu, wgpu:1, cuda, cuda:1 or auto")]
    Unknown(String),
    /// Not compiled in.
    #[error("device {device} is not in this build; build with `--features {feature}`, or use `cpu`")]
    NotBuilt {
        /// The device.
        device: DeviceChoice,
        /// The feature.
        feature: &'static str,
    },
    /// Another precision than the device has.
    #[error("precision {precision} cannot be had here: {reason}; use f32")]
    Precision {
        /// The precision.
        precision: crate::precision::Precision,
        /// Why not.
        reason: String,
    },
    /// Compiled in, but not on this machine.
    #[error("device {device} did not start: {reason}; check the driver, or use `cpu`")]
    Absent {
        /// The device.
        device: DeviceChoice,
        /// Why.
        reason: String,
    },
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let (kind, index) = text.split_once(':').unwrap_or((text, "0"));
        let index = || index.parse().map_err(|_| DeviceError::Unknown(text.into()));
        match kind {
            "cpu" if text == "cpu" => Ok(Self::Cpu),
            "auto" if text == "auto" => Ok(Self::Auto),
            "wgpu" => Ok(Self::Wgpu(index()?)),
            "cuda" => Ok(Self::Cuda(index()?)),
            _ => Err(DeviceError::Unknown(text.into())),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Auto => f.write_str("auto"),
            Self::Wgpu(index) => write!(f, "wgpu:{index}"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = DeviceError;

    fn try_from(text: String) -> Result<Self, DeviceError> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

impl DeviceChoice {
    /// The device, started and seen to compute.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::flex()),
            Self::Wgpu(index) => probe(self, wgpu(self, index)?),
            Self::Cuda(index) => probe(self, cuda(self, index)?),
            Self::Auto => Ok([Self::Cuda(0), Self::Wgpu(0)].into_iter().find_map(|choice| choice.open().ok()).unwrap_or_else(Device::flex)),
        }
    }
}

#[cfg(feature = "wgpu")]
fn wgpu(_: DeviceChoice, index: usize) -> Result<Device, DeviceError> {
    use burn::tensor::DeviceKind;
    Ok(Device::wgpu(if index == 0 { DeviceKind::DefaultDevice } else { DeviceKind::DiscreteGpu(index) }))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(device: DeviceChoice, _: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { device, feature: "wgpu" })
}

#[cfg(feature = "cuda")]
fn cuda(device: DeviceChoice, index: usize) -> Result<Device, DeviceError> {
    // burn panics at first use without a driver: look before asking it.
    if !std::path::Path::new("/dev/nvidiactl").exists() && !cfg!(windows) {
        return Err(DeviceError::Absent { device, reason: "no NVIDIA driver (/dev/nvidiactl is absent)".into() });
    }
    Ok(Device::cuda(index))
}

#[cfg(not(feature = "cuda"))]
fn cuda(device: DeviceChoice, _: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { device, feature: "cuda" })
}

/// burn's GPU devices panic when they cannot start; this turns that into an error.
fn probe(choice: DeviceChoice, device: Device) -> Result<Device, DeviceError> {
    let tried = device.clone();
    let sum = std::panic::catch_unwind(move || burn::tensor::Tensor::<1>::from_floats([1.0, 2.0], &tried).sum().into_scalar::<f32>());
    match sum {
        Ok(3.0) => Ok(device),
        Ok(sum) => Err(DeviceError::Absent { device: choice, reason: format!("it computed 1 + 2 = {sum}") }),
        Err(_) => Err(DeviceError::Absent { device: choice, reason: "its driver did not start".into() }),
    }
}

/// GFLOP/s that `device` gives a plain f32 matrix product of `512 x 1536 x 1536`, the best of a few: what a step is measured against.
pub fn gemm_gflops(device: &Device) -> f64 {
    if Kernels::on(device) == Kernels::Fused && crate::ops::is_cpu(device) {
        return crate::ops::cpu_gemm_gflops();
    }
    let (m, n, k) = (512, 1536, 1536);
    let (a, b) = (Tensor::<2>::ones([m, k], device), Tensor::<2>::ones([k, n], device));
    let run = || {
        let started = std::time::Instant::now();
        let product = a.clone().matmul(b.clone());
        // Reading one value waits for all of it.
        std::hint::black_box(product.slice([0..1, 0..1]).into_data());
        started.elapsed().as_secs_f64()
    };
    let best = (0..12).map(|_| run()).fold(f64::INFINITY, f64::min);
    2.0 * (m * n * k) as f64 / best / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_parse_and_print() {
        for text in ["cpu", "auto", "wgpu:0", "cuda:3"] {
            assert_eq!(text.parse::<DeviceChoice>().expect("a device").to_string(), text);
        }
        for text in ["gpu", "cpu:1", "cuda:x", ""] {
            assert_eq!(text.parse::<DeviceChoice>(), Err(DeviceError::Unknown(text.into())));
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_was_not_built_says_how_to_build_it() {
        let error = DeviceChoice::Cuda(0).open().expect_err("not built");
        assert!(error.to_string().contains("--features cuda"), "{error}");
    }
}
