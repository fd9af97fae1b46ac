//! Answers to questions that were asked before, in these words or much the same: a cache of the device's own, off unless asked for.
//!
//! What is alike is not the same: with a threshold below 1 an answer may be to another question. So nothing here is ever on by default, and
//! an answer says that it was remembered.

use super::embedder::{Embedder, cosine};
use super::sequence::{FinishReason, GenerateRequest, Piece, Prompt};
use crate::error::NodeError;
use std::collections::VecDeque;
use std::sync::Mutex;

/// What is remembered, and how much alike is enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryConfig {
    /// Least cosine of two prompts' vectors, from 0 to 1.
    pub alike_min: f32,
    /// Answers that are kept; the one that was asked for longest ago gives way.
    pub entries_max: usize,
}

/// A finished answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Remembered {
    pub tokens: Vec<Piece>,
    pub rest: String,
    pub reason: FinishReason,
    pub prompt_tokens: u32,
}

/// What remembers.
pub(super) struct Memory {
    embedder: Embedder,
    entries: Mutex<Entries>,
}

/// A question that can be remembered.
pub(super) struct Question {
    vector: Vec<f32>,
    /// All of the request but its prompt: another adapter or another way to draw is another question.
    about: GenerateRequest,
}

struct Entry {
    question: Question,
    answer: Remembered,
}

/// The one asked for longest ago first.
struct Entries {
    config: MemoryConfig,
    entries: VecDeque<Entry>,
}

impl Memory {
    pub fn new(embedder: Embedder, config: MemoryConfig) -> Result<Self, NodeError> {
        if !(0.0..=1.0).contains(&config.alike_min) || config.entries_max == 0 {
            let MemoryConfig { alike_min, entries_max } = config;
            return Err(NodeError::Task(format!(
                "{entries_max} answers that are {alike_min} alike; remember at least one, with a cosine from 0 to 1"
            )));
        }
        Ok(Self { embedder, entries: Mutex::new(Entries { config, entries: VecDeque::new() }) })
    }

    /// What `request` asks. `None` where its prompt is no text, or too long to compare: it is answered as if nothing were remembered.
    pub async fn question(&self, request: &GenerateRequest) -> Option<Question> {
        let (Prompt::Text(text) | Prompt::Template(text)) = &request.prompt else { return None };
        let vector = self.embedder.embed_text(text).await.ok()?;
        let kind = |text: String| match &request.prompt {
            Prompt::Template(_) => Prompt::Template(text),
            _ => Prompt::Text(text),
        };
        Some(Question { vector, about: GenerateRequest { prompt: kind(String::new()), ..request.clone() } })
    }

    /// The answer to the question that is most alike, and how much.
    pub fn recall(&self, question: &Question) -> Option<(f32, Remembered)> {
        self.entries.lock().expect("nobody panics with it").recall(question)
    }

    pub fn keep(&self, question: Question, answer: Remembered) {
        self.entries.lock().expect("nobody panics with it").keep(question, answer);
    }
}

impl Entries {
    fn recall(&mut self, question: &Question) -> Option<(f32, Remembered)> {
        let same = self.entries.iter().enumerate().filter(|(_, entry)| entry.question.about == question.about);
        let alike = same.map(|(place, entry)| (place, cosine(&entry.question.vector, &question.vector)));
        let (place, alike) = alike.max_by(|(_, one), (_, other)| one.total_cmp(other))?;
        if alike < self.config.alike_min {
            return None;
        }
        let entry = self.entries.remove(place).expect("it was just found");
        let answer = entry.answer.clone();
        self.entries.push_back(entry);
        Some((alike, answer))
    }

    fn keep(&mut self, question: Question, answer: Remembered) {
        if self.entries.len() >= self.config.entries_max {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry { question, answer });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutlayer_wire::SamplingSpec;

    fn entries(entries_max: usize) -> Entries {
        Entries { config: MemoryConfig { alike_min: 0.9, entries_max }, entries: VecDeque::new() }
    }

    /// At an angle, in degrees.
    fn question(degrees: f32) -> Question {
        let radians = degrees.to_radians();
        Question { vector: vec![radians.cos(), radians.sin()], about: GenerateRequest::greedy("") }
    }

    fn answer(text: &str) -> Remembered {
        Remembered { tokens: vec![], rest: text.into(), reason: FinishReason::Stop, prompt_tokens: 1 }
    }

    fn recalled(entries: &mut Entries, degrees: f32) -> Option<String> {
        entries.recall(&question(degrees)).map(|(_, answer)| answer.rest)
    }

    #[test]
    fn what_is_most_alike_is_recalled_and_nothing_else() {
        let mut entries = entries(8);
        assert_eq!(recalled(&mut entries, 0.0), None);
        entries.keep(question(0.0), answer("east"));
        entries.keep(question(20.0), answer("a bit north"));
        assert_eq!(recalled(&mut entries, 4.0).as_deref(), Some("east"));
        assert_eq!(recalled(&mut entries, 12.0).as_deref(), Some("a bit north"));
        assert_eq!(recalled(&mut entries, 90.0), None);
        let about = GenerateRequest { sampling: SamplingSpec { seed: 1, ..SamplingSpec::GREEDY }, ..GenerateRequest::greedy("") };
        assert!(entries.recall(&Question { about, ..question(0.0) }).is_none(), "drawn otherwise");
        let about = GenerateRequest { adapter: Some("tales".into()), ..GenerateRequest::greedy("") };
        assert!(entries.recall(&Question { about, ..question(0.0) }).is_none(), "of another adapter");
    }

    #[test]
    fn what_was_asked_for_longest_ago_gives_way() {
        let mut entries = entries(2);
        entries.keep(question(0.0), answer("east"));
        entries.keep(question(90.0), answer("north"));
        assert!(recalled(&mut entries, 0.0).is_some());
        entries.keep(question(180.0), answer("west"));
        assert_eq!(entries.entries.len(), 2);
        assert_eq!(recalled(&mut entries, 90.0), None);
        assert!(recalled(&mut entries, 0.0).is_some() && recalled(&mut entries, 180.0).is_some());
    }
}
