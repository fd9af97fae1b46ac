//! What a single token adds to a text, in bytes: perhaps half a character. Pure: it must never need more than the token's own name.

/// How a vocabulary spells bytes in the names of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// Each letter stands for a byte, as in GPT-2.
    Bytes,
    /// Text with `▁` for a space; `<0x0A>` is a byte where the decoder falls back to bytes.
    Pieces {
        /// Whether it does.
        byte_fallback: bool,
    },
    /// Whole words, with `##` before what goes on with one.
    Words,
}

impl Spelling {
    /// That of a decoder, as `tokenizer.json` writes it down.
    pub fn of(decoder: &str) -> Self {
        if decoder.contains("\"ByteLevel\"") {
            Self::Bytes
        } else if decoder.contains("\"WordPiece\"") {
            Self::Words
        } else {
            Self::Pieces { byte_fallback: decoder.contains("\"ByteFallback\"") }
        }
    }

    /// The bytes of the token with this name, within a text.
    pub fn bytes(self, name: &str) -> Vec<u8> {
        match self {
            Self::Bytes => {
                let bytes: Option<Vec<u8>> = name.chars().map(byte_of).collect();
                // A token that was added later is spelt as it is.
                bytes.unwrap_or_else(|| name.as_bytes().to_vec())
            }
            Self::Pieces { byte_fallback } => match fallback(name).filter(|_| byte_fallback) {
                Some(byte) => vec![byte],
                None => name.replace('▁', " ").into_bytes(),
            },
            Self::Words => match name.strip_prefix("##") {
                Some(rest) => rest.as_bytes().to_vec(),
                None => format!(" {name}").into_bytes(),
            },
        }
    }
}

/// The byte of `<0x0A>`.
fn fallback(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

/// Whether GPT-2 writes this byte as the letter of the same number.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The byte that a letter stands for in GPT-2's vocabulary: itself where that can be seen; the others follow in order from 256 on.
fn byte_of(letter: char) -> Option<u8> {
    match u32::from(letter) {
        code @ 0..=255 => Some(code as u8).filter(|byte| is_plain(*byte)),
        code => (0..=255).filter(|byte| !is_plain(*byte)).nth(code as usize - 256),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn letters_of_gpt2_are_bytes() {
        let all: Vec<u8> = (0..=0x143).filter_map(|code| byte_of(char::from_u32(code).unwrap())).collect();
        let mut sorted = all.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!((all.len(), sorted.len()), (256, 256), "each byte has one letter");
        let spelling = Spelling::of(r#"{"type":"ByteLevel"}"#);
        assert_eq!(spelling.bytes("ĠtheĊ"), b" the\n");
        assert_eq!(spelling.bytes("Ã"), [0xc3], "half a character");
        assert_eq!(spelling.bytes("▁added"), "▁added".as_bytes(), "no letter of GPT-2's");
    }

    #[test]
    fn pieces_fall_back_to_bytes_only_where_the_decoder_does() {
        let with = Spelling::of(r#"{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"}]}"#);
        assert_eq!((with.bytes("<0x0A>"), with.bytes("▁the▁")), (vec![10], b" the ".to_vec()));
        assert_eq!(with.bytes("<0x0>"), b"<0x0>");
        assert_eq!(Spelling::of(r#"{"type":"Metaspace"}"#).bytes("<0x0A>"), b"<0x0A>");
    }

    #[test]
    fn words_begin_with_a_space_and_their_parts_do_not() {
        let words = Spelling::of(r#"{"type":"WordPiece","cleanup":true}"#);
        assert_eq!((words.bytes("play"), words.bytes("##ing")), (b" play".to_vec(), b"ing".to_vec()));
    }
}
