//! What was said, kept within the model's context. Pure: it must never know how text becomes tokens.

use cutlayer_api::ChatMessage;

/// A conversation under way.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    /// The system's words first, if there are any; then user and assistant by turns.
    messages: Vec<ChatMessage>,
    /// Messages that are never dropped.
    lead: usize,
}

/// A prompt that leaves room for an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fitted {
    pub ids: Vec<u32>,
    /// Turns that had to be forgotten for it.
    pub dropped: usize,
}

/// Why there is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// The last message alone is too long.
    Long { tokens: usize, most: usize },
    /// The template or the tokenizer will not have it.
    Refused(String),
}

impl Conversation {
    /// With the system's words before everything.
    pub fn new(system: Option<String>) -> Self {
        let messages: Vec<ChatMessage> = system.map(|words| message("system", words)).into_iter().collect();
        Self { lead: messages.len(), messages }
    }

    /// Adds what the user says.
    pub fn ask(&mut self, words: &str) {
        self.messages.push(message("user", words.into()));
    }

    /// Adds what the model answered.
    pub fn answered(&mut self, words: String) {
        self.messages.push(message("assistant", words));
    }

    /// Forgets what was asked last, which was not answered.
    pub fn take_back(&mut self) {
        self.messages.pop();
    }

    /// The tokens of the conversation, at most so many: the oldest turns are forgotten, as few as need be.
    pub fn fit(&mut self, tokens_max: usize, tokens: impl Fn(&[ChatMessage]) -> Result<Vec<u32>, String>) -> Result<Fitted, NoRoom> {
        let turns = (self.messages.len() - self.lead - 1) / 2;
        let mut dropped = 0;
        loop {
            let mut kept = self.messages.clone();
            kept.drain(self.lead..self.lead + 2 * dropped);
            let ids = tokens(&kept).map_err(NoRoom::Refused)?;
            if ids.len() <= tokens_max {
                self.messages = kept;
                return Ok(Fitted { ids, dropped });
            }
            if dropped == turns {
                return Err(NoRoom::Long { tokens: ids.len(), most: tokens_max });
            }
            dropped += 1;
        }
    }
}

fn message(role: &str, content: String) -> ChatMessage {
    ChatMessage { role: role.into(), content, name: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token a letter.
    fn letters(messages: &[ChatMessage]) -> Result<Vec<u32>, String> {
        Ok(messages.iter().flat_map(|message| message.content.chars().map(u32::from)).collect())
    }

    fn said(conversation: &Conversation) -> Vec<&str> {
        conversation.messages.iter().map(|message| message.content.as_str()).collect()
    }

    /// Goal: the oldest turns go, never the system's words nor the question. Method: three turns and less and less room.
    #[test]
    fn the_oldest_turns_are_forgotten_first() {
        let mut conversation = Conversation::new(Some("ssss".into()));
        for (question, answer) in [("aa", "AA"), ("bb", "BB")] {
            conversation.ask(question);
            conversation.answered(answer.into());
        }
        conversation.ask("cc");
        assert_eq!(conversation.fit(14, letters).expect("room").dropped, 0);
        assert_eq!(conversation.fit(13, letters).expect("room").dropped, 1);
        assert_eq!(said(&conversation), ["ssss", "bb", "BB", "cc"]);
        assert_eq!(conversation.fit(9, letters).expect("room").ids.len(), 6);
        assert_eq!(said(&conversation), ["ssss", "cc"]);
    }

    /// Goal: what does not fit is refused and changes nothing. Method: a question that is too long, and a template that refuses.
    #[test]
    fn what_cannot_be_asked_is_taken_back() {
        let mut conversation = Conversation::new(None);
        conversation.ask("a");
        conversation.answered("A".into());
        conversation.ask("longer");
        assert_eq!(conversation.fit(5, letters), Err(NoRoom::Long { tokens: 6, most: 5 }));
        let refused = conversation.fit(5, |_| Err("no system".into()));
        assert_eq!(refused, Err(NoRoom::Refused("no system".into())));
        conversation.take_back();
        assert_eq!(said(&conversation), ["a", "A"]);
    }
}
