//! The client: joins a run, takes its steps through the cut, sends its adapter, scores the global one.
//!
//! A server that is out of reach is waited for. One that still knows the session is sent again what was under way; one that was started
//! again asks for its round anew, which is taken from what was kept when it began.

mod door;
mod flight;
mod recover;
mod rounds;

use crate::compute::Compute;
use crate::compute_config::ComputeConfig;
use crate::error::NodeError;
use crate::event::{Event, EventSink};
use crate::prepare::{ClientData, Prepared, check_encodings, check_task, prepare};
use crate::side::{Agreement, ClientSide};
use crate::state::{RoundStart, RoundStore};
use crate::stop::Stop;
use cutlayer_model::{ModelFolder, PeftFolder, read_spec};
use cutlayer_transport::{Control, Identity, LinkConfig};
use cutlayer_wire::{
    AdapterFrame, Ask, ClientSession, CutPoint, FrameLimits, GlobalReceiver, Message, PeerId, RoundId, RunId, SessionError, SessionEvent,
};
pub(crate) use door::Pauses;
use door::{Door, Entered};
use flight::Route;
use recover::enter_first;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long the last global adapter may take to arrive once the run is over.
const LAST_ADAPTER_WAIT: Duration = Duration::from_secs(20);

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
    /// How long to look for a server that is out of reach.
    pub reconnect: Duration,
    /// Folder for what each round starts from, so that a client that was killed and started again takes up its round. Without it, it
    /// takes part again from the next round.
    pub state: Option<PathBuf>,
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
    /// Times the server was lost and found again.
    pub reconnects: u32,
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
    let door = Door {
        config: &config,
        identity,
        base: folder.base_hash()?,
        blocks: spec.blocks as u16,
        hidden: spec.hidden as u32,
        samples: data.train.len() as u64,
        eval_samples: data.eval.len() as u64,
    };
    // A client that was in the run before knows that there is a server.
    let patient = config.state.as_ref().is_some_and(|state| state.exists());
    let entered = enter_first(&door, patient, &events, &stop).await?;
    let Entered { link, control, session, agreed, welcome } = entered;
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
    let store = config.state.as_ref().map(|state| RoundStore::open(state, welcome.id.run, agreed.client)).transpose()?;
    let globals = GlobalReceiver::new(agreed.adapters);
    let mut client = Client {
        route: Route { link, limits, side },
        control,
        session,
        id: welcome.id,
        asked: welcome.awaits,
        doing: None,
        prepared,
        agreed,
        values,
        globals,
        starts: BTreeMap::new(),
        stands_at: None,
        store: store.map(Arc::new),
        sent: None,
        earlier_bytes: (0, 0),
        report: JoinReport::default(),
        events,
        door,
    };
    let outcome = tokio::select! {
        outcome = client.follow() => outcome,
        () = stop.triggered() => Err(NodeError::Ended { reason: "this client was stopped".into() }),
    };
    client.leave(outcome).await
}

fn check_cut(config: &JoinConfig, blocks: usize) -> Result<(), NodeError> {
    let tail = config.tail.unwrap_or(0);
    if usize::from(config.cut.0) + usize::from(tail) > blocks {
        return Err(NodeError::Cut { cut: config.cut.0, tail, blocks });
    }
    Ok(())
}

/// Why work that was asked for is not done.
enum Break {
    /// The round went on without this client: the next word says what is next.
    LeftBehind(String),
    /// The server was started again, or gave this client up: what it wants it asks for anew.
    Forgotten,
    /// The run is over for this client.
    Fatal(NodeError),
}

impl<E: Into<NodeError>> From<E> for Break {
    fn from(error: E) -> Self {
        match error.into() {
            NodeError::StepFailed { step, reason } => Self::LeftBehind(format!("{step}: {reason}")),
            NodeError::Session(SessionError::Superseded { round, phase }) => Self::LeftBehind(format!("round {round} is over, {phase}")),
            other => Self::Fatal(other),
        }
    }
}

struct Client<'a> {
    door: Door<'a>,
    route: Route,
    control: Control,
    session: ClientSession,
    /// The run, and the start of its server that the session is with.
    id: RunId,
    /// Work that a Welcome asked for, and that is not begun.
    asked: Option<Ask>,
    /// Work under way.
    doing: Option<Ask>,
    prepared: Prepared,
    agreed: Agreement,
    /// Values of this side's adapter.
    values: u64,
    /// The global adapters that came, and what updates are differences from.
    globals: GlobalReceiver,
    /// What the last rounds started from.
    starts: BTreeMap<RoundId, RoundStart>,
    /// The one of them that is as this side stands now.
    stands_at: Option<RoundId>,
    store: Option<Arc<RoundStore>>,
    /// The last update or scores, until there are others: they may have to be sent again.
    sent: Option<Sent>,
    /// Bytes of the connections before this one.
    earlier_bytes: (u64, u64),
    report: JoinReport,
    events: EventSink,
}

