//! How a domain's tables become facts and sentences. It knows slots and templates, and no domain.
//!
//! A template names slots in braces: `{place}`; `{a main}` puts the right article in front.

use crate::rng::Seeded;

/// One subject: its attributes and its ways of speaking.
pub(super) struct Domain {
    pub name: &'static str,
    /// In the order of the meaning representation.
    pub slots: &'static [Slot],
    /// The two slots whose combination may be held out.
    pub combination: [&'static str; 2],
    /// Opening sentences; each says every slot that has no sentences of its own.
    pub openings: Phrases,
}

/// One attribute. With `said` it is optional, and has sentences of its own.
pub(super) struct Slot {
    pub name: &'static str,
    pub values: Values,
    pub said: Option<Phrases>,
}

/// The same thing in the two styles.
pub(super) struct Phrases {
    pub report: &'static [&'static str],
    pub prose: &'static [&'static str],
}

/// How a text is written.
#[derive(Clone, Copy)]
pub(super) enum Style {
    /// The house style of the pairs.
    Report,
    /// The style of the pretraining prose.
    Prose,
}

/// Where an attribute's values come from.
pub(super) enum Values {
    Words(&'static [&'static str]),
    /// A whole number from `low` to `high`, in steps.
    Number {
        low: usize,
        high: usize,
        step: usize,
    },
    /// A time of day from 05:00 to 22:55.
    Clock,
    /// Goals, as in 3-1.
    Score,
    Place,
    Person,
    /// One value after another.
    Joined(&'static Values, &'static Values),
}

/// Attributes that were drawn, with their values.
pub(super) type Facts = Vec<(&'static str, String)>;

/// The value of a slot that is certainly there.
pub(super) fn value<'a>(facts: &'a Facts, slot: &str) -> &'a str {
    let found = facts.iter().find(|(name, _)| *name == slot);
    &found.unwrap_or_else(|| panic!("a template names the slot {slot}, which was not drawn")).1
}

/// An optional attribute is present in two texts of three.
const PRESENT_IN_THREE: usize = 2;

impl Domain {
    /// Draws a value for every required slot and for some of the others.
    pub(super) fn draw(&self, rng: &mut Seeded) -> Facts {
        let mut facts = Vec::new();
        for slot in self.slots {
            if slot.said.is_none() || rng.below(3) < PRESENT_IN_THREE {
                facts.push((slot.name, slot.values.draw(rng)));
            }
        }
        facts
    }

    /// The meaning representation: `domain | slot: value | ..`.
    pub(super) fn meaning(&self, facts: &Facts) -> String {
        facts.iter().fold(self.name.to_owned(), |meaning, (slot, value)| format!("{meaning} | {slot}: {value}"))
    }

    /// Says the facts: an opening, then a sentence for each optional attribute.
    pub(super) fn say(&self, facts: &Facts, style: Style, rng: &mut Seeded) -> String {
        let present = |slot: &&Slot| facts.iter().any(|(name, _)| *name == slot.name);
        let extras = self.slots.iter().filter(present).filter_map(|slot| slot.said.as_ref());
        let sentences: Vec<String> = std::iter::once(&self.openings)
            .chain(extras)
            .map(|phrases| {
                let templates = match style {
                    Style::Report => phrases.report,
                    Style::Prose => phrases.prose,
                };
                let template = *rng.pick(templates);
                fill(template, facts)
            })
            .collect();
        sentences.join(" ")
    }
}

/// Fills a template's slots and starts it with a capital.
fn fill(template: &str, facts: &Facts) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (slot, after) = after.split_once('}').unwrap_or((after, ""));
        text.push_str(before);
        match slot.strip_prefix("a ") {
            Some(slot) => {
                let value = value(facts, slot);
                text.push_str(if value.starts_with(['a', 'e', 'i', 'o', 'u']) { "an " } else { "a " });
                text.push_str(value);
            }
            None => text.push_str(value(facts, slot)),
        }
        rest = after;
    }
    text.push_str(rest);
    let first = text.chars().next().map_or(0, char::len_utf8);
    text[..first].to_uppercase() + &text[first..]
}

impl Values {
    fn draw(&self, rng: &mut Seeded) -> String {
        match self {
            Self::Words(words) => (*rng.pick(words)).to_owned(),
            Self::Number { low, high, step } => (low + step * rng.below((high - low) / step + 1)).to_string(),
            Self::Clock => format!("{:02}:{:02}", 5 + rng.below(18), 5 * rng.below(12)),
            Self::Score => format!("{}-{}", rng.below(6), rng.below(6)),
            Self::Place => format!("{}{}", rng.pick(&PLACE_HEADS), rng.pick(&PLACE_TAILS)),
            Self::Person => format!("{} {}", rng.pick(&FIRST_NAMES), rng.pick(&LAST_NAMES)),
            Self::Joined(first, second) => format!("{} {}", first.draw(rng), second.draw(rng)),
        }
    }
}

const PLACE_HEADS: [&str; 12] = ["Ash", "Brack", "Carn", "Dun", "Elm", "Fern", "Kes", "Lark", "Oak", "Pen", "Thorn", "Wren"];
const PLACE_TAILS: [&str; 6] = ["moor", "well", "ford", "stead", "haven", "mouth"];

const FIRST_NAMES: [&str; 14] =
    ["Ada", "Bruno", "Clara", "Dora", "Emil", "Flora", "Hugo", "Ines", "Jonas", "Lena", "Marta", "Nils", "Otto", "Vera"];
/// Surnames, of persons and of shops.
pub(super) const LAST_NAMES: [&str; 14] =
    ["Arden", "Bell", "Crane", "Dale", "Finch", "Gray", "Holt", "Lind", "Marsh", "North", "Price", "Rook", "Stone", "Vane"];
pub(super) const DAYS: &[&str] = &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled() {
        let facts = vec![("main", "onion".to_owned()), ("dish", "soup".to_owned())];
        assert_eq!(fill("{a main} {dish} and {a dish}.", &facts), "An onion soup and a soup.");
    }

    #[test]
    fn numbers_stay_in_their_range() {
        let mut rng = Seeded::new(1, "test", 0);
        let values = Values::Number { low: 10, high: 30, step: 5 };
        let drawn: std::collections::BTreeSet<String> = (0..200).map(|_| values.draw(&mut rng)).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), ["10", "15", "20", "25", "30"]);
    }
}
