//! The report for people.

use super::{DraftRow, GenerateFound, GenerateReport, MemoryFound, PrefixRow, SessionsRow, SplitRow, UncutFound};
use crate::run::{bytes, table};

/// What was measured, as a table.
pub fn generate_table(report: &GenerateReport) -> String {
    let GenerateReport { model, precision, prompt, new, repeats, device, device_name, threads, load_before, .. } = report;
    let load = load_before.map_or(String::new(), |load| format!(", load {load:.1} before"));
    let head = format!(
        "{model}, {precision}: prompts of {prompt}, {new} new tokens, medians of {repeats}; device {device}: {device_name}, {threads} threads{load}"
    );
    let body = match &report.found {
        GenerateFound::Uncut(found) => uncut(found),
        GenerateFound::Split(rows) => split(rows),
        GenerateFound::Sessions(rows) => sessions(rows),
        GenerateFound::Drafts(rows) => drafts(rows),
        GenerateFound::Memory(found) => memory(found),
        GenerateFound::Prefix(rows) => prefix(rows),
    };
    let peak = report.peak_bytes.map_or("unknown".into(), bytes);
    format!("{head}\n{body}\nmemory: peak {peak}")
}

fn uncut(found: &UncutFound) -> String {
    let UncutFound { prefill_tok_s, decode_tok_s, first_token_ms, decode_ms, decode_ms_best, busy_ms } = found;
    format!(
        "prefill: {prefill_tok_s:.0} tokens/s, first token in {first_token_ms:.1} ms\n\
         decode:  {decode_tok_s:.1} tokens/s, {decode_ms:.2} ms a token ({decode_ms_best:.2} at best), of which {busy_ms:.2} in the model"
    )
}

fn split(rows: &[SplitRow]) -> String {
    let known = |ms: Option<f64>| ms.map_or("?".into(), |ms| format!("{ms:.2}"));
    let line = |row: &SplitRow| {
        vec![
            row.place.clone(),
            format!("{:.2}", row.token_ms),
            format!("{:.2}", row.device_ms),
            known(row.host_ms),
            known(row.beyond_ms),
            format!("{:.2}", row.over_uncut_ms),
            format!("{:.1}", row.first_token_ms),
            format!("{:.0} / {:.0}", row.record_bytes.0, row.record_bytes.1),
            format!("{:.0} / {:.0}", row.udp_bytes.0, row.udp_bytes.1),
            yes(row.same_tokens),
        ]
    };
    let names = ["place", "token ms", "device", "host", "beyond", "over uncut", "first ms", "record B up/down", "UDP B up/down", "same"];
    table(&names, rows.iter().map(line).collect()).to_string()
}

fn sessions(rows: &[SessionsRow]) -> String {
    let line = |row: &SessionsRow| {
        vec![
            row.place.clone(),
            row.sessions.to_string(),
            format!("{:.1}", row.in_turn_tok_s),
            format!("{:.1}", row.together_tok_s),
            format!("{:.2}", row.ratio),
            format!("{:.2}", row.decode_ratio),
            format!("{:.1}", row.shared),
        ]
    };
    let names = ["place", "sequences", "in turn tok/s", "together tok/s", "ratio", "without prompts", "share a pass"];
    table(&names, rows.iter().map(line).collect()).to_string()
}

fn drafts(rows: &[DraftRow]) -> String {
    let line = |row: &DraftRow| {
        vec![
            row.draft.clone(),
            format!("{:.1}", row.decode_tok_s),
            format!("{:.2}", row.speedup),
            format!("{:.2} to {:.2}", row.speedup_range.0, row.speedup_range.1),
            format!("{} of {}", row.guessed_right, row.guessed),
            format!("{} for {}", row.rounds, row.tokens),
            yes(row.same_tokens),
        ]
    };
    let names = ["draft", "tok/s", "of none", "by text", "guesses right", "rounds", "same"];
    table(&names, rows.iter().map(line).collect()).to_string()
}

fn memory(found: &MemoryFound) -> String {
    let size = |size: Option<u64>| size.map_or("unknown".into(), bytes);
    let line = |row: &super::MemoryRow| vec![row.tokens.to_string(), size(row.device_bytes), size(row.host_bytes)];
    let rows = table(&["tokens", "device", "host"], found.rows.iter().map(line).collect());
    let (device, host) = (size(found.device_peak_bytes), size(found.host_peak_bytes));
    format!("{rows}\n{} sequences at once; peaks: device {device}, host {host}", found.sessions)
}

fn prefix(rows: &[PrefixRow]) -> String {
    let line = |row: &PrefixRow| {
        let (new, seen) = (format!("{:.1}", row.new_ms), format!("{:.1}", row.seen_ms));
        vec![row.place.clone(), new, seen, format!("{:.3}", row.ratio), row.cached.to_string()]
    };
    table(&["place", "first token ms", "seen before ms", "ratio", "tokens found"], rows.iter().map(line).collect()).to_string()
}

fn yes(holds: bool) -> String {
    if holds { "yes" } else { "no" }.into()
}
