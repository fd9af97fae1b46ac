//! One connection of a client: hello, then its steps, its updates and its scores, until either side leaves or the connection is lost.
//!
//! Whatever goes wrong here ends this session alone. One whose connection is lost keeps its seat for a while.

use super::Hub;
use super::admission::admit;
use super::queue::{Queued, Ran};
use super::roster::{Command, Seat};
use crate::edge::{Edge, Opened};
use crate::error::NodeError;
use crate::event::Event;
use crate::phases::Phases;
use crate::prepare::rectangle;
use cutlayer_model::lora;
use cutlayer_transport::{Control, Link, StepStream};
use cutlayer_wire::{
    AdapterLimits, AdapterState, Frame, FrameFlags, FrameKind, FrameLimits, Message, ServerSession, SessionError, SessionEvent, Weighting,
};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::{Semaphore, mpsc};

/// A client that is in, over one of its connections.
pub(super) struct Session {
    pub hub: Arc<Hub>,
    pub link: Link,
    pub seat: Arc<Seat>,
    /// Which of the seat's connections this is.
    pub visit: u64,
    /// Tensors that the client trains itself.
    pub keys: Vec<String>,
    /// Steps of which not all micro-batches are answered.
    pub served: Mutex<BTreeMap<u32, Served>>,
}

/// What a step came to on the server, so far.
#[derive(Default)]
pub(super) struct Served {
    sums: cutlayer_wire::EvalSums,
    tokens: u32,
    rectangle: u32,
    bytes_up: u64,
    bytes_down: u64,
    wait_ms: f64,
    compute_ms: f64,
    phases: Option<Phases>,
}

/// A step in the line for the compute thread.
struct Waiting {
    frame: Arc<Frame>,
    /// Whether it came before.
    again: bool,
    wait_ms: f64,
    opened: Queued,
}

/// Serves one connection, the `accepted`-th, from hello to its end.
pub(super) async fn serve_client(hub: Arc<Hub>, link: Link, accepted: u64) {
    let peer = link.peer();
    match admit(&hub, &link, accepted).await {
        Ok(None) => {}
        Ok(Some((session, control, commands))) => {
            let session = Arc::new(session);
            let outcome = session.run(control, commands).await;
            session.end(outcome).await;
        }
        Err(error) => {
            (hub.events)(Event::Refused { peer: peer.to_hex(), reason: error.to_string() });
            link.close(&error.to_string()).await;
        }
    }
}

impl Session {
    async fn run(self: &Arc<Self>, control: Control, commands: mpsc::Receiver<Command>) -> Result<String, NodeError> {
        let (speaker, listener) = control.split();
        tokio::select! {
            ended = self.clone().obey(speaker, commands) => ended,
            ended = self.clone().listen(listener) => ended,
            ended = self.clone().serve_steps() => ended,
            ended = self.clone().take_updates() => ended,
        }
    }

