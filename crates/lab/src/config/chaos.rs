//! What is to go wrong in a run, as people write it: `kill=1/2m,partition=5s@1/1m,limit=20,seed=7`. Text in, numbers out, and the text back.

use cutlayer_transport::Span;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Shortest mean time between two mishaps of one kind: a process needs longer to start.
const MEAN_MIN: Duration = Duration::from_millis(50);
/// What would do, for whoever wrote something else.
const EXAMPLES: &str =
    "write kill=1/2m, kill=server:1/1m, kill=clients:3/1m, partition=5s, partition=all:5s@1/2m, limit=20 or seed=7, with commas between";

/// Why a text says nothing that can go wrong.
#[derive(Debug, thiserror::Error)]
#[error("`{found}` {wrong}; {EXAMPLES}")]
pub struct ChaosError {
    found: String,
    wrong: &'static str,
}

/// Everything that is to go wrong. Never nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Chaos {
    /// What kinds of mishaps there are.
    pub mishaps: Vec<MishapKind>,
    /// How many mishaps there are in all; absent, they go on as long as the run.
    pub limit: Option<u32>,
    /// Where the times and victims come from; absent, the run's seed.
    pub seed: Option<u64>,
}

/// One kind of mishap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MishapKind {
    /// A process is killed as by `kill -9`, and started again.
    Kill {
        /// Which may be.
        of: Victims,
        /// How often.
        rate: MishapRate,
    },
    /// A network lets nothing pass for a while.
    Partition {
        /// Everybody's network, or one client's.
        all: bool,
        /// How long.
        length: Span,
        /// How often.
        rate: MishapRate,
    },
}

/// Who may be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victims {
    /// Any process of the run, each as likely.
    Any,
    /// The server.
    Server,
    /// Any client.
    Clients,
}

/// How often something happens on average: `3/1m`. At times that nobody can foretell: the next does not depend on the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MishapRate {
    times: u32,
    per: Span,
}

impl MishapRate {
    /// A partition's, where none is given.
    const ONCE_A_MINUTE: Self = Self { times: 1, per: Span::ms(60_000) };

    /// Mean time from one to the next.
    pub fn mean(self) -> Duration {
        self.per.duration() / self.times
    }
}

impl Chaos {
    /// Whether networks are to be cut: each client then needs one of its own.
    pub fn cuts_networks(&self) -> bool {
        self.mishaps.iter().any(|kind| matches!(kind, MishapKind::Partition { .. }))
    }
}

impl FromStr for Chaos {
    type Err = ChaosError;

    fn from_str(text: &str) -> Result<Self, ChaosError> {
        let error = |found: &str, wrong| ChaosError { found: found.into(), wrong };
        let (mut mishaps, mut limit, mut seed) = (Vec::new(), None, None);
        for part in text.split(',').map(str::trim) {
            match part.split_once('=') {
                Some(("kill", rest)) => mishaps.push(kill(rest).ok_or_else(|| error(part, "says not who is killed how often"))?),
                Some(("partition", rest)) => {
                    mishaps.push(partition(rest).ok_or_else(|| error(part, "says not how long a network is gone"))?);
                }
                Some(("limit", rest)) => limit = Some(rest.parse().map_err(|_| error(part, "is no number of mishaps"))?),
                Some(("seed", rest)) => seed = Some(rest.parse().map_err(|_| error(part, "is no seed"))?),
                _ => return Err(error(part, "is nothing that goes wrong here")),
            }
        }
        if mishaps.is_empty() { Err(error(text, "lets nothing go wrong")) } else { Ok(Self { mishaps, limit, seed }) }
    }
}

fn kill(text: &str) -> Option<MishapKind> {
    let (of, rate) = match text.split_once(':') {
        None => (Victims::Any, text),
        Some(("server", rate)) => (Victims::Server, rate),
        Some(("clients", rate)) => (Victims::Clients, rate),
        Some(_) => return None,
    };
    Some(MishapKind::Kill { of, rate: rate_of(rate)? })
}

fn partition(text: &str) -> Option<MishapKind> {
    let (all, rest) = text.strip_prefix("all:").map_or((false, text), |rest| (true, rest));
    let (length, rate) = match rest.split_once('@') {
        None => (rest, MishapRate::ONCE_A_MINUTE),
        Some((length, rate)) => (length, rate_of(rate)?),
    };
    let length: Span = length.parse().ok()?;
    (length > Span::default()).then_some(MishapKind::Partition { all, length, rate })
}

fn rate_of(text: &str) -> Option<MishapRate> {
    let (times, per) = text.split_once('/')?;
    let rate = MishapRate { times: times.parse().ok().filter(|times| *times > 0)?, per: per.parse().ok()? };
    (rate.mean() >= MEAN_MIN).then_some(rate)
}

impl fmt::Display for MishapRate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.times, self.per)
    }
}

impl fmt::Display for MishapKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { of: Victims::Any, rate } => write!(out, "kill={rate}"),
            Self::Kill { of: Victims::Server, rate } => write!(out, "kill=server:{rate}"),
            Self::Kill { of: Victims::Clients, rate } => write!(out, "kill=clients:{rate}"),
            Self::Partition { all, length, rate } => {
                let all = if *all { "all:" } else { "" };
                write!(out, "partition={all}{length}@{rate}")
            }
        }
    }
}

impl fmt::Display for Chaos {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds = [self.limit.map(|limit| format!("limit={limit}")), self.seed.map(|seed| format!("seed={seed}"))];
        let parts: Vec<String> = self.mishaps.iter().map(ToString::to_string).chain(bounds.into_iter().flatten()).collect();
        out.write_str(&parts.join(","))
    }
}

impl TryFrom<String> for Chaos {
    type Error = ChaosError;

    fn try_from(text: String) -> Result<Self, ChaosError> {
        text.parse()
    }
}

impl From<Chaos> for String {
    fn from(chaos: Chaos) -> Self {
        chaos.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is written is what is meant, and reads back. Method: each kind, with and without what may be left out.
    #[test]
    fn chaos_reads_as_written() {
        for (text, again) in [
            ("kill=1/2m,partition=5s", "kill=1/120s,partition=5s@1/60s"),
            ("kill=server:3/1m, seed=7, kill=clients:1/30s, limit=9", "kill=server:3/60s,kill=clients:1/30s,limit=9,seed=7"),
            ("partition=all:200ms@2/1s", "partition=all:200ms@2/1s"),
        ] {
            let chaos: Chaos = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(chaos.to_string(), again);
            assert_eq!(again.parse::<Chaos>().expect("our own text"), chaos);
            assert_eq!(chaos.cuts_networks(), text.contains("partition"), "{text}");
        }
    }

    /// Goal: a slip is named with what would do. Method: one of each.
    #[test]
    fn slips_are_explained() {
        for (text, word) in [
            ("", "nothing"),
            ("seed=7", "nothing"),
            ("kil=1/2m", "kil=1/2m"),
            ("kill=2m", "how often"),
            ("kill=0/1m", "how often"),
            ("kill=1/0s", "how often"),
            ("kill=1000/1s", "how often"),
            ("kill=client:1/1m", "how often"),
            ("kill=1/2m,partition", "`partition`"),
            ("partition=0", "how long"),
            ("partition=5s@", "how long"),
            ("kill=1/2m,seed=-1", "seed=-1"),
            ("kill=1/2m,limit=some", "limit=some"),
        ] {
            let error = text.parse::<Chaos>().expect_err(text).to_string();
            assert!(error.contains(word) && error.contains("kill=1/2m, kill=server:1/1m"), "{text}: {error}");
        }
    }
}
