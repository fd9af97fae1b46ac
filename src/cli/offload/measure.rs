//! What both models make of each question, and what it costs: one question at a time, so that times and bytes are its own.
//!
//! Energy is modelled, not measured: stated watts times the time that the device's blocks computed, and times the time that the bytes
//! would take a radio.

use super::questions::Question;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::Output;
use clap::{Args, ValueEnum};
use cutlayer_generation::offload::{Cost, Example, Features};
use cutlayer_node::{GenerateRequest, Generator};
use serde::Serialize;
use std::time::{Duration, Instant};

/// What a phone's cores take under load, in watts: an order of magnitude, not of any one device.
const DEVICE_WATTS: f64 = 4.0;
/// What its radio takes while it sends or receives, in watts: the same.
const RADIO_WATTS: f64 = 1.2;
/// What the radio carries, in megabits a second.
const RADIO_MBPS: f64 = 20.0;
/// Pause between two words on how far it is.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// How right an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Score {
    /// 1 where the likeliest option is the right one
    Choice,
    /// 1 where the words are the same, but for case and punctuation
    Exact,
    /// Share of the right answer's words that the answer begins with
    Prefix,
    /// Harmonic mean of the shares of words that both have (SQuAD's F1)
    F1,
}

impl Score {
    pub fn name(self) -> &'static str {
        match self {
            Self::Choice => "choice",
            Self::Exact => "exact",
            Self::Prefix => "prefix",
            Self::F1 => "f1",
        }
    }
}

/// What the device is taken to spend.
#[derive(Args, Clone, Copy, Debug, Serialize)]
pub(super) struct PowerArgs {
    /// Watts of the device while it computes; energy is modelled by it
    #[arg(long, value_name = "W", default_value_t = DEVICE_WATTS)]
    pub device_watts: f64,
    /// Watts of its radio while bytes travel
    #[arg(long, value_name = "W", default_value_t = RADIO_WATTS)]
    pub radio_watts: f64,
    /// Megabits a second that the radio carries
    #[arg(long, value_name = "MBPS", default_value_t = RADIO_MBPS)]
    pub radio_mbps: f64,
}

impl PowerArgs {
    fn joules(&self, computed: Duration, bytes: f64) -> f64 {
        self.device_watts * computed.as_secs_f64() + self.radio_watts * bytes * 8.0 / (self.radio_mbps * 1e6)
    }
}

/// How to ask.
pub(super) struct How {
    pub score: Score,
    pub tokens_max: u32,
    pub stop: Vec<String>,
    pub power: PowerArgs,
}

/// An answer, how right it is, and what it took.
struct Taken {
    right: f64,
    features: Features,
    cost: Cost,
}

/// Asks both everything.
pub(super) async fn measure(
    questions: &[Question],
    local: &Generator,
    large: &Generator,
    how: &How,
    output: &Output,
) -> anyhow::Result<Vec<Example>> {
    let PowerArgs { device_watts, radio_watts, radio_mbps } = how.power;
    if ![device_watts, radio_watts].iter().all(|watts| *watts >= 0.0) || radio_mbps <= 0.0 {
        return Err(Failure::because(Exit::Usage, "watts are 0 or more, and a radio carries something"));
    }
    large.connect().await?;
    // The first answers pay for threads and memory that are not the questions'.
    if let Some(first) = questions.first() {
        ask(first, local, true, how).await?;
        ask(first, large, false, how).await?;
    }
    let (mut examples, mut said) = (Vec::with_capacity(questions.len()), Instant::now());
    for (place, question) in questions.iter().enumerate() {
        let own = ask(question, local, true, how).await?;
        let theirs = ask(question, large, false, how).await?;
        let edge = Cost {
            latency_ms: own.cost.latency_ms + theirs.cost.latency_ms,
            energy_j: own.cost.energy_j + theirs.cost.energy_j,
            bytes: theirs.cost.bytes,
        };
        examples.push(Example { features: own.features, local_right: own.right, edge_right: theirs.right, local: own.cost, edge });
        if said.elapsed() >= SAY_EVERY {
            output.moving(&format!("{} of {} questions", place + 1, questions.len()));
            said = Instant::now();
        }
    }
    output.still();
    Ok(examples)
}

