//! Opening and reading model folders.

use crate::support::{HIDDEN, VOCAB, check_refused, f32_bytes, llama, save_raw, scratch, shared};
use cutlayer_model::{ExportDtype, FolderError, ModelFolder, TensorFileError};
use cutlayer_wire::BaseHash;
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const QUERY: &str = "model.layers.1.self_attn.q_proj.weight";

/// Goal: what is read is what the file holds. Method: every tensor of the shared models against the safetensors library.
#[test]
fn shared_models_read_as_stored() {
    for model in ["data/stories260k-hf", "data/tinystories-656k-hf", "fixtures/llama-nano/model", "fixtures/gpt2-nano/model"] {
        let Some(path) = shared(model) else { continue };
        let folder = ModelFolder::open(&path).expect("a good model");
        let bytes = fs::read(path.join("model.safetensors")).expect("its weights");
        let stored = SafeTensors::deserialize(&bytes).expect("a good file");
        assert_eq!(folder.names().count(), stored.len());
        for (name, view) in stored.tensors() {
            assert_eq!(folder.shape(&name), Some(view.shape()));
            let read = folder.read(&name, view.shape()).expect("a good tensor");
            assert_eq!(f32_bytes(&read.values), view.data(), "{model} {name}");
        }
    }
}

/// Goal: half precision reads exactly. Method: every finite bit pattern of both types.
#[test]
fn every_half_value_reads_exactly() {
    let dir = scratch();
    fs::write(dir.path().join("config.json"), "{}").expect("a config");
    let f16_bits: Vec<u16> = (0..=u16::MAX).filter(|&bits| f16::from_bits(bits).is_finite()).collect();
    let bf16_bits: Vec<u16> = (0..=u16::MAX).filter(|&bits| bf16::from_bits(bits).is_finite()).collect();
    let bytes = |bits: &[u16]| bits.iter().flat_map(|bits| bits.to_le_bytes()).collect::<Vec<u8>>();
    let tensors =
        [("f16", Dtype::F16, vec![f16_bits.len()], bytes(&f16_bits)), ("bf16", Dtype::BF16, vec![bf16_bits.len()], bytes(&bf16_bits))];
    save_raw(&dir.path().join("model.safetensors"), &tensors);
    let folder = ModelFolder::open(dir.path()).expect("a good folder");
    let read = |name: &str, count: usize| folder.read(name, &[count]).expect("finite values").values;
    let expected = f16_bits.iter().map(|&bits| f16::from_bits(bits).to_f32());
    assert!(read("f16", f16_bits.len()).iter().zip(expected).all(|(read, value)| read.to_bits() == value.to_bits()));
    let expected = bf16_bits.iter().map(|&bits| bf16::from_bits(bits).to_f32());
    assert!(read("bf16", bf16_bits.len()).iter().zip(expected).all(|(read, value)| read.to_bits() == value.to_bits()));
}

/// Goal: a bad tensor is named. Method: one of each kind in one file.
#[test]
fn bad_tensors_are_named() {
    let dir = scratch();
    fs::write(dir.path().join("config.json"), "{}").expect("a config");
    let tensors = [
        ("good", Dtype::F32, vec![2, 3], f32_bytes(&[1.0; 6])),
        ("ids", Dtype::I64, vec![1], vec![0; 8]),
        ("infinite", Dtype::F16, vec![2], [f16::ONE, f16::INFINITY].iter().flat_map(|value| value.to_le_bytes()).collect()),
        ("nan", Dtype::F32, vec![3], f32_bytes(&[0.0, 1.0, f32::NAN])),
    ];
    save_raw(&dir.path().join("model.safetensors"), &tensors);
    let folder = ModelFolder::open(dir.path()).expect("headers are good");
    assert!(folder.read("good", &[2, 3]).is_ok());
    check_refused(folder.read("good", &[3, 2]), &["model.safetensors", "`good`", "[2, 3]", "[3, 2]"]);
    check_refused(folder.read("ids", &[1]), &["model.safetensors", "`ids`", "I64"]);
    check_refused(folder.read("infinite", &[2]), &["model.safetensors", "`infinite`", "inf", "index 1"]);
    check_refused(folder.read("nan", &[3]), &["model.safetensors", "`nan`", "NaN", "index 2"]);
    check_refused(folder.read("absent", &[3]), &["`absent`", "cutlayer pull"]);
    assert!(matches!(folder.read("absent", &[3]), Err(FolderError::MissingTensor { .. })));
}

