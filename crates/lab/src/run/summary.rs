//! What a run came to, added up from its events; pure, so that a finished run can be added up again from its metrics.

use super::chaos::ChaosCounts;
use super::child::Who;
use cutlayer_node::Event;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A run in numbers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Name of the run's folder.
    pub name: String,
    /// The folder.
    pub folder: PathBuf,
    /// The last global adapter, as a PEFT folder; nothing where no round was committed.
    pub adapter: Option<PathBuf>,
    /// Rounds committed.
    pub rounds_done: u32,
    /// Why it ended.
    pub reason: String,
    /// Whether it was asked to stop.
    pub interrupted: bool,
    /// How long it took, from the first process on.
    pub seconds: f64,
    /// Round by round; round 0 is the starting adapter.
    pub rounds: Vec<RoundRow>,
    /// Client by client.
    pub clients: Vec<ClientRow>,
    /// Peers that were turned away.
    pub refused: Vec<String>,
    /// How often what went wrong on purpose; absent where nothing was to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chaos: Option<ChaosCounts>,
    /// The most memory that the server's process held, or the one of an uncut run, where the system says.
    pub server_peak_bytes: Option<u64>,
}

/// One round.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RoundRow {
    /// Its number.
    pub round: u32,
    /// Mean loss of its training steps.
    pub train_loss: Option<f64>,
    /// Held-out loss of the adapter it left.
    pub loss: Option<f64>,
    /// `exp(loss)`.
    pub perplexity: Option<f64>,
    /// Share of held-out labels guessed right.
    pub accuracy: Option<f64>,
    /// Held-out labels scored.
    pub scored: u64,
    /// Updates behind the adapter.
    pub updates: u32,
    /// Clients that were late.
    pub late: Vec<String>,
    /// How long it took.
    pub seconds: f64,
    /// Share of a padded rectangle of its batches that would be padding: what computing whole rows would waste. Ours are ragged.
    pub padding_share: Option<f64>,
    /// The same by client.
    pub padding_shares: BTreeMap<u32, f64>,
    #[serde(skip)]
    pub(super) train: Mean,
    #[serde(skip)]
    pub(super) filled: BTreeMap<u32, Filled>,
}

/// One client.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClientRow {
    /// Its index.
    pub client: u32,
    /// Its name.
    pub name: String,
    /// Blocks it ran from the bottom.
    pub cut: u16,
    /// Blocks it ran from the top, in a U-shape.
    pub tail: Option<u16>,
    /// Records it trained on.
    pub samples: u64,
    /// Steps it took.
    pub steps: u64,
    /// Tokens in them.
    pub tokens: u64,
    /// Share of a padded rectangle of its batches that would be padding.
    pub padding_share: Option<f64>,
    /// Bytes of the steps from it.
    pub bytes_up: u64,
    /// Bytes of the steps to it.
    pub bytes_down: u64,
    /// Loss of its last step.
    pub loss_last: Option<f64>,
    /// Time its steps waited for their turn on the server.
    pub wait_s: f64,
    /// Time it computed.
    pub compute_s: f64,
    /// The most memory that its process held, where the system says.
    pub peak_bytes: Option<u64>,
    /// Time the server computed for it.
    pub server_compute_s: f64,
    /// Times it was cut off and came back.
    pub reconnects: u32,
    /// Updates of it that counted.
    pub accepted: u32,
    /// Updates of it that were refused, and why.
    pub refused: Vec<String>,
    /// Why it left, if it left early.
    pub left: Option<String>,
}

/// A mean weighted by labels scored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: f64, weight: f64) {
        self.sum += value * weight;
        self.weight += weight;
    }

    fn value(self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

/// Tokens, and the rectangles that their batches would be padded to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Filled {
    tokens: u64,
    rectangle: u64,
}

impl Filled {
    fn add(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.rectangle += other.rectangle;
    }

    fn padding_share(self) -> Option<f64> {
        (self.rectangle > 0).then(|| 1.0 - self.tokens as f64 / self.rectangle as f64)
    }

    fn sum<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        all.into_iter().fold(Self::default(), |mut sum, one| {
            sum.add(*one);
            sum
        })
    }
}

/// Adds up events.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    rounds: BTreeMap<u32, RoundRow>,
    clients: BTreeMap<u32, ClientRow>,
    refused: Vec<String>,
    rounds_done: u32,
    reason: Option<String>,
    server_peak_bytes: Option<u64>,
    chaos: Option<ChaosCounts>,
}

impl Tally {
    /// Adds what was done to `who`, or to networks.
    pub fn mishap(&mut self, who: Option<Who>) {
        self.chaos.get_or_insert_default().add(who);
    }