    /// Says what the coordinator wants said.
    async fn obey(
        self: Arc<Self>,
        mut speaker: cutlayer_transport::ControlSender,
        mut commands: mpsc::Receiver<Command>,
    ) -> Result<String, NodeError> {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Say(message) => speaker.send(&message).await?,
                Command::Adopt { round, state } => {
                    let part: AdapterState = self.keys.iter().filter_map(|key| Some((key.clone(), state.get(key)?.clone()))).collect();
                    if let Some(frame) = self.seat.pack(self.visit, round, &self.hub.base, part)? {
                        self.link.send_adapter(&frame).await?;
                    }
                }
            }
        }
        // The seat has given this connection up; the link says how.
        Err(self.link.closed().await.into())
    }

    /// Hears what the client says on the control stream.
    async fn listen(self: Arc<Self>, mut listener: cutlayer_transport::ControlReceiver) -> Result<String, NodeError> {
        loop {
            let message = listener.recv().await?;
            // What is counted is also told: nothing can end this session in between.
            let told = self.place_to_tell().await?;
            match self.ordered(|order| order.handle(&message))? {
                SessionEvent::Evaluated { round, sums } => {
                    told.send(cutlayer_federation::Event::Evaluated { peer: self.seat.peer, round, sums });
                }
                SessionEvent::Goodbye => {
                    let Message::Goodbye { reason } = message else { unreachable!("Goodbye is made of Goodbye") };
                    return Ok(reason);
                }
                other => tracing::debug!("{}: nothing to do for {other:?}", self.seat.hello.name),
            }
        }
    }

    /// Serves steps in the order in which they come; the next is read while those before it are computed, as many as the plan has in
    /// flight.
    async fn serve_steps(self: Arc<Self>) -> Result<String, NodeError> {
        let (trouble, mut troubles) = mpsc::channel(1);
        // One more, whose bytes come in while the others wait.
        let room = Arc::new(Semaphore::new(self.hub.plan.pipeline.in_flight() + 1));
        loop {
            let permit = room.clone().acquire_owned().await.expect("nobody closes it");
            let mut stream = tokio::select! {
                stream = self.link.accept_step() => stream?,
                Some(error) = troubles.recv() => return Err(error),
            };
            let frame = stream.recv(&self.limits()).await?;
            let again = match self.ordered(|order| order.step(&frame.header))? {
                SessionEvent::Step { .. } => false,
                SessionEvent::Again { .. } => true,
                late => {
                    tracing::debug!("{}: {late:?}", self.seat.hello.name);
                    stream.send(Frame::failed(&frame.header, "the round went on without this client")).await?;
                    stream.finish().await?;
                    continue;
                }
            };
            let waiting = self.line_up(frame, again).await;
            let (session, trouble) = (self.clone(), trouble.clone());
            // It goes on where this connection is lost: what was queued is computed once, and its answer kept.
            tokio::spawn(async move {
                if let Err(error) = session.answer(stream, waiting).await {
                    // The first trouble is enough.
                    let _ = trouble.try_send(error);
                }
                drop(permit);
            });
        }
    }

    /// Gives a step its place in the line for the compute thread.
    async fn line_up(&self, frame: Frame, again: bool) -> Waiting {
        let (waiting, client, header) = (Instant::now(), self.seat.client, frame.header);
        if header.flags.has(FrameFlags::TRAIN) {
            self.hub.turns.wait(client, header.step).await;
        }
        let wait_ms = waiting.elapsed().as_secs_f64() * 1e3;
        let frame = Arc::new(frame);
        let opened = self.hub.steps.push(client, frame.clone()).await;
        Waiting { frame, again, wait_ms, opened }
    }

    /// Waits for a step's computation and answers; for a U-shape the client's turn comes in between.
    async fn answer(&self, mut stream: StepStream, waiting: Waiting) -> Result<(), NodeError> {
        let Waiting { frame, again, wait_ms, opened } = waiting;
        let (client, train, step) = (self.seat.client, frame.header.flags.has(FrameFlags::TRAIN), frame.header.step);
        let Ran { outcome, compute_ms, phases } = opened.ran().await?;
        let mut opened = self.checked(&mut stream, &frame, outcome).await?;
        let mut part = Served {
            tokens: frame.header.tokens,
            rectangle: rectangle(&self.hub.plan.batch, &frame.lengths),
            bytes_up: frame.header.payload_bytes,
            bytes_down: opened.answer.header.payload_bytes,
            wait_ms,
            compute_ms,
            phases,
            ..Served::default()
        };
        if opened.answer.header.kind == FrameKind::Hidden {
            stream.send(opened.answer).await?;
            if !train {
                return stream.finish().await.map_err(Into::into);
            }
            let gradient = stream.recv(&self.limits().answering(&frame.header)).await?;
            part.bytes_up += gradient.header.payload_bytes;
            let at = frame.clone();
            let close = move |edge: &mut Edge| timed(edge, |edge| edge.close(client, &at, &gradient));
            let Ran { outcome, compute_ms: more_ms, phases: more_phases } = self.hub.edge.run("backward", close).await?;
            opened = self.checked(&mut stream, &frame, outcome).await?;
            part.bytes_down += opened.answer.header.payload_bytes;
            part.compute_ms += more_ms;
            part.phases = part.phases.zip(more_phases).map(|(mut phases, more)| {
                phases += more;
                phases
            });
        }
        part.sums = opened.answer.header.sums();
        if train && opened.answer.header.kind == FrameKind::Failed {
            // The client gives the round up: nobody waits for its steps.
            self.hub.turns.leave(frame.header.round, client);
        } else if train && opened.over {
            self.hub.turns.done(client, step);
        }
        if train && !again && opened.answer.header.kind != FrameKind::Failed {
            self.tell(&frame, part, opened.over);
        }
        stream.send(opened.answer).await?;
        Ok(stream.finish().await?)
    }

    /// What was computed; or the client is told what is wrong with its step before its session ends.
    async fn checked(&self, stream: &mut StepStream, frame: &Frame, outcome: Result<Opened, NodeError>) -> Result<Opened, NodeError> {
        match outcome {
            Ok(opened) => Ok(opened),
            Err(error) => {
                self.hub.turns.leave(frame.header.round, self.seat.client);
                stream.send(Frame::failed(&frame.header, &error.to_string())).await?;
                stream.finish().await?;
                Err(error)
            }
        }
    }

    /// Tells of a step once all of its micro-batches are served.
    fn tell(&self, frame: &Frame, part: Served, over: bool) {
        let step = frame.header.step;
        let mut served = self.served.lock().expect("no holder of this lock panics");
        let whole = served.entry(step.index()).or_default();
        whole.add(part);
        if !over {
            return;
        }
        let Some(whole) = served.remove(&step.index()) else { return };
        drop(served);
        (self.hub.events)(Event::Step {
            client: self.seat.client,
            round: step.round().0,
            step: step.index() + 1,
            loss: whole.sums.mean_loss(),
            tokens: whole.tokens,
            rectangle: whole.rectangle,
            scored: whole.sums.scored as u32,
            bytes_up: whole.bytes_up,
            bytes_down: whole.bytes_down,
            wait_ms: whole.wait_ms,
            compute_ms: whole.compute_ms,
            phases: whole.phases,
        });
    }

    /// Takes updates; no client weighs more than the work that the server saw it do.
    async fn take_updates(self: Arc<Self>) -> Result<String, NodeError> {
        let shapes = lora::shapes(
            &self.hub.spec,
            &self.hub.plan.adapter,
            0..self.hub.spec.blocks,
            true,
            crate::prepare::classes(&self.hub.plan.task),
        )?;
        let limits =
            AdapterLimits::encoded(shapes.values().map(|shape| shape.iter().product::<usize>() as u64).sum(), self.seat.encodings.adapters);
        loop {
            let frame = self.link.recv_adapter(&limits).await?;
            let (client, round) = (self.seat.client, frame.round);
            let work = self.hub.edge.run("count", move |edge| edge.end_round(client, round)).await?;
            // What is counted is also told: nothing can end this session in between.
            let told = self.place_to_tell().await?;
            match self.ordered(|order| order.update(round))? {
                SessionEvent::Update { .. } => {
                    let mut frame = self.seat.restored(frame)?;
                    let seen = match self.hub.plan.weighting {
                        Weighting::Tokens => work.scored.unwrap_or(work.tokens) as f64,
                        Weighting::Samples => work.sequences as f64,
                        Weighting::Uniform => 1.0,
                    };
                    frame.weight = if frame.weight > seen { seen } else { frame.weight };
                    self.hub.turns.leave(round, client);
                    told.send(cutlayer_federation::Event::Updated { peer: self.seat.peer, frame });
                }
                late => tracing::info!("{}: {late:?}", self.seat.hello.name),
            }
        }
    }

    fn limits(&self) -> FrameLimits {
        let tokens_max = self.hub.plan.batch.batch_tokens_max();
        FrameLimits::new(self.hub.spec.hidden as u32, tokens_max, tokens_max)
            .encoded(self.seat.encodings.activations, self.seat.encodings.gradients)
    }

    /// Asks the order of the session, as long as this is the client's connection.
    fn ordered<T>(&self, ask: impl FnOnce(&mut ServerSession) -> Result<T, SessionError>) -> Result<T, NodeError> {
        let replaced = || NodeError::Ended { reason: "its client came back over another connection".into() };
        Ok(self.seat.ordered(self.visit, ask).ok_or_else(replaced)??)
    }

    /// A place for something to tell the coordinator.
    async fn place_to_tell(&self) -> Result<mpsc::Permit<'_, cutlayer_federation::Event>, NodeError> {
        self.hub.reports.reserve().await.map_err(|_| NodeError::Ended { reason: "the run is over".into() })
    }

    /// A connection that is lost is waited for; any other end clears the client's place, and the round goes on.
    pub async fn end(&self, outcome: Result<String, NodeError>) {
        let revoked = !self.hub.roster.is_allowed(&self.seat.peer);
        let (client, name) = (self.seat.client, self.seat.hello.name.clone());
        match outcome {
            Err(error) if error.is_lost() && !revoked => {
                if !self.seat.lost(self.visit) {
                    return;
                }
                let reason = error.to_string();
                if !self.hub.over.load(Ordering::Relaxed) {
                    (self.hub.events)(Event::Away { client, name, reason: reason.clone() });
                }
                let (hub, seat, visit) = (self.hub.clone(), self.seat.clone(), self.visit);
                tokio::spawn(async move {
                    tokio::time::sleep(hub.reconnect).await;
                    if seat.expired(visit) {
                        let waited_s = hub.reconnect.as_secs();
                        leave(&hub, &seat, format!("{reason}; it did not come back within {waited_s} s")).await;
                    }
                });
            }
            outcome => {
                let reason = if revoked { "its key was revoked".into() } else { outcome.unwrap_or_else(|error| error.to_string()) };
                if self.seat.leave(self.visit) {
                    leave(&self.hub, &self.seat, reason.clone()).await;
                }
                self.link.close(&reason).await;
            }
        }
    }
}