/// Goal: a folder that is no model says what it lacks. Method: each thing missing in turn.
#[test]
fn incomplete_folders_are_refused() {
    let dir = scratch();
    check_refused(ModelFolder::open(&dir.path().join("nowhere")), &["nowhere", "cutlayer pull"]);
    check_refused(ModelFolder::open(dir.path()), &["config.json", "missing", "cutlayer pull"]);
    fs::write(dir.path().join("config.json"), "{\"model_type\": ").expect("half a config");
    check_refused(ModelFolder::open(dir.path()), &["config.json", "line 1"]);
    fs::write(dir.path().join("config.json"), "{}").expect("a config");
    check_refused(ModelFolder::open(dir.path()), &["neither model.safetensors nor", "cutlayer pull"]);
    fs::write(dir.path().join("pytorch_model.bin"), "x").expect("pickled weights");
    check_refused(ModelFolder::open(dir.path()), &[".bin files are not read"]);
}

/// Goal: a download that stopped anywhere is noticed at opening. Method: every shorter length, and longer ones.
#[test]
fn every_truncation_is_noticed() {
    let dir = scratch();
    llama().save(dir.path(), ExportDtype::F32);
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).expect("the weights");
    for length in (0..whole.len()).step_by(97).chain([7, 8, whole.len() - 1]) {
        fs::write(&path, &whole[..length]).expect("a writable file");
        match ModelFolder::open(dir.path()) {
            Err(FolderError::Weights(TensorFileError::Truncated { bytes, .. })) => assert_eq!(bytes, length as u64),
            other => panic!("cut at {length}: {other:?}"),
        }
    }
    let mut longer = whole.clone();
    longer.push(0);
    fs::write(&path, &longer).expect("a writable file");
    check_refused(ModelFolder::open(dir.path()), &["model.safetensors", &longer.len().to_string(), &whole.len().to_string()]);
}

