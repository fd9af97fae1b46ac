//! The client: joins a run, takes its steps through the cut, sends its adapter, scores the global one.

use crate::compute::Compute;
use crate::compute_config::ComputeConfig;
use crate::error::NodeError;
use crate::event::{Event, EventSink};
use crate::phases::Phases;
use crate::prepare::{ClientData, Prepared, check_encodings, check_task, prepare, rectangle};
use crate::schedule::StepClock;
use crate::side::{Agreement, ClientSide, Doing};
use crate::stop::Stop;
use cutlayer_data::Batch;
use cutlayer_model::{ModelFolder, PeftFolder, read_spec};
use cutlayer_transport::{Control, Identity, Link, LinkConfig, connect};
use cutlayer_wire::{
    AdapterFrame, AdapterLimits, AdapterState, BaseHash, ClientSession, CutPoint, Encoding, EncodingPart, EvalSums, Frame, FrameKind,
    FrameLimits, Message, PROTOCOL_VERSION, PeerId, RoundId, SessionEvent, Weighting,
};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// What a client brings to a run.
#[derive(Clone, Debug)]
pub struct JoinConfig {
    /// The server's address.
    pub server: SocketAddr,
    /// The server's identity, which the connection is pinned to.
    pub server_id: PeerId,
    /// A single-use token, at the first connection of a key that the server does not know.
    pub token: Option<String>,
    /// Folder of the base model.
    pub model: PathBuf,
    /// Where and how this side computes.
    pub compute: ComputeConfig,
    /// Blocks to run from the bottom.
    pub cut: CutPoint,
    /// Blocks to run from the top, with the head and the labels (U-shape); `None` for a vanilla split.
    pub tail: Option<u16>,
    /// What people call this client.
    pub name: String,
    /// The network.
    pub link: LinkConfig,
    /// Where to leave the last global adapter of this client's layers, as a PEFT folder.
    pub out: Option<PathBuf>,
    /// Whether to time the phases of each step and tell of them; on a GPU that costs the time to wait for it at each.
    pub phases: bool,
}

/// What a client did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JoinReport {
    /// Rounds it trained in.
    pub rounds: u32,
    /// Steps it took.
    pub steps: u64,
    /// Tokens in them.
    pub tokens: u64,
    /// Updates that are in a global adapter.
    pub accepted: u32,
    /// Bytes sent and received, as UDP carried them.
    pub bytes: (u64, u64),
    /// Why the run ended.
    pub reason: String,
}

/// Joins the run at `config.server` and stays until it ends or `stop` is raised.
pub async fn join(
    config: JoinConfig,
    identity: &Identity,
    data: ClientData,
    events: EventSink,
    stop: Stop,
) -> Result<JoinReport, NodeError> {
    let folder = ModelFolder::open(&config.model)?;
    let spec = read_spec(&folder)?;
    check_cut(&config, spec.blocks)?;
    let device = config.compute.device.open()?;
    let base = folder.base_hash()?;
    let link = connect(config.server, identity, config.server_id, config.token.as_deref(), &config.link).await?;
    let mut control = link.open_control().await?;
    let mut session = ClientSession::new();
    let hello = Message::Hello {
        version: PROTOCOL_VERSION,
        base,
        blocks: spec.blocks as u16,
        hidden: spec.hidden as u32,
        cut: config.cut,
        tail: config.tail,
        encodings: EncodingPart::ALL.to_vec(),
        samples: data.train.len() as u64,
        eval_samples: data.eval.len() as u64,
        name: config.name.clone(),
        resume: None,
    };
    session.sent(&hello)?;
    control.send(&hello).await?;
    let agreed = agree(&config, &mut control, &mut session).await?;
    check_task(&agreed.plan.task, &spec)?;
    check_encodings([agreed.activations, agreed.gradients], agreed.adapters, &spec)?;

    let (model, plan, client) = (config.model.clone(), agreed.plan.clone(), agreed.client);
    let prepared = tokio::task::spawn_blocking(move || prepare(&model, &data, &plan, client)).await;
    let prepared = prepared.map_err(|_| NodeError::Panicked { during: "tokenising".into() })??;
    if prepared.skipped > 0 {
        tracing::warn!("{} records hold nothing to score and were skipped", prepared.skipped);
    }
    let for_side = agreed.clone();
    let side = Compute::start("client", move || ClientSide::load(&folder, &device, for_side)).await?;
    let values = side.run("count", |side| side.adapter_values()).await?;
    let limits = FrameLimits::new(spec.hidden as u32, agreed.plan.batch.batch_tokens_max(), agreed.plan.batch.batch_tokens_max())
        .encoded(agreed.activations, agreed.gradients);
    let mut client = Client {
        link,
        control,
        session,
        side,
        prepared,
        agreed,
        limits,
        adapter_limits: AdapterLimits::for_values(values),
        started: None,
        base,
        events,
        report: JoinReport::default(),
    };
    let outcome = tokio::select! {
        outcome = client.follow() => outcome,
        () = stop.triggered() => Err(NodeError::Ended { reason: "this client was stopped".into() }),
    };
    client.leave(&config, outcome).await
}

