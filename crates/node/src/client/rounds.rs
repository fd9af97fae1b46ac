//! What a client does in a round: its steps, several of them in flight, then its update; and its scores.

use super::flight::{Flight, Part};
use super::{Break, Client, Sent};
use crate::error::NodeError;
use crate::event::Event;
use crate::phases::Phases;
use crate::prepare::rectangle;
use crate::side::{ClientSide, Doing};
use crate::state::RoundStart;
use cutlayer_data::Batch;
use cutlayer_model::Moments;
use cutlayer_transport::LinkError;
use cutlayer_wire::{EvalSums, Frame, FrameKind, Message, RoundId, StepId, Weighting};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Batches of an evaluation that are in flight: the next one's forward hides the wire, and nothing waits for its gradient.
const EVALUATIONS_AHEAD: usize = 1;
/// Rounds whose start is kept: that under way, and the next; a server that was killed may ask for the one before again.
const STARTS_KEPT: usize = 3;

impl Client<'_> {
    /// Local steps of one round, then the update.
    pub(super) async fn train(&mut self, round: RoundId) -> Result<(), Break> {
        self.adopt(round.previous()).await?;
        self.begin_round(round).await?;
        let (mut tokens, mut sequences) = (0u64, 0u64);
        let (steps, ahead) = (self.agreed.plan.local_steps, usize::from(self.agreed.plan.pipeline.staleness));
        let mut flights = VecDeque::new();
        for index in 0..steps {
            let batch = self.prepared.batches.next_batch();
            sequences += u64::from(batch.samples);
            tokens += u64::from(batch.scored());
            self.report.steps += 1;
            self.report.tokens += batch.tokens() as u64;
            flights.push_back(self.launch(round, index, &batch, true).await?);
            while flights.len() > ahead || (index + 1 == steps && !flights.is_empty()) {
                self.land(&mut flights, true).await?;
            }
        }
        self.session.update(round)?;
        let weight = match self.agreed.plan.weighting {
            Weighting::Tokens => tokens as f64,
            Weighting::Samples => sequences as f64,
            Weighting::Uniform => 1.0,
        };
        let state = self.route.side.run("read the adapter", |side| side.state()).await?;
        let update = self.globals.update(round, weight, &self.door.base, state)?;
        // A process that is started after this may hear of the next round first.
        self.keep_start(round.next()).await?;
        self.report.rounds += 1;
        self.sent = Some(Sent::Update(update));
        self.send_answer().await
    }

    /// What the round starts from: as it was, where it was begun before or a process before this one ended the round before it; else from
    /// here, and that is kept.
    async fn begin_round(&mut self, round: RoundId) -> Result<(), NodeError> {
        let remembered = self.starts.range(..=round).next_back().map(|(of, start)| (*of, start.clone()));
        let known = match (remembered, &self.store) {
            (Some(start), _) => Some(start),
            (None, Some(store)) => store.load(round)?,
            (None, None) => None,
        };
        match known {
            // Nothing has changed since.
            Some((of, start)) if self.stands_at == Some(of) => drop(self.starts.insert(round, start)),
            Some((_, start)) => {
                self.prepared.batches.restore(&start.batches)?;
                let moments = start.moments.clone();
                self.route.side.run("begin the round again", move |side| side.begin_again(moments)).await??;
                self.starts.insert(round, start);
            }
            None => self.keep_start(round).await?,
        }
        self.stands_at = None;
        Ok(())
    }

    /// Keeps where this side stands as what `round` starts from.
    async fn keep_start(&mut self, round: RoundId) -> Result<(), NodeError> {
        // Where the plan says so, the global adapter that the round begins with resets the optimizer: nothing of it is left to come back.
        let moments = match self.agreed.plan.optimizer.reset_each_round {
            true => Moments::new(),
            false => self.route.side.run("read the optimizer", |side| side.moments()).await?,
        };
        let start = RoundStart { batches: self.prepared.batches.state(), moments };
        if let Some(store) = self.store.clone() {
            let kept = start.clone();
            let saved = tokio::task::spawn_blocking(move || store.save(round, kept)).await;
            saved.map_err(|_| NodeError::Panicked { during: "keeping the start of a round".into() })??;
        }
        self.starts.insert(round, start);
        while self.starts.len() > STARTS_KEPT {
            self.starts.pop_first();
        }
        self.stands_at = Some(round);
        Ok(())
    }

    /// Sums over this client's held-out records.
    pub(super) async fn evaluate(&mut self, round: RoundId) -> Result<(), Break> {
        self.adopt(round).await?;
        let (mut sums, mut flights) = (EvalSums::default(), VecDeque::new());
        let batches = self.prepared.evaluation.len();
        for index in 0..batches {
            let batch = self.prepared.evaluation[index].clone();
            flights.push_back(self.launch(round, index as u32, &batch, false).await?);
            while flights.len() > EVALUATIONS_AHEAD || (index + 1 == batches && !flights.is_empty()) {
                sums.add(&self.land(&mut flights, false).await?);
            }
        }
        let scores = Message::Evaluated { round, sums };
        self.session.sent(&scores)?;
        self.sent = Some(Sent::Scores(scores));
        self.send_answer().await
    }

    /// Sends the update or the scores. Whether they arrive shows when the next connection says what is still waited for.
    async fn send_answer(&mut self) -> Result<(), Break> {
        match self.hand_over().await {
            Ok(()) => Ok(()),
            Err(lost) => self.resume(lost.into()).await,
        }
    }

    /// The update or the scores, over the connection that there is.
    pub(super) async fn hand_over(&mut self) -> Result<(), LinkError> {
        match &self.sent {
            Some(Sent::Update(update)) => self.route.link.send_adapter(update).await,
            Some(Sent::Scores(scores)) => self.control.send(scores).await,
            None => Ok(()),
        }
    }

    /// Opens a step: each micro-batch's forward pass here, while those before it are on their way.
    async fn launch(&mut self, round: RoundId, index: u32, batch: &Batch, train: bool) -> Result<Flight, Break> {
        let micro_batches = if train { usize::from(self.agreed.plan.pipeline.micro_batches) } else { 1 };
        let (tokens, scored) = (batch.tokens() as u32, batch.scored());
        let mut flight = Flight {
            parts: VecDeque::new(),
            told: (tokens, rectangle(&self.agreed.plan.batch, &batch.lengths), scored),
            sums: EvalSums::default(),
            bytes: (0, 0),
            waited: Duration::ZERO,
            computed: Duration::ZERO,
            phases: None,
        };
        let parts = batch.split(micro_batches);
        let whole = (parts.len() as u16, scored);
        for (micro, part) in parts.into_iter().enumerate() {
            let step = self.session.open_step(round, train, index, micro as u32)?;
            let (started, part) = (Instant::now(), Arc::new(part));
            let job = move |side: &mut ClientSide| forward(side, step, part, train, whole);
            let (doing, frame, phases) = self.route.side.run("forward", job).await??;
            flight.computed += started.elapsed();
            flight.add_phases(phases);
            flight.parts.push_back(Part::send(&self.route, doing, frame).await);
        }
        Ok(flight)
    }

    /// Waits for the answers to the oldest step under way, and takes the step.
    async fn land(&mut self, flights: &mut VecDeque<Flight>, train: bool) -> Result<EvalSums, Break> {
        let mut step = None;
        while let Some(part) = flights.front_mut().and_then(|flight| flight.parts.front_mut()) {
            let waited = Instant::now();
            let answer = match part.answer().await {
                Ok(answer) => answer,
                Err(lost) => {
                    self.resume(lost).await?;
                    for part in flights.iter_mut().flat_map(|flight| &mut flight.parts) {
                        part.send_again(&self.route).await;
                    }
                    continue;
                }
            };
            let flight = flights.front_mut().expect("its part was just looked at");
            let doing = flight.parts.pop_front().expect("it was just answered").doing.clone();
            flight.waited += waited.elapsed().saturating_sub(answer.computed);
            flight.computed += answer.computed;
            flight.add_phases(answer.phases);
            flight.sums.add(&answer.sums);
            flight.bytes = (flight.bytes.0 + answer.bytes.0, flight.bytes.1 + answer.bytes.1);
            step = Some(doing.step);
            if let Some(gradient) = answer.frame.filter(|frame| frame.header.kind == FrameKind::Gradient) {
                let started = Instant::now();
                let phases = self.route.side.run("backward", move |side| backward(side, &doing, &gradient)).await??;
                flight.computed += started.elapsed();
                flight.add_phases(phases);
            }
        }
        let mut flight = flights.pop_front().expect("there is a step to land");
        if let (true, Some(step)) = (train, step) {
            let started = Instant::now();
            let phases = self.route.side.run("update", move |side| update(side, step)).await?;
            flight.computed += started.elapsed();
            flight.add_phases(phases);
            self.tell(step, &flight);
        }
        Ok(flight.sums)
    }

    fn tell(&self, step: StepId, flight: &Flight) {
        let (tokens, rectangle, scored) = flight.told;
        (self.events)(Event::Step {
            client: self.agreed.client,
            round: step.round().0,
            step: step.index() + 1,
            loss: flight.sums.mean_loss(),
            tokens,
            rectangle,
            scored,
            bytes_up: flight.bytes.0,
            bytes_down: flight.bytes.1,
            wait_ms: flight.waited.as_secs_f64() * 1e3,
            compute_ms: flight.computed.as_secs_f64() * 1e3,
            phases: flight.phases,
        });
    }
}

impl Flight {
    fn add_phases(&mut self, phases: Option<Phases>) {
        match (&mut self.phases, phases) {
            (Some(all), Some(more)) => *all += more,
            (all, Some(more)) => *all = Some(more),
            (_, None) => {}
        }
    }
}

fn forward(
    side: &mut ClientSide,
    step: StepId,
    batch: Arc<Batch>,
    train: bool,
    whole: (u16, u32),
) -> Result<(Doing, Frame, Option<Phases>), NodeError> {
    side.take_phases();
    let doing = side.begin(step, batch, train, whole)?;
    let frame = side.forward(&doing)?;
    Ok((doing, frame, side.take_phases()))
}

fn backward(side: &mut ClientSide, doing: &Doing, gradient: &Frame) -> Result<Option<Phases>, NodeError> {
    side.take_phases();
    side.backward(doing, gradient)?;
    Ok(side.take_phases())
}

fn update(side: &mut ClientSide, step: StepId) -> Option<Phases> {
    side.take_phases();
    side.update(step);
    side.take_phases()
}
