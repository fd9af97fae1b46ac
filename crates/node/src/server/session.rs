//! One client's connection: hello, then its steps, its updates and its scores, until either side leaves.
//!
//! Whatever goes wrong here ends this session alone.

use super::Hub;
use super::roster::Command;
use crate::edge::Edge;
use crate::error::NodeError;
use crate::event::Event;
use crate::phases::Phases;
use crate::prepare::rectangle;
use cutlayer_model::lora;
use cutlayer_transport::{Control, Link, StepStream};
use cutlayer_wire::{
    AdapterFrame, AdapterLimits, AdapterState, Encoding, Frame, FrameFlags, FrameHeader, FrameKind, FrameLimits, Message, PROTOCOL_VERSION,
    PeerId, RefusalCode, RoundId, ServerSession, SessionEvent, Weighting,
};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long a client may take to introduce itself.
const HELLO_WAIT: Duration = Duration::from_secs(30);

/// What a client said at hello.
struct Hello {
    cut: u16,
    tail: Option<u16>,
    name: String,
    samples: u64,
}

/// A client that is in.
struct Session {
    hub: Arc<Hub>,
    link: Link,
    peer: PeerId,
    client: u32,
    name: String,
    order: Mutex<ServerSession>,
    keys: Vec<String>,
    /// The global adapter that the client was last sent, where its updates are differences from it.
    sent: Mutex<Option<(RoundId, AdapterState)>>,
}

/// What a step came to on the server.
struct Served {
    /// The last frame owed to the client.
    answer: Frame,
    /// The step's number in its round, from 1.
    step: u32,
    bytes_up: u64,
    bytes_down: u64,
    compute_ms: f64,
    /// Tokens of the padded rectangle.
    rectangle: u32,
    phases: Option<Phases>,
}

