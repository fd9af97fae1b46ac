//! Ends a text where a stop string comes, and never shows a part of one.
//!
//! What is shown and where it ends depend on the text alone, never on how it was cut into pieces.

/// Most stop strings of a request; OpenAI allows four.
pub const STOPS_MAX: usize = 16;
/// Longest stop string: what may be held back.
pub const STOP_BYTES_MAX: usize = 1024;

/// Why stop strings are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// It would stop before the first character.
    #[error("a stop string is empty; leave it out")]
    Empty,
    /// More than are looked for.
    #[error("{count} stop strings; give at most {STOPS_MAX}")]
    Many {
        /// How many.
        count: usize,
    },
    /// Longer than what is held back.
    #[error("a stop string has {bytes} bytes; give at most {STOP_BYTES_MAX}")]
    Long {
        /// Its length.
        bytes: usize,
    },
}

/// What a piece brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Text that may be shown now.
    pub text: String,
    /// The stop string that came, by its place among those given. Nothing after it is ever shown.
    pub stop: Option<usize>,
}

/// Looks for stop strings in a text that comes in pieces. Of several, the one that ends first stops, and of those that end together
/// the longest.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// The end of the text, where a stop string may have begun.
    held: String,
    stopped: bool,
}

impl StopStrings {
    /// Before the text; without stop strings everything is shown at once.
    pub fn new(stops: Vec<String>) -> Result<Self, StopError> {
        if stops.len() > STOPS_MAX {
            return Err(StopError::Many { count: stops.len() });
        }
        for stop in &stops {
            match stop.len() {
                0 => return Err(StopError::Empty),
                1..=STOP_BYTES_MAX => (),
                bytes => return Err(StopError::Long { bytes }),
            }
        }
        Ok(Self { stops, held: String::new(), stopped: false })
    }

    /// The next piece of the text.
    pub fn push(&mut self, piece: &str) -> Shown {
        if self.stopped {
            return Shown::default();
        }
        let before = self.held.len();
        self.held.push_str(piece);
        let ends = piece.char_indices().map(|(start, letter)| before + start + letter.len_utf8());
        for end in ends {
            let Some(stop) = self.stop_at(end) else { continue };
            self.stopped = true;
            self.held.truncate(end - self.stops[stop].len());
            return Shown { text: std::mem::take(&mut self.held), stop: Some(stop) };
        }
        let kept = self.held.split_off(self.held.len() - self.begun_bytes());
        Shown { text: std::mem::replace(&mut self.held, kept), stop: None }
    }

    /// The end of the text: what was held back and became no stop string.
    pub fn finish(&mut self) -> String {
        self.stopped = true;
        std::mem::take(&mut self.held)
    }

    /// Whether a stop string came, or the end.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// The longest stop string that ends at `end`; of equal ones the first.
    fn stop_at(&self, end: usize) -> Option<usize> {
        let ending = self.stops.iter().enumerate().filter(|(_, stop)| self.held[..end].ends_with(*stop));
        ending.max_by_key(|(place, stop)| (stop.len(), usize::MAX - place)).map(|(place, _)| place)
    }

