//! Sets records aside that no client trains on.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::record::Record;
use crate::rng::Seeded;
use crate::source::Source;

/// What is set aside for evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "there is one in a run; a box would only be in its callers' way")]
pub enum HeldOut {
    /// This fraction of the records, drawn by the seed.
    Fraction(f64),
    /// Every record of these keys.
    Keys(Vec<String>),
    /// Every record of this fraction of the keys, drawn by the seed.
    KeyFraction(f64),
    /// A file of its own.
    Source(Source),
}

/// Splits `records` into those to train on and those held out, each in the order it had.
pub fn hold_out(records: Vec<Record>, held_out: &HeldOut, base: &Path, seed: u64) -> Result<(Vec<Record>, Vec<Record>), DataError> {
    match held_out {
        HeldOut::Source(source) => Ok((records, source.read(base)?)),
        HeldOut::Fraction(fraction) => {
            let held: BTreeSet<usize> = draw(records.len(), *fraction, seed, "records")?.into_iter().collect();
            Ok(divide(records, |index, _| held.contains(&index)))
        }
        HeldOut::Keys(keys) => {
            let present = keys_of(&records)?;
            if let Some(missing) = keys.iter().find(|key| !present.contains(key)) {
                return Err(DataError::UnknownKey { key: missing.clone(), found: present });
            }
            by_keys(records, keys.iter().cloned().collect())
        }
        HeldOut::KeyFraction(fraction) => {
            let present = keys_of(&records)?;
            let held = draw(present.len(), *fraction, seed, "keys")?;
            by_keys(records, held.into_iter().map(|index| present[index].clone()).collect())
        }
    }
}

/// The distinct keys in order of first appearance.
pub(crate) fn keys_of(records: &[Record]) -> Result<Vec<String>, DataError> {
    let mut seen = BTreeSet::new();
    let mut keys = Vec::new();
    for record in records {
        let key = key_of(record)?;
        if seen.insert(key) {
            keys.push(key.to_owned());
        }
    }
    Ok(keys)
}

/// The key of a record that must have one.
pub(crate) fn key_of(record: &Record) -> Result<&str, DataError> {
    let wanted = "records are told apart by key";
    record.key.as_deref().ok_or_else(|| DataError::NoKey { at: record.at.clone(), wanted })
}

/// Draws a fraction of `count` things: at least one, and never all.
fn draw(count: usize, fraction: f64, seed: u64, what: &str) -> Result<Vec<usize>, DataError> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(DataError::BadSplit(format!("the held-out fraction is {fraction}; it lies between 0 and 1")));
    }
    if count < 2 {
        return Err(DataError::BadSplit(format!("cannot hold out a part of {count} {what}; give a held-out file")));
    }
    let mut order: Vec<usize> = (0..count).collect();
    Seeded::new(seed, "held out", 0).shuffle(&mut order);
    order.truncate(((count as f64 * fraction).round() as usize).clamp(1, count - 1));
    Ok(order)
}

fn by_keys(records: Vec<Record>, held: BTreeSet<String>) -> Result<(Vec<Record>, Vec<Record>), DataError> {
    let (train, held_out) = divide(records, |_, record| record.key.as_ref().is_some_and(|key| held.contains(key)));
    if train.is_empty() || held_out.is_empty() {
        let side = if train.is_empty() { "to train on" } else { "held out" };
        return Err(DataError::BadSplit(format!("the held-out keys leave nothing {side}")));
    }
    Ok((train, held_out))
}

fn divide(records: Vec<Record>, held: impl Fn(usize, &Record) -> bool) -> (Vec<Record>, Vec<Record>) {
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for (index, record) in records.into_iter().enumerate() {
        if held(index, &record) { &mut held_out } else { &mut train }.push(record);
    }
    (train, held_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        (0..40).map(|index| Record::text(format!("text {index}")).with_key(format!("key {}", index % 8))).collect()
    }

    fn split(held_out: HeldOut) -> Result<(Vec<Record>, Vec<Record>), DataError> {
        hold_out(records(), &held_out, Path::new("."), 3)
    }

    #[test]
    fn a_fraction_of_the_records_is_set_aside() {
        let (train, held) = split(HeldOut::Fraction(0.25)).expect("splits");
        assert_eq!((train.len(), held.len()), (30, 10));
        assert!(held.iter().all(|record| !train.contains(record)));
        assert_eq!(split(HeldOut::Fraction(0.25)).expect("splits"), (train, held), "the seed decides");
    }

    #[test]
    fn keys_are_set_aside_whole() {
        for held_out in [HeldOut::Keys(vec!["key 2".into(), "key 5".into()]), HeldOut::KeyFraction(0.25)] {
            let (train, held) = split(held_out).expect("splits");
            assert_eq!((train.len(), held.len()), (30, 10));
            let trained = keys_of(&train).expect("keys");
            assert!(keys_of(&held).expect("keys").iter().all(|key| !trained.contains(key)));
        }
    }

    #[test]
    fn what_cannot_be_split_is_refused() {
        let message = |held_out| split(held_out).expect_err("refused").to_string();
        assert!(message(HeldOut::Fraction(1.0)).contains("between 0 and 1"));
        assert!(message(HeldOut::Fraction(f64::NAN)).contains("between 0 and 1"));
        assert!(message(HeldOut::Keys(vec!["nobody".into()])).contains("`nobody` is in no record; the keys are `key 0`"));
        assert!(message(HeldOut::Keys((0..8).map(|key| format!("key {key}")).collect())).contains("nothing to train on"));
        let keyless = hold_out(vec![Record::text("a")], &HeldOut::KeyFraction(0.5), Path::new("."), 1);
        assert!(keyless.expect_err("refused").to_string().starts_with("memory:1: no key"));
    }
}
