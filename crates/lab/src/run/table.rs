//! The tables at the end of a run, for people.

use super::chaos::ChaosCounts;
use super::summary::{ClientRow, RoundRow, Summary};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

/// The rounds, the clients and the last word.
pub fn tables(summary: &Summary) -> String {
    let mut text = String::new();
    if !summary.rounds.is_empty() {
        text += &format!("{}\n", rounds(&summary.rounds));
    }
    if !summary.clients.is_empty() {
        text += &format!("{}\n", clients(&summary.clients));
    }
    for refused in &summary.refused {
        text += &format!("turned away: {refused}\n");
    }
    if let Some(ChaosCounts { server_kills, client_kills, cuts }) = summary.chaos {
        text += &format!("chaos: killed the server {server_kills} times and clients {client_kills} times, cut networks {cuts} times\n");
    }
    text += &last_word(summary);
    text
}

/// A table of these rows.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header(header).add_rows(rows);
    // Names stand left, numbers right.
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn rounds(rows: &[RoundRow]) -> Table {
    let header = ["round", "train loss", "eval loss", "perplexity", "accuracy", "padding", "updates", "late", "time"];
    let row = |row: &RoundRow| {
        vec![
            row.round.to_string(),
            number(row.train_loss, 4),
            number(row.loss, 4),
            number(row.perplexity, 3),
            row.accuracy.map_or("-".into(), |share| format!("{:.1} %", share * 100.0)),
            row.padding_share.map_or("-".into(), |share| format!("{:.1} %", share * 100.0)),
            if row.round == 0 { "-".into() } else { row.updates.to_string() },
            if row.late.is_empty() { "-".into() } else { row.late.join(" ") },
            seconds(row.seconds),
        ]
    };
    table(&header, rows.iter().map(row).collect())
}

fn clients(rows: &[ClientRow]) -> Table {
    let header = ["client", "cut", "records", "steps", "tokens", "loss", "up", "down", "compute", "server", "waited", "updates"];
    let row = |row: &ClientRow| {
        let name = if row.left.is_some() { format!("{} (left)", row.name) } else { row.name.clone() };
        vec![
            name,
            row.tail.map_or(row.cut.to_string(), |tail| format!("{}+{tail}", row.cut)),
            row.samples.to_string(),
            row.steps.to_string(),
            row.tokens.to_string(),
            number(row.loss_last, 4),
            bytes(row.bytes_up),
            bytes(row.bytes_down),
            seconds(row.compute_s),
            seconds(row.server_compute_s),
            seconds(row.wait_s),
            if row.refused.is_empty() { row.accepted.to_string() } else { format!("{} ({} refused)", row.accepted, row.refused.len()) },
        ]
    };
    table(&header, rows.iter().map(row).collect())
}

fn last_word(summary: &Summary) -> String {
    let end = if summary.interrupted { "stopped" } else { "finished" };
    let evaluated: Vec<&RoundRow> = summary.rounds.iter().filter(|row| row.perplexity.is_some()).collect();
    let gain = match (evaluated.first(), evaluated.last()) {
        (Some(first), Some(last)) if first.round != last.round => {
            let fewer = match (first.scored, last.scored) {
                (all, left) if left < all => format!(" (of {left} labels, where all clients had {all}: not to be compared)"),
                _ => String::new(),
            };
            format!("; held-out perplexity {} -> {}{fewer}", number(first.perplexity, 3), number(last.perplexity, 3))
        }
        _ => String::new(),
    };
    let rounds = summary.rounds_done;
    let adapter = summary.adapter.as_ref().map_or(String::new(), |path| format!("\nadapter: {}", path.display()));
    format!("{end} after {rounds} rounds in {}{gain}\nfolder:  {}{adapter}", seconds(summary.seconds), summary.folder.display())
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".into(), |value| format!("{value:.digits$}"))
}

/// A time as people read it.
pub(crate) fn seconds(seconds: f64) -> String {
    if seconds <= 0.0 {
        "-".into()
    } else if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1e3)
    } else if seconds < 120.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{:.0} min {:02.0} s", (seconds / 60.0).floor(), seconds % 60.0)
    }
}

/// A size as people read it, in powers of 1000.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 99.5 { 0 } else { 1 };
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: sizes and times read well at every scale. Method: one of each.
    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1_000, 123_456, 7_654_321].map(bytes), ["0 B", "999 B", "1.0 kB", "123 kB", "7.7 MB"]);
        assert_eq!([0.0, 0.25, 3.0, 185.0].map(seconds), ["-", "250 ms", "3.0 s", "3 min 05 s"]);
    }

    /// Goal: the end of a run names its folder and its gain. Method: two evaluated rounds.
    #[test]
    fn the_last_word_tells_the_gain() {
        let round = |round, perplexity| RoundRow { round, perplexity: Some(perplexity), ..RoundRow::default() };
        let rounds = vec![round(0, 9.0), round(1, 4.5)];
        let text = tables(&Summary { rounds, rounds_done: 1, seconds: 2.0, folder: "runs/x".into(), ..Summary::default() });
        assert!(text.contains("9.000 -> 4.500") && text.contains("runs/x"), "{text}");
    }
}