    /// Bytes of the longest end of the text that a stop string begins with.
    fn begun_bytes(&self) -> usize {
        let begun = |stop: &String| {
            let starts = stop.char_indices().map(|(start, _)| start).filter(|start| *start <= self.held.len());
            starts.rev().find(|length| self.held.ends_with(&stop[..*length])).unwrap_or(0)
        };
        self.stops.iter().map(begun).max().unwrap_or(0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stops(stops: &[&str]) -> StopStrings {
        StopStrings::new(stops.iter().map(|stop| stop.to_string()).collect()).unwrap()
    }

    /// What each piece shows, then the end, with `|` where a stop string came.
    fn check(strings: &[&str], pieces: &[&str], shown: &[&str]) {
        let mut stops = stops(strings);
        let mut got: Vec<String> = pieces
            .iter()
            .map(|piece| {
                let Shown { text, stop } = stops.push(piece);
                if stop.is_some() { text + "|" } else { text }
            })
            .collect();
        got.push(stops.finish());
        assert_eq!(got, shown, "{strings:?} in {pieces:?}");
    }

    #[test]
    fn text_is_held_back_only_where_a_stop_may_have_begun() {
        check(&[], &["a", "b"], &["a", "b", ""]);
        check(&["END"], &["the E", "N", "T", " EN"], &["the ", "", "ENT", " ", "EN"]);
        check(&["END"], &["the E", "ND of", "it"], &["the ", "|", "", ""]);
        check(&["\n\n"], &["a\n", "b\n\nc"], &["a", "\nb|", ""]);
        check(&["aab"], &["a", "a", "a", "b"], &["", "", "a", "|", ""]);
    }

    #[test]
    fn the_stop_that_ends_first_stops() {
        check(&["abcd", "bc"], &["abcd"], &["a|", ""]);
        check(&["c", "abc"], &["xab", "c"], &["x", "|", ""]);
        check(&["abc", "b"], &["a", "b"], &["", "a|", ""]);
        let mut both = stops(&["c", "abc", "abc"]);
        assert_eq!(both.push("abc").stop, Some(1));
        assert!(both.stopped());
    }

    #[test]
    fn letters_of_several_bytes_stay_whole() {
        check(&["né€"], &["n", "é", "è€ né", "€x"], &["", "", "néè€ ", "|", ""]);
        check(&["€"], &["¢"], &["¢", ""]);
    }

    #[test]
    fn bad_stops_are_refused() {
        assert_eq!(StopStrings::new(vec!["a".into(), String::new()]).unwrap_err(), StopError::Empty);
        assert_eq!(StopStrings::new(vec!["a".into(); STOPS_MAX + 1]).unwrap_err(), StopError::Many { count: STOPS_MAX + 1 });
        let long = "a".repeat(STOP_BYTES_MAX + 1);
        assert_eq!(StopStrings::new(vec![long]).unwrap_err(), StopError::Long { bytes: STOP_BYTES_MAX + 1 });
        assert!(StopStrings::new(vec!["a".repeat(STOP_BYTES_MAX); STOPS_MAX]).is_ok());
    }

    /// The first end of any stop in the whole text, and where the longest that ends there began.
    fn naive<'a>(text: &'a str, stops: &[String]) -> (&'a str, bool) {
        let ends = (0..=text.len()).filter(|end| text.is_char_boundary(*end));
        for end in ends {
            let longest = stops.iter().filter(|stop| text[..end].ends_with(*stop)).map(String::len).max();
            if let Some(bytes) = longest {
                return (&text[..end - bytes], true);
            }
        }
        (text, false)
    }

    /// Goal: pieces do not matter, and nothing is held longer than it may be a stop. Method: random texts of few letters, in random pieces.
    #[test]
    fn pieces_do_not_matter() {
        let letters = |count| proptest::collection::vec(prop_oneof![Just('a'), Just('b'), Just('é'), Just('€')], count);
        let string = |count| letters(count).prop_map(|letters| letters.into_iter().collect::<String>());
        let stops = proptest::collection::vec(string(1..4), 0..4);
        proptest!(|(pieces in proptest::collection::vec(string(0..5), 0..8), strings in stops)| {
            let text = pieces.concat();
            let (expected, came) = naive(&text, &strings);
            let mut stops = StopStrings::new(strings.clone()).unwrap();
            let (mut shown, mut read) = (String::new(), String::new());
            for piece in &pieces {
                shown.push_str(&stops.push(piece).text);
                read.push_str(piece);
                if !stops.stopped() {
                    let held = read.strip_prefix(&shown).unwrap();
                    prop_assert!(held.is_empty() || strings.iter().any(|stop| stop.starts_with(held) && stop != held));
                }
            }
            prop_assert_eq!(stops.stopped(), came);
            shown.push_str(&stops.finish());
            prop_assert_eq!(shown, expected);
        });
    }
}
