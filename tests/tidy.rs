//! Goal: the floors and rules of `crates/README.md` hold, whoever edits. Method: manifests and sources read as text.
//!
//! Every message names a file and a line, and says what to do. It must never need a build of the workspace.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Longest source file, in lines.
const FILE_LINES_MAX: usize = 500;

/// The floors: each crate, without `cutlayer-`, and the crates of ours that it may name.
const FLOORS: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("data", &[]),
    ("durable", &["wire"]),
    ("federation", &["wire"]),
    ("generation", &["wire"]),
    ("api", &["generation", "wire"]),
    ("model", &["durable", "wire"]),
    ("transport", &["durable", "wire"]),
    ("node", &["data", "durable", "federation", "generation", "model", "transport", "wire"]),
    ("lab", &["data", "durable", "federation", "generation", "model", "node", "transport", "wire"]),
];

/// The one door of each heavy dependency: who may list it in a manifest, and the path that may name it in code.
const DOORS: &[(&str, &str, &str)] = &[
    ("anyhow", "cutlayer", "src/"),
    ("axum", "cutlayer-api", "crates/api/"),
    ("bincode", "cutlayer-wire", "crates/wire/src/codec.rs"),
    ("burn", "cutlayer-model", "crates/model/"),
    ("quinn", "cutlayer-transport", "crates/transport/"),
];

/// Crates that know no clock, socket or file, so that every failure replays from its events.
const PURE: &[&str] = &["federation", "generation", "wire"];

/// What a pure crate may not name in `src`.
const IMPURE: &[&str] = &["std::fs", "std::net", "std::time", "tokio"];

/// Leftovers; spelt in two halves, so that this file is not one.
const UNFINISHED: &[&str] = &[concat!("todo", "!"), concat!("unimplemented", "!"), concat!("#[ign", "ore"), concat!("FIX", "ME")];

/// Files excused from one rule, and why. A rule without an excuse is the aim.
const EXCEPTIONS: &[(Rule, &str, &str)] = &[
    (Rule::Unsafe, "crates/model/src/lib.rs", "kernels of our own need it; the workspace lint still denies it, module by module"),
    (Rule::Unsafe, "src/main.rs", "the allocator is set through C, in one module"),
];

/// What a file can be excused from.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    Opening,
    Length,
    Unfinished,
    Unsafe,
}

/// One package of the workspace.
struct Package {
    /// Path of its manifest, from the root.
    manifest: String,
    /// `cutlayer-wire`, or `cutlayer` for the root.
    name: String,
    text: String,
    table: Table,
}

/// One Rust file.
struct Source {
    /// Its path from the root, with `/`.
    path: String,
    text: String,
}

#[test]
fn a_crate_names_only_crates_below_it() {
    let mut problems = Vec::new();
    for package in packages() {
        let Some(short) = package.name.strip_prefix("cutlayer-") else { continue };
        let Some((_, below)) = FLOORS.iter().find(|(name, _)| *name == short) else {
            problems
                .push(format!("{}:1: {short} has no floor; add it to FLOORS in tests/tidy.rs and to crates/README.md", package.manifest));
            continue;
        };
        for dependency in package.dependencies(&["dependencies", "build-dependencies"]) {
            let Some(other) = dependency.strip_prefix("cutlayer-") else { continue };
            if !below.contains(&other) {
                let line = package.line_of(&dependency);
                let may = if below.is_empty() { "no crate of ours".to_owned() } else { below.join(", ") };
                let remedy = format!("it may name {may}; move what is shared down, or the caller up");
                problems.push(format!("{}:{line}: {short} names {other}, which is not below it: {remedy}", package.manifest));
            }
        }
    }
    check(problems);
}

#[test]
fn heavy_dependencies_have_one_door() {
    let mut problems = Vec::new();
    for package in packages() {
        let listed = package.dependencies(&["dependencies", "build-dependencies", "dev-dependencies"]);
        for (heavy, owner, _) in DOORS.iter().filter(|(heavy, owner, _)| package.name != *owner && listed.contains(*heavy)) {
            let line = package.line_of(heavy);
            problems
                .push(format!("{}:{line}: only {owner} may depend on {heavy}; give {owner} the function that is needed", package.manifest));
        }
    }
    for source in sources() {
        for (heavy, owner, door) in DOORS.iter().filter(|(_, _, door)| !source.path.starts_with(door)) {
            for line in source.lines_where(|code| names_crate(code, heavy)) {
                problems.push(format!("{}:{line}: {heavy} is named outside {door}; ask {owner} for it in its own words", source.path));
            }
        }
    }
    check(problems);
}

