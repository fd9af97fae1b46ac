//! The questions of a validation file: a prompt and its answer, with options where it is multiple choice.

use crate::cli::exit::{Exit, Failure};
use clap::Args;
use cutlayer_data::{Body, Lists, Record, Source};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Between the options of a CSV cell.
const CELL_SEPARATOR: char = '|';

/// A file of questions and its columns.
#[derive(Args, Clone, Debug)]
pub(super) struct QuestionArgs {
    /// Validation file: .jsonl, .json, .csv or .tsv
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Column of the prompt
    #[arg(long, value_name = "COLUMN", default_value = "prompt")]
    prompt: String,
    /// Column of the right answer
    #[arg(long, value_name = "COLUMN", default_value = "completion")]
    completion: String,
    /// Column of the options of multiple choice, the right answer among them: a list, or text with | between
    #[arg(long, value_name = "COLUMN")]
    options: Option<String>,
    /// What goes between the prompt and an answer
    #[arg(long, value_name = "TEXT", default_value = "")]
    separator: String,
    /// Questions at most
    #[arg(long, value_name = "N")]
    records_max: Option<usize>,
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub prompt: String,
    pub answer: String,
    /// Of multiple choice; the answer is one of them.
    pub options: Vec<String>,
}

impl QuestionArgs {
    pub fn has_options(&self) -> bool {
        self.options.is_some()
    }

    pub fn file(&self) -> &PathBuf {
        &self.data
    }

    /// Reads them.
    pub fn read(&self) -> anyhow::Result<Vec<Question>> {
        let path = std::path::absolute(&self.data)?;
        let mut source = Source::pairs(&path, &self.prompt, &self.completion);
        source.separator = Some(self.separator.clone());
        source.records_max = self.records_max;
        let records = source.read(std::path::Path::new(""))?;
        let mut options = match &self.options {
            Some(column) => grouped(Source { lists: Some(Lists::Each), ..Source::text(&path, column) }.read(std::path::Path::new(""))?),
            None => BTreeMap::new(),
        };
        records.into_iter().map(|record| self.question(record, &mut options)).collect()
    }

    fn question(&self, record: Record, options: &mut BTreeMap<u64, Vec<String>>) -> anyhow::Result<Question> {
        let Body::Pair { prompt, completion: answer } = record.body else { unreachable!("pairs were read") };
        let options = options.remove(&record.at.line).unwrap_or_default();
        if self.options.is_some() && !options.contains(&answer) {
            let words = format!("{}: the answer `{answer}` is not among the options {options:?}", record.at);
            return Err(Failure::because(Exit::ModelOrData, words));
        }
        Ok(Question { prompt, answer, options })
    }
}

/// Options by the line of their question.
fn grouped(records: Vec<Record>) -> BTreeMap<u64, Vec<String>> {
    let mut grouped: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for record in records {
        if let Body::Text(text) = record.body {
            grouped.entry(record.at.line).or_default().extend(text.split(CELL_SEPARATOR).map(str::to_owned));
        }
    }
    grouped
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn args(file: &std::path::Path) -> QuestionArgs {
        QuestionArgs {
            data: file.into(),
            prompt: "q".into(),
            completion: "a".into(),
            options: Some("o".into()),
            separator: " ".into(),
            records_max: None,
        }
    }

    #[test]
    fn options_belong_to_their_question() {
        let folder = tempfile::tempdir().unwrap();
        let (lines, cells) = (folder.path().join("q.jsonl"), folder.path().join("q.csv"));
        std::fs::write(&lines, "{\"q\":\"one?\",\"a\":\"x\",\"o\":[\"x\",\"y\"]}\n\n{\"q\":\"two?\",\"a\":\"b\",\"o\":[\"a\",\"b\"]}\n")
            .unwrap();
        std::fs::write(&cells, "q,a,o\none?,x,x|y\ntwo?,b,a|b\n").unwrap();
        for file in [&lines, &cells] {
            let questions = args(file).read().unwrap();
            assert_eq!(questions.len(), 2);
            let expected = Question { prompt: "two? ".into(), answer: "b".into(), options: vec!["a".into(), "b".into()] };
            assert_eq!(questions[1], expected);
            assert_eq!(QuestionArgs { options: None, ..args(file) }.read().unwrap()[0].options, Vec::<String>::new());
            assert_eq!(QuestionArgs { records_max: Some(1), ..args(file) }.read().unwrap().len(), 1);
        }
        std::fs::write(&lines, "{\"q\":\"one?\",\"a\":\"z\",\"o\":[\"x\",\"y\"]}\n").unwrap();
        assert!(args(&lines).read().unwrap_err().to_string().contains("q.jsonl:1: the answer `z` is not among"));
    }
}
