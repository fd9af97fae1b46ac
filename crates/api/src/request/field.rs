//! Fields of a body that take several forms. It must never hold much more than was sent: no field is kept as a tree of values.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::CHOICES_MAX;

/// A text, several, a text in tokens, or several of those.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Texts {
    One(String),
    Many(Vec<String>),
    Tokens(Vec<u32>),
    ManyTokens(Vec<Vec<u32>>),
}

/// One element of what [`Texts`] lists.
enum Element {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

/// Most elements that are not single tokens: more could not be answered by any endpoint.
const ELEMENTS_MAX: usize = 2048;
const _: () = assert!(ELEMENTS_MAX >= CHOICES_MAX);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Texts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, an array of strings, an array of tokens, or an array of arrays of tokens")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts::One(text.to_owned()))
            }
            fn visit_string<E: Error>(self, text: String) -> Result<Texts, E> {
                Ok(Texts::One(text))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Texts, A::Error> {
                let mut texts = match elements.next_element()? {
                    None => return Ok(Texts::Many(vec![])),
                    Some(Element::Text(text)) => Texts::Many(vec![text]),
                    Some(Element::Token(token)) => Texts::Tokens(vec![token]),
                    Some(Element::Tokens(tokens)) => Texts::ManyTokens(vec![tokens]),
                };
                while let Some(element) = elements.next_element()? {
                    match (&mut texts, element) {
                        (Texts::Tokens(all), Element::Token(token)) => all.push(token),
                        (Texts::Many(all), Element::Text(text)) if all.len() < ELEMENTS_MAX => all.push(text),
                        (Texts::ManyTokens(all), Element::Tokens(tokens)) if all.len() < ELEMENTS_MAX => all.push(tokens),
                        (Texts::Many(all), Element::Text(_)) => return Err(too_many(all.len())),
                        (Texts::ManyTokens(all), Element::Tokens(_)) => return Err(too_many(all.len())),
                        _ => return Err(A::Error::custom("the elements are not of one kind: send strings, tokens, or arrays of tokens")),
                    }
                }
                Ok(texts)
            }
        }
        deserializer.deserialize_any(Form)
    }
}

fn too_many<E: Error>(elements: usize) -> E {
    E::custom(format_args!("more than {elements} elements: send several requests"))
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Element;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token, or an array of tokens")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.to_owned()))
            }
            fn visit_u64<E: Error>(self, token: u64) -> Result<Element, E> {
                let token = u32::try_from(token).map_err(|_| E::custom(format_args!("{token} is no token")))?;
                Ok(Element::Token(token))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Element, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = elements.next_element()? {
                    tokens.push(token);
                }
                Ok(Element::Tokens(tokens))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

/// Whether a field says anything: null, false and what is empty do not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Asked(pub bool);

impl<'de> Deserialize<'de> for Asked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Asked;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_unit<E: Error>(self) -> Result<Asked, E> {
                Ok(Asked(false))
            }
            fn visit_bool<E: Error>(self, value: bool) -> Result<Asked, E> {
                Ok(Asked(value))
            }
            fn visit_u64<E: Error>(self, _: u64) -> Result<Asked, E> {
                Ok(Asked(true))
            }
            fn visit_i64<E: Error>(self, _: i64) -> Result<Asked, E> {
                Ok(Asked(true))
            }
            fn visit_f64<E: Error>(self, _: f64) -> Result<Asked, E> {
                Ok(Asked(true))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Asked, E> {
                Ok(Asked(!text.is_empty()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Asked, A::Error> {
                let mut asked = Asked(false);
                while elements.next_element::<IgnoredAny>()?.is_some() {
                    asked = Asked(true);
                }
                Ok(asked)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Asked, A::Error> {
                let mut asked = Asked(false);
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    asked = Asked(true);
                }
                Ok(asked)
            }
        }
        deserializer.deserialize_any(Form)
    }
}

/// `logprobs`: a number in completions, yes or no in conversations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Logprobs {
    Flag(bool),
    Count(u64),
}

impl<'de> Deserialize<'de> for Logprobs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = Logprobs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number in completions, true or false in chat completions")
            }
            fn visit_bool<E: Error>(self, value: bool) -> Result<Logprobs, E> {
                Ok(Logprobs::Flag(value))
            }
            fn visit_u64<E: Error>(self, count: u64) -> Result<Logprobs, E> {
                Ok(Logprobs::Count(count))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_take_four_forms() {
        let check = |json: &str, texts: Texts| assert_eq!(serde_json::from_str::<Texts>(json).unwrap(), texts, "{json}");
        check("\"a\\n\"", Texts::One("a\n".into()));
        check("[]", Texts::Many(vec![]));
        check("[\"a\",\"b\"]", Texts::Many(vec!["a".into(), "b".into()]));
        check("[1,2]", Texts::Tokens(vec![1, 2]));
        check("[[1],[],[2,3]]", Texts::ManyTokens(vec![vec![1], vec![], vec![2, 3]]));
        for wrong in ["1", "{}", "[1,\"a\"]", "[[1],2]", "[-1]", "[4294967296]", "[[\"a\"]]", "[null]", "[1.5]"] {
            assert!(serde_json::from_str::<Texts>(wrong).is_err(), "{wrong}");
        }
        let many = format!("[{}]", vec!["[]"; ELEMENTS_MAX + 1].join(","));
        assert!(serde_json::from_str::<Texts>(&many).unwrap_err().to_string().contains("2048"));
    }

    #[test]
    fn empty_fields_ask_for_nothing() {
        for (json, asked) in [
            ("null", false),
            ("[]", false),
            ("{}", false),
            ("\"\"", false),
            ("false", false),
            ("[null]", true),
            ("{\"a\":[1]}", true),
            ("\"x\"", true),
            ("-1", true),
            ("0.5", true),
            ("true", true),
        ] {
            assert_eq!(serde_json::from_str::<Asked>(json).unwrap(), Asked(asked), "{json}");
        }
    }

    proptest! {
        #[test]
        fn tokens_and_texts_come_through(tokens in prop::collection::vec(any::<u32>(), 1..50), texts in prop::collection::vec(".*", 1..10)) {
            let read = |json: String| serde_json::from_str::<Texts>(&json).unwrap();
            prop_assert_eq!(read(serde_json::to_string(&tokens).unwrap()), Texts::Tokens(tokens));
            prop_assert_eq!(read(serde_json::to_string(&texts).unwrap()), Texts::Many(texts));
        }
    }
}
