//! A model folder's tokenizer: the only file, with its training, that names the `tokenizers` crate.
//!
//! Truncation and padding that a `tokenizer.json` carries are switched off: the batcher decides both.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::error::DataError;
use crate::reader::read_whole;
use crate::spelling::Spelling;

/// Turns text into token ids and back.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    spelling: Spelling,
    /// What tokens beside the vocabulary add to a text: special ones nothing.
    added: BTreeMap<u32, Vec<u8>>,
}

/// A text's tokens with what batching needs to know of them.
pub(crate) struct Encoded {
    /// The ids, special tokens of the post-processor included.
    pub ids: Vec<u32>,
    /// For each token, the byte of the text at which it ends (0 for special tokens).
    pub ends: Vec<usize>,
    /// How many special tokens the post-processor put in front.
    pub lead: usize,
    /// How many special tokens the post-processor put behind.
    pub trail: usize,
}

impl Tokenizer {
    /// Opens the tokenizer of a model folder: `tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt`.
    ///
    /// The end and beginning of text are those of `tokenizer_config.json`, `special_tokens_map.json`,
    /// `generation_config.json` or `config.json`, the first that names them.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        let path = folder.join("tokenizer.json");
        let mut inner = if path.exists() {
            tokenizers::Tokenizer::from_bytes(read_whole(&path)?).map_err(|error| refused(&path, error))?
        } else if folder.join("vocab.json").exists() && folder.join("merges.txt").exists() {
            gpt2(folder)?
        } else {
            let remedy = "no tokenizer.json here; for a sentencepiece model, save it once with \
                          transformers' AutoTokenizer(..., use_fast=True).save_pretrained";
            return Err(refused(folder, remedy));
        };
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| refused(&path, error))?;
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let bos = special(folder, &inner, "bos_token")?;
        let eos = special(folder, &inner, "eos_token")?;
        let decoder = serde_json::to_string(&inner.get_decoder()).map_err(|error| refused(&path, error))?;
        let text = |token: tokenizers::AddedToken| if token.special { vec![] } else { token.content.into_bytes() };
        let added = inner.get_added_tokens_decoder().into_iter().map(|(id, token)| (id, text(token))).collect();
        Ok(Self { inner, path: folder.to_owned(), vocab_size, bos, eos, spelling: Spelling::of(&decoder), added })
    }

    /// The ids of `text`, with the special tokens of the tokenizer's post-processor if asked for.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.encode_fast(text, add_special).map_err(|error| refused(&self.path, error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        self.inner.decode(ids, true).map_err(|error| refused(&self.path, error))
    }

    /// What token `id` adds to a text, in bytes: perhaps half a character, and nothing for a special token, which
    /// [`Tokenizer::decode`] leaves out. `None` for what is no token.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        match self.added.get(&id) {
            Some(bytes) => Some(bytes.clone()),
            None => self.inner.id_to_token(id).map(|name| self.spelling.bytes(&name)),
        }
    }

    /// The name of token `id` in the vocabulary, such as `</s>`.
    pub fn token_name(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// One more than the largest id: what the model's embedding must hold at least.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The token that ends a text, if there is one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The tokens that end a generated text: the one that ends texts, and those that `generation_config.json` or `config.json` name
    /// beside it, as chat models do.
    pub fn ends(&self) -> Result<Vec<u32>, DataError> {
        let mut ends: Vec<u32> = self.eos.into_iter().collect();
        for file in ["generation_config.json", "config.json"] {
            let path = self.path.join(file);
            if !path.exists() {
                continue;
            }
            let config: Value = serde_json::from_str(&read_whole(&path)?).map_err(|error| refused(&path, error))?;
            let named = &config["eos_token_id"];
            let ids = named.as_array().map_or(std::slice::from_ref(named), Vec::as_slice).iter();
            ends.extend(ids.filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()));
            if !named.is_null() {
                break;
            }
        }
        ends.sort_unstable();
        ends.dedup();
        Ok(ends)
    }

    /// The token that begins a text, if there is one. Encoding adds it only where the post-processor does.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Encodes with special tokens, and says which are special and where each token ends in the text.
    pub(crate) fn encode_with_ends(&self, text: &str) -> Result<Encoded, String> {
        let encoding = self.inner.encode(text, true).map_err(|error| error.to_string())?;
        let special = encoding.get_special_tokens_mask();
        let lead = special.iter().take_while(|mask| **mask == 1).count();
        let trail = special[lead..].iter().rev().take_while(|mask| **mask == 1).count();
        let ends = encoding.get_offsets().iter().map(|(_, end)| *end).collect();
        Ok(Encoded { ids: encoding.get_ids().to_vec(), ends, lead, trail })
    }
}

fn refused(path: &Path, reason: impl ToString) -> DataError {
    DataError::Tokenizer { path: path.to_owned(), reason: reason.to_string() }
}

fn gpt2(folder: &Path) -> Result<tokenizers::Tokenizer, DataError> {
    let name = |file: &str| folder.join(file).to_string_lossy().into_owned();
    let model = BPE::from_file(&name("vocab.json"), &name("merges.txt"));
    let mut inner = tokenizers::Tokenizer::new(model.build().map_err(|error| refused(folder, error))?);
    inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    inner.with_decoder(Some(ByteLevel::default()));
    if inner.token_to_id(GPT2_END).is_some() {
        inner.add_special_tokens(&[tokenizers::AddedToken::from(GPT2_END, true)]);
    }
    Ok(inner)
}

const GPT2_END: &str = "<|endoftext|>";

/// Where a model folder may name its special tokens, best first.
const CONFIG_FILES: [&str; 4] = ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json"];

/// The id of `bos_token` or `eos_token`.
fn special(folder: &Path, inner: &tokenizers::Tokenizer, name: &str) -> Result<Option<u32>, DataError> {
    for file in CONFIG_FILES {
        let path = folder.join(file);
        if !path.exists() {
            continue;
        }
        let config: Value = serde_json::from_str(&read_whole(&path)?).map_err(|error| refused(&path, error))?;
        let token = &config[name];
        if let Some(text) = token.as_str().or_else(|| token["content"].as_str()) {
            let id = inner.token_to_id(text);
            return id.map(Some).ok_or_else(|| refused(&path, format!("`{name}` is `{text}`, which is not a token")));
        }
        let id = &config[format!("{name}_id")];
        if let Some(id) = id.as_u64().or_else(|| id[0].as_u64()) {
            let id = u32::try_from(id).ok().filter(|id| inner.id_to_token(*id).is_some());
            return id.map(Some).ok_or_else(|| refused(&path, format!("`{name}_id` is not a token's id")));
        }
    }
    Ok(inner.token_to_id(GPT2_END).filter(|_| !folder.join("tokenizer.json").exists()))
}
