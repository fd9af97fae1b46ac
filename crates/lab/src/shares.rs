//! Who has which records: a pure function of the run file and the files it names, so that each process works out its own.

use crate::config::{ConfigError, RunConfig, TaskName};
use crate::error::LabError;
use cutlayer_data::{DataSpec, Record, labels_of};
use cutlayer_node::ClientData;
use std::path::Path;

/// The records of every client, by index.
///
/// Clients with data of their own have it to themselves; the others share `[data]` in the order of their indices.
pub fn client_data(config: &RunConfig) -> Result<Vec<ClientData>, LabError> {
    let count = config.clients.count;
    let sharing: Vec<u32> = (0..count).filter(|&client| config.client_section(client).data.is_none()).collect();
    let mut data: Vec<Option<ClientData>> = (0..count).map(|_| None).collect();
    if !sharing.is_empty() {
        let spec = config.data.as_ref().ok_or(ConfigError::Missing {
            key: "data",
            remedy: "give `[data] source = { path = .. }`, or a client's own under [client.data]",
        })?;
        let shares = with_partition(spec).load(Path::new(""), sharing.len(), config.seed)?;
        for ((client, train), eval) in sharing.iter().zip(shares.train).zip(shares.held_out) {
            data[*client as usize] = Some(ClientData { train, eval });
        }
    }
    for (index, slot) in data.iter_mut().enumerate() {
        if let Some(spec) = config.client_section(index as u32).data {
            *slot = Some(alone(&spec, config.seed)?);
        }
    }
    Ok(data.into_iter().map(|slot| slot.expect("each client shares or has its own")).collect())
}

/// The records of client `index` alone.
pub fn data_of_client(config: &RunConfig, index: u32) -> Result<ClientData, LabError> {
    if index >= config.clients.count {
        return Err(ConfigError::NoSuchClient { client: index, clients: config.clients.count }.into());
    }
    match config.client_section(index).data {
        Some(spec) => alone(&spec, config.seed),
        None => Ok(client_data(config)?.swap_remove(index as usize)),
    }
}

/// Every held-out record of the run.
pub fn held_out(config: &RunConfig) -> Result<Vec<Record>, LabError> {
    Ok(client_data(config)?.into_iter().flat_map(|client| client.eval).collect())
}

/// Finds a classifier's labels in the data where the run file does not list them, and writes them into it.
pub fn resolve_labels(config: &mut RunConfig) -> Result<(), LabError> {
    if config.train.task == TaskName::CausalLm || !config.train.labels.is_empty() {
        return Ok(());
    }
    let own = config.client.iter().any(|client| client.data.is_some());
    if config.data.is_none() && !own {
        // The plan says what is missing.
        return Ok(());
    }
    let records: Vec<Record> = client_data(config)?.into_iter().flat_map(|client| client.train.into_iter().chain(client.eval)).collect();
    config.train.labels = labels_of(&records);
    Ok(())
}

fn alone(spec: &DataSpec, seed: u64) -> Result<ClientData, LabError> {
    let mut shares = spec.load(Path::new(""), 1, seed)?;
    let (train, eval) = (shares.train.swap_remove(0), shares.held_out.swap_remove(0));
    Ok(ClientData { train, eval })
}

/// A run file that does not say how to share shares evenly.
fn with_partition(spec: &DataSpec) -> DataSpec {
    let partition = spec.partition.clone().unwrap_or(cutlayer_data::Partition::Iid);
    DataSpec { partition: Some(partition), ..spec.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Six shared records, one record of client 1's own.
    fn config(changes: &[&str]) -> (tempfile::TempDir, RunConfig) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let rows: Vec<String> = (0..6).map(|row| format!("{{\"text\": \"shared {row}\", \"label\": \"l{}\"}}", row % 2)).collect();
        std::fs::write(folder.path().join("shared.jsonl"), rows.join("\n")).expect("written");
        std::fs::write(folder.path().join("own.jsonl"), "{\"text\": \"own\", \"label\": \"l9\"}").expect("written");
        let file = folder.path().join("run.toml");
        let text = "[data]\nsource = { path = 'shared.jsonl', text = 'text', label = 'label' }\n\
            [[client]]\n[[client]]\ndata = { source = { path = 'own.jsonl', text = 'text', label = 'label' } }";
        std::fs::write(&file, text).expect("written");
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        let config = RunConfig::load(&file, &changes).expect("a run file");
        (folder, config)
    }

    /// Goal: a client with data of its own trains on that alone, and the rest is shared by the rest. Method: count.
    #[test]
    fn own_data_is_not_shared() {
        let (_folder, config) = config(&[]);
        let data = client_data(&config).expect("shares");
        assert_eq!(data.iter().map(|client| client.train.len()).collect::<Vec<_>>(), [3, 1, 3]);
        for index in 0..3 {
            assert_eq!(data_of_client(&config, index).expect("a share"), data[index as usize]);
        }
        assert!(data_of_client(&config, 3).expect_err("no such client").to_string().contains("client 3"));
    }

    /// Goal: a classifier's labels are those of everybody's records. Method: one label that only client 1 has.
    #[test]
    fn labels_are_found_in_all_records() {
        let (_folder, mut config) = config(&["train.task=classify"]);
        assert!(config.plan().expect_err("no labels yet").to_string().contains("train.labels"));
        resolve_labels(&mut config).expect("labels");
        assert_eq!(config.train.labels, ["l0", "l1", "l9"]);
        config.plan().expect("a plan");
    }
}