#[test]
fn pure_crates_know_no_clock_socket_or_file() {
    let mut problems = Vec::new();
    for source in sources() {
        let Some(pure) = PURE.iter().find(|name| source.path.starts_with(&format!("crates/{name}/src/"))) else { continue };
        for line in source.lines_where(|code| IMPURE.iter().any(|name| names_path(code, name))) {
            let names = IMPURE.join(", ");
            let remedy = "take the time and the bytes as arguments, and give the action back as a value";
            problems.push(format!("{}:{line}: {pure} names none of {names}: {remedy}", source.path));
        }
    }
    check(problems);
}

#[test]
fn unsafe_is_forbidden_in_every_library() {
    let mut problems = Vec::new();
    for source in sources() {
        let root = ["src/lib.rs", "src/main.rs"].contains(&source.path.as_str());
        let library =
            source.path.strip_prefix("crates/").is_some_and(|path| path.split_once('/').is_some_and(|(_, rest)| rest == "src/lib.rs"));
        let forbids = source.text.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]");
        if (root || library) && !forbids && !excused(Rule::Unsafe, &source.path) {
            problems.push(format!("{}:1: add #![forbid(unsafe_code)] under the file's opening comment", source.path));
        }
    }
    check(problems);
}

#[test]
fn files_say_what_they_are_and_stay_short() {
    let mut problems = Vec::new();
    for source in sources() {
        if !source.text.starts_with("//!") && !excused(Rule::Opening, &source.path) {
            problems.push(format!("{}:1: open with `//!`: what this file is, and what it must never do", source.path));
        }
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX && !excused(Rule::Length, &source.path) {
            problems.push(format!("{}:{lines}: {lines} lines, at most {FILE_LINES_MAX}; split it by what it knows", source.path));
        }
    }
    check(problems);
}

#[test]
fn nothing_is_left_unfinished() {
    let mut problems = Vec::new();
    for source in sources().iter().filter(|source| !excused(Rule::Unfinished, &source.path)) {
        for (index, line) in source.text.lines().enumerate() {
            if let Some(left) = UNFINISHED.iter().find(|left| line.contains(*left)) {
                problems.push(format!("{}:{}: {left} is left; finish it, or open an issue and take it out", source.path, index + 1));
            }
        }
    }
    check(problems);
}

#[test]
fn every_crate_is_on_the_code_map() {
    let map = read(&root().join("crates/README.md"));
    let named = |short: &str| map.lines().any(|line| line.starts_with(&format!("| `{short}` |")));
    let missing = packages().into_iter().filter_map(|package| {
        let short = package.name.strip_prefix("cutlayer-")?;
        (!named(short)).then(|| format!("crates/README.md:1: add a row \"| `{short}` | what it is |\" to the code map"))
    });
    check(missing.collect());
}

#[test]
fn exceptions_are_still_needed() {
    let gone = EXCEPTIONS.iter().filter(|(_, path, _)| !root().join(path).is_file());
    check(gone.map(|(_, path, reason)| format!("tests/tidy.rs: {path} is gone, and with it the excuse \"{reason}\"; drop it")).collect());
}

/// Goal: the checks see what they look for. Method: lines that do and do not name a crate or a path.
#[test]
fn names_are_told_from_lookalikes() {
    for line in ["use glue::tensor::Tensor;", "    let t: glue::Tensor;", "pub use glue;", "extern crate glue;", "use {glue::Tensor};"] {
        assert!(names_crate(line, "glue"), "{line}");
    }
    for line in ["use glueish::x;", "let glue = 1;", "use crate::glue::x;", "a.glue()", "superglue::x()"] {
        assert!(!names_crate(line, "glue"), "{line}");
    }
    for line in ["use std::time::Instant;", "use std::{fmt, time::Instant};", "use tokio::sync;"] {
        assert!(IMPURE.iter().any(|name| names_path(line, name)), "{line}");
    }
    for line in ["use std::fmt;", "use std::{fmt, mem};", "let time = 1;", "let tokio_like = 2;"] {
        assert!(!IMPURE.iter().any(|name| names_path(line, name)), "{line}");
    }
    let source = Source { path: String::new(), text: "//! glue::x\nlet a = 1; // glue::x\nglue::x();\n".into() };
    assert_eq!(source.lines_where(|code| names_crate(code, "glue")), [3]);
}

