//! Logits of one sequence as a safetensors file, for other frameworks to be held against.

use crate::export::ExportError;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::path::Path;

/// Writes `ids [1, S]` (i64) with `logits [1, S, V]` or, where there is one row for the whole sequence, `attention_mask [1, S]`
/// and `logits [1, C]` (f32).
pub fn write_logits(file: &Path, ids: &[u32], logits: &[f32], per_token: bool) -> Result<(), ExportError> {
    let tokens = ids.len();
    let ids: Vec<u8> = ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect();
    let mask: Vec<u8> = (0..tokens).flat_map(|_| 1i64.to_le_bytes()).collect();
    let values: Vec<u8> = logits.iter().flat_map(|value| value.to_le_bytes()).collect();
    let shape = if per_token { vec![1, tokens, logits.len() / tokens.max(1)] } else { vec![1, logits.len()] };
    let view = |dtype, shape, bytes| TensorView::new(dtype, shape, bytes).expect("the bytes are of this shape");
    let mut tensors = vec![("ids", view(Dtype::I64, vec![1, tokens], &ids)), ("logits", view(Dtype::F32, shape, &values))];
    if !per_token {
        tensors.push(("attention_mask", view(Dtype::I64, vec![1, tokens], &mask)));
    }
    let bytes = safetensors::serialize(tensors, None).expect("names are unique and shapes fit");
    std::fs::write(file, bytes).map_err(|source| ExportError::Io { file: file.into(), source })
}
