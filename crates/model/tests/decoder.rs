//! Goal: generation with a cache is what transformers gives token for token, whatever the cut, the chunks and the company; and the same
//! rows give the same bits.
//! Method: greedy continuations by transformers kept in `greedy.json` (made by `tests/peer/make_greedy.py`).
#![allow(clippy::unwrap_used)]

mod common;

use common::{device, random, shared_data};
use cutlayer_model::{DecodeError, Decoder, Device, Entering, Feed, Frozen, LaidAdapter, ModelFolder, Parts, read_spec};
use cutlayer_wire::{AdapterState, LoraSpec, PAGE_TOKENS};
use serde_json::Value;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Pages of a test's cache.
const PAGES: u32 = 120;

struct Golden {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
}

fn golden(name: &str) -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/greedy.json");
    let all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let ids = |key: &str| all[name][key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    Golden { prompt: ids("prompt"), greedy: ids("greedy") }
}

/// Every model that has a golden continuation and is on this machine.
fn models(temporary: &Path) -> Vec<(String, PathBuf)> {
    let mut all = vec![];
    for (name, config) in random::configs().into_iter().filter(|(name, _)| *name != "bert") {
        let folder = temporary.join(name);
        random::write(&config, &folder);
        all.push((name.to_owned(), folder));
    }
    let shared = ["../fixtures/llama-nano/model", "../fixtures/gpt2-nano/model", "stories260k-hf", "tinystories-656k-hf"];
    for path in shared {
        let folder = shared_data().join(path);
        let name = path.trim_start_matches("../fixtures/").trim_end_matches("/model").to_owned();
        if folder.exists() {
            all.push((name, folder));
        } else {
            eprintln!("SKIPPED {name}: {} is not there; set CUTLAYER_DATA to the shared data folder", folder.display());
        }
    }
    all
}

/// A chain of sides that generate together: device, server, and the device's tail in a U-shape.
struct Sides {
    decoders: Vec<Decoder>,
    blocks: Vec<Range<usize>>,
}

impl Sides {
    fn new(folder: &Path, device: &Device, ends: &[usize]) -> Self {
        let opened = ModelFolder::open(folder).unwrap();
        let all = read_spec(&opened).unwrap().blocks;
        let mut from = 0;
        let mut blocks: Vec<Range<usize>> = vec![];
        for &end in ends.iter().chain([&all]) {
            blocks.push(from..end);
            from = end;
        }
        let frozen = Arc::new(Frozen::load(&opened, &Parts::whole(all), 0, device).unwrap());
        let decoders = blocks.iter().map(|blocks| Decoder::new(frozen.clone(), blocks.clone(), PAGES)).collect();
        Self { decoders, blocks }
    }

    /// Logits of the last of each sequence's new rows.
    fn logits(&mut self, rows: &[(&[u32], u32, &[u32])], adapter: Option<&LaidAdapter>) -> Vec<Vec<f32>> {
        let mut hidden: Vec<cutlayer_model::Tensor<2>> = vec![];
        for (place, (decoder, blocks)) in self.decoders.iter_mut().zip(&self.blocks).enumerate() {
            let before = std::mem::take(&mut hidden);
            let feeds: Vec<Feed> = rows
                .iter()
                .enumerate()
                .map(|(i, &(ids, position, pages))| {
                    let entering = if place == 0 { Entering::Tokens(ids) } else { Entering::Hidden(before[i].clone()) };
                    Feed { adapter, blocks: blocks.clone(), entering, position, pages }
                })
                .collect();
            hidden = decoder.run(&feeds);
        }
        let last = hidden.into_iter().map(|rows| rows.clone().narrow(0, rows.dims()[0] - 1, 1)).collect();
        let decoder = self.decoders.last().unwrap();
        let vocab = decoder.frozen().spec().vocab;
        decoder.logits(last).chunks(vocab).map(<[f32]>::to_vec).collect()
    }
}

fn best(logits: &[f32]) -> u32 {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32
}

/// A table of pages that are no run: every third, backwards.
fn table(start: u32) -> Vec<u32> {
    (0..PAGES / 3).rev().map(|page| page * 3 + start).collect()
}

