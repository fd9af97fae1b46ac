//! Run files as people write them, right and wrong.

use super::*;
use std::path::PathBuf;

fn load(text: &str, overrides: &[&str]) -> Result<RunConfig, ConfigError> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("sea.toml");
    std::fs::write(&file, text).expect("written");
    RunConfig::load(&file, &overrides.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
}

fn refusal(text: &str, overrides: &[&str]) -> String {
    load(text, overrides).expect_err("refused").to_string()
}

const WHOLE: &str = r#"
seed = 7

[model]
path = "models/small"

[split]
cut = [1, 2]
tail = 1

[train]
rounds = 3

[data]
source = { path = "roles.jsonl", text = "turns", key = "role" }
held_out = { key_fraction = 0.1 }
partition = "key"

[clients]
count = 2

[[client]]
name = "phone"
device = "cpu"

[[client]]
cut = 3
data = { source = { path = "own.csv", prompt = "mr", completion = "ref" } }
"#;

/// Goal: a short file says enough. Method: the name from the file, the defaults, a client's own values.
#[test]
fn a_file_is_filled_up_with_defaults() {
    let config = load(WHOLE, &[]).expect("a run file");
    assert_eq!((config.name.as_str(), config.seed, config.train.rounds, config.train.local_steps), ("sea", 7, 3, 20));
    assert_eq!((config.client_name(0).as_str(), config.client_name(1).as_str()), ("phone", "client-1"));
    assert_eq!(config.optimizer.beta1, Some(0.9));
}

/// Goal: a saved run is the same run. Method: write it out, read it in another folder.
#[test]
fn a_resolved_file_reads_back_the_same() {
    let config = load(WHOLE, &["optimizer.clip_norm=1.0"]).expect("a run file");
    let again = load(&config.to_toml().expect("TOML"), &[]).expect("reads back");
    assert_eq!(again, config);
}

/// Goal: paths follow the file, not the person. Method: relative paths of every kind.
#[test]
fn paths_are_relative_to_the_file() {
    let config = load(WHOLE, &[]).expect("a run file");
    let paths =
        [config.model.path.clone(), config.data.map(|data| data.source.path), config.client[1].data.clone().map(|data| data.source.path)];
    for (path, end) in paths.into_iter().zip(["models/small", "roles.jsonl", "own.csv"]) {
        let path: PathBuf = path.expect("given");
        assert!(path.is_absolute() && path.ends_with(end), "{}", path.display());
    }
}

