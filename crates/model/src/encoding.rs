//! Between hidden states on a device and the bytes that cross the cut: padding stays behind, nothing unchecked comes in.

use crate::lora::download;
use crate::rows::Rows;
use burn::tensor::{Device, Tensor, TensorData};
use cutlayer_wire::Encoding;

/// Bytes from the network that are no tensor of the shape they claim.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorError {
    /// Not that encoding.
    #[error(transparent)]
    Encoding(#[from] cutlayer_wire::EncodingError),
    /// Too few or too many values.
    #[error("the tensor has {found} values, expected {tokens} tokens of {hidden}")]
    Length {
        /// Its values.
        found: usize,
        /// Rows expected.
        tokens: usize,
        /// Columns expected.
        hidden: usize,
    },
    /// NaN or infinity.
    #[error("the tensor holds a NaN or an infinity: the peer's training diverged, or it is hostile")]
    NotFinite,
}

/// The real tokens of `hidden_btd`, `[n, d]`, as bytes.
pub fn encode(encoding: Encoding, hidden_btd: Tensor<3>, rows: &Rows) -> Vec<u8> {
    encoding.encode(&download(rows.gather(hidden_btd)))
}

/// Bytes of `n` tokens into the rectangle `[b, t, d]` on `device`, padded with zeros. Refuses a NaN or an infinity.
pub fn decode(encoding: Encoding, bytes: &[u8], rows: &Rows, hidden: usize, device: &Device) -> Result<Tensor<3>, TensorError> {
    let mut values = encoding.decode(bytes)?;
    if values.len() != rows.tokens() * hidden {
        return Err(TensorError::Length { found: values.len(), tokens: rows.tokens(), hidden });
    }
    if !values.iter().all(|value| value.is_finite()) {
        return Err(TensorError::NotFinite);
    }
    if !rows.is_dense() {
        values = rows.spread(&values, hidden, 0.0);
    }
    Ok(Tensor::from_data(TensorData::new(values, [rows.rows(), rows.width(), hidden]), device))
}
