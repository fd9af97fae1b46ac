//! One generation, and what it took from the first token to the last.

use cutlayer_node::{GenerateRequest, Generator, HostWatch, NodeError, Piece, Prompt, Usage};
use cutlayer_wire::{DeviceRecord, Drawn, Encoding, PAGE_TOKENS, PageDigest, Record, RowsRecord, ServerRecord, Wanted};

/// Made-up prompts, no two of which begin alike: nothing of one is in a cache for another.
#[derive(Default)]
pub(super) struct Prompts(u32);

impl Prompts {
    pub fn next(&mut self, tokens: u32, vocab: usize) -> Prompt {
        self.0 += 1;
        // Past the special tokens, which stand first in most vocabularies.
        let id = |i: u32| (7 + 3 * u64::from(i) + 1013 * u64::from(self.0)) % (vocab as u64 - 4) + 4;
        Prompt::Tokens((0..tokens).map(|i| id(i) as u32).collect())
    }
}

/// What a generation took.
#[derive(Clone, Debug)]
pub(super) struct Take {
    pub tokens: Vec<u32>,
    pub usage: Usage,
    /// After the first token: milliseconds that the device's workers computed, and the host's.
    pub busy_ms: (f64, f64),
    /// After the first token: bytes as UDP carried them, up and down.
    pub carried: (u64, u64),
}

impl Take {
    /// Milliseconds after the first token.
    pub fn decode_ms(&self) -> f64 {
        self.usage.total_ms - self.usage.first_token_ms
    }

    /// Tokens after the first.
    pub fn decoded(&self) -> f64 {
        f64::from(self.usage.completion_tokens.saturating_sub(1)).max(1.0)
    }

    /// Milliseconds of a token after the first.
    pub fn token_ms(&self) -> f64 {
        self.decode_ms() / self.decoded()
    }
}

/// Greedily, without an end before `new` tokens.
pub(super) fn request(prompt: Prompt, new: u32) -> GenerateRequest {
    GenerateRequest { prompt, tokens_max: Some(new), ignore_end: true, ..GenerateRequest::greedy("") }
}

/// Generates and watches.
pub(super) async fn take(generator: &Generator, host: Option<&HostWatch>, prompt: Prompt, new: u32) -> Result<Take, NodeError> {
    let look = async || {
        let carried = generator.link_stats().await.unwrap_or_default();
        let host_us = host.map_or(0, |host| host.work().busy_us);
        (generator.work().busy_us, host_us, carried.bytes_sent, carried.bytes_received)
    };
    let mut generation = generator.generate(request(prompt, new));
    let (mut tokens, mut first) = (vec![], None);
    while let Some(piece) = generation.next().await {
        match piece? {
            Piece::Token(token) => {
                if first.is_none() {
                    first = Some(look().await);
                }
                tokens.push(token.id);
            }
            Piece::End { usage, .. } => {
                let last = look().await;
                let first = first.unwrap_or(last);
                let ms = |from: u64, to: u64| (to - from) as f64 / 1e3;
                let busy_ms = (ms(first.0, last.0), ms(first.1, last.1));
                return Ok(Take { tokens, usage, busy_ms, carried: (last.2 - first.2, last.3 - first.3) });
            }
        }
    }
    Err(NodeError::Panicked { during: "generating".into() })
}

/// Bytes of the records of a decoded token, up and down, on average: a page in sixteen tokens is also named.
pub(super) fn record_bytes(encoding: Encoding, hidden: u32, u_shape: bool) -> Result<(f64, f64), NodeError> {
    let payload = vec![0; encoding.payload_bytes_max(1, hidden)? as usize];
    let rows = |digests| {
        let record = RowsRecord { position: 0, rows: 1, wanted: Wanted::Last, digests, payload: payload.clone() };
        DeviceRecord::Rows(record).encode().expect("one row is a record").len() as f64
    };
    let (plain, named) = (rows(vec![]), rows(vec![PageDigest([0; 16])]));
    let answer = if u_shape {
        ServerRecord::Rows { position: 0, rows: 1, payload: payload.clone() }
    } else {
        ServerRecord::Tokens { position: 0, drawn: vec![Drawn { id: 0, logprob: None, top: vec![] }] }
    };
    let down = answer.encode().expect("one token is a record").len() as f64;
    Ok((plain + (named - plain) / f64::from(PAGE_TOKENS), down))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a prompt is not found in a cache for another. Method: the first pages of many are all different, and of the vocabulary.
    #[test]
    fn prompts_begin_differently() {
        let (mut prompts, mut seen) = (Prompts::default(), std::collections::BTreeSet::new());
        for _ in 0..500 {
            let Prompt::Tokens(ids) = prompts.next(16, 512) else { panic!("made of tokens") };
            assert!(ids.iter().all(|&id| (4..512).contains(&id)));
            assert!(seen.insert(ids), "a prompt came twice");
        }
    }

    /// Goal: bytes are those of the records. Method: int8 and f32 by hand: 12 of a header, a scale, and a name of 16 for a page of 16.
    #[test]
    fn records_have_their_bytes() {
        assert_eq!(record_bytes(Encoding::F32, 576, false).expect("sizes"), (12.0 + 576.0 * 4.0 + 1.0, 16.0));
        let (up, down) = record_bytes(Encoding::INT8, 576, true).expect("sizes");
        assert_eq!(up, down + 1.0);
        assert!(down <= 576.0 + 16.0, "{down}");
    }
}
