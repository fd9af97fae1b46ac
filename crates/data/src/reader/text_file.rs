//! Plain text, cut into records.

use std::path::Path;

use super::{lines_in, read_whole};
use crate::error::DataError;
use crate::source::Pieces;

/// Takes one record and the line it starts on; `false` ends the reading.
pub(crate) type EachPiece<'a> = &'a mut dyn FnMut(u64, &str) -> Result<bool, DataError>;

/// Reads a text file piece by piece; blank pieces are passed over, the others come without the white space around them.
pub(crate) fn text(path: &Path, pieces: &Pieces, each: EachPiece<'_>) -> Result<(), DataError> {
    let content = read_whole(path)?;
    let (mut line, mut counted) = (1, 0);
    for (start, piece) in cut(&content, pieces) {
        let start = start + piece.len() - piece.trim_start().len();
        line += lines_in(&content.as_bytes()[counted..start]);
        counted = start;
        if !piece.trim().is_empty() && !each(line, piece.trim())? {
            break;
        }
    }
    Ok(())
}

/// The pieces with the byte each starts at.
fn cut<'a>(content: &'a str, pieces: &Pieces) -> Vec<(usize, &'a str)> {
    let start_of = |piece: &str| piece.as_ptr() as usize - content.as_ptr() as usize;
    match pieces {
        Pieces::Lines => content.lines().map(|line| (start_of(line), line)).collect(),
        Pieces::Marker(marker) => content.split(marker.as_str()).map(|piece| (start_of(piece), piece)).collect(),
        Pieces::Whole => vec![(0, content)],
        Pieces::BlankLines => paragraphs(content),
    }
}

fn paragraphs(content: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let (mut start, mut end) = (0, 0);
    for line in content.split_inclusive('\n') {
        end += line.len();
        if line.trim().is_empty() {
            found.push((start, &content[start..end]));
            start = end;
        }
    }
    found.push((start, &content[start..]));
    found
}