/// Serves one connection from hello to goodbye.
pub(super) async fn serve_client(hub: Arc<Hub>, link: Link) {
    let peer = link.peer();
    match admit(&hub, &link).await {
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

/// Hello and its answer. `None` where the client was refused, and told why.
async fn admit(hub: &Arc<Hub>, link: &Link) -> Result<Option<(Session, Control, mpsc::Receiver<Command>)>, NodeError> {
    let silent = || NodeError::Ended { reason: format!("it did not say Hello within {} s", HELLO_WAIT.as_secs()) };
    let mut control = tokio::time::timeout(HELLO_WAIT, link.accept_control()).await.map_err(|_| silent())??;
    let mut order = ServerSession::new();
    let hello = tokio::time::timeout(HELLO_WAIT, control.recv()).await.map_err(|_| silent())??;
    order.handle(&hello)?;
    let peer = link.peer();
    let seat = judge(hub, &hello).and_then(|hello| match hub.roster.enter(peer, &hello.name) {
        Ok((client, commands)) => Ok((hello, client, commands)),
        Err(reason) => Err((RefusalCode::Full, reason)),
    });
    let (hello, client, commands) = match seat {
        Ok(seat) => seat,
        Err((code, reason)) => {
            (hub.events)(Event::Refused { peer: peer.to_hex(), reason: reason.clone() });
            control.send(&Message::Refused { code, reason: reason.clone() }).await?;
            control.finish().await;
            link.close(&reason).await;
            return Ok(None);
        }
    };
    match welcome(hub, link, &mut control, order, hello, client).await {
        Ok(session) => Ok(Some((session, control, commands))),
        Err(error) => {
            // The seat is free again for whoever comes next.
            hub.roster.leave(&peer);
            hub.edge.run("unseat", move |edge| edge.unseat(client)).await?;
            Err(error)
        }
    }
}

/// Gives a client that has a seat its layers on the server, and the plan.
async fn welcome(
    hub: &Arc<Hub>,
    link: &Link,
    control: &mut Control,
    mut order: ServerSession,
    hello: Hello,
    client: u32,
) -> Result<Session, NodeError> {
    let peer = link.peer();
    let (cut, tail) = (usize::from(hello.cut), hello.tail.map(usize::from));
    hub.edge.run("seat", move |edge| edge.seat(client, peer, cut, tail)).await??;
    let welcome = Message::Welcome {
        plan: hub.plan.clone(),
        activations: hub.encodings.0,
        gradients: hub.encodings.1,
        adapters: hub.adapters,
        client,
        clients: hub.clients_expected,
        id: cutlayer_wire::RunId { run: 0, start: 1 },
        resumed: false,
        awaits: None,
        updated: None,
    };
    order.sent(&welcome)?;
    control.send(&welcome).await?;
    let keys = client_keys(hub, cut, tail)?;
    let (tail, samples) = (hello.tail, hello.samples);
    (hub.events)(Event::Joined { client, name: hello.name.clone(), peer_id: peer.to_hex(), cut: hello.cut, tail, samples });
    let joined = cutlayer_federation::Event::Joined { peer, client, keys: keys.clone() };
    let session = Session {
        hub: hub.clone(),
        link: link.clone(),
        peer,
        client,
        name: hello.name,
        order: Mutex::new(order),
        keys,
        sent: Mutex::default(),
    };
    session.report(joined).await?;
    Ok(session)
}

/// What is wrong with a Hello, in the client's words.
fn judge(hub: &Hub, hello: &Message) -> Result<Hello, (RefusalCode, String)> {
    let Message::Hello { version, base, blocks, hidden, cut, tail, encodings, samples, name, .. } = hello else {
        return Err((RefusalCode::Plan, "a session starts with Hello".into()));
    };
    if *version != PROTOCOL_VERSION {
        let reason = format!("this server speaks protocol {PROTOCOL_VERSION}, the client {version}; update the older of the two");
        return Err((RefusalCode::Version, reason));
    }
    if (*base, usize::from(*blocks), *hidden as usize) != (hub.base, hub.spec.blocks, hub.spec.hidden) {
        let reason = format!(
            "the client's base model is {base} ({blocks} blocks of {hidden}), the run's is {}; use the run's model folder",
            hub.base
        );
        return Err((RefusalCode::BaseModel, reason));
    }
    if cut.0 < hub.first_block {
        return Err((
            RefusalCode::Cut,
            format!("cut {cut} is below block {}, the first that this server holds; raise the cut", hub.first_block),
        ));
    }
    if cut.0 + tail.unwrap_or(0) > *blocks {
        return Err((RefusalCode::Cut, format!("cut {cut} and a tail of {} do not fit {blocks} blocks", tail.unwrap_or(0))));
    }
    if tail.is_none() && !hub.head {
        return Err((RefusalCode::Cut, "this server holds no head and serves U-shaped clients only; set a tail".into()));
    }
    for needed in [hub.encodings.0, hub.encodings.1, hub.adapters] {
        if let Some(part) = needed.parts().into_iter().find(|part| !encodings.contains(part)) {
            let reason = format!("the run uses encoding {needed}, and this client does not know {part}; update it");
            return Err((RefusalCode::Encoding, reason));
        }
    }
    Ok(Hello { cut: cut.0, tail: *tail, name: name.clone(), samples: *samples })
}

/// Tensors that a client trains itself.
fn client_keys(hub: &Hub, cut: usize, tail: Option<usize>) -> Result<Vec<String>, NodeError> {
    let blocks = hub.spec.blocks;
    let own = (0..cut).chain(blocks - tail.unwrap_or(0)..blocks);
    let classes = crate::prepare::classes(&hub.plan.task);
    Ok(lora::shapes(&hub.spec, &hub.plan.adapter, own, tail.is_some(), classes)?.into_keys().collect())
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
                Command::Say(message) => {
                    self.ordered(|order| order.sent(&message))?;
                    speaker.send(&message).await?;
                }
                Command::Adopt { round, state } => {
                    let part: AdapterState = self.keys.iter().filter_map(|key| Some((key.clone(), state.get(key)?.clone()))).collect();
                    if self.hub.adapters != Encoding::F32 {
                        *self.sent.lock().expect("no holder of this lock panics") = Some((round, part.clone()));
                    }
                    self.link.send_adapter(&AdapterFrame::new(round, 0.0, &self.hub.base, part)).await?;
                }
            }
        }
        Ok("it did not read what it was told".into())
    }

    /// Hears what the client says on the control stream.
    async fn listen(self: Arc<Self>, mut listener: cutlayer_transport::ControlReceiver) -> Result<String, NodeError> {
        loop {
            let message = listener.recv().await?;
            match self.ordered(|order| order.handle(&message))? {
                SessionEvent::Evaluated { round, sums } => {
                    self.report(cutlayer_federation::Event::Evaluated { peer: self.peer, round, sums }).await?;
                }
                SessionEvent::Goodbye => {
                    let Message::Goodbye { reason } = message else { unreachable!("Goodbye is made of Goodbye") };
                    return Ok(reason);
                }
                other => tracing::debug!("{}: nothing to do for {other:?}", self.name),
            }
        }
    }

    /// Serves steps, one after the other.
    async fn serve_steps(self: Arc<Self>) -> Result<String, NodeError> {
        loop {
            let mut stream = self.link.accept_step().await?;
            let frame = stream.recv(&self.limits()).await?;
            match self.ordered(|order| order.step(&frame.header))? {
                SessionEvent::Step { train } => self.serve_step(&mut stream, frame, train).await?,
                late => {
                    tracing::debug!("{}: {late:?}", self.name);
                    stream.send(Frame::failed(&frame.header, "the round went on without this client")).await?;
                }
            }
            stream.finish().await?;
        }
    }

    async fn serve_step(&self, stream: &mut StepStream, opened: Frame, train: bool) -> Result<(), NodeError> {
        let waiting = Instant::now();
        if train {
            self.hub.turns.wait(self.client).await;
        }
        let wait_ms = waiting.elapsed().as_secs_f64() * 1e3;
        let header = opened.header;
        let outcome = self.compute(stream, opened).await;
        if train {
            self.hub.turns.done(self.client);
        }
        match outcome {
            Ok(Some(served)) => {
                if train {
                    self.tell(&header, &served, wait_ms);
                }
                Ok(stream.send(served.answer).await?)
            }
            Ok(None) => Ok(()),
            Err(error) => {
                // The client is told before its session ends.
                stream.send(Frame::failed(&header, &error.to_string())).await?;
                stream.finish().await?;
                Err(error)
            }
        }
    }

    /// The server's computation; for a U-shape the client's turn comes in between. `None` where a U-shaped evaluation leaves
    /// nothing to answer.
    async fn compute(&self, stream: &mut StepStream, opened: Frame) -> Result<Option<Served>, NodeError> {
        let client = self.client;
        let train = opened.header.flags.has(FrameFlags::TRAIN);
        let opened = Arc::new(opened);
        let at = opened.clone();
        let rectangle = rectangle(&self.hub.plan.batch, &opened.lengths);
        let open = move |edge: &mut Edge| {
            edge.take_phases();
            (timed(|| edge.open(client, &at)), edge.work(client).steps, edge.take_phases())
        };
        let ((answer, compute_ms), step, phases) = self.hub.edge.run("step", open).await?;
        let answer = answer?;
        let (bytes_up, bytes_down) = (opened.header.payload_bytes, answer.header.payload_bytes);
        if answer.header.kind != FrameKind::Hidden {
            return Ok(Some(Served { answer, step, bytes_up, bytes_down, compute_ms, rectangle, phases }));
        }
        stream.send(answer).await?;
        if !train {
            return Ok(None);
        }
        let gradient = stream.recv(&self.limits().answering(&opened.header)).await?;
        let bytes_up = bytes_up + gradient.header.payload_bytes;
        let close = move |edge: &mut Edge| (timed(|| edge.close(client, &opened, &gradient)), edge.take_phases());
        let ((answer, more_ms), more_phases) = self.hub.edge.run("backward", close).await?;
        let answer = answer?;
        let bytes_down = bytes_down + answer.header.payload_bytes;
        let phases = phases.zip(more_phases).map(|(mut phases, more)| {
            phases += more;
            phases
        });
        Ok(Some(Served { answer, step, bytes_up, bytes_down, compute_ms: compute_ms + more_ms, rectangle, phases }))
    }

    fn tell(&self, header: &FrameHeader, served: &Served, wait_ms: f64) {
        let sums = served.answer.header.sums();
        (self.hub.events)(Event::Step {
            client: self.client,
            round: header.round.0,
            step: served.step,
            loss: sums.mean_loss(),
            tokens: header.tokens,
            rectangle: served.rectangle,
            scored: sums.scored as u32,
            bytes_up: served.bytes_up,
            bytes_down: served.bytes_down,
            wait_ms,
            compute_ms: served.compute_ms,
            phases: served.phases,
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
        let limits = AdapterLimits::encoded(shapes.values().map(|shape| shape.iter().product::<usize>() as u64).sum(), self.hub.adapters);
        loop {
            let mut frame = self.link.recv_adapter(&limits).await?;
            match self.ordered(|order| order.update(frame.round))? {
                SessionEvent::Update { .. } => {
                    frame = self.restored(frame)?;
                    let client = self.client;
                    let work = self.hub.edge.run("count", move |edge| edge.work(client)).await?;
                    let seen = match self.hub.plan.weighting {
                        Weighting::Tokens => work.scored.unwrap_or(work.tokens) as f64,
                        Weighting::Samples => work.sequences as f64,
                        Weighting::Uniform => 1.0,
                    };
                    frame.weight = if frame.weight > seen { seen } else { frame.weight };
                    self.hub.turns.leave(client);
                    self.report(cutlayer_federation::Event::Updated { peer: self.peer, frame }).await?;
                }
                late => tracing::info!("{}: {late:?}", self.name),
            }
        }
    }

    /// The update itself, where it came as a difference.
    fn restored(&self, frame: AdapterFrame) -> Result<AdapterFrame, NodeError> {
        let sent = self.sent.lock().expect("no holder of this lock panics");
        Ok(frame.restored(sent.as_ref().map(|(round, state)| (*round, state)))?)
    }

    fn limits(&self) -> FrameLimits {
        let tokens_max = self.hub.plan.batch.batch_tokens_max();
        FrameLimits::new(self.hub.spec.hidden as u32, tokens_max, tokens_max).encoded(self.hub.encodings.0, self.hub.encodings.1)
    }

    fn ordered<T>(&self, ask: impl FnOnce(&mut ServerSession) -> Result<T, cutlayer_wire::SessionError>) -> Result<T, NodeError> {
        Ok(ask(&mut self.order.lock().expect("no holder of this lock panics"))?)
    }

    async fn report(&self, event: cutlayer_federation::Event) -> Result<(), NodeError> {
        let ended = || NodeError::Ended { reason: "the run is over".into() };
        self.hub.reports.send(event).await.map_err(|_| ended())
    }

    /// Clears the client's place; its steps and its seat go, the round goes on. One that leaves because the run is over is no news.
    async fn end(&self, outcome: Result<String, NodeError>) {
        let revoked = !self.hub.roster.is_allowed(&self.peer);
        let reason = if revoked { "its key was revoked".into() } else { outcome.unwrap_or_else(|error| error.to_string()) };
        let client = self.client;
        self.hub.turns.leave(client);
        self.hub.roster.leave(&self.peer);
        // Both fail only when the run is over, and then nobody needs them.
        let _ = self.hub.edge.run("unseat", move |edge| edge.unseat(client)).await;
        let _ = self.report(cutlayer_federation::Event::Left { peer: self.peer, reason: reason.clone() }).await;
        if !self.hub.over.load(Ordering::Relaxed) {
            (self.hub.events)(Event::Left { client, name: self.name.clone(), reason: reason.clone() });
        }
        self.link.close(&reason).await;
    }
}

fn timed<T>(job: impl FnOnce() -> T) -> (T, f64) {
    let started = Instant::now();
    let value = job();
    (value, started.elapsed().as_secs_f64() * 1e3)
}