fn check_cut(config: &JoinConfig, blocks: usize) -> Result<(), NodeError> {
    let tail = config.tail.unwrap_or(0);
    if usize::from(config.cut.0) + usize::from(tail) > blocks {
        return Err(NodeError::Cut { cut: config.cut.0, tail, blocks });
    }
    Ok(())
}

/// Reads the server's answer to Hello.
async fn agree(config: &JoinConfig, control: &mut Control, session: &mut ClientSession) -> Result<Agreement, NodeError> {
    let answer = control.recv().await?;
    session.handle(&answer)?;
    match answer {
        Message::Welcome { plan, activations, gradients, adapters, client, .. } => {
            plan.validate()?;
            let (cut, tail) = (config.cut.0.into(), config.tail.map(usize::from));
            let (phases, compute) = (config.phases, config.compute);
            Ok(Agreement { plan, activations, gradients, adapters, client, cut, tail, phases, compute })
        }
        Message::Refused { code, reason } => Err(NodeError::Refused { code, reason }),
        other => Err(NodeError::Ended { reason: format!("the server answered Hello with {}", other.name()) }),
    }
}

/// A batch in numbers.
struct Told {
    tokens: u32,
    rectangle: u32,
    scored: u32,
}

struct Client {
    link: Link,
    control: Control,
    session: ClientSession,
    side: Compute<ClientSide>,
    prepared: Prepared,
    agreed: Agreement,
    limits: FrameLimits,
    adapter_limits: AdapterLimits,
    /// The global adapter that the side started from, where updates are differences from it.
    started: Option<(RoundId, AdapterState)>,
    base: BaseHash,
    events: EventSink,
    report: JoinReport,
}

impl Client {
    /// Does what the server asks until it says that the run is over.
    async fn follow(&mut self) -> Result<String, NodeError> {
        loop {
            let message = self.control.recv().await?;
            match self.session.handle(&message)? {
                SessionEvent::Train { round, from } => {
                    self.adopt(from).await?;
                    let trained = self.train(round).await;
                    if unless_left_behind(round, trained)?.is_none() {
                        self.side.run("forget", ClientSide::forget_visits).await?;
                    }
                }
                SessionEvent::Evaluate { round } => {
                    self.adopt(round).await?;
                    let scored = self.evaluate(round).await;
                    match unless_left_behind(round, scored)? {
                        Some(sums) => {
                            let scores = Message::Evaluated { round, sums };
                            self.session.sent(&scores)?;
                            self.control.send(&scores).await?;
                        }
                        None => self.side.run("forget", ClientSide::forget_visits).await?,
                    }
                }
                SessionEvent::Settled { round, accepted } => {
                    let Message::Settled { reason, .. } = message else { unreachable!("Settled is made of Settled") };
                    self.report.accepted += u32::from(accepted);
                    (self.events)(Event::Updated { client: self.agreed.client, round: round.0, accepted, reason });
                }
                SessionEvent::Finish { .. } => {
                    let Message::Finish { reason, .. } = message else { unreachable!("Finish is made of Finish") };
                    return Ok(reason);
                }
                SessionEvent::Refused { code } => {
                    let Message::Refused { reason, .. } = message else { unreachable!("Refused is made of Refused") };
                    return Err(NodeError::Refused { code, reason });
                }
                SessionEvent::Goodbye => return Err(NodeError::Ended { reason: "the server said goodbye".into() }),
                other => tracing::debug!("nothing to do for {other:?}"),
            }
        }
    }

