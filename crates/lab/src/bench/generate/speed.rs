//! One sequence: how fast a prompt is taken in and tokens come out, and what a prompt seen before saves.

use super::GenerateBench;
use super::place::{Place, Reach};
use super::take::{Prompts, Take, take};
use crate::bench::step::median;
use crate::error::LabError;
use cutlayer_node::{Drafting, Generator};
use cutlayer_wire::Encoding;
use serde::Serialize;

/// One sequence of the uncut model, medians.
#[derive(Clone, Debug, Serialize)]
pub struct UncutFound {
    /// Tokens of a prompt a second, to the first token.
    pub prefill_tok_s: f64,
    /// Tokens a second after the first.
    pub decode_tok_s: f64,
    /// Milliseconds to the first token.
    pub first_token_ms: f64,
    /// Milliseconds of each token after it.
    pub decode_ms: f64,
    /// The best of these.
    pub decode_ms_best: f64,
    /// Of a token's milliseconds, those that the model was computed in.
    pub busy_ms: f64,
}

/// The first token of a prompt, medians in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct PrefixRow {
    /// Where the blocks are.
    pub place: String,
    /// To the first token of a prompt that nobody saw.
    pub new_ms: f64,
    /// To that of the same prompt again.
    pub seen_ms: f64,
    /// Median of the repeats' own ratios.
    pub ratio: f64,
    /// Tokens that were found in the caches.
    pub cached: u32,
}

pub(super) async fn uncut(bench: &GenerateBench, place: &Place) -> Result<UncutFound, LabError> {
    let (generator, mut prompts, mut takes) = (place.device(None, Drafting::Off).await?, Prompts::default(), vec![]);
    for repeat in 0..=bench.repeats {
        let took = take(&generator, None, prompts.next(bench.prompt, place.spec.vocab), bench.new).await?;
        if repeat > 0 {
            takes.push(took);
        }
    }
    let first_token_ms = median(takes.iter().map(|take| take.usage.first_token_ms));
    let decode_ms = median(takes.iter().map(Take::token_ms));
    Ok(UncutFound {
        prefill_tok_s: f64::from(bench.prompt) / first_token_ms * 1e3,
        decode_tok_s: 1e3 / decode_ms,
        first_token_ms,
        decode_ms,
        decode_ms_best: takes.iter().map(Take::token_ms).fold(f64::INFINITY, f64::min),
        busy_ms: median(takes.iter().map(|take| take.busy_ms.0 / take.decoded())),
    })
}

pub(super) async fn prefix(bench: &GenerateBench, place: &Place) -> Result<Vec<PrefixRow>, LabError> {
    let hosted = place.host(bench.cut).await?;
    let reach = Reach { addr: hosted.addr, cut: bench.cut, tail: None, encoding: Encoding::F32, rtt_ms: 1 };
    let places = [
        ("uncut".to_owned(), place.device(None, Drafting::Off).await?),
        (format!("cut {}", bench.cut), place.device(Some(reach), Drafting::Off).await?),
    ];
    let mut prompts = Prompts::default();
    let mut seen: Vec<Vec<(f64, f64, u32)>> = vec![vec![]; places.len()];
    for repeat in 0..=bench.repeats {
        for ((_, generator), seen) in places.iter().zip(&mut seen) {
            let took = twice(generator, &mut prompts, bench, place).await?;
            if repeat > 0 {
                seen.push(took);
            }
        }
    }
    let rows = places.iter().zip(seen).map(|((name, _), seen)| PrefixRow {
        place: name.clone(),
        new_ms: median(seen.iter().map(|(new, ..)| *new)),
        seen_ms: median(seen.iter().map(|(_, again, _)| *again)),
        ratio: median(seen.iter().map(|(new, again, _)| again / new)),
        cached: seen.iter().map(|(.., cached)| *cached).min().unwrap_or(0),
    });
    let rows = rows.collect();
    drop(places);
    hosted.end().await?;
    Ok(rows)
}

/// Milliseconds to the first token, twice of one prompt, and what was found of it the second time.
async fn twice(generator: &Generator, prompts: &mut Prompts, bench: &GenerateBench, place: &Place) -> Result<(f64, f64, u32), LabError> {
    let prompt = prompts.next(bench.prompt, place.spec.vocab);
    let new = take(generator, None, prompt.clone(), 1).await?;
    let again = take(generator, None, prompt, 1).await?;
    Ok((new.usage.first_token_ms, again.usage.first_token_ms, again.usage.cached_tokens))
}
