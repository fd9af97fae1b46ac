//! What the cut costs a token: time beyond what both sides compute, and bytes.

use super::GenerateBench;
use super::place::{Place, Reach};
use super::take::{Prompts, Take, record_bytes, take};
use crate::bench::step::median;
use crate::error::LabError;
use cutlayer_node::{Drafting, Generator, HostWatch};
use cutlayer_wire::Encoding;
use serde::Serialize;

/// One way to cut, medians of a decoded token.
#[derive(Clone, Debug, Serialize)]
pub struct SplitRow {
    /// Where the blocks are, and how hidden states travel.
    pub place: String,
    /// Milliseconds of a token.
    pub token_ms: f64,
    /// Of these, those that the device computed in.
    pub device_ms: f64,
    /// Those that the host did; unknown where it is a process of its own.
    pub host_ms: Option<f64>,
    /// What is left: encodings are computing, everything on the way is not.
    pub beyond_ms: Option<f64>,
    /// Milliseconds more than the uncut model's, median of the repeats' own differences.
    pub over_uncut_ms: f64,
    /// Milliseconds to the first token.
    pub first_token_ms: f64,
    /// Bytes of the records, up and down.
    pub record_bytes: (f64, f64),
    /// Bytes as UDP carried them, up and down, acknowledgements included.
    pub udp_bytes: (f64, f64),
    /// Whether the tokens were the uncut model's.
    pub same_tokens: bool,
}

/// One of the ways.
struct Way {
    name: String,
    generator: Generator,
    host: Option<HostWatch>,
    records: (f64, f64),
    takes: Vec<Take>,
}

/// The ways to cut that are compared.
fn variants(bench: &GenerateBench) -> Vec<(String, Option<u16>, Encoding, bool)> {
    let mut ways = vec![];
    for encoding in [Encoding::F32, Encoding::INT8] {
        ways.push((format!("cut {}, {encoding}", bench.cut), None, encoding, false));
        ways.push((format!("cut {} and {} at the end, {encoding}", bench.cut, bench.tail), Some(bench.tail), encoding, false));
    }
    ways.push((format!("cut {}, int8, a process each", bench.cut), None, Encoding::INT8, true));
    ways
}

pub(super) async fn split(bench: &GenerateBench, place: &Place) -> Result<Vec<SplitRow>, LabError> {
    let (hosted, process) = (place.host(bench.cut).await?, place.host_process(bench.cut).await?);
    let uncut = place.device(None, Drafting::Off).await?;
    let mut ways = vec![Way { name: "uncut".into(), generator: uncut, host: None, records: (0.0, 0.0), takes: vec![] }];
    for (name, tail, encoding, apart) in variants(bench) {
        let addr = if apart { process.addr } else { hosted.addr };
        let reach = Reach { addr, cut: bench.cut, tail, encoding, rtt_ms: 1 };
        let records = record_bytes(encoding, place.spec.hidden as u32, tail.is_some())?;
        let host = (!apart).then(|| hosted.watch.clone());
        ways.push(Way { name, generator: place.device(Some(reach), Drafting::Off).await?, host, records, takes: vec![] });
    }
    let mut prompts = Prompts::default();
    for repeat in 0..=bench.repeats {
        let prompt = prompts.next(bench.prompt, place.spec.vocab);
        for way in &mut ways {
            let took = take(&way.generator, way.host.as_ref(), prompt.clone(), bench.new).await?;
            if repeat > 0 {
                way.takes.push(took);
            }
        }
    }
    let rows = ways.iter().map(|way| row(way, &ways[0])).collect();
    drop(ways);
    hosted.end().await?;
    Ok(rows)
}

fn row(way: &Way, uncut: &Way) -> SplitRow {
    let of = |value: fn(&Take) -> f64| median(way.takes.iter().map(value));
    let is_known = way.host.is_some() || way.records.0 == 0.0;
    SplitRow {
        place: way.name.clone(),
        token_ms: of(Take::token_ms),
        device_ms: of(|take| take.busy_ms.0 / take.decoded()),
        host_ms: is_known.then(|| of(|take| take.busy_ms.1 / take.decoded())),
        beyond_ms: is_known.then(|| of(|take| (take.decode_ms() - take.busy_ms.0 - take.busy_ms.1) / take.decoded())),
        over_uncut_ms: median(way.takes.iter().zip(&uncut.takes).map(|(split, whole)| split.token_ms() - whole.token_ms())),
        first_token_ms: of(|take| take.usage.first_token_ms),
        record_bytes: way.records,
        udp_bytes: (of(|take| take.carried.0 as f64 / take.decoded()), of(|take| take.carried.1 as f64 / take.decoded())),
        same_tokens: way.takes.iter().zip(&uncut.takes).all(|(split, whole)| split.tokens == whole.tokens),
    }
}
