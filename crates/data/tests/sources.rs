//! Readers: what each format gives, and that every refusal names the file, the line and the remedy.

mod support;

use cutlayer_data::{Body, DataSpec, Format, HeldOut, Lists, Partition, Pieces, Quantity, Record, Source};
use support::folder_with;

fn source(toml: &str) -> Source {
    #[derive(serde::Deserialize)]
    struct File {
        source: Source,
    }
    toml::from_str::<File>(&format!("source = {toml}")).expect("a source").source
}

fn check_reads(name: &str, content: &str, toml: &str, expected: &[Record]) {
    let folder = folder_with(name, content);
    let records = source(toml).read(folder.path()).unwrap_or_else(|error| panic!("{toml}: {error}"));
    let bare = |record: &Record| (record.body.clone(), record.label.clone(), record.key.clone());
    assert_eq!(records.iter().map(bare).collect::<Vec<_>>(), expected.iter().map(bare).collect::<Vec<_>>(), "{toml}");
}

fn check_refuses(name: &str, content: impl AsRef<[u8]>, toml: &str, expected: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join(name), content).expect("writes");
    let message = source(toml).read(folder.path()).expect_err("refused").to_string();
    let message = message.replace(&format!("{}/", folder.path().display()), "");
    assert!(message.contains(expected), "{toml}: `{message}` lacks `{expected}`");
}

