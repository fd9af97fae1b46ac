//! Vectors as JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::engine::Embeddings;
use crate::request::Encoding;

/// The answer to a request for embeddings.
pub(crate) fn whole(model: &str, embeddings: &Embeddings, encoding: Encoding) -> Value {
    let one =
        |(index, vector): (usize, &Vec<f32>)| json!({ "object": "embedding", "index": index, "embedding": written(vector, encoding) });
    json!({
        "object": "list",
        "data": embeddings.vectors.iter().enumerate().map(one).collect::<Vec<_>>(),
        "model": model,
        "usage": { "prompt_tokens": embeddings.prompt_tokens, "total_tokens": embeddings.prompt_tokens },
    })
}

fn written(vector: &[f32], encoding: Encoding) -> Value {
    match encoding {
        Encoding::Float => json!(vector),
        Encoding::Base64 => json!(STANDARD.encode(vector.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_encodings_tell_the_same(vector in prop::collection::vec(-1e3_f32..1e3, 0..40)) {
            let embeddings = Embeddings { vectors: vec![vector.clone()], prompt_tokens: 3 };
            let read = |encoding| serde_json::from_str::<Value>(&whole("m", &embeddings, encoding).to_string()).unwrap()["data"][0]["embedding"].clone();
            let floats: Vec<f32> = serde_json::from_value(read(Encoding::Float)).unwrap();
            prop_assert_eq!(&floats, &vector);
            let bytes = STANDARD.decode(read(Encoding::Base64).as_str().unwrap()).unwrap();
            let decoded: Vec<f32> = bytes.chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
            prop_assert_eq!(decoded, vector);
        }
    }
}
