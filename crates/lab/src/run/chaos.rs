//! What goes wrong in a run, and when: from a seed alone, so that what happened once happens again.
//!
//! Pure: no clock, no process, no network. Who is killed or cut in earnest is `launch`'s affair.

use super::child::Who;
use crate::config::{Chaos, MishapKind, Victims};
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// A thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mishap {
    /// A process is killed.
    Kill(Who),
    /// A client's network lets nothing pass for so long; every client's, where none is named.
    Cut(Option<u32>, Duration),
}

/// What `metrics.jsonl` says of chaos.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum ChaosLine {
    /// A process was killed.
    Killed { process: String, round: u32 },
    /// It runs again.
    Restarted { process: String, round: u32 },
    /// Nothing passes between these clients and the server.
    Cut { clients: Vec<String>, seconds: f64, round: u32 },
}

impl fmt::Display for ChaosLine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed { process, round } => write!(out, "chaos: killed {process} in round {round}"),
            Self::Restarted { process, .. } => write!(out, "chaos: started {process} again"),
            Self::Cut { clients, seconds, round } => {
                write!(out, "chaos: cut the network of {} for {seconds} s in round {round}", clients.join(", "))
            }
        }
    }
}

/// How often what went wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ChaosCounts {
    /// Times that the server was killed.
    pub server_kills: u32,
    /// Times that a client was.
    pub client_kills: u32,
    /// Times that networks were cut.
    pub cuts: u32,
}

impl ChaosCounts {
    /// Adds what happened to `who`; nobody, where a network was cut.
    pub(super) fn add(&mut self, who: Option<Who>) {
        match who {
            Some(Who::Server) => self.server_kills += 1,
            Some(Who::Client(_)) => self.client_kills += 1,
            None => self.cuts += 1,
        }
    }
}

/// Mishaps with the time of each, counted from the start and never going back; endless, but for a limit.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    causes: Vec<Cause>,
    left: Option<u32>,
    clients: u32,
}

/// One kind of mishap with its own dice, so that another kind changes nothing of it.
#[derive(Clone, Debug)]
struct Cause {
    kind: MishapKind,
    dice: Dice,
    next: Duration,
}

impl Schedule {
    /// For a run with so many clients, at least one.
    pub fn new(chaos: &Chaos, clients: u32, run_seed: u64) -> Self {
        let seed = chaos.seed.unwrap_or(run_seed);
        let cause = |(kind, index): (&MishapKind, u64)| {
            let mut cause = Cause { kind: *kind, dice: Dice::new(seed, index), next: Duration::ZERO };
            cause.wait();
            cause
        };
        Self { causes: chaos.mishaps.iter().zip(0..).map(cause).collect(), left: chaos.limit, clients }
    }
}

impl Iterator for Schedule {
    type Item = (Duration, Mishap);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1)?;
        }
        let clients = self.clients;
        let cause = self.causes.iter_mut().min_by_key(|cause| cause.next)?;
        let at = cause.next;
        let mishap = cause.happen(clients);
        cause.wait();
        Some((at, mishap))
    }
}

impl Cause {
    /// Sets the time of the next: exponentially distributed, so that it says nothing of the one after.
    fn wait(&mut self) {
        let (MishapKind::Kill { rate, .. } | MishapKind::Partition { rate, .. }) = self.kind;
        self.next += rate.mean().mul_f64(-self.dice.uniform().ln());
    }

    fn happen(&mut self, clients: u32) -> Mishap {
        match self.kind {
            MishapKind::Kill { of: Victims::Server, .. } => Mishap::Kill(Who::Server),
            MishapKind::Kill { of: Victims::Clients, .. } => Mishap::Kill(Who::Client(self.dice.below(clients))),
            MishapKind::Kill { of: Victims::Any, .. } => {
                let index = self.dice.below(clients + 1);
                Mishap::Kill(if index == clients { Who::Server } else { Who::Client(index) })
            }
            MishapKind::Partition { all, length, .. } => Mishap::Cut((!all).then(|| self.dice.below(clients)), length.duration()),
        }
    }
}

/// BLAKE3's output as dice: the same on every machine and with every version of a crate.
#[derive(Clone, Debug)]
struct Dice(blake3::OutputReader);

impl Dice {
    fn new(seed: u64, index: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("cutlayer 2026 chaos");
        hasher.update(&seed.to_le_bytes()).update(&index.to_le_bytes());
        Self(hasher.finalize_xof())
    }

    /// Between 0 and 1, neither of them.
    fn uniform(&mut self) -> f64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        ((u64::from_le_bytes(bytes) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// In `0..bound`; the bias of at most 2^-21 harms no experiment.
    fn below(&mut self, bound: u32) -> u32 {
        (self.uniform() * f64::from(bound)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn schedule(text: &str, clients: u32, seed: u64) -> Schedule {
        Schedule::new(&text.parse().expect("chaos"), clients, seed)
    }

    proptest! {
        /// Goal: any schedule keeps its word: times never go back, only those are hit who may be, the same seed hits the same at the
        /// same times, and a seed in the text goes over the run's.
        #[test]
        fn a_schedule_keeps_its_word(clients in 1_u32..20, seed: u64, other: u64) {
            let text = "kill=server:1/3s,kill=clients:2/1s,kill=1/1s,partition=2s@1/1s,partition=all:1s";
            let taken: Vec<_> = schedule(text, clients, seed).take(300).collect();
            prop_assert!(taken.is_sorted_by_key(|(at, _)| *at));
            for (_, mishap) in &taken {
                match *mishap {
                    Mishap::Kill(Who::Server) | Mishap::Cut(None, _) => {}
                    Mishap::Kill(Who::Client(client)) | Mishap::Cut(Some(client), _) => prop_assert!(client < clients),
                }
            }
            prop_assert_eq!(&taken, &schedule(text, clients, seed).take(300).collect::<Vec<_>>());
            let named = schedule(&format!("{text},seed={seed}"), clients, other);
            prop_assert_eq!(&taken, &named.take(300).collect::<Vec<_>>());
            prop_assert_eq!(&taken[..9], &schedule(&format!("{text},limit=9"), clients, seed).collect::<Vec<_>>());
        }

        /// Goal: a kind of mishap does not move another. Method: kills alone, and beside partitions.
        #[test]
        fn kinds_are_independent(seed: u64) {
            let kills = |text| schedule(text, 4, seed).filter(|(_, mishap)| matches!(mishap, Mishap::Kill(_))).take(50).collect::<Vec<_>>();
            prop_assert_eq!(kills("kill=1/2m"), kills("kill=1/2m,partition=5s@3/1m"));
        }
    }

    /// Goal: as often as asked, and as unforeseeable as an exponential distribution. Method: 20,000 kills a minute apart on average: mean
    /// and spread within 3 %, each of five processes a fifth.
    #[test]
    fn kills_come_as_often_as_asked() {
        let taken: Vec<_> = schedule("kill=1/1m", 4, 7).take(20_000).collect();
        let times: Vec<f64> = std::iter::once(0.0).chain(taken.iter().map(|(at, _)| at.as_secs_f64())).collect();
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let spread = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((mean / 60.0 - 1.0).abs() < 0.03 && (spread / 60.0 - 1.0).abs() < 0.03, "mean {mean} s, spread {spread} s");
        for who in (0..4).map(Who::Client).chain([Who::Server]) {
            let share = taken.iter().filter(|(_, mishap)| *mishap == Mishap::Kill(who)).count() as f64 / taken.len() as f64;
            assert!((share / 0.2 - 1.0).abs() < 0.1, "{who:?} is hit {share}");
        }
    }
}