/// Fails with every problem at once.
fn check(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

fn excused(rule: Rule, path: &str) -> bool {
    EXCEPTIONS.iter().any(|(excused, file, _)| *excused == rule && *file == path)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The root package and every folder of `crates/`.
fn packages() -> Vec<Package> {
    let folders = entries(&root().join("crates")).into_iter().filter(|path| path.is_dir());
    let manifests = folders.map(|folder| folder.join("Cargo.toml")).chain([root().join("Cargo.toml")]);
    let packages: Vec<Package> = manifests.map(|path| package(&path)).collect();
    assert!(packages.len() > FLOORS.len(), "the workspace has fewer packages than floors; is this its root?");
    packages
}

fn package(path: &Path) -> Package {
    let text = read(path);
    let manifest = from_root(path);
    let table: Table = text.parse().unwrap_or_else(|error| panic!("{manifest}: {error}"));
    let name = table.get("package").and_then(|package| package.get("name")).and_then(Value::as_str);
    let name = name.unwrap_or_else(|| panic!("{manifest}: no package name")).to_owned();
    Package { manifest, name, text, table }
}

/// Every Rust file that the workspace compiles.
fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for folder in ["benches", "crates", "examples", "src", "tests"] {
        collect(&root().join(folder), &mut sources);
    }
    assert!(sources.iter().any(|source| source.path == "src/lib.rs"), "the facade is not where it was; is this the root?");
    sources
}

fn collect(folder: &Path, sources: &mut Vec<Source>) {
    for path in entries(folder) {
        if path.is_dir() {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(Source { path: from_root(&path), text: read(&path) });
        }
    }
}

/// What lies in `folder`, sorted; nothing where it does not exist.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(found) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = found.map(|entry| entry.expect("a folder of ours can be read").path()).collect();
    paths.sort();
    paths
}

fn from_root(path: &Path) -> String {
    let relative = path.strip_prefix(root()).expect("only files below the root are read");
    relative.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

impl Package {
    /// Names of what it depends on in tables of these kinds, for any target, by what the registry calls them.
    fn dependencies(&self, kinds: &[&str]) -> BTreeSet<String> {
        let targets = self.table.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
        let tables = targets.filter_map(Value::as_table).chain([&self.table]);
        let listed = tables.flat_map(|table| kinds.iter().filter_map(|kind| table.get(*kind)?.as_table())).flatten();
        listed.map(|(key, value)| value.get("package").and_then(Value::as_str).unwrap_or(key).to_owned()).collect()
    }

    /// The line that lists `dependency`.
    fn line_of(&self, dependency: &str) -> usize {
        let listed = |line: &str| {
            let key = line.split(['=', '.', ' ']).next().unwrap_or_default();
            key == dependency
                || line.contains(&format!("\"{dependency}\""))
                || line.trim_end().ends_with(&format!("ependencies.{dependency}]"))
        };
        self.text.lines().position(listed).map_or(1, |index| index + 1)
    }
}

impl Source {
    /// Lines whose code, comments taken off, does what `found` asks.
    fn lines_where(&self, found: impl Fn(&str) -> bool) -> Vec<usize> {
        let code = |line: &str| line.split("//").next().is_some_and(&found);
        self.text.lines().enumerate().filter(|(_, line)| code(line)).map(|(index, _)| index + 1).collect()
    }
}

/// Whether a line of code names a crate: as the head of a path, or alone in a `use`.
fn names_crate(code: &str, name: &str) -> bool {
    words(code, name).any(|(before, after)| {
        let head = !before.ends_with("::") && !before.ends_with('.');
        let imported = ["use", "crate"].contains(&before.split_whitespace().last().unwrap_or_default());
        head && (after.starts_with("::") || (imported && after.trim_start().starts_with([';', ' ', ','])))
    })
}

/// Whether a line of code names `path`, written out or inside `std::{..}`.
fn names_path(code: &str, path: &str) -> bool {
    let Some((head, module)) = path.split_once("::") else { return names_crate(code, path) };
    let grouped = code.split_once(&format!("{head}::{{")).is_some_and(|(_, group)| words(group, module).next().is_some());
    grouped || words(code, path).next().is_some()
}

/// Every place where `name` stands as a word: what is before it, and what after.
fn words<'a>(code: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let part = |letter: char| letter.is_alphanumeric() || letter == '_';
    code.match_indices(name).filter_map(move |(start, _)| {
        let (before, after) = (&code[..start], &code[start + name.len()..]);
        (!before.ends_with(part) && !after.starts_with(part)).then_some((before, after))
    })
}
