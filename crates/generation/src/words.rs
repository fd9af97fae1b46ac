//! Tokens to text as they come: only whole characters, and the same text as if all tokens were decoded at once.
//!
//! A token's text depends on its neighbours: byte-level vocabularies cut characters in two, and SentencePiece drops the space that a text
//! begins with. So, as in vLLM and TGI, a window of tokens is decoded twice, with the new token and without, and the difference is new.
//! The window begins at tokens whose text is known, and stays short: work per token is constant.

/// Tokens of the prompt that stay in view, so that the first token generated keeps its space.
const CONTEXT_TOKENS: usize = 5;
/// Most tokens whose text is held back. A character has at most four bytes, and each token at least one: more is no text.
const HELD_TOKENS_MAX: usize = 8;
/// Tokens that a character may still be missing its last byte after.
const CHARACTER_TOKENS: usize = 3;
/// What decoders write for bytes that are no character, or not yet.
const UNKNOWN: char = char::REPLACEMENT_CHARACTER;

/// The text of one sequence, token by token.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// Tokens in view: those whose text was given, for context, then those held back.
    window: Vec<u32>,
    given: usize,
}

impl Words {
    /// After `prompt`, whose text is not given again.
    pub fn new(prompt: &[u32]) -> Self {
        let window = prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..].to_vec();
        Self { given: window.len(), window }
    }

    /// The text that token `id` completes; empty where it ends within a character. `decode` gives the text of a whole sequence.
    pub fn push(&mut self, id: u32, decode: &dyn Fn(&[u32]) -> String) -> String {
        self.window.push(id);
        let before = decode(&self.window[..self.given]);
        let now = decode(&self.window);
        if now != before && !now.ends_with(UNKNOWN) {
            return self.give(self.window.len(), &before, &now);
        }
        if self.window.len() - self.given <= HELD_TOKENS_MAX {
            return String::new();
        }
        // Bytes that will be no text, but for the last few; or tokens without any text, which are no context for what follows.
        let end = self.window.len() - CHARACTER_TOKENS;
        let cut = decode(&self.window[..end]);
        if cut == before {
            self.window.drain(self.given..end);
            return String::new();
        }
        self.give(end, &before, &cut)
    }

    /// The text of what was held back, once no more tokens come.
    pub fn finish(&mut self, decode: &dyn Fn(&[u32]) -> String) -> String {
        let (before, now) = (decode(&self.window[..self.given]), decode(&self.window));
        self.give(self.window.len(), &before, &now)
    }

    /// Gives the text of the tokens in view up to `end`; they are the context of what follows.
    fn give(&mut self, end: usize, before: &str, now: &str) -> String {
        let text = now[common_bytes(before, now)..].to_owned();
        self.window.drain(..self.given);
        self.given = end - self.given;
        text
    }
}

