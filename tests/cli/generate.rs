//! Split inference with real processes: a host, and a device that generates or talks.

use crate::harness::{Desk, Ended, Process, model};
use crate::keys::new_key;
use serde_json::Value;

/// Exit code of a device that is not let in.
const REFUSED: i32 = 5;
/// A prompt of the shipped model's kind.
const PROMPT: &str = "weather | place: Brackford | sky: steady rain | day: Monday";

/// A host, and the flags by which a device finds it.
pub struct Hosting {
    pub desk: Desk,
    pub host: Process,
    pub address: String,
    key: String,
}

impl Hosting {
    /// A host that knows the key in the folder `device`.
    pub fn open() -> Self {
        let desk = Desk::new();
        let (key, device) = (new_key(&desk, "host"), new_key(&desk, "device"));
        desk.ends(&["keys", "--keys", "host", "enrol", "device", "--key", &device]).check(0, &[]);
        let (host, address) = start(&desk, "127.0.0.1:0");
        Self { desk, host, address, key }
    }

    /// What a device's command says of its model and its host at `address`.
    pub fn flags<'a>(&'a self, model: &'a str, address: &'a str) -> Vec<&'a str> {
        vec!["--model", model, "--keys", "device", "--server", address, "--server-id", &self.key]
    }

    /// At most 40 tokens over the host.
    fn generates(&self, more: &[&str]) -> Ended {
        self.generates_whole(&[&["--tokens-max", "40"], more].concat())
    }

    fn generates_whole(&self, more: &[&str]) -> Ended {
        let model = model();
        self.desk.ends(&[&["generate", "--format", "json"], &self.flags(&model, &self.address)[..], more].concat())
    }

    /// A slow road to the host, so that a generation takes a while; and where it begins.
    pub fn slow_road(&self) -> (Process, String) {
        let mut link = self.desk.starts(&["link", "--to", &self.address, "--delay", "15ms"]);
        let said = link.until_said("listening on ");
        let address = said.split("listening on ").nth(1).and_then(|rest| rest.split(' ').next()).expect("an address").to_owned();
        (link, address)
    }
}

fn start(desk: &Desk, listen: &str) -> (Process, String) {
    let model = model();
    let mut host = desk.starts(&["host", "--model", &model, "--keys", "host", "--listen", listen]);
    let said = host.until_said("listening on ");
    let line = said.lines().find_map(|line| line.strip_prefix("listening on ")).unwrap_or_else(|| panic!("{said}"));
    let address = line.split(' ').next().expect("an address").to_owned();
    (host, address)
}

/// All on one machine, without a host.
fn alone(desk: &Desk, more: &[&str]) -> Ended {
    let model = model();
    desk.ends(&[&["generate", "--format", "json", "--tokens-max", "40", "--model", &model, "--keys", "device"], more].concat())
}

/// Goal: cutting changes nothing that is said. Method: every cut and two U-shapes against the whole model, greedy, then drawn by a seed.
#[test]
fn a_split_generation_is_the_whole_one() {
    let hosting = Hosting::open();
    let whole = alone(&hosting.desk, &[PROMPT]);
    whole.check(0, &[]);
    let whole = whole.json();
    let ids = |value: &Value| value["ids"].as_array().expect("ids").clone();
    assert!(ids(&whole).len() > 10 && !whole["text"].as_str().expect("a text").is_empty(), "{whole}");
    assert_eq!(whole["bytes_sent"], 0);
    let mut places: Vec<Vec<String>> = (0..=6).map(|cut| vec!["--cut".into(), cut.to_string()]).collect();
    places.extend(["0", "2"].map(|tail| ["--cut", "2", "--tail", tail].map(str::to_owned).to_vec()));
    for place in places {
        let place: Vec<&str> = place.iter().map(String::as_str).collect();
        let split = hosting.generates(&[&place[..], &[PROMPT]].concat());
        split.check(0, &[]);
        let split = split.json();
        assert_eq!(
            (ids(&split), &split["text"], &split["finish_reason"]),
            (ids(&whole), &whole["text"], &whole["finish_reason"]),
            "{place:?}"
        );
        assert!(split["bytes_sent"].as_u64() > Some(0), "{split}");
    }
    let drawn = ["--temperature", "1.2", "--top-k", "50", "--seed", "9", PROMPT];
    let (whole, split) = (alone(&hosting.desk, &drawn).json(), hosting.generates(&[&["--cut", "3"], &drawn[..]].concat()).json());
    assert_eq!(ids(&split), ids(&whole), "the host draws as the device would");
}

/// Goal: what a person gives and gets. Method: a prompt by standard input, a lossy encoding, plain text.
#[test]
fn a_prompt_comes_in_by_any_way() {
    let hosting = Hosting::open();
    let (model, address) = (model(), hosting.address.clone());
    let flags = hosting.flags(&model, &address);
    let exact = hosting.generates(&[PROMPT]).json();
    let read =
        hosting.desk.starts_reading(&[&["generate", "--format", "json", "--tokens-max", "40"], &flags[..], &["-"]].concat(), PROMPT).ends();
    read.check(0, &[]);
    assert_eq!(read.json()["text"], exact["text"]);
    let shown = hosting.desk.ends(&[&["generate", "--tokens-max", "40", "--stats"], &flags[..], &[PROMPT]].concat());
    shown.check(0, &["tokens/s", "rounds"]);
    assert_eq!(shown.stdout.trim_end_matches('\n'), exact["text"].as_str().expect("a text").trim_end_matches('\n'));
    let coarse = hosting.generates(&["--encoding", "int8", PROMPT]);
    coarse.check(0, &[]);
    assert!(coarse.json()["bytes_sent"].as_u64() < exact["bytes_sent"].as_u64(), "{coarse:?}\n{exact}");
}

