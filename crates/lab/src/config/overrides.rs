//! `--set a.b=c`: changes a parsed run file before its keys are checked.

use super::ConfigError;
use toml::{Table, Value};

/// Applies one override. `c` is read as TOML where it is TOML (`3`, `[1, 2]`, `"text"`) and as text elsewhere.
///
/// A step of digits indexes a list: `client.0.cut=1`. Missing tables are made; whether the key exists is found out
/// when the whole is read.
pub fn apply(root: &mut Table, text: &str) -> Result<(), ConfigError> {
    let refused = |reason: String| ConfigError::Override { text: text.into(), reason };
    let (path, value) = text.split_once('=').ok_or_else(|| refused("it has no `=`; write --set optimizer.learning_rate=3e-4".into()))?;
    let steps: Vec<&str> = path.trim().split('.').collect();
    if steps.iter().any(|step| step.is_empty()) {
        return Err(refused(format!("`{path}` is not a key; write section.key, such as train.rounds")));
    }
    let value = parse_value(value.trim());
    set(root, &steps, value).map_err(refused)
}

/// The value as TOML, or else as text.
fn parse_value(text: &str) -> Value {
    let document: Result<Table, _> = toml::from_str(&format!("value = {text}"));
    document.ok().and_then(|mut table| table.remove("value")).unwrap_or_else(|| Value::String(text.into()))
}

fn set(table: &mut Table, steps: &[&str], value: Value) -> Result<(), String> {
    let [step, rest @ ..] = steps else { return Err("it names no key".into()) };
    if rest.is_empty() {
        table.insert((*step).into(), value);
        return Ok(());
    }
    descend(table.entry(*step).or_insert_with(|| Value::Table(Table::new())), step, rest, value)
}

fn descend(node: &mut Value, name: &str, steps: &[&str], value: Value) -> Result<(), String> {
    match node {
        Value::Table(table) => set(table, steps, value),
        Value::Array(items) => {
            let [step, rest @ ..] = steps else { return Err("it names no key".into()) };
            let length = items.len();
            let item = step.parse().ok().and_then(|index: usize| items.get_mut(index));
            let item =
                item.ok_or_else(|| format!("`{name}` has {length} entries; `{step}` is not the index of one (they count from 0)"))?;
            if rest.is_empty() {
                *item = value;
                return Ok(());
            }
            descend(item, step, rest, value)
        }
        _ => Err(format!("`{name}` is a single value and has no `{}`", steps.join("."))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(before: &str, change: &str, after: &str) {
        let mut table: Table = toml::from_str(before).expect("TOML");
        apply(&mut table, change).unwrap_or_else(|error| panic!("{change}: {error}"));
        assert_eq!(table, toml::from_str(after).expect("TOML"), "{change}");
    }

    /// Goal: a value is what a reader takes it for. Method: number, list, bare word, text with spaces, new section.
    #[test]
    fn values_are_toml_where_they_can_be() {
        check("[train]\nrounds = 1", "train.rounds=3", "[train]\nrounds = 3");
        check("", "split.cut=[1, 2]", "[split]\ncut = [1, 2]");
        check("", "clients.device=cuda:1", "[clients]\ndevice = 'cuda:1'");
        check("", "name = two words ", "name = 'two words'");
        check("[[client]]\ncut = 1\n[[client]]", "client.1.cut=2", "[[client]]\ncut = 1\n[[client]]\ncut = 2");
    }

    /// Goal: a slip says what is wrong with it. Method: no sign, no key, past the end, into a number.
    #[test]
    fn slips_are_explained() {
        for (change, word) in
            [("train.rounds", "no `=`"), ("=3", "not a key"), ("client.4.cut=1", "2 entries"), ("seed.x=1", "single value")]
        {
            let mut table: Table = toml::from_str("seed = 1\n[[client]]\n[[client]]").expect("TOML");
            let error = apply(&mut table, change).expect_err(change).to_string();
            assert!(error.contains(word) && error.contains(change), "{error}");
        }
    }
}