#[test]
fn jsonl_rows() {
    let rows = "\u{feff}{\"t\":\"one\",\"n\":1,\"who\":\"a\"}\r\n\n{\"t\":[\"two\",\"three\"],\"n\":2.5,\"who\":\"b\"}\n";
    let first = Record::text("one").with_label("1").with_key("a");
    check_reads(
        "a.jsonl",
        rows,
        r#"{ path = "a.jsonl", text = "t", label = "n", key = "who" }"#,
        &[first.clone(), Record::text("two\n\nthree").with_label("2.5").with_key("b")],
    );
    check_reads("a.jsonl", rows, r#"{ path = "a.jsonl", text = "t", label = "n", key = "who", records_max = 1 }"#, &[first]);
    check_reads(
        "a.jsonl",
        rows,
        r#"{ path = "a.jsonl", text = "t", lists = "each" }"#,
        &[Record::text("one"), Record::text("two"), Record::text("three")],
    );
}

#[test]
fn csv_rows() {
    let rows = "mr,ref\n\"name[A], area[b]\",\"A \"\"quoted\"\"\nreply\"\nx,y\n";
    check_reads(
        "a.csv",
        rows,
        r#"{ path = "a.csv", prompt = "mr", completion = "ref" }"#,
        &[Record::pair("name[A], area[b]\n", "A \"quoted\"\nreply"), Record::pair("x\n", "y")],
    );
    check_reads(
        "a.data",
        "q,a\nx,y\n",
        r#"{ path = "a.data", format = "csv", prompt = "q", completion = "a", separator = " => " }"#,
        &[Record::pair("x => ", "y")],
    );
    check_reads("a.tsv", "q\ta\nx, z\ty\n", r#"{ path = "a.tsv", text = "q" }"#, &[Record::text("x, z")]);
}

#[test]
fn json_documents_and_key_maps() {
    let document = "{\n \"deep\": {\"train\": [\n  [\"pay it\", \"pay\"],\n  [\"eat it\", \"eat\"]\n ]}, \"val\": []\n}";
    let folder = folder_with("a.json", document);
    std::fs::write(folder.path().join("map.json"), r#"{"bank": ["pay", "save"], "food": ["eat"]}"#).expect("writes");
    let source = source(r#"{ path = "a.json", member = "deep.train", text = "0", label = "1", key_map = "map.json" }"#);
    let records = source.read(folder.path()).expect("reads");
    let keys: Vec<_> = records.iter().map(|record| (record.key.as_deref(), record.at.line)).collect();
    assert_eq!(keys, [(Some("bank"), 3), (Some("food"), 4)]);
    check_reads("b.json", r#"[{"t": "x"}]"#, r#"{ path = "b.json", text = "t" }"#, &[Record::text("x")]);
}

#[test]
fn plain_text_pieces() {
    let text = "one\ntwo\n\n \nthree <|end|>\nfour\n";
    let texts = |texts: &[&str]| texts.iter().map(|text| Record::text(*text)).collect::<Vec<_>>();
    check_reads("a.txt", text, r#"{ path = "a.txt" }"#, &texts(&["one", "two", "three <|end|>", "four"]));
    let blank = r#"{ path = "a.txt", pieces = "blank_lines" }"#;
    check_reads("a.txt", text, blank, &texts(&["one\ntwo", "three <|end|>\nfour"]));
    let marker = r#"{ path = "a.txt", pieces = { marker = "<|end|>" } }"#;
    check_reads("a.txt", text, marker, &texts(&["one\ntwo\n\n \nthree", "four"]));
    check_reads("a.txt", text, r#"{ path = "a.txt", pieces = "whole" }"#, &texts(&[text.trim()]));
    let folder = folder_with("a.txt", text);
    let lines = |pieces| {
        let source = Source { pieces: Some(pieces), ..Source::new("a.txt") };
        source.read(folder.path()).expect("reads").iter().map(|record| record.at.line).collect::<Vec<_>>()
    };
    assert_eq!(lines(Pieces::Lines), [1, 2, 5, 6]);
    assert_eq!(lines(Pieces::BlankLines), [1, 5]);
    assert_eq!(lines(Pieces::Marker("<|end|>".into())), [1, 6]);
}

#[test]
fn refusals_name_the_file_and_the_line() {
    let jsonl = r#"{ path = "a.jsonl", text = "t" }"#;
    check_refuses("a.jsonl", "{\"t\":\"x\"}\n{\"t\":", jsonl, "a.jsonl:2: not one JSON value a line: EOF");
    check_refuses("a.jsonl", "\n{\"u\":1,\"v\":2}", jsonl, "a.jsonl:2: no column `t`; it has `u`, `v`");
    check_refuses("a.jsonl", "{\"t\":null}", jsonl, "a.jsonl:1: column `t` is null");
    check_refuses("a.jsonl", "{\"t\":[1]}", jsonl, "a list that holds more than strings");
    check_refuses("a.jsonl", b"{\"t\":\"x\"}\n\xff\n", jsonl, "a.jsonl:2: not UTF-8");
    check_refuses("a.jsonl", "\n\n", jsonl, "a.jsonl holds no records");
    check_refuses("b.jsonl", "", jsonl, "cannot read");
    let csv = r#"{ path = "a.csv", text = "t" }"#;
    check_refuses("a.csv", "t,u\n1,2\n\"3\n\",4\n5\n", csv, "a.csv:5: 1 fields under a header of 2");
    check_refuses("a.csv", "u\n1\n", csv, "a.csv:2: no column `t`; it has `u`");
    check_refuses("a.csv", b"t\n\xff\n", csv, "a.csv:2: not UTF-8");
    check_refuses("a.txt", b"one\n\xff\n", r#"{ path = "a.txt" }"#, "a.txt:2: not UTF-8");
    let json = r#"{ path = "a.json", member = "train", text = "0", label = "1" }"#;
    check_refuses("a.json", "{\"val\": []}", json, "a.json: no member `train`; it has `val`");
    check_refuses("a.json", "{\"train\": [\n[\"x\"]\n]}", json, "a.json:2: no column `1`; it has `0`");
    check_refuses("a.json", "{\"train\": 3}", json, "a.json:1: not an array of rows");
    check_refuses("a.json", "{\"train\": [\n]", json, "a.json:2: not a JSON document: EOF");
}

#[test]
fn key_maps_are_checked() {
    let folder = folder_with("a.jsonl", "{\"t\":\"x\",\"l\":\"oos\"}");
    let read = |map: &str| {
        std::fs::write(folder.path().join("map.json"), map).expect("writes");
        let source = Source { key_map: Some("map.json".into()), ..Source::labelled("a.jsonl", "t", "l") };
        source.read(folder.path()).expect_err("refused").to_string()
    };
    assert!(read(r#"{"k": ["a"]}"#).contains("a.jsonl:1: label `oos` is not in the key map"));
    assert!(read(r#"{"k": ["a"], "j": ["a"]}"#).contains("label `a` belongs to both `j` and `k`"));
    assert!(read(r#"{"k": "a"}"#).contains("a JSON object of lists"));
}

#[test]
fn sources_that_contradict_themselves_are_refused() {
    let check = |toml, expected| check_refuses("a.jsonl", "{}", toml, expected);
    check(r#"{ path = "a.jsonl" }"#, "name the columns");
    check(r#"{ path = "a.jsonl", text = "t", prompt = "p" }"#, "name the columns");
    check(r#"{ path = "a.jsonl", prompt = "p" }"#, "name the columns");
    check(r#"{ path = "a.jsonl", text = "t", separator = "" }"#, "`separator`");
    check(r#"{ path = "a.jsonl", text = "t", pieces = "lines" }"#, "`pieces`");
    check(r#"{ path = "a.jsonl", text = "t", member = "m" }"#, "`member`");
    check(r#"{ path = "a.jsonl", text = "t", key_map = "m" }"#, "`key_map`");
    check(r#"{ path = "a.bin", text = "t" }"#, "add `format");
    check(r#"{ path = "a.txt", text = "t" }"#, "plain text has no columns");
    check(r#"{ path = "a.txt", pieces = { marker = "" } }"#, "empty marker");
    assert!(toml::from_str::<Source>("path = \"a\"\ncolour = 1").is_err(), "unknown fields are refused");
}

/// The shape that run files are written in: a change here breaks them.
#[test]
fn the_data_section_in_toml() {
    let text = r#"
source = { path = "clinc150/data_full.json", member = "train", text = "0", label = "1", key_map = "clinc150/domains.json" }
held_out = { source = { path = "clinc150/data_full.json", member = "test", text = "0", label = "1" } }
partition = { dirichlet = { alpha = 0.3 } }
"#;
    let spec: DataSpec = toml::from_str(text).expect("parses");
    assert_eq!(spec.partition, Some(Partition::Dirichlet { alpha: 0.3 }));
    let again: DataSpec = toml::from_str(&toml::to_string(&spec).expect("writes")).expect("parses again");
    assert_eq!(again, spec);
    let part = |toml: &str| {
        let text = format!("source = {{ path = \"a.txt\", format = \"text\", lists = \"each\" }}\n{toml}");
        let spec: DataSpec = toml::from_str(&text).unwrap_or_else(|error| panic!("{toml}: {error}"));
        assert_eq!((spec.source.format, spec.source.lists), (Some(Format::Text), Some(Lists::Each)));
        assert_eq!(toml::from_str::<DataSpec>(&toml::to_string(&spec).expect("writes")).expect("parses"), spec);
        (spec.partition, spec.held_out)
    };
    assert_eq!(part("partition = \"iid\"").0, Some(Partition::Iid));
    assert_eq!(part("partition = \"key\"").0, Some(Partition::Key));
    let quantity = |quantity| Some(Partition::Quantity(quantity));
    assert_eq!(part("partition = { quantity = { power = 1.5 } }").0, quantity(Quantity::Power(1.5)));
    assert_eq!(part("partition = { quantity = { weights = [1.0, 2.0] } }").0, quantity(Quantity::Weights(vec![1.0, 2.0])));
    assert_eq!(part("held_out = { fraction = 0.1 }").1, Some(HeldOut::Fraction(0.1)));
    assert_eq!(part("held_out = { key_fraction = 0.1 }").1, Some(HeldOut::KeyFraction(0.1)));
    assert_eq!(part("held_out = { keys = [\"ROMEO\"] }").1, Some(HeldOut::Keys(vec!["ROMEO".into()])));
}

#[test]
fn several_clients_need_a_partition() {
    let folder = folder_with("a.txt", "one\ntwo\nthree\nfour\n");
    let spec = DataSpec::new(Source::new("a.txt"));
    assert_eq!(spec.load(folder.path(), 1, 1).expect("alone").train[0].len(), 4);
    assert!(spec.load(folder.path(), 2, 1).expect_err("refused").to_string().contains("2 clients need `partition`"));
    let spec = DataSpec { partition: Some(Partition::Iid), held_out: Some(HeldOut::Fraction(0.5)), ..spec };
    let shares = spec.load(folder.path(), 2, 1).expect("shares");
    assert_eq!(shares.train.iter().chain(&shares.held_out).map(Vec::len).collect::<Vec<_>>(), [1, 1, 1, 1]);
    let words = |record: &Record| matches!(&record.body, Body::Text(_));
    assert!(shares.train.iter().flatten().all(words));
}