    /// Waits for the global adapter of `round` and installs it. The newest is always enough: a client that joins late starts from it.
    async fn adopt(&mut self, round: RoundId) -> Result<(), NodeError> {
        while self.session.adapter_round().is_none_or(|have| have < round) {
            let frame = self.link.recv_adapter(&self.adapter_limits).await?;
            self.session.adapter(frame.round)?;
            if self.agreed.adapters != Encoding::F32 {
                self.started = Some((frame.round, frame.state.clone()));
            }
            self.side.run("install", move |side| side.install(frame.state)).await??;
        }
        Ok(())
    }

    /// Local steps of one round, then the update.
    async fn train(&mut self, round: RoundId) -> Result<(), NodeError> {
        let (mut tokens, mut sequences) = (0u64, 0u64);
        for index in 0..self.agreed.plan.local_steps {
            let batch = Arc::new(self.prepared.batches.next_batch());
            sequences += u64::from(batch.samples);
            tokens += u64::from(batch.scored());
            self.report.steps += 1;
            self.report.tokens += batch.tokens() as u64;
            self.step(StepClock { round, index }, batch, true).await?;
        }
        self.session.update(round)?;
        let weight = match self.agreed.plan.weighting {
            Weighting::Tokens => tokens as f64,
            Weighting::Samples => sequences as f64,
            Weighting::Uniform => 1.0,
        };
        let state = self.side.run("read the adapter", |side| side.state()).await?;
        let mut update = AdapterFrame::new(round, weight, &self.base, state);
        if let Some((from, global)) = &self.started {
            update = update.against(self.agreed.adapters, *from, global)?;
        }
        self.link.send_adapter(&update).await?;
        self.report.rounds += 1;
        Ok(())
    }

    /// Sums over this client's held-out records.
    async fn evaluate(&mut self, round: RoundId) -> Result<EvalSums, NodeError> {
        let mut sums = EvalSums::default();
        for index in 0..self.prepared.evaluation.len() {
            let batch = Arc::new(self.prepared.evaluation[index].clone());
            sums.add(&self.step(StepClock { round, index: index as u32 }, batch, false).await?);
        }
        Ok(sums)
    }

    /// One step through the cut: forward here, the rest there, backward here, update.
    async fn step(&mut self, clock: StepClock, batch: Arc<Batch>, train: bool) -> Result<EvalSums, NodeError> {
        let started = Instant::now();
        let step = self.session.open_step(clock.round, train, clock.index, 0)?;
        let told =
            Told { tokens: batch.tokens() as u32, rectangle: rectangle(&self.agreed.plan.batch, &batch.lengths), scored: batch.scored() };
        let (doing, forward) = self.side.run("forward", move |side| forward(side, step, clock, batch, train)).await??;
        let mut bytes = (forward.header.payload_bytes, 0);
        let limits = self.limits.clone().answering(&forward.header);
        let waited = Instant::now();
        let mut stream = self.link.open_step().await?;
        stream.send(forward).await?;
        let mut answer = check(stream.recv(&limits).await?)?;
        let mut wait_ms = millis(waited);
        bytes.1 += answer.header.payload_bytes;
        let mut sums = answer.header.sums();
        if answer.header.kind == FrameKind::Hidden {
            let at = doing.clone();
            let (tail_sums, gradient) = self.side.run("tail", move |side| side.finish(&at, &answer)).await??;
            sums = tail_sums;
            let Some(gradient) = gradient else {
                stream.finish().await?;
                return Ok(sums);
            };
            bytes.0 += gradient.header.payload_bytes;
            let waited = Instant::now();
            stream.send(gradient).await?;
            answer = check(stream.recv(&limits).await?)?;
            wait_ms += millis(waited);
            bytes.1 += answer.header.payload_bytes;
        }
        stream.finish().await?;
        if train {
            let phases = self.side.run("backward", move |side| backward(side, &doing, &answer)).await??;
            self.tell(clock, sums, told, bytes, (wait_ms, millis(started) - wait_ms), phases);
        }
        Ok(sums)
    }