/// Goal: a session survives `kill -9` of the host, and says what it would have said. Method: a slow road, the host killed when the first
/// words are out and started again at its address, against an undisturbed generation.
#[test]
fn a_generation_survives_its_host() {
    let hosting = Hosting::open();
    let words = ["--tokens-max", "150", "--ignore-end", "--temperature", "0.9", "--seed", "4", PROMPT];
    let undisturbed = hosting.generates_whole(&words);
    undisturbed.check(0, &[]);
    let (_link, road) = hosting.slow_road();
    let model = model();
    let device = hosting.desk.starts(&[&["generate"], &hosting.flags(&model, &road)[..], &words].concat());
    device.until_printed(8);
    let Hosting { desk, host, address, key: _ } = hosting;
    host.kill_9();
    let (mut host, again) = start(&desk, &address);
    assert_eq!(again, address);
    let ended = device.ends();
    ended.check(0, &["the host is out of reach", "the host is back", "was started again"]);
    assert_eq!(ended.stdout.strip_suffix('\n'), undisturbed.json()["text"].as_str());
    assert!(!host.has_ended(), "{}", host.said());
}

/// Goal: only those let in are served, and are told why. Method: a key revoked while the host runs, and one that was never known.
#[test]
fn a_host_turns_strangers_away() {
    let hosting = Hosting::open();
    hosting.generates(&[PROMPT]).check(0, &[]);
    let model = model();
    new_key(&hosting.desk, "stranger");
    let mut flags = hosting.flags(&model, &hosting.address);
    flags[3] = "stranger";
    hosting
        .desk
        .ends(&[&["generate"], &flags[..], &[PROMPT]].concat())
        .check(REFUSED, &["does not know this key", "keys enrol NAME --key"]);
    hosting.desk.ends(&["keys", "--keys", "host", "revoke", "device"]).check(0, &[]);
    hosting.generates(&[PROMPT]).check(REFUSED, &["has revoked this key"]);
}

/// Goal: a conversation goes through a pipe, and what was said before is not computed again. Method: two turns and every command over a
/// split model, then the same for a program.
#[test]
fn a_conversation_goes_through_a_pipe() {
    let hosting = Hosting::open();
    let (model, address) = (model(), hosting.address.clone());
    let flags = hosting.flags(&model, &address);
    let chat = [&["chat", "--tokens-max", "24", "--system", "You tell of the weather in Brackford on Monday."], &flags[..]].concat();
    let lines = "What of the rain?\n/stats\n\nAnd on Tuesday?\n/stats\n/never\n/reset\n/stats\n/exit\nnot read\n";
    let ended = hosting.desk.starts_reading(&chat, lines).ends();
    ended.check(0, &["cached): first in", "B received in all", "/never? There are /reset, /stats and /exit", "a new conversation"]);
    assert!(!ended.stdout.contains("> "), "nobody watches: {ended:?}");

    let json = hosting.desk.starts_reading(&[&chat[..], &["--format", "json"]].concat(), lines).ends();
    json.check(0, &[]);
    let turns = json.json()["turns"].as_array().expect("turns").clone();
    assert_eq!(turns.iter().map(|turn| turn["user"].as_str()).collect::<Vec<_>>(), [Some("What of the rain?"), Some("And on Tuesday?")]);
    let said: Vec<&str> = turns.iter().map(|turn| turn["assistant"].as_str().expect("a text")).collect();
    assert_eq!(ended.stdout, format!("{}\n{}\n", said[0], said[1]));
    let (before, cached) = (turns[0]["prompt_tokens"].as_u64(), turns[1]["cached_tokens"].as_u64());
    assert!(cached >= before.map(|tokens| tokens / 16 * 16) && cached > Some(0), "full pages of the first turn are found again: {turns:?}");
}

/// Goal: a long conversation stays within the context. Method: lines that fill it, and one that never fits.
#[test]
fn a_conversation_forgets_its_beginning() {
    let hosting = Hosting::open();
    let (model, address) = (model(), hosting.address.clone());
    let line = "rain ".repeat(90);
    let lines = format!("{line}\n{line}\n{line}\n{line}\n{}\nShort?\n", "rain ".repeat(2000));
    let chat = [&["chat", "--tokens-max", "60"], &hosting.flags(&model, &address)[..]].concat();
    let ended = hosting.desk.starts_reading(&chat, &lines).ends();
    ended.check(0, &["of the oldest turns no longer fit and are forgotten", "tokens, and 452 are left for it: say it shorter"]);
}

/// Goal: Ctrl-C stops an answer, and the conversation goes on. Method: an endless answer over a slow road; the second one ends it all.
#[test]
#[cfg(unix)]
fn an_answer_can_be_stopped() {
    let hosting = Hosting::open();
    let (_link, road) = hosting.slow_road();
    let model = model();
    let fifo = hosting.desk.path("typed");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo");
    assert!(made.success());
    // Both ends, so that opening does not wait for the other.
    let typing = std::fs::OpenOptions::new().read(true).write(true).open(&fifo).expect("a pipe");
    let flags = hosting.flags(&model, &road);
    let chat = [&["chat", "--tokens-max", "400", "--temperature", "1.5", "--seed", "1"], &flags[..]].concat();
    let mut chat = hosting.desk.starts_from(&chat, std::fs::File::open(&fifo).expect("a pipe"));
    std::io::Write::write_all(&mut &typing, b"What of the rain?\n").expect("typed");
    chat.until_printed(4);
    chat.signal_group("-INT");
    chat.until_said("(stopped)");
    assert!(!chat.has_ended());
    chat.signal_group("-INT");
    chat.ends().check(0, &["(stopped)"]);
}