/// Goal: a typing error names file, line, key and the keys there are. Method: a wrong key, a wrong section, a wrong kind.
#[test]
fn a_wrong_key_is_named_with_the_right_ones() {
    let error = refusal("[train]\nround = 3", &[]);
    for word in ["sea.toml", "line 2", "`round`", "`rounds`", "`local_steps`"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    assert!(refusal("[trian]\nrounds = 3", &[]).contains("`trian`"));
    assert!(refusal("[split]\ncut = 'two'", &[]).contains("[1, 2, 3]"));
    let error = refusal("", &["train.round=3"]);
    assert!(error.contains("--set train.round=3") && error.contains("`rounds`"), "{error}");
}

/// Goal: what cannot be carried out is refused before anything starts. Method: one value wrong at a time.
#[test]
fn values_are_checked() {
    for (change, word) in [
        ("clients.count=0", "clients.count"),
        ("split.cut=[1]", "split.cut"),
        ("clients.per_round=9", "clients.per_round"),
        ("server.updates_min=4", "server.updates_min"),
        ("server.aggregator=median", "fedavg"),
        ("optimizer.learning_rate=nan", "learning_rate"),
        ("name=../up", "name"),
        ("adapter.rank=0", "rank"),
        ("link.adapters=int8/48", "link.adapters is int8/48"),
        ("link.gradients=int8+delta", "link.gradients is int8+delta: int8+delta is nothing for gradients"),
        ("train.tokens_max=1", "tokens_max"),
        ("train={layout='packed', group_by_length=true}", "group_by_length"),
    ] {
        assert!(refusal("", &[change]).contains(word), "{change}: {}", refusal("", &[change]));
    }
}

/// Goal: each client gets the link that the file says. Method: one for all, explicit numbers over it, a client's own, and none at all.
#[test]
fn links_are_emulated_where_asked() {
    let link = |text: &str, client: u32| {
        let config = load(text, &["clients.count=2"]).unwrap_or_else(|error| panic!("{text}: {error}"));
        config.client_link(client).expect("checked").map(|link| link.to_string())
    };
    assert_eq!(link("", 0), None);
    let lte = link("[link]\nprofile = 'lte'", 1).expect("a link");
    assert!(lte.starts_with("lte: up 6mbit, down 13mbit"), "{lte}");
    let text = "[link]\nprofile = 'lte'\n[link.emulate]\nrate = '50mbit'\npartition = ['3s@5s']\n[[client]]\nprofile = 'wifi'";
    let (own, common) = (link(text, 0).expect("a link"), link(text, 1).expect("a link"));
    assert!(own.starts_with("wifi: up 100mbit") && !own.contains("partition"), "{own}");
    assert!(common.starts_with("lte: up 50mbit, down 50mbit") && common.ends_with("partition 3s@5s"), "{common}");
    assert!(
        link("[link.emulate]\ndelay = '25ms'", 0).expect("a link").starts_with("loopback: up unlimited, down unlimited, round trip 50 ms")
    );
    let config = load(text, &["clients.count=2"]).expect("a run file");
    assert_eq!(load(&config.to_toml().expect("TOML"), &[]).expect("reads back"), config);
}

/// Goal: a link that there is not is refused with those that there are. Method: a name, a quantity, a number, a key.
#[test]
fn links_that_cannot_be_are_refused() {
    for (change, word) in [
        ("link.profile=dsl", "the profiles are loopback, fibre, wifi, 5g, lte, satellite, train"),
        ("link.emulate.rate=50mb", "`50mb` is not a rate: write 50mbit"),
        ("link.emulate.mtu=900", "link.emulate: the MTU is 900: give at least 1228"),
        ("link.emulate.speed=1mbit", "`speed`"),
    ] {
        assert!(refusal("", &[change]).contains(word), "{change}: {}", refusal("", &[change]));
    }
}

/// Goal: encodings are chosen by name, for each direction. Method: names, and what a saved run says of them.
#[test]
fn encodings_are_chosen_by_name() {
    let config = load("[link]\nactivations = 'int4/64+zstd+hadamard'\ngradients = 'topk=0.05'", &[]).expect("a run file");
    let text = config.to_toml().expect("TOML");
    for line in ["activations = \"int4/64+hadamard+zstd\"", "gradients = \"bf16+topk=0.05\""] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let config = load("", &["link.activations=int8"]).expect("an override");
    assert_eq!((config.link.activations.to_string(), config.link.gradients.to_string()), ("int8".into(), "f32".into()));
}

/// Goal: a wrong encoding is refused by its line, with what to write. Method: no name, stages that do not go together.
#[test]
fn wrong_encodings_are_refused() {
    for (value, word) in [
        ("fp4", "write f32, bf16, f16, int8, int4 or int4/64"),
        ("bf16+hadamard", "write int4/64+hadamard"),
        ("int9", "write int2 to int8"),
        ("int8+topk=2", "from 0.0001 to 1"),
    ] {
        let error = refusal(&format!("[link]\ngradients = '{value}'"), &[]);
        assert!(error.contains("line 2") && error.contains(word), "{value}: {error}");
    }
}

/// Goal: chaos is a key as any, and where it cuts networks there are networks. Method: with and without it.
#[test]
fn chaos_brings_the_links_that_it_cuts() {
    let links = |overrides: &[&str]| load("", overrides).expect("a run file").client_link(0).expect("a link").is_some();
    assert!(!links(&[]) && !links(&["chaos=kill=1/2m"]) && links(&["chaos=kill=1/2m,partition=5s"]));
    let text = load("chaos = 'partition=5s'", &[]).expect("a run file").to_toml().expect("TOML");
    assert!(text.contains("chaos = \"partition=5s@1/60s\""), "{text}");
    assert!(refusal("chaos = 'partition'", &[]).contains("line 1"));
    assert!(refusal("chaos = 'kill=1/2m'\nsplit = { mode = 'central' }", &[]).contains("one process"));
}

/// Goal: nothing written is silently ignored. Method: AdamW's keys beside SGD.
#[test]
fn keys_of_the_other_optimizer_are_refused() {
    assert!(refusal("[optimizer]\nkind = 'sgd'\nweight_decay = 0.1", &[]).contains("optimizer.weight_decay"));
    assert!(load("[optimizer]\nkind = 'sgd'", &[]).is_ok());
}