/// Goal: 200 greedy tokens of every family. Method: one token at a time, at each cut and as a U-shape.
#[test]
fn greedy_is_what_transformers_gives_at_every_cut() {
    let temporary = tempfile::tempdir().unwrap();
    for (name, folder) in models(temporary.path()) {
        let blocks = read_spec(&ModelFolder::open(&folder).unwrap()).unwrap().blocks;
        let Golden { prompt, greedy } = golden(&name);
        let shapes = (0..=blocks).map(|cut| vec![cut]).chain([vec![], vec![1, blocks - 1], vec![0, blocks]]);
        for ends in shapes {
            let mut sides = Sides::new(&folder, &device(), &ends);
            let (mut ids, table) = (prompt.clone(), table(0));
            let mut rows = prompt.clone();
            while ids.len() < prompt.len() + greedy.len() {
                let position = (ids.len() - rows.len()) as u32;
                let next = best(&sides.logits(&[(&rows, position, &table)], None)[0]);
                ids.push(next);
                rows = vec![next];
            }
            assert_eq!(ids[prompt.len()..], greedy, "{name} cut at {ends:?}");
        }
    }
}

/// Goal: whatever is computed at once, a row's bits are the same. Method: the last row's logits of one prompt in one pass, in chunks, token
/// by token, on other pages, and beside other sequences.
#[test]
fn bits_do_not_depend_on_chunks_or_company() {
    if !cutlayer_model::rows_are_exact(&device()) {
        return eprintln!("SKIPPED: this device's products depend on the rows beside");
    }
    let temporary = tempfile::tempdir().unwrap();
    for (name, folder) in models(temporary.path()) {
        let ids: Vec<u32> = golden(&name).greedy[..45].to_vec();
        let whole = Sides::new(&folder, &device(), &[1]).logits(&[(&ids, 0, &table(0))], None).remove(0);
        for chunk in [1, 2, 7, 16, 31] {
            let (mut sides, table) = (Sides::new(&folder, &device(), &[1]), table(1));
            let mut last = vec![];
            for (place, rows) in ids.chunks(chunk).enumerate() {
                last = sides.logits(&[(rows, (place * chunk) as u32, &table)], None).remove(0);
            }
            assert_eq!(last, whole, "{name} in chunks of {chunk}");
        }
        let mut sides = Sides::new(&folder, &device(), &[1]);
        let (others, one, two): (Vec<u32>, _, _) = (ids.iter().rev().copied().collect(), table(0), table(1));
        sides.logits(&[(&others[..20], 0, &one)], None);
        sides.logits(&[(&others[20..21], 20, &one), (&ids[..44], 0, &two)], None);
        let beside = sides.logits(&[(&others[21..23], 21, &one), (&ids[44..], 44, &two)], None).remove(1);
        assert_eq!(beside, whole, "{name} beside another");
    }
}

/// Goal: rows that turn out wrong are taken back by writing over them. Method: guesses, then the truth from the same position.
#[test]
fn rows_are_taken_back_by_writing_over_them() {
    let temporary = tempfile::tempdir().unwrap();
    for (name, folder) in models(temporary.path()).into_iter().take(6) {
        let ids: Vec<u32> = golden(&name).greedy[..40].to_vec();
        let wrong: Vec<u32> = ids[20..28].iter().map(|id| (id + 1) % 90).collect();
        let (mut sides, table) = (Sides::new(&folder, &device(), &[1]), table(2));
        let straight = sides.logits(&[(&ids, 0, &table)], None).remove(0);
        let mut sides = Sides::new(&folder, &device(), &[1]);
        sides.logits(&[(&ids[..20], 0, &table)], None);
        sides.logits(&[(&wrong, 20, &table)], None);
        let again = sides.logits(&[(&ids[20..], 20, &table)], None).remove(0);
        common::assert_close(&again, &straight, 1e-5, &name);
    }
}

