//! Goal: whatever is lost on the way, the run that comes out is the run that nothing happened to, to the bit.
//! Method: servers and clients in runtimes of their own, which are torn down in the middle of a step so that not one packet says goodbye,
//! and started again; links that are cut for longer than a connection lives.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Ground, ground, plan, serve_config, texts};
use cutlayer_model::PeftFolder;
use cutlayer_node::{
    ClientData, ComputeConfig, Event, EventSink, JoinConfig, JoinReport, NodeError, ServeConfig, ServeReport, Stop, join, serve,
};
use cutlayer_transport::{AllowList, Emulator, Identity, LinkConfig, LinkError, Profile, connect};
use cutlayer_wire::{AdapterState, CutPoint, Encoding, Pipeline, Plan, ServerAdapters, StepOrder};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
/// Whatever a test waits for comes within this.
const SOON: Duration = Duration::from_secs(120);

/// Where a client cuts, and how many blocks it keeps at the end.
type Shape = (u16, Option<u16>);

/// A run whose processes are runtimes.
struct Stage {
    ground: Ground,
    plan: Plan,
    shapes: Vec<Shape>,
    encodings: (Encoding, Encoding, Encoding),
    keys: PathBuf,
    addr: SocketAddr,
    events: Arc<Mutex<Vec<Event>>>,
}

/// A process, as it were.
struct Process<T> {
    runtime: Option<Runtime>,
    ended: mpsc::Receiver<Result<T, NodeError>>,
}

