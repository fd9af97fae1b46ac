//! Where words go: results on standard output, everything said meanwhile on standard error.

use super::exit::Exit;
use cutlayer_lab::Show;
use serde::Serialize;
use serde_json::json;
use std::io::{IsTerminal, Write};

/// What standard output gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Text for people.
    Human,
    /// Exactly one JSON object.
    Json,
}

/// The two streams of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    format: Format,
    quiet: bool,
}

impl Output {
    /// With `quiet`, nothing is said meanwhile.
    pub fn new(format: Format, quiet: bool) -> Self {
        Self { format, quiet }
    }

    /// Says something meanwhile.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// Says what changes from moment to moment: over the last such line where a person watches, line by line elsewhere.
    pub fn moving(&self, text: &str) {
        if self.is_watched() {
            // To the start of the line, and clear it.
            eprint!("\r\x1b[2K{text}");
        } else {
            self.say(text);
        }
    }

    /// Takes the last such line away, so that what comes next stands alone.
    pub fn still(&self) {
        if self.is_watched() {
            eprint!("\r\x1b[2K");
        }
    }

    /// The result of the command: the one object, or its text.
    pub fn result(&self, value: &impl Serialize, text: &str) {
        match self.format {
            Format::Human => print_line(text),
            Format::Json => {
                self.say(text);
                print_line(&serde_json::to_string(value).expect("our own values have string keys"));
            }
        }
    }

    /// Whether standard output gets one JSON object.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// The end of a command that failed.
    pub fn error(&self, error: &anyhow::Error, exit: Exit) {
        let message = words(error);
        eprintln!("error: {message}");
        if self.format == Format::Json {
            print_line(&json!({ "error": message, "exit_code": exit as u8 }).to_string());
        }
    }

    /// Whether a person watches standard error move.
    pub fn is_watched(&self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }

    /// What is shown of a run while it goes on.
    pub fn show(&self) -> Show {
        match (self.quiet, self.is_watched()) {
            (true, _) => Show::Nothing,
            (false, true) => Show::Bars,
            (false, false) => Show::Lines,
        }
    }
}

/// Whoever reads may have gone (`| head`): that is no error of ours, and no reason to panic.
fn print_line(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}

/// The error and its causes, without those that repeat what was said.
fn words(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain() {
        let words = cause.to_string();
        if message.is_empty() {
            message = words;
        } else if !message.contains(&words) {
            message = format!("{message}: {words}");
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an error reads as one sentence. Method: a context, a cause, and a cause that repeats.
    #[test]
    fn causes_are_told_once() {
        let error = anyhow::anyhow!("the disk is full").context("cannot save: the disk is full").context("round 3");
        assert_eq!(words(&error), "round 3: cannot save: the disk is full");
    }
}
