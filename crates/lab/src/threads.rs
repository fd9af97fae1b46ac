//! Who computes with how many threads, so that the processes of a run do not fight for the cores of one machine.
//!
//! The rule: the server has all cores, because all steps go through it. Clients that take turns, in lockstep on a shared adapter
//! or alone in their rounds, have all cores too; clients that compute at the same time share them, one each at least. The
//! network has threads of its own, a few that sleep.

use crate::config::{Mode, RunConfig};
use cutlayer_wire::{ServerAdapters, StepOrder};
use serde::Serialize;

/// Threads that compute, by process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Threads {
    /// What there is to share.
    pub cores: usize,
    /// The server's, or the one process's of an uncut run.
    pub server: usize,
    /// Each client's.
    pub client: usize,
}

impl Threads {
    /// The cores of this machine, or what a person set in their place.
    pub fn cores(set: Option<usize>) -> usize {
        set.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
    }

    /// How a run of `config` shares `cores`.
    pub fn of(config: &RunConfig, cores: usize) -> Self {
        let count = if config.clients.per_round == 0 { config.clients.count } else { config.clients.per_round };
        let in_turn = config.split.mode == Mode::Central
            || config.split.step_order == StepOrder::Lockstep && config.split.server_adapters == ServerAdapters::Shared;
        let at_once = if in_turn { 1 } else { count.max(1) as usize };
        Self { cores, server: cores, client: (cores / at_once).max(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(changes: &[&str], client: usize) {
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        let config = RunConfig::from_overrides(&changes).expect("a run");
        assert_eq!(Threads::of(&config, 8), Threads { cores: 8, server: 8, client }, "{changes:?}");
    }

    /// Goal: only clients that compute at the same time share the cores. Method: both orders, few and many clients.
    #[test]
    fn clients_share_cores_only_when_they_compute_at_once() {
        check(&["clients.count=3", "split.step_order=lockstep", "split.server_adapters=shared"], 8);
        check(&["clients.count=3", "split.step_order=lockstep"], 2);
        check(&["clients.count=3", "split.step_order=arrival"], 2);
        check(&["clients.count=100", "split.step_order=arrival"], 1);
        check(&["clients.count=100", "clients.per_round=1", "split.step_order=arrival"], 8);
        assert_eq!((Threads::cores(Some(5)), Threads::cores(Some(0))), (5, 1));
    }
}
