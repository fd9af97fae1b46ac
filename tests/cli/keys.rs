//! Who may join, with `serve` and `join` as processes of their own.

use crate::harness::{Desk, Ended, Process, corpus, model};
use serde_json::Value;

/// Exit code of a peer that is not let in.
const REFUSED: i32 = 5;

/// A desk where a server runs.
struct Office {
    desk: Desk,
    server: Process,
    address: String,
    key: String,
}

impl Office {
    /// Starts a server of two clients and `more` over a desk that has its keys in `server`.
    fn open(desk: Desk, more: &[&str]) -> Self {
        let key = new_key(&desk, "server");
        let model = model();
        let common = ["serve", "--model", &model, "--keys", "server", "--listen", "127.0.0.1:0", "--clients", "2", "--rounds", "2"];
        let sizes = ["--cut", "2", "--set", "train.sequences=4", "--set", "train.tokens_max=96", "--set", "server.join_deadline_s=20"];
        let mut server = desk.starts(&[&common[..], &sizes, &["--format", "json"], more].concat());
        let said = server.until_said("to join with an enrolled key");
        let line = said.lines().find_map(|line| line.strip_prefix("listening on ")).unwrap_or_else(|| panic!("{said}"));
        let (address, shown) = line.split_once(" as ").expect("an address and a key");
        assert_eq!(shown, key, "the key it shows is its own");
        let address = address.to_owned();
        Self { desk, server, address, key }
    }

    /// Starts a client with the key of that folder.
    fn join(&self, name: &str, server_id: &str, more: &[&str]) -> Process {
        let (model, data) = (model(), corpus("heldout.jsonl"));
        let place = ["join", "--server", &self.address, "--server-id", server_id, "--keys", name, "--name", name];
        let job =
            ["--model", &model, "--cut", "2", "--data", &data, "--prompt", "prompt", "--completion", "completion", "--format", "json"];
        self.desk.starts(&[&place[..], &job, more].concat())
    }

    /// A client that is not let in, and is told why on both streams; the server goes on.
    #[track_caller]
    fn check_refused(&mut self, name: &str, server_id: &str, more: &[&str], sentences: &[&str]) {
        let client = self.join(name, server_id, more).ends();
        client.check(REFUSED, sentences);
        let object = client.json();
        assert_eq!(object["exit_code"], REFUSED);
        assert!(client.stderr.contains(object["error"].as_str().expect("a sentence")), "{client:?}");
        assert!(!self.server.has_ended(), "{}", self.server.said());
    }

    fn close(self) -> (Desk, Ended) {
        (self.desk, self.server.ends())
    }
}

/// Makes a key in that folder, and says which.
pub fn new_key(desk: &Desk, folder: &str) -> String {
    let key = desk.ends(&["keys", "new", folder, "--format", "json"]);
    key.check(0, &[]);
    key.json()["key"].as_str().expect("a key").to_owned()
}

fn keys(desk: &Desk, arguments: &[&str]) -> Value {
    let done = desk.ends(&[&["keys", "--keys", "server", "--format", "json"], arguments].concat());
    done.check(0, &[]);
    done.json()
}

/// Goal: the list of keys says who may join. Method: every command on it, and slips.
#[test]
fn the_list_of_keys_is_kept() {
    let desk = Desk::new();
    let ada = new_key(&desk, "ada");
    assert_eq!(new_key(&desk, "ada"), ada, "a second `keys new` shows the key there is");
    desk.ends(&["keys", "--keys", "server", "list"]).check(0, &[]);
    keys(&desk, &["enrol", "ada", "--key", &ada]);
    assert_eq!(keys(&desk, &["list"])["peers"][0]["key"], ada.as_str());
    keys(&desk, &["token", "bob"]);
    assert_eq!(keys(&desk, &["list"])["tokens"], 1);
    keys(&desk, &["revoke", "ada"]);
    assert_eq!(keys(&desk, &["list"])["peers"][0]["revoked"], true);
    let nobody = desk.ends(&["keys", "--keys", "server", "revoke", "zed"]);
    nobody.check(REFUSED, &["no key or name `zed` is enrolled; `cutlayer keys list` shows who is"]);
    let slip = desk.ends(&["keys", "--keys", "server", "enrol", "zed", "--key", "1234"]);
    slip.check(2, &["a peer's key must be 64 hexadecimal digits, found \"1234\": copy it whole from `cutlayer keys`"]);
}

