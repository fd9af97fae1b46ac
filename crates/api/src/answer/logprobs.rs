//! Bytes and log-probabilities as JSON can hold them.

use serde_json::{Value, json};

/// What stands for a token that cannot be: JSON has no infinity, and clients expect a number. OpenAI's choice.
const LEAST: f32 = -9999.0;

/// A token as text; one that is no text by itself is spelt out, as OpenAI does.
pub(super) fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}")),
    }
}

/// A log-probability: at most 0, whatever rounding did.
pub(super) fn number(logprob: Option<f32>) -> Value {
    let clamped = |logprob: f32| if logprob.is_nan() { LEAST } else { logprob.clamp(LEAST, 0.0) };
    logprob.map_or(Value::Null, |logprob| json!(clamped(logprob)))
}

/// Characters that begin in these bytes, so that a sum over tokens is right wherever they cut one.
pub(super) fn characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0b1100_0000 != 0b1000_0000).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn half_characters_are_spelt_out() {
        assert_eq!(shown("é".as_bytes()), "é");
        assert_eq!(shown(&"é".as_bytes()[..1]), "bytes:\\xc3");
    }

    #[test]
    fn every_number_is_json() {
        for (logprob, expected) in [(-0.5, -0.5), (f32::NEG_INFINITY, -9999.0), (f32::NAN, -9999.0), (1e-7, 0.0)] {
            assert_eq!(number(Some(logprob)), json!(expected as f32), "{logprob}");
        }
        assert_eq!(number(None), Value::Null);
    }

    proptest! {
        #[test]
        fn characters_add_up_over_any_cut(text in ".*", cut in any::<prop::sample::Index>()) {
            let (left, right) = text.as_bytes().split_at(cut.index(text.len() + 1));
            prop_assert_eq!(characters(left) + characters(right), text.chars().count());
        }
    }
}
