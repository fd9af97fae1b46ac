//! How tokens are drawn, from the fields of a body. It must never pass on a number that is out of its range.

use cutlayer_wire::SamplingSpec;

use super::body::Body;
use super::field::Texts;
use crate::error::ApiError;

/// Most stop strings, as with OpenAI.
const STOPS_MAX: usize = 4;
/// Longest stop string: whoever holds text back for one keeps as much.
const STOP_BYTES_MAX: usize = 1024;
/// Most tokens with a bias.
const LOGIT_BIAS_MAX: usize = 1024;

impl Body {
    /// The strings that end the answer.
    pub fn stops(&self) -> Result<Vec<String>, ApiError> {
        let stops = match self.stop.clone() {
            None => vec![],
            Some(Texts::One(stop)) => vec![stop],
            Some(Texts::Many(stops)) => stops,
            Some(Texts::Tokens(_) | Texts::ManyTokens(_)) => {
                return Err(ApiError::invalid("stop", "'stop' is a string or an array of strings."));
            }
        };
        if stops.len() > STOPS_MAX {
            return Err(ApiError::invalid("stop", format!("'stop' has at most {STOPS_MAX} strings.")));
        }
        if stops.iter().any(|stop| stop.is_empty() || stop.len() > STOP_BYTES_MAX) {
            return Err(ApiError::invalid("stop", format!("A stop string has 1 to {STOP_BYTES_MAX} bytes.")));
        }
        Ok(stops)
    }

    /// OpenAI's defaults where nothing is said; a seed of chance where none is given.
    pub fn sampling(&self, logprobs: Option<u8>) -> Result<SamplingSpec, ApiError> {
        let top_p = within("top_p", self.top_p, 1.0, 0.0, 1.0)?;
        Ok(SamplingSpec {
            temperature: within("temperature", self.temperature, 1.0, 0.0, 2.0)?,
            top_k: self.top_k()?,
            // 0 is allowed and means the likeliest token; to those who draw, a share is above 0.
            top_p: top_p.max(f32::MIN_POSITIVE),
            min_p: within("min_p", self.min_p, 0.0, 0.0, 1.0)?,
            repetition_penalty: within("repetition_penalty", self.repetition_penalty, 1.0, 0.01, 100.0)?,
            presence_penalty: within("presence_penalty", self.presence_penalty, 0.0, -2.0, 2.0)?,
            frequency_penalty: within("frequency_penalty", self.frequency_penalty, 0.0, -2.0, 2.0)?,
            logit_bias: self.biases()?,
            seed: self.seed.map_or_else(rand::random, |seed| seed as u64),
            logprobs,
        })
    }

    /// 0 and -1 are both in use for "all".
    fn top_k(&self) -> Result<u32, ApiError> {
        match self.top_k {
            None | Some(-1) => Ok(0),
            Some(top_k) => u32::try_from(top_k).map_err(|_| ApiError::invalid("top_k", "'top_k' is a count of tokens, or 0 for all.")),
        }
    }

    fn biases(&self) -> Result<Vec<(u32, f32)>, ApiError> {
        let Some(biases) = &self.logit_bias else { return Ok(vec![]) };
        if biases.len() > LOGIT_BIAS_MAX {
            return Err(ApiError::invalid("logit_bias", format!("'logit_bias' has at most {LOGIT_BIAS_MAX} tokens.")));
        }
        let one = |(token, bias): (&String, &f32)| {
            let id = token.parse().map_err(|_| ApiError::invalid("logit_bias", format!("{token:?} is no token: send its number.")))?;
            Ok((id, within("logit_bias", Some(*bias), 0.0, -100.0, 100.0)?))
        };
        biases.iter().map(one).collect()
    }
}

