//! Goal: an encoder cut anywhere gives the vectors of the whole one, and those are sentence-transformers'.
//! Method: an encoder drawn from a seed over real sockets; all-MiniLM-L6-v2 where it was fetched, beside published similarities.
#![allow(clippy::unwrap_used)]

#[path = "common/hosting.rs"]
mod hosting;

use cutlayer_model::{DeviceChoice, ExportDtype, Pretrainer, write_model};
use cutlayer_node::{Embedder, NodeError, no_events};
use cutlayer_wire::FailureCode;
use hosting::{Keys, alone, host_config, split, start};
use std::path::{Path, PathBuf};

const BLOCKS: u16 = 3;
const VOCAB: u32 = 97;
/// More than a pass of a decoder takes at once.
const POSITIONS: u32 = 600;

/// An encoder drawn from a seed.
fn encoder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "vocab_size": VOCAB,
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2
    });
    let weights = Pretrainer::new(&config, 5, &DeviceChoice::Cpu.open().unwrap()).unwrap().weights();
    let scaled = weights.into_iter().map(|(name, mut tensor)| {
        tensor.values.iter_mut().for_each(|value| *value *= if tensor.shape.len() == 2 { 5.0 } else { 1.0 });
        (name, tensor)
    });
    write_model(folder.path(), &config, scaled, ExportDtype::F32).unwrap();
    folder
}

fn minilm() -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("HOME")?).join(".cache/cutlayer/models/all-minilm-l6-v2");
    folder.join("model.safetensors").exists().then_some(folder)
}

fn texts() -> Vec<Vec<u32>> {
    let text = |length: u32, seed: u32| (0..length).map(|place| (place * 31 + seed * 17) % VOCAB).collect();
    vec![text(5, 1), text(1, 2), text(40, 3), text(POSITIONS, 4), text(33, 5)]
}

async fn open(folder: &Path, keys: &Keys) -> Embedder {
    Embedder::open(alone(folder), keys.device.clone(), no_events()).await.unwrap()
}

fn cosine(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

async fn check_every_cut(folder: &Path, blocks: u16, texts: Vec<Vec<u32>>) {
    let keys = Keys::new();
    let whole = open(folder, &keys).await.embed(texts.clone()).await.unwrap();
    let hosted = start(host_config(folder), &keys).await;
    for cut in 0..=blocks {
        let device = Embedder::open(split(folder, hosted.addr, hosted.id, cut, None), keys.device.clone(), no_events()).await.unwrap();
        let found = device.embed(texts.clone()).await.unwrap();
        for (place, (found, whole)) in found.iter().zip(&whole).enumerate() {
            let off = found.iter().zip(whole).fold(0f32, |off, (found, whole)| off.max((found - whole).abs()));
            assert!(off < 1e-5, "cut {cut}, text {place}: off by {off}");
        }
        assert_eq!(found.len(), whole.len());
        assert!(device.link_stats().await.unwrap().bytes_received > 0);
    }
    hosted.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cut_gives_the_whole_encoders_vectors() {
    let folder = encoder();
    check_every_cut(folder.path(), BLOCKS, texts()).await;
}

/// Goal: a text's vector is its own. Method: each text alone, beside all at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_text_does_not_depend_on_those_beside_it() {
    let (folder, keys) = (encoder(), Keys::new());
    let embedder = open(folder.path(), &keys).await;
    let together = embedder.embed(texts()).await.unwrap();
    for (text, beside) in texts().into_iter().zip(together) {
        let alone = embedder.embed(vec![text]).await.unwrap().remove(0);
        assert!((cosine(&alone, &alone) - 1.0).abs() < 1e-5, "length 1");
        assert!(alone.iter().zip(&beside).all(|(alone, beside)| (alone - beside).abs() < 1e-5));
    }
    assert_eq!(embedder.embed(vec![]).await.unwrap(), Vec::<Vec<f32>>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_that_cannot_be_embedded_are_refused() {
    let (folder, keys) = (encoder(), Keys::new());
    let embedder = open(folder.path(), &keys).await;
    let refused = async |ids: Vec<u32>| match embedder.embed(vec![vec![1], ids]).await {
        Err(NodeError::Generation { code, reason }) => (code, reason),
        other => panic!("{other:?}"),
    };
    let (code, reason) = refused(vec![1; POSITIONS as usize + 1]).await;
    assert!(code == FailureCode::TooLong && reason.contains("text 1 has 601 tokens"), "{reason}");
    assert_eq!(refused(vec![]).await.0, FailureCode::Malformed);
    assert!(refused(vec![3, VOCAB]).await.1.contains("token 97"));
    assert!(embedder.embed_text("words").await.unwrap_err().to_string().contains("tokenizer.json"));
    let generates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/quickstart");
    let error = Embedder::open(alone(&generates), keys.device.clone(), no_events()).await.err().unwrap();
    assert!(error.to_string().contains("need an encoder's folder"), "{error}");
}

/// Goal: the vectors are all-MiniLM-L6-v2's. Method: three similarities that sbert.net prints for it, to their four digits.
#[tokio::test(flavor = "multi_thread")]
async fn similarities_are_sentence_transformers() {
    let Some(folder) = minilm() else {
        return eprintln!("SKIPPED: no all-minilm-l6-v2 in ~/.cache/cutlayer/models; fetch it with `cutlayer pull`");
    };
    let keys = Keys::new();
    let embedder = open(&folder, &keys).await;
    let (mut vectors, mut ids) = (vec![], vec![]);
    for text in ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."] {
        vectors.push(embedder.embed_text(text).await.unwrap());
        ids.push(embedder.tokenizer().unwrap().encode(text, true).unwrap());
    }
    for (one, other, expected) in [(0, 1, 0.6660), (0, 2, 0.1046), (1, 2, 0.1411)] {
        let found = cosine(&vectors[one], &vectors[other]);
        assert!((found - expected).abs() < 1e-4, "{one} beside {other}: {found}, not {expected}");
    }
    check_every_cut(&folder, 6, ids).await;
}
