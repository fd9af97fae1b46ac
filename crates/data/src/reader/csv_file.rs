//! CSV and TSV under a header line.

use std::fs::File;
use std::path::Path;

use csv::{ErrorKind, StringRecord};

use super::{Cell, EachRow, Row};
use crate::error::DataError;
use crate::record::Origin;

/// Reads a CSV file; `.tsv` is separated by tabs.
pub(crate) fn csv(path: &Path, each: EachRow<'_>) -> Result<(), DataError> {
    let file = File::open(path).map_err(|source| DataError::Read { path: path.to_owned(), source })?;
    let tabs = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("tsv"));
    let mut reader = csv::ReaderBuilder::new().delimiter(if tabs { b'\t' } else { b',' }).from_reader(file);
    let header = reader.headers().map_err(|error| refused(path, 1, error))?.clone();
    let mut values = StringRecord::new();
    loop {
        let before = reader.position().line();
        match reader.read_record(&mut values) {
            Ok(false) => return Ok(()),
            Ok(true) => {
                let line = values.position().map_or(before, csv::Position::line);
                if !each(line, &CsvRow { header: &header, values: &values })? {
                    return Ok(());
                }
            }
            Err(error) => return Err(refused(path, before, error)),
        }
    }
}

fn refused(path: &Path, line: u64, error: csv::Error) -> DataError {
    let line = error.position().map_or(line, csv::Position::line);
    let reason = match error.kind() {
        ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} fields under a header of {expected_len}; quote the fields that hold commas")
        }
        ErrorKind::Utf8 { .. } => "not UTF-8; convert the file".to_owned(),
        _ => error.to_string(),
    };
    DataError::Malformed { at: Origin::new(path, line), reason }
}

struct CsvRow<'a> {
    header: &'a StringRecord,
    values: &'a StringRecord,
}

impl Row for CsvRow<'_> {
    fn cell(&self, column: &str) -> Option<Cell> {
        let index = self.header.iter().position(|name| name == column)?;
        self.values.get(index).map(|value| Cell::Text(value.to_owned()))
    }

    fn columns(&self) -> Vec<String> {
        self.header.iter().map(str::to_owned).collect()
    }
}
