//! One's own records, described by flags.

use super::exit::{Exit, Failure};
use anyhow::Result;
use clap::Args;
use cutlayer_data::{DataSpec, HeldOut, Source};
use std::path::{Path, PathBuf};

/// A file of records and its columns.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct DataArgs {
    /// Records: .jsonl, .json, .csv, .tsv or .txt
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Column of the text
    #[arg(long, value_name = "COLUMN", requires = "data")]
    pub text: Option<String>,
    /// Column of the prompt, which is read and not scored
    #[arg(long, value_name = "COLUMN", requires = "completion")]
    pub prompt: Option<String>,
    /// Column of the completion
    #[arg(long, value_name = "COLUMN", requires = "prompt")]
    pub completion: Option<String>,
    /// Column of the class
    #[arg(long, value_name = "COLUMN", requires = "text")]
    pub label: Option<String>,
    /// File of held-out records, with the same columns
    #[arg(long, value_name = "FILE", requires = "data", conflicts_with = "held_out")]
    pub eval_data: Option<PathBuf>,
    /// Share of the records to hold out
    #[arg(long, value_name = "SHARE", requires = "data")]
    pub held_out: Option<f64>,
}

impl DataArgs {
    /// The description, if a file was named.
    pub fn spec(&self) -> Result<Option<DataSpec>> {
        let Some(path) = &self.data else { return Ok(None) };
        let mut spec = DataSpec::new(self.source(path)?);
        spec.held_out = match (&self.eval_data, self.held_out) {
            (Some(path), _) => Some(HeldOut::Source(self.source(path)?)),
            (None, Some(share)) => Some(HeldOut::Fraction(share)),
            (None, None) => None,
        };
        Ok(Some(spec))
    }

    fn source(&self, path: &Path) -> Result<Source> {
        let path =
            std::path::absolute(path).map_err(|error| Failure::because(Exit::ModelOrData, format!("{}: {error}", path.display())))?;
        let mut source = Source::new(path);
        source.text.clone_from(&self.text);
        source.prompt.clone_from(&self.prompt);
        source.completion.clone_from(&self.completion);
        source.label.clone_from(&self.label);
        Ok(source)
    }
}
