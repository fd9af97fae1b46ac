//! What an optimizer knows of an adapter, on the host: to be kept, and to go on from.

use crate::lora::{Adapter, AdapterError, download};
use burn::tensor::{Tensor, TensorData};
use cutlayer_wire::HostTensor;
use std::collections::BTreeMap;

/// What AdamW knows of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    /// Mean of the gradients, of the tensor's own shape.
    pub mean: HostTensor,
    /// Mean of their squares.
    pub square: HostTensor,
    /// Steps behind them.
    pub steps: u32,
}

/// What it knows of an adapter, by key: nothing of tensors that were not stepped since they were last forgotten.
pub type Moments = BTreeMap<String, Moment>;

impl Adapter {
    /// What the optimizer knows.
    pub fn moments(&self) -> Moments {
        let known = self.parameters().iter().filter_map(|(key, parameter)| {
            let (mean, square, steps) = parameter.moments.clone()?;
            let host = |tensor| HostTensor { shape: parameter.shape.clone(), values: download(tensor) };
            Some((key.clone(), Moment { mean: host(mean), square: host(square), steps }))
        });
        known.collect()
    }

    /// Makes it know exactly this, as it was given by [`Adapter::moments`] of an adapter of the same shapes.
    pub fn set_moments(&mut self, moments: &Moments) -> Result<(), AdapterError> {
        if let Some(key) = moments.keys().find(|key| !self.holds(key)) {
            return Err(AdapterError::Unexpected { key: key.clone() });
        }
        for (key, parameter) in self.parameters_mut() {
            let Some(moment) = moments.get(key) else {
                parameter.moments = None;
                continue;
            };
            let (device, dims) = (parameter.value.device(), parameter.value.dims());
            let device_tensor = |host: &HostTensor| {
                if host.shape != parameter.shape {
                    return Err(AdapterError::Shape { key: key.clone(), found: host.shape.clone(), expected: parameter.shape.clone() });
                }
                Ok(Tensor::<2>::from_data(TensorData::new(host.values.clone(), dims), &device))
            };
            parameter.moments = Some((device_tensor(&moment.mean)?, device_tensor(&moment.square)?, moment.steps));
        }
        Ok(())
    }
}
