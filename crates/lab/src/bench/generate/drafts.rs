//! Guessing ahead over a far link, against asking for each token.

use super::GenerateBench;
use super::place::{Place, Reach};
use super::take::{Prompts, Take, take};
use crate::bench::step::median;
use crate::error::LabError;
use cutlayer_node::{Drafting, Generator, NodeError, Prompt};
use cutlayer_transport::{Emulator, Profile, Span};
use cutlayer_wire::Encoding;
use serde::Serialize;
use std::net::{Ipv4Addr, SocketAddr};

/// Seed of the emulated link, which loses nothing.
const LINK_SEED: u64 = 1;

/// One draft, over all prompts and repeats.
#[derive(Clone, Debug, Serialize)]
pub struct DraftRow {
    /// What guesses.
    pub draft: String,
    /// Tokens a second after the first, all texts together.
    pub decode_tok_s: f64,
    /// Against no draft: the median of the texts' own ratios.
    pub speedup: f64,
    /// The least and the most of these.
    pub speedup_range: (f64, f64),
    /// Tokens guessed.
    pub guessed: u32,
    /// Of these, tokens that were right.
    pub guessed_right: u32,
    /// Round trips.
    pub rounds: u32,
    /// Tokens generated.
    pub tokens: u32,
    /// Whether the tokens were those without a draft.
    pub same_tokens: bool,
}

pub(super) async fn drafts(bench: &GenerateBench, place: &Place) -> Result<Vec<DraftRow>, LabError> {
    let hosted = place.host(bench.cut).await?;
    let mut conditions = Profile::Loopback.conditions();
    let (up, down) = (bench.rtt_ms / 2, bench.rtt_ms - bench.rtt_ms / 2);
    (conditions.up.delay, conditions.down.delay) = (Span::ms(up.into()), Span::ms(down.into()));
    let link = Emulator::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), hosted.addr, &conditions, LINK_SEED).map_err(NodeError::from)?;
    let reach = Reach { addr: link.local_addr(), cut: bench.cut, tail: None, encoding: Encoding::INT8, rtt_ms: bench.rtt_ms.max(1) };
    let none = ("off".to_owned(), Drafting::Off);
    let mut devices: Vec<(String, Generator, Vec<Take>)> = vec![];
    for (name, drafting) in std::iter::once(&none).chain(&bench.drafts) {
        devices.push((name.clone(), place.device(Some(reach), drafting.clone()).await?, vec![]));
    }
    let mut prompts = Prompts::default();
    let mut texts: Vec<Prompt> = bench.texts.iter().cloned().map(Prompt::Text).collect();
    if texts.is_empty() {
        texts.extend((0..bench.repeats).map(|_| prompts.next(bench.prompt, place.spec.vocab)));
    }
    for (at, text) in std::iter::once(&texts[0]).chain(&texts).enumerate() {
        for (_, generator, takes) in &mut devices {
            let took = take(generator, Some(&hosted.watch), text.clone(), bench.new).await?;
            // The first text comes twice: at first connections and threads are still cold.
            if at > 0 {
                takes.push(took);
            }
        }
    }
    let rows = devices.iter().map(|(name, _, takes)| row(name, takes, &devices[0].2)).collect();
    drop((devices, link));
    hosted.end().await?;
    Ok(rows)
}

fn row(name: &str, takes: &[Take], plain: &[Take]) -> DraftRow {
    let sum = |value: fn(&Take) -> u32| takes.iter().map(value).sum::<u32>();
    let ratios: Vec<f64> = takes.iter().zip(plain).map(|(take, plain)| plain.token_ms() / take.token_ms()).collect();
    let (seconds, decoded) = takes.iter().fold((0.0, 0.0), |(s, d), take| (s + take.decode_ms() / 1e3, d + take.decoded()));
    DraftRow {
        draft: name.into(),
        decode_tok_s: decoded / seconds,
        speedup: median(ratios.iter().copied()),
        speedup_range: (ratios.iter().copied().fold(f64::INFINITY, f64::min), ratios.iter().copied().fold(0.0, f64::max)),
        guessed: sum(|take| take.usage.guessed),
        guessed_right: sum(|take| take.usage.guessed_right),
        rounds: sum(|take| take.usage.rounds),
        tokens: sum(|take| take.usage.completion_tokens),
        same_tokens: takes.iter().zip(plain).all(|(take, plain)| take.tokens == plain.tokens),
    }
}