    /// Adds one event told by `who`.
    ///
    /// Both ends tell of a step. Sizes and the server's times are the server's to say, the client's time is its own; the
    /// loss is said by whoever holds the labels, which is the server unless the client has a head.
    pub fn add(&mut self, who: Who, event: &Event) {
        match event {
            Event::Joined { client, name, cut, tail, samples, .. } => {
                let row = self.client(*client);
                (row.name, row.cut, row.tail, row.samples, row.left) = (name.clone(), *cut, *tail, *samples, None);
            }
            // Of split inference, which is no run.
            Event::DeviceJoined { .. } | Event::DeviceLeft { .. } | Event::HostAway { .. } | Event::HostBack { .. } => {}
            Event::Left { client, reason, .. } => self.client(*client).left = Some(reason.clone()),
            Event::Back { client, .. } if who == Who::Server => self.client(*client).reconnects += 1,
            Event::Refused { peer, reason } => self.refused.push(format!("{peer}: {reason}")),
            Event::Step { .. } => self.add_step(who, event),
            Event::Updated { client, round, accepted, reason } if who == Who::Server => {
                let row = self.client(*client);
                row.accepted += u32::from(*accepted);
                if !accepted {
                    row.refused.push(format!("round {round}: {reason}"));
                }
            }
            Event::Late { round, missing, .. } => self.round(*round).late = missing.clone(),
            Event::Committed { round, updates, seconds, .. } => {
                let row = self.round(*round);
                (row.updates, row.seconds) = (*updates, *seconds);
                self.rounds_done = self.rounds_done.max(*round);
            }
            Event::Evaluated { round, loss, perplexity, accuracy, scored } if who == Who::Server => {
                let row = self.round(*round);
                row.loss = Some(*loss);
                row.perplexity = Some(*perplexity);
                row.accuracy = Some(*accuracy);
                row.scored = *scored;
            }
            Event::Finished { rounds, reason } if who == Who::Server => self.finish(*rounds, reason),
            Event::Listening { .. }
            | Event::Encodings { .. }
            | Event::Away { .. }
            | Event::Back { .. }
            | Event::Resumed { .. }
            | Event::RoundStarted { .. }
            | Event::Updated { .. }
            | Event::Evaluated { .. }
            | Event::Finished { .. } => {}
        }
    }

    /// Clients leave when the run ends, in the words of its end: those did not leave early.
    fn finish(&mut self, rounds: u32, reason: &str) {
        (self.rounds_done, self.reason) = (rounds, Some(reason.to_owned()));
        for row in self.clients.values_mut() {
            row.left = row.left.take().filter(|why| !why.contains(reason));
        }
    }

    fn add_step(&mut self, who: Who, event: &Event) {
        let Event::Step { client, round, loss, tokens, rectangle, scored, bytes_up, bytes_down, wait_ms, compute_ms, .. } = event else {
            return;
        };
        match who {
            Who::Server => {
                let filled = Filled { tokens: u64::from(*tokens), rectangle: u64::from(*rectangle) };
                self.round(*round).filled.entry(*client).or_default().add(filled);
                let row = self.client(*client);
                row.steps += 1;
                row.tokens += u64::from(*tokens);
                row.bytes_up += bytes_up;
                row.bytes_down += bytes_down;
                row.wait_s += wait_ms / 1e3;
                row.server_compute_s += compute_ms / 1e3;
            }
            Who::Client(_) => self.client(*client).compute_s += compute_ms / 1e3,
        }
        let row = self.client(*client);
        let holds_labels = (who == Who::Server) == row.tail.is_none();
        if let Some(loss) = loss.filter(|_| holds_labels) {
            row.loss_last = Some(loss);
            self.round(*round).train.add(loss, f64::from(*scored));
        }
    }

    /// Adds the most memory that the process of `who` has held so far.
    pub fn peak(&mut self, who: Who, bytes: Option<u64>) {
        match who {
            Who::Server => self.server_peak_bytes = self.server_peak_bytes.max(bytes),
            Who::Client(client) => {
                let row = self.client(client);
                row.peak_bytes = row.peak_bytes.max(bytes);
            }
        }
    }

    /// Whether the run's end was announced.
    pub fn is_finished(&self) -> bool {
        self.reason.is_some()
    }

    /// One client as it stands.
    pub fn client_row(&self, client: u32) -> Option<&ClientRow> {
        self.clients.get(&client)
    }

    /// One round as it stands.
    pub fn round_row(&self, round: u32) -> Option<RoundRow> {
        self.rounds.get(&round).map(|row| RoundRow {
            train_loss: row.train.value(),
            padding_share: Filled::sum(row.filled.values()).padding_share(),
            padding_shares: row.filled.iter().filter_map(|(client, filled)| Some((*client, filled.padding_share()?))).collect(),
            ..row.clone()
        })
    }

    /// Rounds committed so far.
    pub fn rounds_done(&self) -> u32 {
        self.rounds_done
    }

    /// Steps taken by all clients.
    pub fn steps(&self) -> u64 {
        self.clients.values().map(|row| row.steps).sum()
    }

    /// Bytes of all steps, from the clients and to them.
    pub fn bytes(&self) -> (u64, u64) {
        self.clients.values().fold((0, 0), |(up, down), row| (up + row.bytes_up, down + row.bytes_down))
    }

