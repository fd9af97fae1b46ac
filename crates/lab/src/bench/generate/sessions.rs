//! Many sequences: together, sharing passes over the weights, against the same in turn.

use super::GenerateBench;
use super::place::{Place, Reach};
use super::take::{Prompts, request};
use crate::bench::step::median;
use crate::error::LabError;
use cutlayer_node::{Drafting, Generator, HostWatch, Prompt, Work};
use cutlayer_wire::Encoding;
use serde::Serialize;
use std::time::Instant;

/// Sequences together and in turn, medians.
#[derive(Clone, Debug, Serialize)]
pub struct SessionsRow {
    /// Where the blocks are.
    pub place: String,
    /// Sequences.
    pub sessions: u32,
    /// Tokens a second, one sequence after the other, prompts included.
    pub in_turn_tok_s: f64,
    /// Tokens a second, all at once, prompts included.
    pub together_tok_s: f64,
    /// Median of the repeats' own ratios.
    pub ratio: f64,
    /// The same without the prompts: tokens after each sequence's first over the time since the last of these.
    pub decode_ratio: f64,
    /// Sequences that shared a pass, on average, where the most blocks are.
    pub shared: f64,
}

/// One of the places, and what it took: seconds in turn and together, each whole and from the (last) first token.
struct Spot {
    name: String,
    generator: Generator,
    host: Option<HostWatch>,
    took: Vec<[(f64, f64); 2]>,
    together: (u64, u64),
}

impl Spot {
    fn work(&self) -> Work {
        self.host.as_ref().map_or_else(|| self.generator.work(), HostWatch::work)
    }
}

pub(super) async fn sessions(bench: &GenerateBench, place: &Place) -> Result<Vec<SessionsRow>, LabError> {
    let hosted = place.host(bench.cut).await?;
    let reach = |encoding| Reach { addr: hosted.addr, cut: bench.cut, tail: None, encoding, rtt_ms: 1 };
    let spot = |name: String, generator, host| Spot { name, generator, host, took: vec![], together: (0, 0) };
    let watch = Some(hosted.watch.clone());
    let mut spots = vec![spot("uncut".into(), place.device(None, Drafting::Off).await?, None)];
    for encoding in [Encoding::F32, Encoding::INT8] {
        let generator = place.device(Some(reach(encoding)), Drafting::Off).await?;
        spots.push(spot(format!("cut {}, {encoding}", bench.cut), generator, watch.clone()));
    }
    let mut prompts = Prompts::default();
    for repeat in 0..=bench.repeats {
        for spot in &mut spots {
            let mut some = || (0..bench.sessions).map(|_| prompts.next(bench.prompt, place.spec.vocab)).collect::<Vec<_>>();
            let turn = in_turn(&spot.generator, some(), bench.new).await?;
            let before = spot.work();
            let both = together(&spot.generator, some(), bench.new).await?;
            let work = spot.work().since(before);
            if repeat > 0 {
                spot.took.push([turn, both]);
                spot.together = (spot.together.0 + work.sequences, spot.together.1 + work.passes);
            }
        }
    }
    let rows = spots.iter().map(|spot| row(bench, spot)).collect();
    drop(spots);
    hosted.end().await?;
    Ok(rows)
}

fn row(bench: &GenerateBench, spot: &Spot) -> SessionsRow {
    let tokens = f64::from(bench.sessions) * f64::from(bench.new);
    SessionsRow {
        place: spot.name.clone(),
        sessions: bench.sessions,
        in_turn_tok_s: tokens / median(spot.took.iter().map(|[turn, _]| turn.0)),
        together_tok_s: tokens / median(spot.took.iter().map(|[_, both]| both.0)),
        ratio: median(spot.took.iter().map(|[turn, both]| turn.0 / both.0)),
        decode_ratio: median(spot.took.iter().map(|[turn, both]| turn.1 / both.1)),
        shared: spot.together.0 as f64 / (spot.together.1 as f64).max(1.0),
    }
}

/// Seconds of all, and of what came after each first token.
async fn in_turn(generator: &Generator, prompts: Vec<Prompt>, new: u32) -> Result<(f64, f64), LabError> {
    let (started, mut decoding) = (Instant::now(), 0.0);
    for prompt in prompts {
        let (.., usage) = generator.generate(request(prompt, new)).whole().await?;
        decoding += (usage.total_ms - usage.first_token_ms) / 1e3;
    }
    Ok((started.elapsed().as_secs_f64(), decoding))
}

/// Seconds of all, and of what came after the last first token, made up to all tokens after the first.
async fn together(generator: &Generator, prompts: Vec<Prompt>, new: u32) -> Result<(f64, f64), LabError> {
    let started = Instant::now();
    let running: Vec<_> = prompts.into_iter().map(|prompt| generator.generate(request(prompt, new))).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for mut generation in running {
        tasks.spawn(async move {
            let mut times = vec![];
            while let Some(piece) = generation.next().await {
                if matches!(piece?, cutlayer_node::Piece::Token(_)) {
                    times.push(started.elapsed().as_secs_f64());
                }
            }
            Ok::<_, cutlayer_node::NodeError>(times)
        });
    }
    let mut all = vec![];
    while let Some(times) = tasks.join_next().await {
        all.push(times.map_err(|_| LabError::Panicked("generating".into()))??);
    }
    let seconds = started.elapsed().as_secs_f64();
    let last_first = all.iter().filter_map(|times| times.first()).copied().fold(0.0, f64::max);
    let last = all.iter().filter_map(|times| times.last()).copied().fold(0.0, f64::max);
    let after = all.iter().flatten().filter(|&&time| time > last_first).count().max(1);
    let wanted = all.iter().map(|times| times.len().saturating_sub(1)).sum::<usize>();
    Ok((seconds, (last - last_first).max(1e-9) * wanted as f64 / after as f64))
}
