//! Between hidden states on a device and the bytes that cross the cut: nothing unchecked comes in.
//!
//! A GPU rounds and quantises before the download and after the upload (`encoding/device.rs`), so that its link to the host carries what the
//! network does; on a CPU the host's way is the device's.

mod device;

use crate::lora::download;
use crate::ops::is_cpu;
use burn::tensor::{Device, Tensor, TensorData};
use cutlayer_wire::Encoding;

/// Bytes from the network that are no tensor of the shape they claim.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorError {
    /// Not that encoding, or not of that shape.
    #[error(transparent)]
    Encoding(#[from] cutlayer_wire::EncodingError),
    /// NaN or infinity.
    #[error("the tensor holds a NaN or an infinity: the peer's training diverged, or it is hostile")]
    NotFinite,
}

/// Hidden states `[n, d]` as bytes; `seed` is for encodings that round by chance.
pub fn encode(encoding: Encoding, hidden_nd: Tensor<2>, seed: u64) -> Result<Vec<u8>, TensorError> {
    let [_, hidden] = hidden_nd.dims();
    if let Some(part) = device::part(encoding, hidden, &hidden_nd.device()) {
        return device::encode(encoding, part, hidden_nd);
    }
    Ok(encoding.encode(&values(hidden_nd), hidden, seed)?)
}

/// Hidden states `[n, d]` as values, row by row.
pub fn values(hidden_nd: Tensor<2>) -> Vec<f32> {
    download(hidden_nd)
}

/// Bytes of `n` tokens as `[n, d]` on `device`. Refuses a NaN or an infinity.
pub fn decode(encoding: Encoding, bytes: &[u8], tokens: usize, hidden: usize, device: &Device) -> Result<Tensor<2>, TensorError> {
    if let Some(part) = device::part(encoding, hidden, device) {
        return device::decode(encoding, part, bytes, [tokens, hidden], device);
    }
    tensor(encoding.decode(bytes, tokens, hidden)?, hidden, device)
}

/// Values of whole rows of `hidden` as `[n, d]` on `device`. Refuses a NaN or an infinity.
pub fn tensor(values: Vec<f32>, hidden: usize, device: &Device) -> Result<Tensor<2>, TensorError> {
    let tokens = values.len() / hidden;
    if !values.iter().all(|value| value.is_finite()) {
        return Err(TensorError::NotFinite);
    }
    Ok(Tensor::from_data(TensorData::new(values, [tokens, hidden]), device))
}
