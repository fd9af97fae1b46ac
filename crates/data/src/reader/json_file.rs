//! JSONL, and JSON documents that hold an array of rows.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{BYTE_ORDER_MARK, Cell, EachRow, LINE_BYTES_MAX, Row, lines_in, read_whole};
use crate::error::DataError;
use crate::record::Origin;

/// Reads one JSON value a line; blank lines are passed over.
pub(crate) fn jsonl(path: &Path, each: EachRow<'_>) -> Result<(), DataError> {
    let refuse = |source| DataError::Read { path: path.to_owned(), source };
    let mut reader = BufReader::new(File::open(path).map_err(refuse)?);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        Read::by_ref(&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes).map_err(refuse)?;
        if bytes.is_empty() {
            break;
        }
        let malformed = |reason| DataError::Malformed { at: Origin::new(path, line), reason };
        if bytes.len() as u64 == LINE_BYTES_MAX {
            return Err(malformed(format!("the line is longer than {LINE_BYTES_MAX} B; split it")));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| malformed("not UTF-8; convert the file".to_owned()))?;
        let text = text.trim_start_matches(BYTE_ORDER_MARK).trim();
        if text.is_empty() {
            continue;
        }
        let row: Value =
            serde_json::from_str(text).map_err(|error| malformed(format!("not one JSON value a line: {}", without_line(&error))))?;
        if !each(line, &row)? {
            break;
        }
    }
    Ok(())
}

/// Reads the array at `member` (dots go deeper), or the document itself where it is an array.
pub(crate) fn json(path: &Path, member: Option<&str>, each: EachRow<'_>) -> Result<(), DataError> {
    let text = read_whole(path)?;
    let mut value: &RawValue = parse(path, &text, &text, "a JSON document")?;
    for name in member.iter().flat_map(|member| member.split('.')) {
        let mut members: BTreeMap<String, &RawValue> = parse(path, &text, value.get(), "a JSON object")?;
        value = members.remove(name).ok_or_else(|| DataError::NoMember {
            path: path.to_owned(),
            member: name.to_owned(),
            found: members.into_keys().collect(),
        })?;
    }
    let wanted = if member.is_some() { "an array of rows" } else { "an array of rows (or name a `member`)" };
    let rows: Vec<&RawValue> = parse(path, &text, value.get(), wanted)?;
    let (mut line, mut counted) = (1, 0);
    for row in rows {
        let start = position(&text, row.get());
        line += lines_in(&text.as_bytes()[counted..start]);
        counted = start;
        let row: Value = parse(path, &text, row.get(), "a row")?;
        if !each(line, &row)? {
            break;
        }
    }
    Ok(())
}

/// Parses `part`, which lies inside `whole`, and counts lines from the start of `whole` when it does not parse.
fn parse<'a, T: Deserialize<'a>>(path: &Path, whole: &str, part: &'a str, wanted: &str) -> Result<T, DataError> {
    serde_json::from_str(part).map_err(|error| {
        let before = lines_in(&whole.as_bytes()[..position(whole, part)]);
        let at = Origin::new(path, before + error.line().max(1) as u64);
        DataError::Malformed { at, reason: format!("not {wanted}: {}", without_line(&error)) }
    })
}

/// Where `part` starts in `whole`: serde's raw values borrow from the text they were read from.
fn position(whole: &str, part: &str) -> usize {
    part.as_ptr() as usize - whole.as_ptr() as usize
}

/// serde's message without its own line count, which starts at the part that was parsed.
fn without_line(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.rsplit_once(" at line ").map_or(message.clone(), |(reason, _)| reason.to_owned())
}

impl Row for Value {
    fn cell(&self, column: &str) -> Option<Cell> {
        let value = match self {
            Value::Object(members) => members.get(column)?,
            Value::Array(values) => values.get(column.parse::<usize>().ok()?)?,
            _ => return None,
        };
        Some(match value {
            Value::String(text) => Cell::Text(text.clone()),
            Value::Number(number) => Cell::Text(number.to_string()),
            Value::Bool(truth) => Cell::Text(truth.to_string()),
            Value::Array(values) => values
                .iter()
                .map(|value| value.as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
                .map_or(Cell::Unusable("a list that holds more than strings"), Cell::List),
            Value::Null => Cell::Unusable("null"),
            Value::Object(_) => Cell::Unusable("an object"),
        })
    }

    fn columns(&self) -> Vec<String> {
        match self {
            Value::Object(members) => members.keys().cloned().collect(),
            Value::Array(values) => (0..values.len()).map(|index| index.to_string()).collect(),
            _ => Vec::new(),
        }
    }
}
