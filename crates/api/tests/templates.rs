//! Goal: prompts are what `transformers` writes. Method: templates of the shapes in use, against what Jinja itself makes of them
//! (`templates/templates.py` wrote `expected.json`), then what only we must refuse.

#![allow(clippy::unwrap_used)]

use cutlayer_api::{ChatMessage, ChatTemplate, TemplateError};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content: content.to_owned(), name: None }
}

fn tokens(tokens: &[(&str, &str)]) -> BTreeMap<String, String> {
    tokens.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates").join(name)).unwrap()
}

fn messages(case: &Value) -> Vec<ChatMessage> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let one = |message: &Value| ChatMessage {
        role: text(&message["role"]),
        content: text(&message["content"]),
        name: message.get("name").map(text),
    };
    case["messages"].as_array().unwrap().iter().map(one).collect()
}

#[test]
fn prompts_are_those_of_jinja() {
    let expected: Value = serde_json::from_str(&read("expected.json")).unwrap();
    let now_unix_s = expected["now_unix_s"].as_i64().unwrap();
    let cases = expected["cases"].as_array().unwrap();
    assert!(cases.len() >= 80, "{} cases", cases.len());
    for case in cases {
        let template =
            ChatTemplate::new(&read(case["template"].as_str().unwrap()), tokens(&[("bos_token", "<s>"), ("eos_token", "</s>")])).unwrap();
        let found = template.render(&messages(case), case["add_generation_prompt"].as_bool().unwrap(), now_unix_s);
        let expected = match case.get("refused") {
            Some(refused) => Err(TemplateError::Refused(refused.as_str().unwrap().to_owned())),
            None => Ok(case["prompt"].as_str().unwrap().to_owned()),
        };
        assert_eq!(found, expected, "{} {}", case["template"], case["conversation"]);
    }
}

#[test]
fn a_plain_template_writes_who_says_what() {
    let template = ChatTemplate::plain();
    let messages = [message("system", "Be brief."), message("user", "Hi"), message("assistant", "Hello"), message("user", "Bye")];
    let prompt = template.render(&messages, true, 0).unwrap();
    assert_eq!(prompt, "System: Be brief.\nUser: Hi\nAssistant: Hello\nUser: Bye\nAssistant:");
    assert!(template.add_special() && template.stops().contains(&"\nUser:"));
    assert!(!ChatTemplate::new("x", tokens(&[])).unwrap().add_special());
}

#[test]
fn tokens_that_a_tokenizer_lacks_are_undefined() {
    let template = ChatTemplate::new("{% if bos_token is defined %}{{ bos_token }}{% else %}none{% endif %}", tokens(&[])).unwrap();
    assert_eq!(template.render(&[], true, 0).unwrap(), "none");
}

#[test]
fn text_between_tags_is_not_a_tag() {
    let template =
        ChatTemplate::new("{{ 'generation' }} generation {% generation %}x{%endgeneration%} {% raw %}{{{% endraw %}", tokens(&[]));
    assert_eq!(template.unwrap().render(&[], true, 0).unwrap(), "generation generation x {{");
}

/// Goal: no template holds a thread or memory without end. Method: loops in loops, recursion, and text without end.
#[test]
fn work_and_length_are_bounded() {
    let loops = "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in range(90000) %}{% endfor %}{% endfor %}{% endfor %}";
    let recursion = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
    let long = "{% set x = 'x' * 1000000 %}{% for a in range(1000) %}{{ x }}{% endfor %}";
    for source in [loops, long] {
        assert_eq!(ChatTemplate::new(source, tokens(&[])).unwrap().render(&[], true, 0), Err(TemplateError::TooMuch), "{source}");
    }
    let error = ChatTemplate::new(recursion, tokens(&[])).unwrap().render(&[], true, 0).unwrap_err();
    assert!(matches!(error, TemplateError::Broken(_)), "{error}");
}

#[test]
fn broken_templates_say_so() {
    for source in ["{% if %}", "{{ }", "{% unknown %}"] {
        assert!(matches!(ChatTemplate::new(source, tokens(&[])), Err(TemplateError::Broken(_))), "{source}");
    }
    for source in ["{{ missing_function() }}", "{{ messages[0].nothing.at_all }}", "{{ strftime_now('%Q') }}", "{{ nothing | tojson }}"] {
        let error = ChatTemplate::new(source, tokens(&[])).unwrap().render(&[message("user", "a")], true, 0).unwrap_err();
        assert!(matches!(error, TemplateError::Broken(_)), "{source}: {error}");
    }
}

/// A template reads no file and knows no other template.
#[test]
fn nothing_is_included() {
    let template = ChatTemplate::new("{% include '/etc/passwd' %}", tokens(&[])).unwrap();
    assert!(matches!(template.render(&[], true, 0), Err(TemplateError::Broken(_))));
}