async fn ask(question: &Question, model: &Generator, watched: bool, how: &How) -> anyhow::Result<Taken> {
    let (busy, bytes, started) = (model.work().busy_us, carried(model).await, Instant::now());
    let (right, features) = if how.score == Score::Choice {
        let choice = model.choose(&question.prompt, &question.options, None).await?;
        (f64::from(u8::from(question.options[choice.best] == question.answer)), choice.features)
    } else {
        let request =
            GenerateRequest { tokens_max: Some(how.tokens_max), stop: how.stop.clone(), ..GenerateRequest::greedy(&question.prompt) };
        let (text, features) = if watched {
            let (text, _, _, features) = model.answer_with_features(&request).await?;
            (text, features)
        } else {
            (model.generate(request).whole().await?.0, Features::default())
        };
        (right(how.score, &text, &question.answer), features)
    };
    let latency_ms = started.elapsed().as_secs_f64() * 1e3;
    let bytes = (carried(model).await - bytes) as f64;
    let computed = Duration::from_micros(model.work().busy_us - busy);
    Ok(Taken { right, features, cost: Cost { latency_ms, energy_j: how.power.joules(computed, bytes), bytes } })
}

async fn carried(model: &Generator) -> u64 {
    let stats = model.link_stats().await.unwrap_or_default();
    stats.bytes_sent + stats.bytes_received
}

/// Words without case and punctuation.
fn words(text: &str) -> Vec<String> {
    let bare = |word: &str| word.chars().filter(|letter| letter.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>();
    text.split_whitespace().map(bare).filter(|word| !word.is_empty()).collect()
}

fn right(score: Score, answer: &str, expected: &str) -> f64 {
    let (answer, expected) = (words(answer), words(expected));
    match score {
        Score::Choice | Score::Exact => f64::from(u8::from(answer == expected)),
        Score::Prefix => {
            let same = answer.iter().zip(&expected).take_while(|(one, other)| one == other).count();
            if expected.is_empty() { f64::from(u8::from(answer.is_empty())) } else { same as f64 / expected.len() as f64 }
        }
        Score::F1 => {
            let (mut left, mut shared) = (expected.clone(), 0.0);
            for word in &answer {
                if let Some(place) = left.iter().position(|other| other == word) {
                    left.swap_remove(place);
                    shared += 1.0;
                }
            }
            // Of nothing against nothing it is 1.
            if answer.is_empty() && expected.is_empty() { 1.0 } else { 2.0 * shared / (answer.len() + expected.len()) as f64 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_scored_by_their_words() {
        let close = |score, answer, expected, value: f64| {
            let found = right(score, answer, expected);
            assert!((found - value).abs() < 1e-9, "{score:?} of `{answer}`: {found}, not {value}");
        };
        close(Score::Exact, " The Cat.\n", "the cat", 1.0);
        close(Score::Exact, "the cat sat", "the cat", 0.0);
        close(Score::Prefix, "the cat ran off", "The cat sat down.", 0.5);
        close(Score::Prefix, "a cat", "the cat", 0.0);
        close(Score::Prefix, "dogs bark", "Dogs", 1.0);
        close(Score::F1, "cat the", "the cat sat", 0.8);
        close(Score::F1, "the the the", "the cat", 0.4);
        close(Score::F1, "", "", 1.0);
        close(Score::F1, "", "cat", 0.0);
    }

    #[test]
    fn energy_is_watts_times_seconds() {
        let power = PowerArgs { device_watts: 4.0, radio_watts: 1.0, radio_mbps: 8.0 };
        // Half a second of cores, and a megabyte in a second.
        assert!((power.joules(Duration::from_millis(500), 1e6) - 3.0).abs() < 1e-9);
    }
}
