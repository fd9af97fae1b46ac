//! How a command ended, as a number that scripts can rely on.

use cutlayer_data::DataError;
use cutlayer_lab::{ConfigError, LabError};
use cutlayer_model::{DeviceError, FolderError, LoadError, MergeError, PeftError};
use cutlayer_node::NodeError;
use cutlayer_transport::{AllowListError, IdentityError, LinkError};
use serde_json::{Value, json};
use std::fmt;

/// The exit codes, for people.
pub(crate) const TABLE: &str = "\
Exit codes:
    0  done
    2  usage, or a run file that says something impossible
    3  a model, adapter or data file that cannot be used
    4  the network, or the peer at its other end
    5  refused: an unknown, wrong or revoked key, or a server that would not have this client
    6  training failed
  130  interrupted; what there was is kept";

/// How a command ended. The numbers are promised: add, never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Success = 0,
    /// Usage or configuration.
    Usage = 2,
    /// Model or data.
    ModelOrData = 3,
    /// Network or peer.
    Network = 4,
    /// Refused, keys.
    Refused = 5,
    /// Training failed.
    Training = 6,
    /// Interrupted.
    Interrupted = 130,
}

impl Exit {
    const ALL: [Self; 7] = [Self::Success, Self::Usage, Self::ModelOrData, Self::Network, Self::Refused, Self::Training, Self::Interrupted];

    /// The code that a child process ended with.
    fn of_child(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| i32::from(*exit as u8) == code && *exit != Self::Success)
    }
}

/// The exit codes, for programs.
pub(crate) fn table_json() -> Value {
    let rows = TABLE.lines().skip(1).filter_map(|line| line.trim().split_once("  "));
    rows.map(|(code, meaning)| (code.to_owned(), json!(meaning.trim()))).collect::<serde_json::Map<_, _>>().into()
}

/// An error of the command line itself, with its code.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    /// The error with this code and these words.
    pub fn because(exit: Exit, message: impl Into<String>) -> anyhow::Error {
        Self { exit, message: message.into() }.into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The code of an error: that of the first of its causes that has one.
pub(crate) fn of(error: &anyhow::Error) -> Exit {
    error.chain().find_map(of_cause).unwrap_or(Exit::Training)
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        return Some(failure.exit);
    }
    if let Some(error) = cause.downcast_ref::<LabError>() {
        return Some(of_lab(error));
    }
    if let Some(error) = cause.downcast_ref::<NodeError>() {
        return Some(of_node(error));
    }
    if let Some(error) = cause.downcast_ref::<LinkError>() {
        return Some(of_link(error));
    }
    if cause.is::<ConfigError>() || cause.is::<DeviceError>() {
        return Some(Exit::Usage);
    }
    if cause.is::<IdentityError>() || cause.is::<AllowListError>() {
        return Some(Exit::Refused);
    }
    let files = cause.is::<DataError>() || cause.is::<FolderError>() || cause.is::<LoadError>() || cause.is::<PeftError>();
    (files || cause.is::<MergeError>()).then_some(Exit::ModelOrData)
}

fn of_lab(error: &LabError) -> Exit {
    match error {
        LabError::Config(_) | LabError::FolderTaken { .. } | LabError::Write { .. } | LabError::UnknownShape { .. } => Exit::Usage,
        LabError::Data(_) => Exit::ModelOrData,
        LabError::Node(error) => of_node(error),
        LabError::Identity(_) | LabError::AllowList(_) => Exit::Refused,
        LabError::Died { code, .. } => code.and_then(Exit::of_child).unwrap_or(Exit::Training),
        _ => Exit::Training,
    }
}

fn of_node(error: &NodeError) -> Exit {
    match error {
        NodeError::Load(_) | NodeError::Folder(_) | NodeError::Peft(_) | NodeError::Data(_) => Exit::ModelOrData,
        NodeError::Device(_) | NodeError::Plan(_) | NodeError::Aggregator(_) | NodeError::Cut { .. } | NodeError::Task(_) => Exit::Usage,
        NodeError::Link(error) => of_link(error),
        NodeError::Frame(_) | NodeError::Session(_) | NodeError::Tensor { .. } => Exit::Network,
        NodeError::Refused { .. } => Exit::Refused,
        _ => Exit::Training,
    }
}

fn of_link(error: &LinkError) -> Exit {
    match error {
        LinkError::WrongServer { .. } | LinkError::NotEnrolled { .. } | LinkError::Revoked { .. } | LinkError::BadToken { .. } => {
            Exit::Refused
        }
        _ => Exit::Network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    /// Goal: the table tells of every code. Method: look for each number in it.
    #[test]
    fn every_code_is_in_the_table() {
        let table = table_json();
        for exit in Exit::ALL {
            assert!(table.get((exit as u8).to_string()).is_some(), "{exit:?}");
        }
    }

    /// Goal: a cause keeps its code under whatever is said about it. Method: an error with a context.
    #[test]
    fn the_code_is_that_of_the_cause() {
        let cause = NodeError::Cut { cut: 9, tail: 0, blocks: 5 };
        let error = Err::<(), _>(LabError::from(cause)).context("while starting").expect_err("an error");
        assert_eq!(of(&error), Exit::Usage);
        assert_eq!(of(&Failure::because(Exit::Network, "away")), Exit::Network);
        assert_eq!(of(&anyhow::anyhow!("something")), Exit::Training);
    }

    /// Goal: a run fails as its child did. Method: codes of ours, and one of a signal.
    #[test]
    fn a_childs_code_is_the_runs() {
        assert_eq!(Exit::of_child(3), Some(Exit::ModelOrData));
        assert_eq!(Exit::of_child(0), None);
        assert_eq!(Exit::of_child(101), None);
    }
}
