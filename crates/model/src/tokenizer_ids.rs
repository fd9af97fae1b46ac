//! How many ids a `tokenizer.json` can produce, found without keeping any of its pieces in memory.

use serde::Deserialize;

/// The part of a `tokenizer.json` that says which ids exist.
#[derive(Deserialize)]
pub(crate) struct TokenizerIds {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    model: TokenizerModel,
}

impl TokenizerIds {
    /// Largest id + 1, added tokens included.
    pub(crate) fn count(&self) -> usize {
        let added = self.added_tokens.iter().map(|token| token.id.saturating_add(1)).max().unwrap_or(0);
        self.model.vocab.0.max(added) as usize
    }
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
}

#[derive(Deserialize)]
struct TokenizerModel {
    vocab: IdCount,
}

/// Largest id + 1 of a vocabulary; its pieces are skipped, so that a tokenizer of 40 MB takes no memory.
struct IdCount(u32);

impl<'de> Deserialize<'de> for IdCount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IdCountVisitor)
    }
}

struct IdCountVisitor;

impl<'de> serde::de::Visitor<'de> for IdCountVisitor {
    type Value = IdCount;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a vocabulary: a map from piece to id, or a list of pieces")
    }

    fn visit_map<M: serde::de::MapAccess<'de>>(self, mut map: M) -> Result<IdCount, M::Error> {
        let mut count = 0;
        while let Some((_, id)) = map.next_entry::<serde::de::IgnoredAny, u32>()? {
            count = count.max(id.saturating_add(1));
        }
        Ok(IdCount(count))
    }

    fn visit_seq<S: serde::de::SeqAccess<'de>>(self, mut list: S) -> Result<IdCount, S::Error> {
        let mut count = 0u32;
        while list.next_element::<serde::de::IgnoredAny>()?.is_some() {
            count = count.saturating_add(1);
        }
        Ok(IdCount(count))
    }
}
