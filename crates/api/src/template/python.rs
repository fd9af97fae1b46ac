//! What `transformers` adds to Jinja, and where Python differs from minijinja. It must never read the clock.

use std::fmt::Write;

use chrono::DateTime;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

/// What a template said through `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub String);

/// Adds the functions and filters.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
    });
    environment.add_filter("tojson", to_json);
}

/// `strftime_now`, at a time that the caller read.
pub(super) fn strftime_at(now_unix_s: i64) -> Value {
    Value::from_function(move |format: String| -> Result<String, Error> {
        let refused = || Error::new(ErrorKind::InvalidOperation, format!("strftime_now cannot write {format:?}"));
        let now = DateTime::from_timestamp(now_unix_s, 0).ok_or_else(refused)?;
        let mut text = String::new();
        // chrono reports an unknown letter here.
        write!(text, "{}", now.format(&format)).map_err(|_| refused())?;
        Ok(text)
    })
}

/// `{% generation %}` marks the assistant's part for training and prints nothing: a block that is always taken.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut rest = source;
    let mut out = String::with_capacity(source.len());
    while let Some(start) = rest.find("{%") {
        let Some(end) = rest[start..].find("%}").map(|end| start + end) else { break };
        let tag = &rest[start + 2..end];
        let word = tag.trim_matches(['-', '+']).trim();
        out.push_str(&rest[..start]);
        match word {
            "generation" => out.push_str(&format!("{{%{}%}}", tag.replace("generation", "if true"))),
            "endgeneration" => out.push_str(&format!("{{%{}%}}", tag.replace("endgeneration", "endif"))),
            _ => out.push_str(&rest[start..end + 2]),
        }
        rest = &rest[end + 2..];
    }
    out + rest
}

/// `json.dumps(.., ensure_ascii=False)`: spaces after commas and colons, nothing escaped for HTML.
fn to_json(value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // Accepted because templates pass it; text is never escaped to ASCII.
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let mut text = String::new();
    write_json(&mut text, &value, indent, 0)?;
    Ok(text)
}

fn write_json(text: &mut String, value: &Value, indent: Option<usize>, depth: usize) -> Result<(), Error> {
    let entries: Vec<(Option<Value>, Value)> = match value.kind() {
        ValueKind::Map => value.try_iter()?.map(|key| Ok((Some(key.clone()), value.get_item(&key)?))).collect::<Result<_, Error>>()?,
        ValueKind::Seq | ValueKind::Iterable => value.try_iter()?.map(|item| (None, item)).collect(),
        ValueKind::Undefined => return Err(Error::new(ErrorKind::InvalidOperation, "tojson of an undefined value")),
        _ => {
            let scalar = serde_json::to_string(value).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
            text.push_str(&scalar);
            return Ok(());
        }
    };
    let (open, close) = if value.kind() == ValueKind::Map { ('{', '}') } else { ('[', ']') };
    let line = |text: &mut String, depth: usize| {
        if let Some(indent) = indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    text.push(open);
    for (index, (key, item)) in entries.iter().enumerate() {
        if index > 0 {
            text.push_str(if indent.is_some() { "," } else { ", " });
        }
        line(text, depth + 1);
        if let Some(key) = key {
            write_json(text, &Value::from(key.to_string()), None, 0)?;
            text.push_str(": ");
        }
        write_json(text, item, indent, depth + 1)?;
    }
    if !entries.is_empty() {
        line(text, depth);
    }
    text.push(close);
    Ok(())
}
