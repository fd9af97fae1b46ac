//! What a person sees while a run goes on: bars on a terminal, lines elsewhere, nothing when asked to be quiet.
//!
//! Shows what the tally has added up; decides nothing.

use super::child::Who;
use super::summary::Tally;
use super::table::{bytes, seconds};
use super::words::describe;
use crate::config::{Mode, RunConfig};
use cutlayer_node::Event;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Most clients that get a line of their own; the rest are in the sums.
const CLIENT_LINES_MAX: u32 = 12;

/// How often the clock on the bars moves.
const TICK: Duration = Duration::from_millis(250);

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Bars that move.
    Bars,
    /// A line for each thing worth one.
    Lines,
    /// Nothing.
    Nothing,
}

/// The display of one run. All of it goes to standard error.
pub(crate) struct Progress {
    show: Show,
    bars: MultiProgress,
    total: ProgressBar,
    clients: Vec<ProgressBar>,
    rounds: u32,
    round: Round,
}

/// The round that is going on.
struct Round {
    number: u32,
    started: Instant,
    tokens: u64,
    local_steps: u64,
    steps: BTreeMap<u32, u64>,
}

impl Progress {
    /// The display of a run of `config`.
    pub fn new(show: Show, config: &RunConfig) -> Self {
        let bars = MultiProgress::new();
        if show != Show::Bars {
            bars.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        let (count, local_steps) = (config.clients.count, u64::from(config.train.local_steps));
        let sampled = if config.clients.per_round == 0 { count } else { config.clients.per_round };
        let joined = if config.split.mode == Mode::Central { 1 } else { sampled };
        let total = bars.add(ProgressBar::new(u64::from(config.train.rounds) * local_steps * u64::from(joined)));
        total.set_style(style("{prefix:>12} [{bar:32}] {pos}/{len} steps  {elapsed}  {msg}"));
        total.set_prefix("starting");
        total.enable_steady_tick(TICK);
        let shown = if joined > 1 && count <= CLIENT_LINES_MAX { count } else { 0 };
        let client = |index: u32| {
            let bar = bars.add(ProgressBar::new(local_steps));
            bar.set_style(style("{prefix:>12} [{bar:32}] {pos}/{len}  {msg}"));
            bar.set_prefix(config.client_name(index));
            bar
        };
        let clients = (0..shown).map(client).collect();
        let round = Round { number: 0, started: Instant::now(), tokens: 0, local_steps, steps: BTreeMap::new() };
        Self { show, bars, total, clients, rounds: config.train.rounds, round }
    }

    /// Says something above the bars.
    pub fn note(&self, text: &str) {
        match self.show {
            Show::Bars => {
                // A terminal that went away takes the message with it.
                let _ = self.bars.println(text);
            }
            Show::Lines => eprintln!("{text}"),
            Show::Nothing => {}
        }
    }

    /// Shows what changed.
    pub fn event(&mut self, who: Who, event: &Event, tally: &Tally) {
        match event {
            Event::Step { client, tokens, .. } => return self.step(who, *client, *tokens, tally),
            _ if who != Who::Server => return,
            Event::RoundStarted { round, clients } => return self.start_round(*round, clients),
            // The table at the end says it.
            Event::Finished { .. } => return,
            Event::Left { .. } if tally.rounds_done() == self.rounds => return,
            _ => {}
        }
        if let Some(line) = describe(event, |client| name_of(client, tally)) {
            self.note(&line);
        }
    }

    /// Takes the bars away.
    pub fn finish(&self) {
        self.total.disable_steady_tick();
        let _ = self.bars.clear();
    }

    fn start_round(&mut self, round: u32, clients: &[u32]) {
        self.round.number = round;
        self.round.started = Instant::now();
        self.round.tokens = 0;
        self.round.steps = clients.iter().map(|client| (*client, 0)).collect();
        self.total.set_prefix(format!("round {round}/{}", self.rounds));
        for bar in &self.clients {
            bar.set_position(0);
        }
    }

    fn step(&mut self, who: Who, client: u32, tokens: u32, tally: &Tally) {
        if who == Who::Server {
            self.round.tokens += u64::from(tokens);
            *self.round.steps.entry(client).or_default() += 1;
        }
        let Some(row) = tally.client_row(client) else { return };
        self.total.set_position(tally.steps());
        self.total.set_message(self.total_message(tally));
        if let Some(bar) = self.clients.get(client as usize) {
            bar.set_position(self.round.steps.get(&client).copied().unwrap_or(0));
            let loss = row.loss_last.map_or(String::new(), |loss| format!("loss {loss:.4}  "));
            let (up, down, wait) = (bytes(row.bytes_up), bytes(row.bytes_down), seconds(row.wait_s));
            bar.set_message(format!("{loss}up {up}  down {down}  waited {wait}"));
        }
    }

    fn total_message(&self, tally: &Tally) -> String {
        let elapsed = self.round.started.elapsed().as_secs_f64().max(1e-3);
        let speed = self.round.tokens as f64 / elapsed;
        let loss =
            tally.round_row(self.round.number).and_then(|row| row.train_loss).map_or(String::new(), |loss| format!("loss {loss:.4}  "));
        let (up, down) = tally.bytes();
        format!("{loss}{speed:.0} tokens/s  up {}  down {}{}", bytes(up), bytes(down), self.waiting_for(tally))
    }

    /// Names those who are still at it when somebody has finished.
    fn waiting_for(&self, tally: &Tally) -> String {
        let is_done = |steps: &u64| *steps >= self.round.local_steps;
        if !self.round.steps.values().any(is_done) {
            return String::new();
        }
        let late: Vec<String> =
            self.round.steps.iter().filter(|(_, steps)| !is_done(steps)).map(|(client, _)| name_of(*client, tally)).collect();
        if late.is_empty() { String::new() } else { format!("  waiting for {}", late.join(", ")) }
    }
}

fn name_of(client: u32, tally: &Tally) -> String {
    let name = tally.client_row(client).map(|row| row.name.clone()).filter(|name| !name.is_empty());
    name.unwrap_or_else(|| format!("client {client}"))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("our own templates parse").progress_chars("=> ")
}