enum Sent {
    Update(AdapterFrame),
    Scores(Message),
}

impl Client<'_> {
    /// Does what the server asks until it says that the run is over.
    async fn follow(&mut self) -> Result<String, NodeError> {
        loop {
            if let Some(ask) = self.asked.take() {
                self.work(ask).await?;
                continue;
            }
            let message = match self.control.recv().await {
                Ok(message) => message,
                Err(lost) => {
                    self.recover(lost.into()).await?;
                    continue;
                }
            };
            match self.session.handle(&message)? {
                SessionEvent::Train { round, .. } => self.work(Ask::Train(round)).await?,
                SessionEvent::Evaluate { round } => self.work(Ask::Evaluate(round)).await?,
                SessionEvent::Settled { round, accepted } => {
                    let Message::Settled { reason, .. } = message else { unreachable!("Settled is made of Settled") };
                    self.report.accepted += u32::from(accepted);
                    (self.events)(Event::Updated { client: self.agreed.client, round: round.0, accepted, reason });
                }
                SessionEvent::Finish { adapter } => {
                    let Message::Finish { reason, .. } = message else { unreachable!("Finish is made of Finish") };
                    self.adopt_last(adapter).await;
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

    /// Does what was asked, or as much of it as is still wanted.
    async fn work(&mut self, ask: Ask) -> Result<(), NodeError> {
        self.doing = Some(ask);
        let done = match ask {
            Ask::Train(round) => self.train(round).await,
            Ask::Evaluate(round) => self.evaluate(round).await,
        };
        self.doing = None;
        match done {
            Ok(()) => Ok(()),
            Err(Break::Fatal(error)) => Err(error),
            Err(Break::Forgotten) => self.drop_steps().await,
            Err(Break::LeftBehind(reason)) => {
                tracing::warn!("given up: {reason}");
                self.drop_steps().await
            }
        }
    }

    async fn drop_steps(&self) -> Result<(), NodeError> {
        self.route.side.run("forget", ClientSide::forget_steps).await
    }

    /// Waits for the global adapter of `round` and installs it. The newest is always enough: a client that joins late starts from it.
    async fn adopt(&mut self, round: RoundId) -> Result<(), Break> {
        while self.session.adapter_round().is_none_or(|have| have < round) {
            match self.route.link.recv_adapter(&self.globals.limits(self.values)).await {
                Ok(frame) => self.install(frame).await?,
                Err(lost) => self.resume(lost.into()).await?,
            }
        }
        Ok(())
    }

    /// The run is over: its last adapter, if it comes. One that cannot be had any more is no reason to fail.
    async fn adopt_last(&mut self, round: RoundId) {
        let limit = tokio::time::Instant::now() + LAST_ADAPTER_WAIT;
        while self.session.adapter_round().is_none_or(|have| have < round) {
            let late = || NodeError::Ended { reason: format!("it took longer than {} s", LAST_ADAPTER_WAIT.as_secs()) };
            let came = match tokio::time::timeout_at(limit, self.route.link.recv_adapter(&self.globals.limits(self.values))).await {
                Ok(Ok(frame)) => self.install(frame).await,
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err(late()),
            };
            if let Err(error) = came {
                return tracing::warn!("the last global adapter did not come: {error}");
            }
        }
    }

    async fn install(&mut self, frame: AdapterFrame) -> Result<(), NodeError> {
        self.session.adapter(frame.round)?;
        let frame = self.globals.unpack(frame)?;
        self.route.side.run("install", move |side| side.install(frame.state)).await?
    }

    /// Says goodbye, saves what there is, and closes.
    async fn leave(mut self, outcome: Result<String, NodeError>) -> Result<JoinReport, NodeError> {
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
        let stats = self.route.link.stats();
        self.report.bytes = (self.earlier_bytes.0 + stats.bytes_sent, self.earlier_bytes.1 + stats.bytes_received);
        if let (Some(out), Some(_)) = (&self.door.config.out, self.session.adapter_round()) {
            let state = self.route.side.run("read the adapter", |side| side.state()).await?;
            let peft = crate::adapters::peft_config(&self.agreed.plan, &self.door.config.model)?;
            PeftFolder::write(out, &peft, &state)?;
        }
        self.route.link.close(&reason).await;
        self.report.reason = outcome?;
        Ok(self.report)
    }
}