impl<T> Process<T> {
    /// Ends it as `kill -9` does: nothing more is said, computed or written.
    fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    fn report(self) -> Result<T, NodeError> {
        self.ended.recv_timeout(SOON).expect("it ends in time")
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

impl Stage {
    fn new(plan: Plan, shapes: &[Shape]) -> Self {
        let ground = ground();
        let keys = ground.run.path().join("keys");
        Identity::generate().unwrap().save(&keys).unwrap();
        let allow = AllowList::open(&keys).unwrap();
        for index in 0..shapes.len() {
            let client = Identity::generate().unwrap();
            client.save(&ground.run.path().join(format!("keys-{index}"))).unwrap();
            allow.allow(&format!("client-{index}"), client.peer_id()).unwrap();
        }
        // A port that is free now; the server needs the same one each time.
        let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let addr = socket.local_addr().unwrap();
        let encodings = (Encoding::F32, Encoding::F32, Encoding::F32);
        Self { ground, plan, shapes: shapes.to_vec(), encodings, keys, addr, events: Arc::default() }
    }

    fn watch(&self, on: impl Fn(&Event) + Send + Sync + 'static) -> EventSink {
        let kept = self.events.clone();
        Arc::new(move |event| {
            on(&event);
            kept.lock().unwrap().push(event);
        })
    }

    fn link(&self) -> LinkConfig {
        LinkConfig { idle_timeout: Duration::from_millis(1500), handshake_wait: Duration::from_secs(5), ..LinkConfig::default() }
    }

    fn serve(&self, on: impl Fn(&Event) + Send + Sync + 'static) -> Process<ServeReport> {
        let (encodings, clients) = (self.encodings, self.shapes.len() as u32);
        let config = ServeConfig {
            listen: self.addr,
            state: Some(self.ground.run.path().join("state")),
            reconnect: Duration::from_secs(60),
            join_deadline: SOON,
            round_deadline: SOON,
            activations: encodings.0,
            gradients: encodings.1,
            adapters: encodings.2,
            link: self.link(),
            ..serve_config(&self.ground, &self.plan, clients)
        };
        let (runtime, (tell, ended)) = (runtime(), mpsc::channel());
        let (sink, keys) = (self.watch(on), self.keys.clone());
        runtime.spawn(async move {
            let started = Instant::now();
            loop {
                let identity = Identity::load(&keys).unwrap();
                let allow = Arc::new(AllowList::open(&keys).unwrap());
                match serve(config.clone(), &identity, allow, sink.clone(), Stop::new()).await {
                    // The one before is a runtime of this process: its last thread may still hold the port or the folder.
                    Err(NodeError::Link(LinkError::AddressInUse { .. }) | NodeError::Checkpoint(_)) if started.elapsed() < SOON => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    outcome => return drop(tell.send(outcome)),
                }
            }
        });
        Process { runtime: Some(runtime), ended }
    }

    fn join(&self, index: usize, on: impl Fn(&Event) + Send + Sync + 'static) -> Process<JoinReport> {
        self.join_at(index, self.addr, on)
    }

    fn join_at(&self, index: usize, server: SocketAddr, on: impl Fn(&Event) + Send + Sync + 'static) -> Process<JoinReport> {
        let (cut, tail) = self.shapes[index];
        let config = JoinConfig {
            server,
            server_id: Identity::load(&self.keys).unwrap().peer_id(),
            token: None,
            model: self.ground.model.path().into(),
            compute: ComputeConfig::default(),
            cut: CutPoint(cut),
            tail,
            name: format!("client-{index}"),
            link: self.link(),
            reconnect: SOON,
            state: Some(self.ground.run.path().join(format!("state-{index}"))),
            out: Some(self.ground.run.path().join(format!("own-{index}"))),
            phases: false,
        };
        let (runtime, (tell, ended)) = (runtime(), mpsc::channel());
        let (sink, keys) = (self.watch(on), self.ground.run.path().join(format!("keys-{index}")));
        runtime.spawn(async move {
            let started = Instant::now();
            loop {
                let identity = Identity::load(&keys).unwrap();
                let data = ClientData { train: texts(index), eval: texts(index + 10) };
                match join(config.clone(), &identity, data, sink.clone(), Stop::new()).await {
                    // The server's runtime may still be about to listen, this client's last one may hold its folder.
                    Err(NodeError::Link(error)) if error.is_lost() && started.elapsed() < SOON => {}
                    Err(NodeError::Checkpoint(_)) if started.elapsed() < SOON => {}
                    outcome => return drop(tell.send(outcome)),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Process { runtime: Some(runtime), ended }
    }

    fn adapter(&self) -> AdapterState {
        PeftFolder::read(&self.ground.run.path().join("adapter")).unwrap().1
    }

    /// The same run without anything happening to it.
    fn undisturbed(&self) -> (AdapterState, ServeReport) {
        let calm = Self { encodings: self.encodings, ..Self::new(self.plan.clone(), &self.shapes) };
        let server = calm.serve(|_| {});
        let clients: Vec<_> = (0..calm.shapes.len()).map(|index| calm.join(index, |_| {})).collect();
        clients.into_iter().for_each(|client| drop(client.report().unwrap()));
        let report = server.report().unwrap();
        (calm.adapter(), report)
    }

    fn assert_undisturbed(&self, report: &ServeReport, what: &str) {
        let (adapter, calm) = self.undisturbed();
        assert!(self.adapter() == adapter, "{what}: another adapter came out");
        assert_eq!((report.rounds, &report.evaluations), (calm.rounds, &calm.evaluations), "{what}");
        let last = self.plan.rounds;
        for index in 0..self.shapes.len() {
            let own = PeftFolder::read(&self.ground.run.path().join(format!("own-{index}"))).unwrap().1;
            assert!(own.iter().all(|(key, tensor)| adapter[key] == *tensor), "{what}: client {index} leaves with adapter {last}");
        }
    }

    fn count(&self, of: impl Fn(&Event) -> bool) -> usize {
        self.events.lock().unwrap().iter().filter(|event| of(event)).count()
    }
}

/// Sends once when a step of that round and place has been taken.
fn at_step(round: u32, step: u32) -> (impl Fn(&Event) + Send + Sync + 'static, mpsc::Receiver<()>) {
    let (tell, heard) = mpsc::channel();
    let on = move |event: &Event| {
        if matches!(event, Event::Step { round: of, step: at, .. } if (*of, *at) == (round, step)) {
            let _ = tell.send(());
        }
    };
    (on, heard)
}

fn exact_plans() -> Vec<(&'static str, Plan)> {
    let mut own = Plan { rounds: 3, local_steps: 4, ..plan() };
    own.adapter.dropout = 0.1;
    let mut shared = Plan { server_adapters: ServerAdapters::Shared, step_order: StepOrder::Lockstep, ..own.clone() };
    shared.optimizer.reset_each_round = true;
    let micro = Plan { pipeline: Pipeline { micro_batches: 2, staleness: 0 }, ..own.clone() };
    vec![("own adapters", own), ("a shared adapter", shared), ("micro-batches", micro)]
}

const SHAPES: [Shape; 2] = [(1, None), (1, Some(1))];

/// A server that is killed in the middle of a round goes on from the round before.
#[test]
fn a_killed_server_resumes() {
    for (what, plan) in exact_plans() {
        let stage = Stage::new(plan, &SHAPES);
        let (on, reached) = at_step(2, 2);
        let server = stage.serve(on);
        let clients: Vec<_> = (0..2).map(|index| stage.join(index, |_| {})).collect();
        reached.recv_timeout(SOON).unwrap();
        server.kill();
        let server = stage.serve(|_| {});
        let reports: Vec<JoinReport> = clients.into_iter().map(|client| client.report().unwrap()).collect();
        let report = server.report().unwrap();
        assert!(reports.iter().all(|report| report.reconnects > 0), "{what}: {reports:?}");
        assert_eq!(stage.count(|event| matches!(event, Event::Resumed { round: 1, starts: 2 })), 1, "{what}");
        stage.assert_undisturbed(&report, what);
    }
}

/// A client that is killed in the middle of a round takes it up again; the server computes none of its steps twice.
#[test]
fn a_killed_client_resumes() {
    for (what, plan) in exact_plans() {
        for victim in 0..2 {
            let stage = Stage::new(plan.clone(), &SHAPES);
            let server = stage.serve(|_| {});
            let (on, reached) = at_step(2, 2);
            let killed = stage.join(victim, on);
            let other = stage.join(1 - victim, |_| {});
            reached.recv_timeout(SOON).unwrap();
            killed.kill();
            let again = stage.join(victim, |_| {});
            let (again, other, report) = (again.report().unwrap(), other.report().unwrap(), server.report().unwrap());
            // What became of round 1 is said again to the process that did not hear it.
            assert_eq!((other.accepted, again.accepted), (3, 3), "{what}");
            stage.assert_undisturbed(&report, what);
        }
    }
}

/// Everything is killed, and started again.
#[test]
fn everything_killed_resumes() {
    for (what, plan) in exact_plans() {
        let stage = Stage::new(plan, &SHAPES);
        let (on, reached) = at_step(3, 1);
        let server = stage.serve(on);
        let clients: Vec<_> = (0..2).map(|index| stage.join(index, |_| {})).collect();
        reached.recv_timeout(SOON).unwrap();
        server.kill();
        clients.into_iter().for_each(Process::kill);
        let clients: Vec<_> = (0..2).map(|index| stage.join(index, |_| {})).collect();
        let server = stage.serve(|_| {});
        clients.into_iter().for_each(|client| drop(client.report().unwrap()));
        let report = server.report().unwrap();
        stage.assert_undisturbed(&report, what);
    }
}

/// A client whose link is dead for longer than a connection lives goes on where it was: no step is taken again.
#[test]
fn a_lost_connection_resumes() {
    for (what, plan) in exact_plans() {
        for victim in 0..2 {
            let stage = Stage::new(plan.clone(), &SHAPES);
            let outside = runtime();
            let link = outside.block_on(async { Emulator::start(LOOPBACK, stage.addr, &Profile::Loopback.conditions(), 5).unwrap() });
            let server = stage.serve(|_| {});
            let (on, reached) = at_step(2, 2);
            let cut_off = stage.join_at(victim, link.local_addr(), on);
            let other = stage.join(1 - victim, |_| {});
            reached.recv_timeout(SOON).unwrap();
            link.cut(Duration::from_secs(4));
            let (cut_off, other, report) = (cut_off.report().unwrap(), other.report().unwrap(), server.report().unwrap());
            assert!(cut_off.reconnects >= 1 && other.reconnects == 0, "{what}: {cut_off:?}, {other:?}");
            assert_eq!((cut_off.accepted, cut_off.steps), (3, 12), "{what}: {cut_off:?}");
            assert!(stage.count(|event| matches!(event, Event::Back { resumed: true, .. })) >= 2, "{what}: on both sides");
            assert_eq!(stage.count(|event| matches!(event, Event::Back { resumed: false, .. } | Event::Left { .. })), 0, "{what}");
            stage.assert_undisturbed(&report, what);
        }
    }
}

/// A client that runs ahead of its gradients survives the same; what comes out depends on when, so it only has to learn.
#[test]
fn a_stale_pipeline_resumes_too() {
    let plan = Plan { rounds: 4, local_steps: 6, pipeline: Pipeline { micro_batches: 2, staleness: 2 }, ..plan() };
    let stage = Stage::new(plan, &SHAPES);
    let (on, reached) = at_step(2, 2);
    let server = stage.serve(on);
    let clients: Vec<_> = (0..2).map(|index| stage.join(index, |_| {})).collect();
    reached.recv_timeout(SOON).unwrap();
    server.kill();
    let server = stage.serve(|_| {});
    clients.into_iter().for_each(|client| drop(client.report().unwrap()));
    let report = server.report().unwrap();
    assert_eq!(report.rounds, 4);
    let (first, last) = (&report.evaluations.first().unwrap().1, &report.evaluations.last().unwrap().1);
    assert!(last.loss_sum < first.loss_sum, "{first:?}, {last:?}");
}

/// A run that is resumed with another plan is refused, and says what to do.
#[test]
fn another_plan_is_refused() {
    let mut stage = Stage::new(Plan { rounds: 1, ..plan() }, &[(1, None)]);
    let server = stage.serve(|_| {});
    stage.join(0, |_| {}).report().unwrap();
    server.report().unwrap();
    stage.plan.optimizer.learning_rate = 0.5;
    let error = stage.serve(|_| {}).report().unwrap_err().to_string();
    assert!(error.contains("another plan") && error.contains("--state"), "{error}");
}

/// Of two processes with one key the newer takes part, and the older is told; it does not come back to fight.
#[test]
fn the_newer_of_two_processes_with_one_key_counts() {
    let stage = Stage::new(Plan { rounds: 3, local_steps: 4, ..plan() }, &[(1, None)]);
    let server = stage.serve(|_| {});
    let (on, reached) = at_step(1, 2);
    let older = stage.join(0, on);
    reached.recv_timeout(SOON).unwrap();
    let keys = stage.ground.run.path().join("keys-0");
    let (addr, server_id, link) = (stage.addr, Identity::load(&stage.keys).unwrap().peer_id(), stage.link());
    // Only a connection: whoever says Hello takes the seat.
    let meddler = runtime();
    let taken = meddler.block_on(async move {
        let link = connect(addr, &Identity::load(&keys).unwrap(), server_id, None, &link).await.unwrap();
        let mut control = link.open_control().await.unwrap();
        control.send(&hello(&stage)).await.unwrap();
        let welcome = control.recv().await.unwrap();
        (stage, link, welcome)
    });
    assert!(matches!(taken.2, cutlayer_wire::Message::Welcome { resumed: false, .. }), "{:?}", taken.2);
    let told = older.report().unwrap_err().to_string();
    assert!(told.contains("another process connected"), "{told}");
    drop((taken, server));
}

fn hello(stage: &Stage) -> cutlayer_wire::Message {
    let folder = cutlayer_model::ModelFolder::open(stage.ground.model.path()).unwrap();
    let spec = cutlayer_model::read_spec(&folder).unwrap();
    cutlayer_wire::Message::Hello {
        version: cutlayer_wire::PROTOCOL_VERSION,
        base: folder.base_hash().unwrap(),
        blocks: spec.blocks as u16,
        hidden: spec.hidden as u32,
        cut: CutPoint(1),
        tail: None,
        encodings: cutlayer_wire::EncodingPart::ALL.to_vec(),
        samples: 1,
        eval_samples: 1,
        name: "meddler".into(),
        resume: None,
    }
}