/// The seed of a prompt's choice: the first one's is the request's own, and no other is any request's neighbouring seed.
pub(super) fn seed_of(seed: u64, choice: usize) -> u64 {
    if choice == 0 {
        return seed;
    }
    // SplitMix64's finalizer (Steele et al. 2014).
    let mut mixed = seed.wrapping_add((choice as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn within(param: &'static str, value: Option<f32>, default: f32, least: f32, most: f32) -> Result<f32, ApiError> {
    let value = value.unwrap_or(default);
    // A NaN is in no range.
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(ApiError::invalid(param, format!("'{param}' is {value}: it is from {least} to {most}.")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::parse;
    use super::*;

    fn body(json: &str) -> Body {
        parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn fields_become_the_spec() {
        let json = r#"{"temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,"repetition_penalty":1.1,"presence_penalty":-2,
            "frequency_penalty":2,"logit_bias":{"7":-100,"11":5},"seed":-3}"#;
        let expected = SamplingSpec {
            temperature: 0.5,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.1,
            repetition_penalty: 1.1,
            presence_penalty: -2.0,
            frequency_penalty: 2.0,
            logit_bias: vec![(11, 5.0), (7, -100.0)],
            seed: -3_i64 as u64,
            logprobs: Some(2),
        };
        assert_eq!(body(json).sampling(Some(2)).unwrap(), expected);
    }

    #[test]
    fn defaults_are_openai_s() {
        let spec = body("{}").sampling(None).unwrap();
        let seed = spec.seed;
        assert_eq!(spec, SamplingSpec { temperature: 1.0, seed, ..SamplingSpec::GREEDY });
        assert_ne!(body("{}").sampling(None).unwrap().seed, seed, "two requests without a seed draw alike");
        assert!(body(r#"{"top_p":0}"#).sampling(None).unwrap().top_p > 0.0);
        assert_eq!(body(r#"{"top_k":-1}"#).sampling(None).unwrap().top_k, 0);
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        for (json, param) in [
            (r#"{"temperature":-0.1}"#, "temperature"),
            (r#"{"temperature":2.1}"#, "temperature"),
            (r#"{"temperature":1e300}"#, "temperature"),
            (r#"{"top_p":1.5}"#, "top_p"),
            (r#"{"top_k":-2}"#, "top_k"),
            (r#"{"min_p":-1}"#, "min_p"),
            (r#"{"repetition_penalty":0}"#, "repetition_penalty"),
            (r#"{"presence_penalty":3}"#, "presence_penalty"),
            (r#"{"frequency_penalty":-3}"#, "frequency_penalty"),
            (r#"{"logit_bias":{"a":1}}"#, "logit_bias"),
            (r#"{"logit_bias":{"-1":1}}"#, "logit_bias"),
            (r#"{"logit_bias":{"1":101}}"#, "logit_bias"),
        ] {
            assert_eq!(body(json).sampling(None).unwrap_err().param.as_deref(), Some(param), "{json}");
        }
        let many: Vec<String> = (0..=LOGIT_BIAS_MAX).map(|token| format!("\"{token}\":1")).collect();
        assert!(body(&format!("{{\"logit_bias\":{{{}}}}}", many.join(","))).sampling(None).is_err());
    }

    #[test]
    fn stops_are_few_and_not_empty() {
        assert_eq!(body(r#"{"stop":"a"}"#).stops().unwrap(), ["a"]);
        assert_eq!(body(r#"{"stop":["a","b","c","d"]}"#).stops().unwrap().len(), 4);
        assert!(body(r#"{"stop":null}"#).stops().unwrap().is_empty() && body(r#"{"stop":[]}"#).stops().unwrap().is_empty());
        let long = format!("{{\"stop\":\"{}\"}}", "a".repeat(STOP_BYTES_MAX + 1));
        for json in [r#"{"stop":["a","b","c","d","e"]}"#, r#"{"stop":""}"#, r#"{"stop":[7]}"#, &long] {
            assert_eq!(body(json).stops().unwrap_err().param.as_deref(), Some("stop"), "{json}");
        }
    }

    #[test]
    fn choices_of_neighbouring_seeds_differ() {
        let mut seeds: Vec<u64> = (0..50).flat_map(|seed| (0..20).map(move |choice| seed_of(seed, choice))).collect();
        assert_eq!(seed_of(7, 0), 7);
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), 1000);
    }
}
