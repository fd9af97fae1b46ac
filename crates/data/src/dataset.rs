//! The data section of a run: what is read, what is held out, and how the rest is shared among clients.
//!
//! ```toml
//! [data]
//! source = { path = "tinyshakespeare/by_role.jsonl", text = "turns", key = "role" }
//! held_out = { key_fraction = 0.1 }        # or { fraction = 0.1 }, { keys = ["ROMEO"] }, { source = { path = .. } }
//! partition = "key"                        # or "iid", { dirichlet = { alpha = 0.3 } }, { quantity = { power = 1.0 } }
//! ```
//!
//! A pure function of the files and the seed, so that every process of a run can work out the same shares alone.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::held_out::{HeldOut, hold_out};
use crate::partition::{Partition, deal_held_out, partition};
use crate::record::Record;
use crate::source::Source;

/// The data section of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// What is read.
    pub source: Source,
    /// What is set aside for evaluation; nothing where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOut>,
    /// How the rest is shared out; needed as soon as there are two clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<Partition>,
}

/// What each client has, by client.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares {
    /// The records that client trains on; never empty.
    pub train: Vec<Vec<Record>>,
    /// The held-out records that client evaluates; may be empty.
    pub held_out: Vec<Vec<Record>>,
}

impl DataSpec {
    /// Everything in `source`, for one client, nothing held out.
    pub fn new(source: Source) -> Self {
        Self { source, held_out: None, partition: None }
    }

    /// Reads the files (relative paths start at `base`) and shares them among `clients`.
    pub fn load(&self, base: &Path, clients: usize, seed: u64) -> Result<Shares, DataError> {
        let way = match &self.partition {
            Some(way) => way,
            None if clients == 1 => &Partition::Iid,
            None => {
                let reason = format!("{clients} clients need `partition` (\"iid\", \"key\", dirichlet or quantity)");
                return Err(DataError::BadSplit(reason));
            }
        };
        let records = self.source.read(base)?;
        let (train, held_out) = match &self.held_out {
            Some(held_out) => hold_out(records, held_out, base, seed)?,
            None => (records, Vec::new()),
        };
        let train = partition(train, way, clients, seed)?;
        let held_out = deal_held_out(held_out, &train, *way == Partition::Key);
        Ok(Shares { train, held_out })
    }
}