/// Bytes that two texts begin with alike, in whole characters. A decoder may write the end of what was given anew once more follows;
/// what was given cannot be taken back.
fn common_bytes(one: &str, other: &str) -> usize {
    let alike = one.chars().zip(other.chars()).take_while(|(one, other)| one == other);
    alike.map(|(letter, _)| letter.len_utf8()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    /// A byte-level vocabulary: each token is a few bytes.
    fn byte_level(vocab: &[Vec<u8>]) -> impl Fn(&[u32]) -> String {
        |ids| String::from_utf8_lossy(&ids.iter().flat_map(|id| vocab[*id as usize].clone()).collect::<Vec<u8>>()).into_owned()
    }

    /// SentencePiece with byte fallback, as the `tokenizers` crate decodes it: runs of byte tokens (below 256) become characters only where
    /// the whole run is valid, `▁` is a space, and the first one is dropped.
    fn sentence_piece(ids: &[u32]) -> String {
        let pieces = ["▁the", "▁", "ca", "▁né", "t", "€"];
        let (mut text, mut run) = (String::new(), Vec::new());
        let flush = |run: &mut Vec<u8>, text: &mut String| {
            match std::str::from_utf8(run) {
                Ok(valid) => text.push_str(valid),
                Err(_) => run.iter().for_each(|_| text.push(UNKNOWN)),
            }
            run.clear();
        };
        for id in ids {
            match id.checked_sub(256) {
                None => run.push(*id as u8),
                Some(place) => {
                    flush(&mut run, &mut text);
                    text.push_str(&pieces[place as usize].replace('▁', " "));
                }
            }
        }
        flush(&mut run, &mut text);
        text.strip_prefix(' ').map(str::to_owned).unwrap_or(text)
    }

    /// `text` in tokens of so many bytes, of which no more in a row end within a character than are held back.
    fn cut_in_tokens(text: &str, cuts: &[usize]) -> Vec<Vec<u8>> {
        let (mut vocab, mut start, mut within) = (Vec::new(), 0, 0);
        for cut in cuts {
            let mut end = (start + cut).min(text.len());
            within += 1;
            while within > HELD_TOKENS_MAX && !text.is_char_boundary(end) {
                end += 1;
            }
            within = if text.is_char_boundary(end) { 0 } else { within };
            if end > start {
                vocab.push(text.as_bytes()[start..end].to_vec());
            }
            start = end;
        }
        vocab
    }

    fn all(words: &mut Words, ids: &[u32], decode: &dyn Fn(&[u32]) -> String) -> String {
        let mut text: String = ids.iter().map(|id| words.push(*id, decode)).collect();
        text.push_str(&words.finish(decode));
        text
    }

    #[test]
    fn characters_come_whole() {
        let vocab: Vec<Vec<u8>> = vec![b"a".to_vec(), vec![0xf0, 0x9f], vec![0x98], vec![0x80, b'!']];
        let decode = byte_level(&vocab);
        let mut words = Words::default();
        assert_eq!([0, 1, 2, 3, 0].map(|id| words.push(id, &decode)), ["a", "", "", "😀!", "a"]);
        assert_eq!(words.push(1, &decode), "");
        assert_eq!(words.finish(&decode), "\u{fffd}");
        assert_eq!(words.finish(&decode), "");
    }

    #[test]
    fn spaces_stay_after_a_prompt_and_go_at_the_start() {
        let (the, cat) = (256, [258, 260]);
        assert_eq!(all(&mut Words::new(&[]), &[the, cat[0], cat[1], the], &sentence_piece), "thecat the");
        assert_eq!(all(&mut Words::new(&[the; 9]), &[the, cat[0]], &sentence_piece), " theca");
    }

    /// Goal: text of pieces is the text of the whole. Method: any text cut anywhere, into byte-level tokens and into SentencePiece's.
    #[test]
    fn pieces_make_the_whole() {
        let text = proptest::collection::vec(prop_oneof![Just('a'), Just(' '), Just('é'), Just('€'), Just('😀')], 0..30);
        proptest!(|(text in text, cuts in proptest::collection::vec(1_usize..6, 200), prompt in 0_usize..8)| {
            let text: String = text.into_iter().collect();
            let vocab = cut_in_tokens(&text, &cuts);
            let ids: Vec<u32> = (0..vocab.len() as u32).collect();
            let decode = byte_level(&vocab);
            prop_assert_eq!(all(&mut Words::default(), &ids, &decode), text);
            // After a prompt that ends at a character, the rest.
            let start = (0..ids.len().min(prompt)).rev().find(|start| !decode(&ids[..*start]).ends_with(UNKNOWN)).unwrap_or(0);
            let rest = decode(&ids[start..]);
            prop_assert_eq!(all(&mut Words::new(&ids[..start]), &ids[start..], &decode), rest);
        });
        let piece = prop_oneof![
            (256_u32..262).prop_map(|id| vec![id]),
            prop_oneof![Just("é"), Just("€"), Just("😀"), Just("x")].prop_map(|text: &str| text.bytes().map(u32::from).collect())
        ];
        proptest!(|(pieces in proptest::collection::vec(piece, 0..30))| {
            let ids = pieces.concat();
            prop_assert_eq!(all(&mut Words::default(), &ids, &sentence_piece), sentence_piece(&ids));
        });
    }

    /// Goal: what is no text costs no more than text, and does not hide what follows. Method: the longest run that is ever decoded, over
    /// bytes that are no text and tokens that have none.
    #[test]
    fn the_window_stays_short() {
        let vocab: Vec<Vec<u8>> = vec![vec![0xff], vec![0xe2], vec![], b"ok".to_vec(), vec![0x82]];
        let longest = Cell::new(0);
        let plain = byte_level(&vocab);
        let decode = |ids: &[u32]| {
            longest.set(longest.get().max(ids.len()));
            plain(ids)
        };
        for ids in [vec![0; 500], vec![1; 500], vec![2; 500], [0, 1, 2, 4].repeat(100)] {
            let mut words = Words::new(&[3]);
            ids.iter().for_each(|id| {
                words.push(*id, &decode);
            });
            assert!(words.push(3, &decode).ends_with("ok"));
        }
        assert!(longest.get() <= 2 * (HELD_TOKENS_MAX + CHARACTER_TOKENS + 2), "{}", longest.get());
        proptest!(|(ids in proptest::collection::vec(0_u32..5, 0..60))| {
            let text = all(&mut Words::default(), &ids, &plain);
            prop_assert_eq!(text.replace([UNKNOWN, '₂'], "").replace("ok", ""), "");
            prop_assert_eq!(text.matches("ok").count(), ids.iter().filter(|id| **id == 3).count());
        });
    }

    /// Goal: a token without text does not take the next one's space. Method: special tokens that decode to nothing, then a word.
    #[test]
    fn tokens_without_text_are_no_context() {
        let decode = |ids: &[u32]| sentence_piece(&ids.iter().copied().filter(|id| *id != 999).collect::<Vec<_>>());
        let mut words = Words::new(&[256]);
        for _ in 0..50 {
            assert_eq!(words.push(999, &decode), "");
        }
        assert_eq!(words.push(256, &decode), " the");
    }
}