    fn tell(
        &self,
        clock: StepClock,
        sums: EvalSums,
        Told { tokens, rectangle, scored }: Told,
        bytes: (u64, u64),
        (wait_ms, compute_ms): (f64, f64),
        phases: Option<Phases>,
    ) {
        (self.events)(Event::Step {
            client: self.agreed.client,
            round: clock.round.0,
            step: clock.index + 1,
            loss: sums.mean_loss(),
            tokens,
            rectangle,
            scored,
            bytes_up: bytes.0,
            bytes_down: bytes.1,
            wait_ms,
            compute_ms,
            phases,
        });
    }

    /// Says goodbye, saves what there is, and closes.
    async fn leave(mut self, config: &JoinConfig, outcome: Result<String, NodeError>) -> Result<JoinReport, NodeError> {
        let reason = match &outcome {
            Ok(reason) => reason.clone(),
            Err(error) => error.to_string(),
        };
        let goodbye = Message::Goodbye { reason: cutlayer_wire::shorten_reason(&reason).into() };
        // Out of courtesy: the server also notices a closed connection.
        if self.session.sent(&goodbye).is_ok() {
            let _ = self.control.send(&goodbye).await;
        }
        self.control.finish().await;
        let stats = self.link.stats();
        self.report.bytes = (stats.bytes_sent, stats.bytes_received);
        if let (Some(out), Some(_)) = (&config.out, self.session.adapter_round()) {
            let state = self.side.run("read the adapter", |side| side.state()).await?;
            let peft = crate::adapters::peft_config(&self.agreed.plan, &config.model)?;
            PeftFolder::write(out, &peft, &state)?;
        }
        self.link.close(&reason).await;
        self.report.reason = outcome?;
        Ok(self.report)
    }
}

fn forward(
    side: &mut ClientSide,
    step: cutlayer_wire::StepId,
    clock: StepClock,
    batch: Arc<Batch>,
    train: bool,
) -> Result<(Doing, Frame), NodeError> {
    let doing = side.begin(step, clock, batch, train)?;
    side.take_phases();
    let frame = side.forward(&doing, clock.round)?;
    Ok((doing, frame))
}

fn backward(side: &mut ClientSide, doing: &Doing, answer: &Frame) -> Result<Option<Phases>, NodeError> {
    if answer.header.kind == FrameKind::Gradient {
        side.backward(doing, answer)?;
    }
    side.update(doing);
    Ok(side.take_phases())
}

/// A step that the server would not take is not the end: the round may have gone on without us, and the next message says
/// what is next. If the step failed for another reason, the server closes with it.
fn unless_left_behind<T>(round: RoundId, outcome: Result<T, NodeError>) -> Result<Option<T>, NodeError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(NodeError::StepFailed { step, reason }) => {
            tracing::warn!("round {round} is given up at {step}: {reason}");
            Ok(None)
        }
        Err(other) => Err(other),
    }
}

/// A step that failed on the server fails here, in the server's words.
fn check(answer: Frame) -> Result<Frame, NodeError> {
    match answer.reason() {
        Some(reason) => Err(NodeError::StepFailed { step: answer.header.step, reason: reason.into() }),
        None => Ok(answer),
    }
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
