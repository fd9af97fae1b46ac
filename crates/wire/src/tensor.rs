//! Tensors as the host holds them: a shape and its f32 values, row by row.
//!
//! Only adapters live in this form; activations stay bytes from device to device.

use std::collections::BTreeMap;

/// A dense f32 tensor in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Length of each axis, outermost first.
    pub shape: Vec<usize>,
    /// The values; as many as the product of `shape`.
    pub values: Vec<f32>,
}

/// An adapter: every factor under its full PEFT key, such as
/// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
pub type AdapterState = BTreeMap<String, HostTensor>;

/// A shape and a number of values that do not belong together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("shape {shape:?} does not hold {values} values")]
pub struct ShapeError {
    /// The shape claimed.
    pub shape: Vec<usize>,
    /// The number of values found.
    pub values: usize,
}

impl HostTensor {
    /// Pairs a shape with its values.
    pub fn new(shape: Vec<usize>, values: Vec<f32>) -> Result<Self, ShapeError> {
        if element_count(&shape) == Some(values.len()) {
            Ok(Self { shape, values })
        } else {
            Err(ShapeError { shape, values: values.len() })
        }
    }

    /// All zeros.
    ///
    /// # Panics
    /// If the shape holds more elements than a `usize` counts.
    pub fn zeros(shape: Vec<usize>) -> Self {
        let count = element_count(&shape).expect("a tensor of ours fits in memory");
        Self { shape, values: vec![0.0; count] }
    }

    /// Whether no value is NaN or infinite.
    pub fn is_finite(&self) -> bool {
        self.values.iter().all(|value| value.is_finite())
    }
}

/// The product of the axes, or nothing where it overflows.
pub(crate) fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |count, axis| count.checked_mul(*axis))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a tensor cannot disagree with its shape. Method: right, short, overflowing, scalar.
    #[test]
    fn shape_and_values_must_agree() {
        assert!(HostTensor::new(vec![2, 3], vec![0.0; 6]).is_ok());
        assert!(HostTensor::new(vec![2, 3], vec![0.0; 5]).is_err());
        assert!(HostTensor::new(vec![usize::MAX, 2], vec![]).is_err());
        assert!(HostTensor::new(vec![], vec![1.0]).is_ok());
        assert_eq!(HostTensor::zeros(vec![4, 0]).values.len(), 0);
    }

    /// Goal: no NaN or Inf passes as finite. Method: one bad value among good ones.
    #[test]
    fn one_bad_value_is_enough() {
        for (value, finite) in [(f32::MAX, true), (f32::NAN, false), (f32::INFINITY, false)] {
            let tensor = HostTensor::new(vec![2], vec![0.0, value]).expect("two values");
            assert_eq!(tensor.is_finite(), finite, "{value}");
        }
    }
}
