//! Trains a small tokenizer from texts, for models made from nothing.

use std::fs;
use std::path::Path;

use serde_json::json;
use tokenizers::AddedToken;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::processors::template::TemplateProcessing;

use crate::error::DataError;

const UNKNOWN: &str = "<unk>";
const BEGIN: &str = "<s>";
const END: &str = "</s>";

/// The smallest vocabulary: the three special tokens and every byte.
pub const VOCAB_SIZE_MIN: usize = 3 + 256;

/// Trains a byte-level BPE tokenizer and writes `tokenizer.json` and `tokenizer_config.json` into `folder`.
///
/// Ids 0, 1, 2 are `<unk>`, `<s>`, `</s>`; every text starts with `<s>`. Any text can be encoded, and each digit is a
/// token of its own, so that a number can be copied. The same texts give the same bytes. transformers loads the
/// folder with `PreTrainedTokenizerFast.from_pretrained` or `AutoTokenizer`. The vocabulary comes out smaller than
/// `vocab_size` only where the texts hold too few distinct pieces.
pub fn train_tokenizer<'a>(texts: impl Iterator<Item = &'a str> + Send, vocab_size: usize, folder: &Path) -> Result<(), DataError> {
    let path = folder.join("tokenizer.json");
    let refused = |reason: String| DataError::Tokenizer { path: path.clone(), reason };
    if vocab_size < VOCAB_SIZE_MIN {
        return Err(refused(format!("a vocabulary of {vocab_size}; the bytes alone need {VOCAB_SIZE_MIN}")));
    }
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens([UNKNOWN, BEGIN, END].map(|token| AddedToken::from(token, true)).to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build()
        .into();
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::Digits(Digits::new(true)),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, true)),
    ])));
    tokenizer.with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::default())));
    let begin = TemplateProcessing::builder()
        .try_single(format!("{BEGIN} $A"))
        .and_then(|builder| builder.try_pair(format!("{BEGIN} $A {BEGIN} $B:1")))
        .map_err(|error| refused(error.to_string()))?
        .special_tokens(vec![(BEGIN, 1)])
        .build()
        .map_err(|error| refused(error.to_string()))?;
    tokenizer.with_post_processor(Some(begin));
    tokenizer.train(&mut trainer, texts).map_err(|error| refused(error.to_string()))?;
    assert_eq!([UNKNOWN, BEGIN, END].map(|token| tokenizer.token_to_id(token)), [Some(0), Some(1), Some(2)]);
    let text = tokenizer.to_string(true).map_err(|error| refused(error.to_string()))?;
    write(&path, &text)?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": false,
    });
    write(&folder.join("tokenizer_config.json"), &format!("{config:#}\n"))
}

/// Writes a file, making its folder.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), DataError> {
    let refuse = |source| DataError::Write { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(refuse)?;
    }
    fs::write(path, text).map_err(refuse)
}