/// A client is gone for good. Its seat is free once the coordinator has heard of it. One that leaves because the run is over is no news.
async fn leave(hub: &Hub, seat: &Seat, reason: String) {
    hub.turns.go(seat.client);
    hub.roster.stir();
    if !hub.over.load(Ordering::Relaxed) {
        (hub.events)(Event::Left { client: seat.client, name: seat.hello.name.clone(), reason: reason.clone() });
        if hub.reports.send(cutlayer_federation::Event::Left { peer: seat.peer, reason }).await.is_ok() {
            return;
        }
    }
    hub.roster.remove(&seat.peer);
}

impl Served {
    /// Adds another micro-batch of the same step.
    fn add(&mut self, part: Self) {
        self.sums.add(&part.sums);
        self.tokens += part.tokens;
        self.rectangle += part.rectangle;
        self.bytes_up += part.bytes_up;
        self.bytes_down += part.bytes_down;
        self.wait_ms += part.wait_ms;
        self.compute_ms += part.compute_ms;
        match (&mut self.phases, part.phases) {
            (Some(all), Some(more)) => *all += more,
            (all, more) => *all = more,
        }
    }
}

/// Runs a job on the edge.
fn timed(edge: &mut Edge, job: impl FnOnce(&mut Edge) -> Result<Opened, NodeError>) -> Ran {
    edge.take_phases();
    let started = Instant::now();
    let outcome = job(edge);
    Ran { outcome, compute_ms: started.elapsed().as_secs_f64() * 1e3, phases: edge.take_phases() }
}