/// Goal: no header makes us allocate or read beyond the file. Method: hostile headers.
#[test]
fn hostile_headers_are_refused() {
    let dir = scratch();
    fs::write(dir.path().join("config.json"), "{}").expect("a config");
    let path = dir.path().join("model.safetensors");
    let with_header = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let huge = [u64::MAX.to_le_bytes().to_vec(), vec![0; 64]].concat();
    let cases = [
        (huge, "allowed"),
        (with_header("not json", 0), "header"),
        (with_header(r#"{"t":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#, 4), "F99"),
        (with_header(r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4), "header"),
        (with_header(r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8), "header"),
        (with_header(r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}"#, 8), "header"),
        (with_header(r#"{"t":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}}"#, 4), "header"),
        (with_header(r#"{"t":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4294967296]}}"#, 4), "cut short"),
    ];
    for (bytes, word) in cases {
        fs::write(&path, bytes).expect("a writable file");
        check_refused(ModelFolder::open(dir.path()), &["model.safetensors", word]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Goal: no damage makes opening or reading panic. Method: overwrite random bytes of a good file's header.
    #[test]
    fn damaged_headers_never_panic(damage in prop::collection::vec((0usize..2400, any::<u8>()), 1..8)) {
        let dir = scratch();
        llama().save(dir.path(), ExportDtype::F32);
        let path = dir.path().join("model.safetensors");
        let mut bytes = fs::read(&path).expect("the weights");
        damage.into_iter().for_each(|(index, byte)| bytes[index] = byte);
        fs::write(&path, bytes).expect("a writable file");
        if let Ok(folder) = ModelFolder::open(dir.path()) {
            let names: Vec<String> = folder.names().map(str::to_owned).collect();
            for name in names {
                let shape = folder.shape(&name).expect("listed").to_vec();
                let _ = folder.read(&name, &shape);
            }
            folder.base_hash().expect("the data is there");
        }
    }
}

/// Writes the model's tensors into two shards with an index, the even ones first.
fn shard(from: &Path, to: &Path) -> Value {
    let bytes = fs::read(from.join("model.safetensors")).expect("the weights");
    let stored = SafeTensors::deserialize(&bytes).expect("a good file");
    let mut names = stored.names();
    names.sort();
    let mut map = serde_json::Map::new();
    for (number, shard) in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].into_iter().enumerate() {
        let mine = names.iter().skip(number).step_by(2);
        let views = mine.map(|name| {
            map.insert(name.to_string(), shard.into());
            (name.to_string(), stored.tensor(name).expect("listed"))
        });
        fs::write(to.join(shard), safetensors::serialize(views, None).expect("a shard")).expect("a writable folder");
    }
    fs::copy(from.join("config.json"), to.join("config.json")).expect("a config");
    let index = json!({ "metadata": { "total_size": 0 }, "weight_map": map });
    fs::write(to.join("model.safetensors.index.json"), index.to_string()).expect("an index");
    index
}

/// Goal: sharding changes nothing. Method: one model whole and in two shards.
#[test]
fn shards_read_as_the_whole() {
    let (whole_dir, sharded_dir) = (scratch(), scratch());
    let whole = llama().save(whole_dir.path(), ExportDtype::F32);
    shard(whole_dir.path(), sharded_dir.path());
    let sharded = ModelFolder::open(sharded_dir.path()).expect("good shards");
    assert!(whole.names().eq(sharded.names()));
    for name in whole.names() {
        let shape = whole.shape(name).expect("listed");
        assert_eq!(whole.read(name, shape).expect("good"), sharded.read(name, shape).expect("good"));
    }
    assert_eq!(whole.base_hash().expect("readable"), sharded.base_hash().expect("readable"));
}

/// Goal: shards of different downloads are noticed. Method: break the index in each way.
#[test]
fn index_and_shards_must_agree() {
    let (whole_dir, dir) = (scratch(), scratch());
    llama().save(whole_dir.path(), ExportDtype::F32);
    let index = shard(whole_dir.path(), dir.path());
    let refused_with = |change: &dyn Fn(&mut serde_json::Map<String, Value>), words: &[&str]| {
        let mut broken = index.clone();
        change(broken["weight_map"].as_object_mut().expect("a map"));
        fs::write(dir.path().join("model.safetensors.index.json"), broken.to_string()).expect("an index");
        check_refused(ModelFolder::open(dir.path()), words);
    };
    refused_with(&|map| drop(map.remove(QUERY)), &[QUERY, "does not put there", "cutlayer pull"]);
    refused_with(&|map| drop(map.insert("extra".into(), "model-00001-of-00002.safetensors".into())), &["`extra`", "model-00001"]);
    refused_with(&|map| drop(map.insert("extra".into(), "../secret".into())), &["../secret", "not a file name"]);
    refused_with(&|map| drop(map.insert("extra".into(), "model-00003.safetensors".into())), &["model-00003.safetensors", "missing"]);
    fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).expect("an index");
    let second = dir.path().join("model-00002-of-00002.safetensors");
    let bytes = fs::read(&second).expect("a shard");
    fs::write(&second, &bytes[..bytes.len() - 5]).expect("a writable folder");
    check_refused(ModelFolder::open(dir.path()), &["model-00002", "cut short", "cutlayer pull"]);
}

fn hash_of(change: impl FnOnce(&mut crate::support::Model)) -> BaseHash {
    let dir = scratch();
    let mut model = llama();
    change(&mut model);
    model.save(dir.path(), ExportDtype::F32).base_hash().expect("readable")
}

/// Goal: the fingerprint is the model's, not the file's. Method: reorder, respell, rename; then change what matters.
#[test]
fn fingerprint_follows_the_model() {
    let base = hash_of(|_| ());
    assert_eq!(base, hash_of(|model| model.tensors.reverse()));
    assert_eq!(base, hash_of(|model| model.config["transformers_version"] = "9.9".into()));
    assert_eq!(base, hash_of(|model| model.config["rope_theta"] = 10_000.into()));
    assert_eq!(base, hash_of(|model| model.config["rope_scaling"] = Value::Null));
    assert_ne!(base, hash_of(|model| model.config["rope_theta"] = 20_000.into()));
    assert_ne!(base, hash_of(|model| model.config["rope_scaling"] = json!({ "rope_type": "linear", "factor": 2.0 })));
    for index in [0, 63] {
        let query = |model: &mut crate::support::Model| {
            let (_, tensor) = model.tensors.iter_mut().find(|(name, _)| name == QUERY).expect("there is one");
            tensor.values[index] += 1e-3;
        };
        assert_ne!(base, hash_of(query), "value {index}");
    }
    assert_ne!(base, hash_of(|model| model.tensors[0].0.push('x')));
    assert_ne!(base, hash_of(|model| model.tensors[0].1.shape = vec![HIDDEN, VOCAB]));
    assert_ne!(base, hash_of(|model| drop(model.tensors.pop())));
    let dir = scratch();
    assert_ne!(base, llama().save(dir.path(), ExportDtype::Bf16).base_hash().expect("readable"));
}

/// Changing these bytes makes deployed peers refuse each other: bump the fingerprint's version.
#[test]
fn fingerprint_is_frozen() {
    assert_eq!(hash_of(|_| ()).to_hex(), "61979ea0bf181480774efc6e2b45d3a1c39ea8743af318826f995f8e83357fbb");
}

/// Goal: a tokenizer of another model is noticed. Method: each form of vocabulary, with and without added tokens.
#[test]
fn tokenizer_ids_are_counted() {
    let dir = scratch();
    let folder = llama().save(dir.path(), ExportDtype::F32);
    assert_eq!(folder.vocab_of_tokenizer().expect("no tokenizer is fine"), None);
    folder.check_tokenizer(VOCAB).expect("nothing to disagree with");
    let cases = [
        (json!({ "model": { "type": "BPE", "vocab": { "a": 0, "b": 9 }, "merges": [] } }), 10),
        (json!({ "added_tokens": [{ "id": 12, "content": "<s>" }], "model": { "vocab": { "a": 0 } } }), 13),
        (
            json!({ "added_tokens": [{ "id": 0, "content": "<s>" }], "model": { "type": "Unigram", "vocab": [["a", -1.0], ["b", -2.5]] } }),
            2,
        ),
    ];
    for (tokenizer, ids) in cases {
        fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).expect("a tokenizer");
        assert_eq!(folder.vocab_of_tokenizer().expect("a good tokenizer"), Some(ids));
        folder.check_tokenizer(ids).expect("as many ids as rows");
        folder.check_tokenizer(ids + 7).expect("a padded vocabulary");
        check_refused(
            folder.check_tokenizer(ids - 1),
            &["tokenizer.json", &format!("up to {}", ids - 1), &format!("vocabulary is {}", ids - 1)],
        );
    }
    fs::write(dir.path().join("tokenizer.json"), r#"{"model": {"vocab": {"a": -4}}}"#).expect("a tokenizer");
    check_refused(folder.vocab_of_tokenizer(), &["tokenizer.json", "-4"]);
    for (model, ids) in [("data/stories260k-hf", 512), ("data/tinystories-656k-hf", 2048)] {
        let Some(path) = shared(model) else { continue };
        let folder = ModelFolder::open(&path).expect("a good model");
        assert_eq!(folder.vocab_of_tokenizer().expect("a good tokenizer"), Some(ids));
    }
}