/// Goal: only those let in get in, each refusal says what to do, and the run takes no harm. Method: an enrolled client and one with a
/// token train while a revoked key, an unknown key, a used token and a wrong server id try.
#[test]
fn a_run_turns_strangers_away_and_goes_on() {
    let desk = Desk::new();
    let [ada, eve, out] = ["ada", "eve", "out"].map(|name| new_key(&desk, name));
    keys(&desk, &["enrol", "ada", "--key", &ada]);
    let token = keys(&desk, &["token", "bob"])["token"].as_str().expect("a token").to_owned();
    let mut office = Office::open(desk, &["--set", "train.local_steps=4"]);
    let bob = office.join("bob", &office.key, &["--token", &token]);
    office.server.until_said("bob joined with 300 records, 2 blocks");
    keys(&office.desk, &["enrol", "eve", "--key", &eve]);
    keys(&office.desk, &["revoke", "eve"]);

    let key = office.key.clone();
    let ask = "ask its operator why, or to enrol it again";
    office.check_refused("eve", &key, &[], &[&format!("has revoked this key {}", &eve[..8]), ask]);
    let enrol = format!("does not know this key {}: ask its operator to run `cutlayer keys enrol NAME --key {out}`", &out[..8]);
    office.check_refused("out", &key, &[], &[&enrol, "or to give you a token"]);
    let used = "does not take this token: it was used before, is too old, or was never issued; ask its operator for a new one";
    office.check_refused("out", &key, &["--token", &token], &[used]);
    let other = format!("has key {key}, not {ada}: use the server id that it prints at its start");
    office.check_refused("ada", &ada, &[], &[&other, "somebody is in between"]);

    let ada = office.join("ada", &key, &[]).ends();
    ada.check(0, &[]);
    assert_eq!(ada.json()["updates_accepted"], 2);
    bob.ends().check(0, &[]);
    let (desk, server) = office.close();
    server.check(
        0,
        &["its key", "was revoked; `cutlayer keys enrol NAME --key", "is not enrolled", "the token of key", "round 2 done: 2 updates"],
    );
    assert_eq!(server.json()["rounds"], 2);
    assert!(desk.path("adapter/adapter_model.safetensors").exists());
}

/// Goal: whoever is thrown out in the middle is out at once, and the others finish. Method: `keys revoke` while both train.
#[test]
fn a_client_revoked_in_the_middle_is_out() {
    let desk = Desk::new();
    for name in ["ada", "bob"] {
        let key = new_key(&desk, name);
        keys(&desk, &["enrol", name, "--key", &key]);
    }
    let mut office = Office::open(desk, &["--set", "train.local_steps=40", "--set", "server.updates_min=1"]);
    let (ada, mut bob) = (office.join("ada", &office.key, &[]), office.join("bob", &office.key, &[]));
    bob.until_said("round 1 step");
    keys(&office.desk, &["revoke", "bob"]);
    bob.ends().check(REFUSED, &["has revoked this key"]);
    office.server.until_said("bob left");
    ada.ends().check(0, &[]);
    office.close().1.check(0, &["round 2 done: 1 updates"]);
}

/// Goal: a server keeps its list from run to run. Method: clients enrolled behind a key that was thrown out long ago.
#[test]
fn keys_of_earlier_runs_take_nobodys_place() {
    let desk = Desk::new();
    for name in ["old", "ada", "bob"] {
        let key = new_key(&desk, name);
        keys(&desk, &["enrol", name, "--key", &key]);
    }
    keys(&desk, &["revoke", "old"]);
    let office = Office::open(desk, &["--set", "train.local_steps=2"]);
    let (ada, bob) = (office.join("ada", &office.key, &[]), office.join("bob", &office.key, &[]));
    ada.ends().check(0, &[]);
    bob.ends().check(0, &[]);
    office.close().1.check(0, &["round 2 done: 2 updates"]);
}