    /// The numbers, without the names and places that only the run knows.
    pub fn summary(&self) -> Summary {
        Summary {
            rounds_done: self.rounds_done,
            reason: self.reason.clone().unwrap_or_default(),
            rounds: self.rounds.keys().filter_map(|round| self.round_row(*round)).collect(),
            clients: self.clients.values().map(|row| ClientRow { padding_share: self.padding_of(row.client), ..row.clone() }).collect(),
            refused: self.refused.clone(),
            server_peak_bytes: self.server_peak_bytes,
            chaos: self.chaos,
            ..Summary::default()
        }
    }

    fn padding_of(&self, client: u32) -> Option<f64> {
        Filled::sum(self.rounds.values().filter_map(|row| row.filled.get(&client))).padding_share()
    }

    fn client(&mut self, client: u32) -> &mut ClientRow {
        self.clients.entry(client).or_insert_with(|| ClientRow { client, ..ClientRow::default() })
    }

    fn round(&mut self, round: u32) -> &mut RoundRow {
        self.rounds.entry(round).or_insert_with(|| RoundRow { round, ..RoundRow::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(client: u32, loss: Option<f64>, scored: u32) -> Event {
        let (round, step, tokens) = (1, 1, 10);
        let (bytes_up, bytes_down, wait_ms, compute_ms, rectangle) = (7, 5, 500.0, 250.0, 16);
        Event::Step { client, round, step, loss, tokens, rectangle, scored, bytes_up, bytes_down, wait_ms, compute_ms, phases: None }
    }

    fn joined(client: u32, tail: Option<u16>) -> Event {
        Event::Joined { client, name: format!("c{client}"), peer_id: "00".into(), cut: 2, tail, samples: 9 }
    }

    /// Goal: a step that both ends tell of counts once. Method: a vanilla and a U-shaped client, each told of twice.
    #[test]
    fn steps_count_once_and_the_label_holder_tells_the_loss() {
        let mut tally = Tally::default();
        tally.add(Who::Server, &joined(0, None));
        tally.add(Who::Server, &joined(1, Some(1)));
        for (who, event) in [
            (Who::Server, step(0, Some(2.0), 30)),
            (Who::Client(0), step(0, Some(9.0), 30)),
            (Who::Server, step(1, None, 0)),
            (Who::Client(1), step(1, Some(4.0), 10)),
        ] {
            tally.add(who, &event);
        }
        let summary = tally.summary();
        assert_eq!(tally.steps(), 2);
        assert_eq!(summary.clients.iter().map(|row| row.tokens).collect::<Vec<_>>(), [10, 10]);
        assert_eq!((summary.clients[0].compute_s, summary.clients[0].server_compute_s), (0.25, 0.25));
        assert_eq!(summary.rounds[0].train_loss, Some((2.0 * 30.0 + 4.0 * 10.0) / 40.0));
    }

    /// Goal: the padding share is of all tokens, not a mean of shares. Method: two clients of 10 tokens in 16, one step of them whole.
    #[test]
    fn padding_is_told_by_round_and_client() {
        let mut tally = Tally::default();
        let mut whole = step(1, None, 9);
        if let Event::Step { tokens, .. } = &mut whole {
            *tokens = 16;
        }
        for event in [step(0, None, 9), step(1, None, 9), whole] {
            tally.add(Who::Server, &event);
            tally.add(Who::Client(0), &event);
        }
        let summary = tally.summary();
        assert_eq!(summary.rounds[0].padding_share, Some(1.0 - 36.0 / 48.0));
        assert_eq!(summary.rounds[0].padding_shares, BTreeMap::from([(0, 1.0 - 10.0 / 16.0), (1, 1.0 - 26.0 / 32.0)]));
        assert_eq!(summary.clients.iter().map(|row| row.padding_share).collect::<Vec<_>>(), [Some(0.375), Some(0.1875)]);
    }

    /// Goal: leaving when all is done is not leaving early. Method: one client of each kind.
    #[test]
    fn the_end_is_no_early_leave() {
        let mut tally = Tally::default();
        for (client, reason) in [(0, "closed: all 3 rounds are done"), (1, "lost")] {
            tally.add(Who::Server, &joined(client, None));
            tally.add(Who::Server, &Event::Left { client, name: "c".into(), reason: reason.into() });
        }
        tally.add(Who::Server, &Event::Finished { rounds: 3, reason: "all 3 rounds are done".into() });
        assert_eq!(tally.summary().clients.iter().map(|row| row.left.is_some()).collect::<Vec<_>>(), [false, true]);
    }

    /// Goal: what went wrong is in the summary. Method: a refusal, a late client and one that left.
    #[test]
    fn what_went_wrong_is_kept() {
        let mut tally = Tally::default();
        tally.add(Who::Server, &joined(0, None));
        tally.add(Who::Server, &Event::Updated { client: 0, round: 1, accepted: false, reason: "NaN".into() });
        tally.add(Who::Server, &Event::Late { round: 1, missing: vec!["c1".into()], waited_ms: 9 });
        tally.add(Who::Server, &Event::Left { client: 0, name: "c0".into(), reason: "gone".into() });
        let summary = tally.summary();
        assert_eq!(summary.clients[0].refused, ["round 1: NaN"]);
        assert_eq!(summary.clients[0].left.as_deref(), Some("gone"));
        assert_eq!(summary.rounds[0].late, ["c1"]);
    }
}
