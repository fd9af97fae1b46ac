//! What to read and how: one file of records, described in a few words of TOML.
//!
//! ```toml
//! source = { path = "by_role.jsonl", text = "turns", key = "role" }                 # a list of strings is joined
//! source = { path = "e2e/devset.csv", prompt = "mr", completion = "ref" }
//! source = { path = "banking77/train.csv", text = "text", label = "category" }
//! source = { path = "clinc150/data_full.json", member = "train", text = "0", label = "1", key_map = "clinc150/domains.json" }
//! source = { path = "stories.txt", pieces = { marker = "<|endoftext|>" } }
//! ```
//!
//! A row is a JSON object, a JSON array or a CSV line; in an array, columns are named by their index (`"0"`).
//! Nothing here looks inside the text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::reader::{self, Cell, Row};
use crate::record::{Body, Origin, Record};

/// What goes between a prompt and its completion where the source does not say.
const SEPARATOR: &str = "\n";

/// What goes between the strings of a list that is joined into one text: a blank line, as between speeches.
const LIST_JOIN: &str = "\n\n";

/// How a file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One JSON value a line.
    Jsonl,
    /// One JSON document holding an array of rows, at the top or under `member`.
    Json,
    /// Comma-separated (`.tsv`: tab-separated) values under a header line.
    Csv,
    /// Plain text, cut into records by `pieces`.
    Text,
}

/// How plain text is cut into records. Blank records are passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pieces {
    /// Every line is a record.
    Lines,
    /// Records are separated by blank lines.
    BlankLines,
    /// Records are separated by this string.
    Marker(String),
    /// The file is one record.
    Whole,
}

/// What becomes of a text column that holds a list of strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lists {
    /// One record: the strings joined by a blank line.
    Join,
    /// One record for each string.
    Each,
}

/// A file of records. Name `text`, or `text` and `label`, or `prompt` and `completion`; plain text needs none of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The file; a relative path starts at the folder given to [`Source::read`].
    pub path: PathBuf,
    /// The layout, where the file's extension (`jsonl`, `ndjson`, `json`, `csv`, `tsv`, `txt`) does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The column of the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The column of the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The column of the completion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion: Option<String>,
    /// What is put between prompt and completion; a line break where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// The column of the class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The column of the natural key: speaker, author, domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// A JSON file `{key: [label, ..]}` that gives each record its key by its label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_map: Option<PathBuf>,
    /// The member of a JSON document that holds the rows; dots go deeper (`"data.train"`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// How plain text is cut; lines where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pieces: Option<Pieces>,
    /// What becomes of lists in the text column; joined where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lists: Option<Lists>,
    /// Read no further than this many records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records_max: Option<usize>,
}