/// Goal: an adapter counts, and each sequence has its own. Method: against a training stage's logits; with and without, side by side.
#[test]
fn adapters_run_beside_the_same_base() {
    let Some(case) = common::case("llama-nano", "lora") else { return };
    let state = case.golden("adapter_final/adapter_model.safetensors");
    let frozen = case.load(&Parts::whole(case.blocks), &device());
    let adapter = LaidAdapter::new(&frozen, 0..case.blocks, &case.lora, &state).unwrap();
    let mut stage = cutlayer_model::Stage::new(frozen.clone(), 0..case.blocks, false, &case.lora, &state).unwrap();
    stage.set_checkpointing(false);
    let ids: Vec<u32> = (0..30).map(|i| (i * 11 + 5) % 200).collect();
    let rows = cutlayer_model::Rows::new(&[30], 256).unwrap();
    let logits = stage.logits(0..case.blocks, cutlayer_model::Input::Tokens(&ids), &rows).unwrap();
    let expected = logits.chunks(logits.len() / 30).last().unwrap().to_vec();

    let mut decoder = Decoder::new(frozen, 0..case.blocks, PAGES);
    let (one, two, blocks) = (table(0), table(1), 0..case.blocks);
    let feed = |adapter, pages| Feed { adapter, blocks: blocks.clone(), entering: Entering::Tokens(&ids), position: 0, pages };
    let hidden = decoder.run(&[feed(Some(&adapter), &one), feed(None, &two)]);
    let last = hidden.into_iter().map(|rows| rows.narrow(0, 29, 1)).collect();
    let found = decoder.logits(last);
    let (with, without) = found.split_at(found.len() / 2);
    common::assert_close(with, &expected, 1e-4, "with the adapter");
    assert!(with.iter().zip(without).any(|(a, b)| (a - b).abs() > 1e-3), "the adapter does something");
}

/// Goal: an encoder's sequence is computed whole, each by itself. Method: the hidden states of two, at once and alone.
#[test]
fn an_encoder_needs_no_cache() {
    let temporary = tempfile::tempdir().unwrap();
    let (_, config) = random::configs().into_iter().find(|(name, _)| *name == "bert").unwrap();
    random::write(&config, temporary.path());
    let frozen = random::load(temporary.path(), &device());
    let mut decoder = Decoder::new(frozen, 0..3, 0);
    let (a, b): (Vec<u32>, Vec<u32>) = ((1..12).collect(), (20..50).collect());
    let feed = |ids| Feed { adapter: None, blocks: 0..3, entering: Entering::Tokens(ids), position: 0, pages: &[] };
    let values = |hidden: cutlayer_model::Tensor<2>| cutlayer_model::encoding::values(hidden);
    let together: Vec<Vec<f32>> = decoder.run(&[feed(&a), feed(&b)]).into_iter().map(values).collect();
    for (ids, together) in [&a, &b].into_iter().zip(together) {
        common::assert_close(&values(decoder.run(&[feed(ids)]).remove(0)), &together, 1e-5, "alone");
    }
}

/// Goal: what cannot be computed is refused before it harms others. Method: each refusal once.
#[test]
fn what_cannot_be_computed_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let (name, config) = random::configs().remove(0);
    random::write(&config, temporary.path());
    let decoder = Decoder::new(random::load(temporary.path(), &device()), 1..3, 8);
    let pages = [0, 1, 2, 3];
    let feed = Feed { adapter: None, blocks: 1..3, entering: Entering::Tokens(&[1, 2]), position: 0, pages: &pages };
    assert_eq!(decoder.check(&feed), Ok(()), "{name}");
    let refused = |feed: Feed| decoder.check(&feed).expect_err("refused");
    assert_eq!(refused(Feed { entering: Entering::Tokens(&[96]), ..feed.clone() }), DecodeError::Vocabulary { id: 96, vocab: 96 });
    assert_eq!(refused(Feed { position: 63, ..feed.clone() }), DecodeError::TooLong { tokens: 65, positions_max: 64 });
    assert_eq!(refused(Feed { blocks: 0..3, ..feed.clone() }), DecodeError::Blocks { from: 0, to: 3, first: 1, last: 3 });
    let end = 3 * PAGE_TOKENS;
    let short = Feed { position: end - 1, pages: &pages[..3], ..feed.clone() };
    assert_eq!(refused(short), DecodeError::Pages { rows: 2, end: end as usize + 1, pages: 3 });
    assert!(matches!(refused(Feed { entering: Entering::Tokens(&[]), ..feed }), DecodeError::Shape { .. }));
    let lora = LoraSpec { rank: 2, alpha: 4.0, rslora: false, dropout: 0.0, targets: vec!["q_proj".into()] };
    let frozen = random::load(temporary.path(), &device());
    assert!(LaidAdapter::new(&frozen, 0..3, &lora, &AdapterState::new()).unwrap_err().to_string().contains("lacks"));
}
