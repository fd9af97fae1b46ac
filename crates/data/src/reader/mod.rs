//! The file formats. Each reader hands rows, with the line they start on, to a function that says whether it
//! wants more; none of them knows what a column means.

mod csv_file;
mod json_file;
mod text_file;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::DataError;
use crate::record::Origin;

pub(crate) use csv_file::csv;
pub(crate) use json_file::{json, jsonl};
pub(crate) use text_file::text;

/// The largest file that is held in memory whole (JSON documents and plain text).
const WHOLE_FILE_BYTES_MAX: u64 = 1 << 30;

/// The longest line of a JSONL file.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// Takes one row and its line; `false` ends the reading.
pub(crate) type EachRow<'a> = &'a mut dyn FnMut(u64, &dyn Row) -> Result<bool, DataError>;

/// One value of a row.
pub(crate) enum Cell {
    /// A string, or a number or truth value in its JSON spelling.
    Text(String),
    /// A list of strings.
    List(Vec<String>),
    /// Something that is neither; the word says what.
    Unusable(&'static str),
}

/// One row, whatever the format.
pub(crate) trait Row {
    /// The value of a column, or `None` where there is no such column.
    fn cell(&self, column: &str) -> Option<Cell>;
    /// The columns there are, for messages.
    fn columns(&self) -> Vec<String>;
}

/// Reads a whole text file, without its byte-order mark. Too large or not UTF-8 is refused, the latter by line.
pub(crate) fn read_whole(path: &Path) -> Result<String, DataError> {
    let refuse = |source| DataError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(refuse)?;
    let bytes = file.metadata().map_err(refuse)?.len();
    if bytes > WHOLE_FILE_BYTES_MAX {
        return Err(DataError::FileTooLarge { path: path.to_owned(), bytes, bytes_max: WHOLE_FILE_BYTES_MAX });
    }
    let mut content = Vec::with_capacity(bytes as usize);
    Read::by_ref(&mut file).take(WHOLE_FILE_BYTES_MAX).read_to_end(&mut content).map_err(refuse)?;
    let mut text = String::from_utf8(content).map_err(|error| {
        let line = 1 + lines_in(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        DataError::Malformed { at: Origin::new(path, line), reason: "not UTF-8; convert the file".to_owned() }
    })?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len_utf8());
    }
    Ok(text)
}

const BYTE_ORDER_MARK: char = '\u{feff}';

fn lines_in(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}