/// Which columns make the body of a record.
enum Columns<'a> {
    Text(&'a str),
    Pair { prompt: &'a str, completion: &'a str, separator: &'a str },
}

impl Source {
    /// A file with nothing named yet: enough for plain text.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: None,
            text: None,
            prompt: None,
            completion: None,
            separator: None,
            label: None,
            key: None,
            key_map: None,
            member: None,
            pieces: None,
            lists: None,
            records_max: None,
        }
    }

    /// A file with a text column.
    pub fn text(path: impl Into<PathBuf>, text: &str) -> Self {
        Self { text: Some(text.to_owned()), ..Self::new(path) }
    }

    /// A file of prompts and completions.
    pub fn pairs(path: impl Into<PathBuf>, prompt: &str, completion: &str) -> Self {
        Self { prompt: Some(prompt.to_owned()), completion: Some(completion.to_owned()), ..Self::new(path) }
    }

    /// A file of labelled texts.
    pub fn labelled(path: impl Into<PathBuf>, text: &str, label: &str) -> Self {
        Self { label: Some(label.to_owned()), ..Self::text(path, text) }
    }

    /// Reads every record, in the file's order. Relative paths start at `base`.
    pub fn read(&self, base: &Path) -> Result<Vec<Record>, DataError> {
        let format = self.layout()?;
        let path = base.join(&self.path);
        let mut records = Vec::new();
        if format == Format::Text {
            self.refuse_columns()?;
            let pieces = self.pieces.as_ref().unwrap_or(&Pieces::Lines);
            reader::text(&path, pieces, &mut |line, piece| {
                let at = Origin::new(&path, line);
                records.push(Record { body: Body::Text(piece.to_owned()), label: None, key: None, at });
                Ok(self.wants_more(&records))
            })?;
        } else {
            let columns = self.columns(format)?;
            let keys = self.key_map.as_ref().map(|map| KeyMap::read(&base.join(map))).transpose()?;
            let each = &mut |line, row: &dyn Row| {
                self.record(&columns, keys.as_ref(), &Origin::new(&path, line), row, &mut records)?;
                Ok(self.wants_more(&records))
            };
            match format {
                Format::Jsonl => reader::jsonl(&path, each)?,
                Format::Json => reader::json(&path, self.member.as_deref(), each)?,
                Format::Csv | Format::Text => reader::csv(&path, each)?,
            }
        }
        records.truncate(self.records_max.unwrap_or(usize::MAX));
        if records.is_empty() { Err(DataError::NoRecords { path }) } else { Ok(records) }
    }

    fn wants_more(&self, records: &[Record]) -> bool {
        self.records_max.is_none_or(|records_max| records.len() < records_max)
    }

    fn layout(&self) -> Result<Format, DataError> {
        if let Some(format) = self.format {
            return Ok(format);
        }
        let extension = self.path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("jsonl" | "ndjson") => Ok(Format::Jsonl),
            Some("json") => Ok(Format::Json),
            Some("csv" | "tsv") => Ok(Format::Csv),
            Some("txt" | "text") => Ok(Format::Text),
            _ => self.bad("the extension does not tell the format; add `format = \"jsonl\"` (or json, csv, text)"),
        }
    }

    fn columns(&self, format: Format) -> Result<Columns<'_>, DataError> {
        if self.pieces.is_some() {
            return self.bad("`pieces` cuts plain text; drop it, or say `format = \"text\"`");
        }
        if self.member.is_some() && format != Format::Json {
            return self.bad("`member` belongs to a JSON document; drop it, or say `format = \"json\"`");
        }
        if self.key_map.is_some() && (self.label.is_none() || self.key.is_some()) {
            return self.bad("`key_map` makes keys from labels: it needs `label`, and no `key`");
        }
        match (&self.text, &self.prompt, &self.completion) {
            (Some(text), None, None) if self.separator.is_none() => Ok(Columns::Text(text)),
            (Some(_), None, None) => self.bad("`separator` goes between a prompt and a completion; drop it"),
            (None, Some(prompt), Some(completion)) => {
                let separator = self.separator.as_deref().unwrap_or(SEPARATOR);
                Ok(Columns::Pair { prompt, completion, separator })
            }
            _ => self.bad("name the columns: either `text` (and perhaps `label`), or `prompt` and `completion`"),
        }
    }

    fn refuse_columns(&self) -> Result<(), DataError> {
        let columns = [&self.text, &self.prompt, &self.completion, &self.separator, &self.label, &self.key, &self.member];
        if columns.iter().any(|column| column.is_some()) || self.key_map.is_some() || self.lists.is_some() {
            return self.bad("plain text has no columns; drop them, or say `format = \"jsonl\"` (or json, csv)");
        }
        match &self.pieces {
            Some(Pieces::Marker(marker)) if marker.is_empty() => self.bad("an empty marker separates nothing"),
            _ => Ok(()),
        }
    }

    fn bad<T>(&self, reason: &str) -> Result<T, DataError> {
        Err(DataError::BadSource { path: self.path.clone(), reason: reason.to_owned() })
    }

    /// Makes the record (or, with [`Lists::Each`], the records) of one row.
    fn record(
        &self,
        columns: &Columns<'_>,
        keys: Option<&KeyMap>,
        at: &Origin,
        row: &dyn Row,
        records: &mut Vec<Record>,
    ) -> Result<(), DataError> {
        let label = self.label.as_ref().map(|column| one(row, column, at)).transpose()?;
        let key = match (&self.key, keys, &label) {
            (Some(column), _, _) => Some(one(row, column, at)?),
            (None, Some(map), Some(label)) => Some(map.key(label, at)?),
            _ => None,
        };
        let mut push = |body| records.push(Record { body, label: label.clone(), key: key.clone(), at: at.clone() });
        match *columns {
            Columns::Text(column) => match (cell(row, column, at)?, self.lists.unwrap_or(Lists::Join)) {
                (Cell::List(texts), Lists::Each) => texts.into_iter().for_each(|text| push(Body::Text(text))),
                (cell, _) => push(Body::Text(joined(cell))),
            },
            Columns::Pair { prompt, completion, separator } => {
                push(Body::Pair { prompt: one(row, prompt, at)? + separator, completion: one(row, completion, at)? })
            }
        }
        Ok(())
    }
}

fn cell(row: &dyn Row, column: &str, at: &Origin) -> Result<Cell, DataError> {
    match row.cell(column) {
        Some(Cell::Unusable(found)) => Err(DataError::Malformed {
            at: at.clone(),
            reason: format!("column `{column}` is {found}, not text, a number or a list of strings"),
        }),
        Some(cell) => Ok(cell),
        None => Err(DataError::NoColumn { at: at.clone(), column: column.to_owned(), found: row.columns() }),
    }
}

fn one(row: &dyn Row, column: &str, at: &Origin) -> Result<String, DataError> {
    cell(row, column, at).map(joined)
}

fn joined(cell: Cell) -> String {
    match cell {
        Cell::Text(text) => text,
        Cell::List(texts) => texts.join(LIST_JOIN),
        Cell::Unusable(_) => String::new(),
    }
}

/// Labels to keys, read from a JSON file `{key: [label, ..]}`.
struct KeyMap {
    path: PathBuf,
    keys: BTreeMap<String, String>,
}

impl KeyMap {
    fn read(path: &Path) -> Result<Self, DataError> {
        let text = reader::read_whole(path)?;
        let labels: BTreeMap<String, Vec<String>> = serde_json::from_str(&text).map_err(|error| DataError::Malformed {
            at: Origin::new(path, error.line() as u64),
            reason: format!("a key map is a JSON object of lists, {{key: [label, ..]}}: {error}"),
        })?;
        let mut keys = BTreeMap::new();
        for (key, label) in labels.iter().flat_map(|(key, labels)| labels.iter().map(move |label| (key, label))) {
            if let Some(other) = keys.insert(label.clone(), key.clone()) {
                let reason = format!("label `{label}` belongs to both `{other}` and `{key}`");
                return Err(DataError::Malformed { at: Origin::new(path, 1), reason });
            }
        }
        Ok(Self { path: path.to_owned(), keys })
    }

    fn key(&self, label: &str, at: &Origin) -> Result<String, DataError> {
        self.keys.get(label).cloned().ok_or_else(|| DataError::UnmappedLabel {
            at: at.clone(),
            label: label.to_owned(),
            key_map: self.path.clone(),
        })
    }
}
