//! Goal: a run over real sockets is the run that the mathematics says, and survives what goes wrong.
//! Method: a server and clients in one process over loopback QUIC, on a model drawn from a seed.
#![allow(clippy::unwrap_used)]

mod common;

use common::{BLOCKS, Ground, ROUNDS, assert_same, ground, plan, serve_config, texts};
use cutlayer_model::PeftFolder;
use cutlayer_node::{
    Auto, CentralConfig, CentralReport, ClientData, ComputeConfig, Event, EventSink, JoinConfig, JoinReport, NodeError, ServeConfig,
    ServeReport, Stop, central, join, no_events, serve,
};
use cutlayer_transport::{AllowList, Identity, LinkConfig, connect};
use cutlayer_wire::{AdapterState, CutPoint, Encoding, LinkFacts, OptimizerKind, PeerId, Plan, ServerAdapters, StepOrder, Weighting};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;

/// A server under way.
struct Running {
    addr: SocketAddr,
    server: PeerId,
    clients: Vec<Identity>,
    allow: Arc<AllowList>,
    events: Arc<Mutex<Vec<Event>>>,
    stop: Stop,
    ended: tokio::task::JoinHandle<Result<ServeReport, NodeError>>,
}

async fn start(ground: &Ground, config: ServeConfig, clients: usize) -> Running {
    let identity = Identity::generate().unwrap();
    let allow = Arc::new(AllowList::open(&ground.run.path().join("keys")).unwrap());
    let clients: Vec<Identity> = (0..clients).map(|_| Identity::generate().unwrap()).collect();
    for (index, client) in clients.iter().enumerate() {
        allow.allow(&format!("client-{index}"), client.peer_id()).unwrap();
    }
    let events = Arc::new(Mutex::new(vec![]));
    let (listening, addr) = oneshot::channel();
    let listening = Mutex::new(Some(listening));
    let kept = events.clone();
    let sink: EventSink = Arc::new(move |event| {
        if let (Event::Listening { addr, .. }, Some(listening)) = (&event, listening.lock().unwrap().take()) {
            listening.send(addr.parse::<SocketAddr>().unwrap()).unwrap();
        }
        kept.lock().unwrap().push(event);
    });
    let stop = Stop::new();
    let (server, stopping, list) = (identity.peer_id(), stop.clone(), allow.clone());
    let ended = tokio::spawn(async move { serve(config, &identity, list, sink, stopping).await });
    let addr = tokio::time::timeout(Duration::from_secs(20), addr).await.unwrap().unwrap();
    Running { addr, server, clients, allow, events, stop, ended }
}

impl Running {
    fn join_config(&self, ground: &Ground, cut: u16, tail: Option<u16>, name: &str) -> JoinConfig {
        JoinConfig {
            server: self.addr,
            server_id: self.server,
            token: None,
            model: ground.model.path().into(),
            compute: ComputeConfig::default(),
            cut: CutPoint(cut),
            tail,
            name: name.into(),
            link: LinkConfig::default(),
            reconnect: Duration::from_secs(20),
            state: None,
            out: None,
            phases: false,
        }
    }
}

/// Runs `plan` with one client at each of `cuts`; returns the adapter, the server's report and what happened.
async fn run(plan: &Plan, cuts: &[(u16, Option<u16>)]) -> (AdapterState, ServeReport, Vec<Event>, Vec<JoinReport>) {
    run_in(1 << 30, plan, cuts).await
}

/// The same with so many bytes for the tapes of a batch.
async fn run_in(
    batch_bytes_max: u64,
    plan: &Plan,
    cuts: &[(u16, Option<u16>)],
) -> (AdapterState, ServeReport, Vec<Event>, Vec<JoinReport>) {
    let ground = ground();
    let config = ServeConfig { batch_bytes_max, ..serve_config(&ground, plan, cuts.len() as u32) };
    let running = start(&ground, config, cuts.len()).await;
    let joins = cuts.iter().enumerate().map(|(index, &(cut, tail))| {
        let config = running.join_config(&ground, cut, tail, &format!("client-{index}"));
        let data = ClientData { train: texts(index), eval: texts(index + 10) };
        join(config, &running.clients[index], data, no_events(), Stop::new())
    });
    let mut reports = vec![];
    for report in futures_all(joins).await {
        reports.push(report.unwrap());
    }
    let report = running.ended.await.unwrap().unwrap();
    let (_, state) = PeftFolder::read(&ground.run.path().join("adapter")).unwrap();
    let events = running.events.lock().unwrap().clone();
    (state, report, events, reports)
}

/// Polls all at once; the futures borrow, so that they cannot be spawned.
async fn futures_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<std::pin::Pin<Box<F>>> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = waiting.iter().map(|_| None).collect();
    std::future::poll_fn(move |context| {
        for (future, slot) in waiting.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(output) = future.as_mut().poll(context)
            {
                *slot = Some(output);
            }
        }
        if done.iter().all(Option::is_some) {
            return std::task::Poll::Ready(done.iter_mut().map(|slot| slot.take().unwrap()).collect());
        }
        std::task::Poll::Pending
    })
    .await
}

fn uncut(plan: &Plan, clients: usize) -> (AdapterState, CentralReport) {
    let ground = ground();
    let out = ground.run.path().join("adapter");
    let config = CentralConfig {
        model: ground.model.path().into(),
        compute: ComputeConfig::default(),
        plan: plan.clone(),
        starting_adapter: None,
        clients: (0..clients).map(|index| ClientData { train: texts(index), eval: texts(index + 10) }).collect(),
        out: out.clone(),
        phases: false,
    };
    let report = central(config, &no_events(), &Stop::new()).unwrap();
    (PeftFolder::read(&out).unwrap().1, report)
}

/// One client, any cut, any shape: the adapter is that of the uncut model.
#[tokio::test(flavor = "multi_thread")]
async fn one_client_over_the_network_is_the_uncut_model() {
    let (expected, central) = uncut(&plan(), 1);
    for (cut, tail) in [(0, None), (2, None), (BLOCKS, None), (1, Some(1)), (1, Some(0)), (0, Some(BLOCKS))] {
        let (state, report, _, clients) = run(&plan(), &[(cut, tail)]).await;
        assert_same(&state, &expected, 2e-3, &format!("cut {cut}, tail {tail:?}"));
        assert_eq!((report.rounds, clients[0].steps, clients[0].accepted), (ROUNDS, 6, ROUNDS));
        for ((round, sums), (_, uncut)) in report.evaluations.iter().zip(&central.evaluations) {
            assert_eq!(sums.scored, uncut.scored);
            assert!((sums.loss_sum - uncut.loss_sum).abs() < 1e-3 * uncut.loss_sum, "cut {cut}, tail {tail:?}, round {round}");
        }
        assert!(report.evaluations[2].1.loss_sum < report.evaluations[0].1.loss_sum, "it learns");
    }
}

/// With dropout the masks agree at every cut too.
#[tokio::test(flavor = "multi_thread")]
async fn dropout_does_not_depend_on_the_cut() {
    let mut plan = plan();
    plan.adapter.dropout = 0.2;
    let (expected, _) = uncut(&plan, 1);
    let (state, ..) = run(&plan, &[(1, Some(1))]).await;
    assert_same(&state, &expected, 2e-3, "with dropout");
}

/// Three clients with a step each by SGD, weighted by tokens, are one step on all their data, whatever the mix of cuts.
#[tokio::test(flavor = "multi_thread")]
async fn mixed_cuts_average_to_the_joined_step() {
    let mut plan = plan();
    plan.optimizer.kind = OptimizerKind::Sgd;
    plan.optimizer.learning_rate = 0.3;
    plan.local_steps = 1;
    let (expected, _) = uncut(&plan, 3);
    let (state, ..) = run(&plan, &[(0, None), (2, None), (1, Some(1))]).await;
    assert_same(&state, &expected, 1e-4, "mixed cuts");
}

/// A server that computes waiting steps at once trains what one does that computes them one at a time, whatever meets in a batch.
#[tokio::test(flavor = "multi_thread")]
async fn batches_change_nothing() {
    let mut plan = plan();
    plan.adapter.dropout = 0.1;
    let cuts = [(0, None), (2, None), (1, None), (1, Some(1)), (1, None)];
    let (expected, report, ..) = run_in(0, &plan, &cuts).await;
    for bytes_max in [60_000, 1 << 30] {
        let (state, batched, ..) = run_in(bytes_max, &plan, &cuts).await;
        assert_same(&state, &expected, 1e-3, "in batches");
        assert_eq!(batched.evaluations.len(), report.evaluations.len());
    }
}

/// Two runs of one seed leave the same bytes, with an adapter for each client and, in lockstep, with a shared one.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_gives_the_same_bytes() {
    let mut plan = plan();
    plan.weighting = Weighting::Samples;
    let cuts = [(1, None), (2, None), (1, Some(1))];
    assert_eq!(run(&plan, &cuts).await.0, run(&plan, &cuts).await.0);
    plan.server_adapters = ServerAdapters::Shared;
    plan.step_order = StepOrder::Lockstep;
    assert_eq!(run(&plan, &cuts).await.0, run(&plan, &cuts).await.0);
}

/// Rounds follow one another without an evaluation in between.
#[tokio::test(flavor = "multi_thread")]
async fn rounds_need_no_evaluation_between_them() {
    let often = Plan { rounds: 4, ..plan() };
    let seldom = Plan { evaluate_every: 0, ..often.clone() };
    let cuts = [(1, None), (1, Some(1))];
    let ((state, report, ..), (other, ..)) = (run(&seldom, &cuts).await, run(&often, &cuts).await);
    assert_eq!(report.evaluations.iter().map(|(round, _)| *round).collect::<Vec<_>>(), [0, 4]);
    assert!(state == other, "evaluating changes nothing");
}

/// bf16 halves the bytes and learns all the same.
#[tokio::test(flavor = "multi_thread")]
async fn bf16_halves_the_bytes() {
    let ground = ground();
    let config = ServeConfig { activations: Encoding::BF16, gradients: Encoding::BF16, ..serve_config(&ground, &plan(), 1) };
    let running = start(&ground, config, 1).await;
    let data = ClientData { train: texts(0), eval: texts(10) };
    join(running.join_config(&ground, 1, None, "a"), &running.clients[0], data, no_events(), Stop::new()).await.unwrap();
    let report = running.ended.await.unwrap().unwrap();
    assert!(report.evaluations[2].1.loss_sum < report.evaluations[0].1.loss_sum);
    for event in running.events.lock().unwrap().iter() {
        if let Event::Step { tokens, bytes_up, bytes_down, .. } = event {
            // The last token of a sequence predicts nothing: its gradient is zero and stays on the server.
            let whole = u64::from(*tokens) * 64;
            assert_eq!(*bytes_up, whole);
            assert!((1..whole).contains(bytes_down), "{bytes_down} B down of {whole} B");
        }
    }
}

/// Four bits, rotated, both ways, and updates as differences in eight: an eighth of the bytes, and learns all the same.
#[tokio::test(flavor = "multi_thread")]
async fn small_encodings_learn_too() {
    let named = |name: &str| name.parse().unwrap();
    for (activations, gradients) in [("int4/32+hadamard", "int4/32+hadamard+stochastic"), ("int8+zstd", "f16"), ("bf16+topk=0.5", "int8")] {
        let (activations, gradients, adapters) = (named(activations), named(gradients), named("int8/64"));
        let ground = ground();
        let config = ServeConfig { activations, gradients, adapters, ..serve_config(&ground, &plan(), 1) };
        let running = start(&ground, config, 1).await;
        let data = ClientData { train: texts(0), eval: texts(10) };
        join(running.join_config(&ground, 1, None, "a"), &running.clients[0], data, no_events(), Stop::new()).await.unwrap();
        let report = running.ended.await.unwrap().unwrap();
        assert!(report.evaluations[2].1.loss_sum < report.evaluations[0].1.loss_sum, "{activations}, {gradients}");
        for event in running.events.lock().unwrap().iter() {
            if let Event::Step { tokens, bytes_up, bytes_down, .. } = event {
                let whole = u64::from(*tokens) * 128;
                assert!(*bytes_up < whole && *bytes_down < whole, "{bytes_up} up, {bytes_down} down of {whole}");
            }
        }
    }
}

/// Samples that come again travel as differences: fewer bytes in the second round than in the first, vanilla and U-shaped, and what
/// did not move at all takes next to none.
#[tokio::test(flavor = "multi_thread")]
async fn later_visits_take_fewer_bytes() {
    for (tail, activations) in [(None, "int4/32+delta"), (Some(1), "int8+moved=0.02")] {
        let ground = ground();
        let config = ServeConfig { activations: activations.parse().unwrap(), ..serve_config(&ground, &plan(), 1) };
        let running = start(&ground, config, 1).await;
        let data = ClientData { train: texts(0), eval: texts(10) };
        join(running.join_config(&ground, 1, tail, "a"), &running.clients[0], data, no_events(), Stop::new()).await.unwrap();
        let report = running.ended.await.unwrap().unwrap();
        assert!(report.evaluations[2].1.loss_sum < report.evaluations[0].1.loss_sum, "{activations}");
        let up = |of: u32| {
            let events = running.events.lock().unwrap();
            let bytes = events.iter().filter_map(|event| match event {
                Event::Step { round, tokens, bytes_up, .. } if *round == of => Some((*bytes_up, u64::from(*tokens))),
                _ => None,
            });
            bytes.fold((0, 0), |(bytes, tokens), (more, also)| (bytes + more, tokens + also))
        };
        // Three steps of four sequences see all twelve records in the first round, and again in the second.
        let ((first, tokens), (second, again)) = (up(1), up(2));
        assert_eq!(tokens, again);
        assert!(second < first, "{activations}: {first} B, then {second} B");
        if tail.is_none() {
            assert!(first > tokens * 64 && second < tokens * 24, "{first} B, then {second} B of {tokens} tokens");
        }
    }
}

/// Goal: what an encoding leaves out of gradients is fed back, on either side of a U-shape. Method: two bits, many visits of few
/// samples, and the same run without: feedback changes what is learned from the second visit on, and the frames stay as small.
#[tokio::test(flavor = "multi_thread")]
async fn gradients_are_fed_back() {
    for tail in [None, Some(1)] {
        let mut ends = vec![];
        for gradients in ["int2/32", "int2/32+feedback"] {
            let ground = ground();
            let plan = Plan { local_steps: 8, ..plan() };
            let config = ServeConfig { gradients: gradients.parse().unwrap(), ..serve_config(&ground, &plan, 1) };
            let running = start(&ground, config, 1).await;
            let data = ClientData { train: texts(0), eval: texts(10) };
            join(running.join_config(&ground, 1, tail, "a"), &running.clients[0], data, no_events(), Stop::new()).await.unwrap();
            let report = running.ended.await.unwrap().unwrap();
            assert!(report.evaluations[2].1.loss_sum < report.evaluations[0].1.loss_sum, "{gradients}");
            let events = running.events.lock().unwrap();
            let bytes = events.iter().filter_map(|event| if let Event::Step { bytes_down, .. } = event { Some(*bytes_down) } else { None });
            ends.push((report.evaluations[2].1.loss_sum, bytes.sum::<u64>()));
        }
        assert_ne!(ends[0].0, ends[1].0, "feedback changed nothing");
        assert_eq!(ends[0].1, ends[1].1, "feedback cost bytes");
    }
}

/// Goal: `auto` gives each client what its link wants, and says so. Method: two clients, one on a fast link and one on a slow one.
#[tokio::test(flavor = "multi_thread")]
async fn auto_chooses_for_each_client() {
    let link = |mbit: f64| LinkFacts { up_mbit: mbit, down_mbit: mbit, rtt_ms: 10.0 };
    let ground = ground();
    let auto = Auto { quality_budget: 0.005, links: vec![link(100_000.0), link(0.5)] };
    let running = start(&ground, ServeConfig { auto: Some(auto), ..serve_config(&ground, &plan(), 2) }, 2).await;
    let clients = (0..2).map(|index| {
        let data = ClientData { train: texts(index), eval: texts(10) };
        let config = running.join_config(&ground, 1, None, if index == 0 { "fast" } else { "slow" });
        join(config, &running.clients[index], data, no_events(), Stop::new())
    });
    futures_all(clients).await.into_iter().for_each(|report| assert_eq!(report.unwrap().accepted, ROUNDS));
    let report = running.ended.await.unwrap().unwrap();
    assert!(report.evaluations[2].1.loss_sum < report.evaluations[0].1.loss_sum);
    let events = running.events.lock().unwrap();
    let mut chosen: Vec<[&str; 4]> = events
        .iter()
        .filter_map(|event| match event {
            Event::Encodings { name, activations, gradients, adapters, .. } => {
                Some([name, activations, gradients, adapters].map(String::as_str))
            }
            _ => None,
        })
        .collect();
    chosen.sort_unstable();
    assert_eq!(chosen, [["fast", "f32", "f32", "f32"], ["slow", "int5/32+hadamard+zstd", "int3/32+hadamard+zstd", "int8+zstd"]]);
}

/// An encoding that the model's width cannot do ends the server before anyone joins, and says what can be done.
#[tokio::test]
async fn an_encoding_that_does_not_fit_is_refused_at_the_start() {
    let ground = ground();
    let config = ServeConfig { activations: "int4/64".parse().unwrap(), ..serve_config(&ground, &plan(), 1) };
    let allow = Arc::new(AllowList::open(&ground.run.path().join("keys")).unwrap());
    let error = serve(config, &Identity::generate().unwrap(), allow, no_events(), Stop::new()).await.unwrap_err().to_string();
    assert!(error.contains("groups divide the 32 features; 32 does"), "{error}");
}

/// A client that is stopped in the middle of a round is not waited for longer than the round's rules say; the run goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dies_mid_run_leaves_the_rest_unharmed() {
    let ground = ground();
    let plan = Plan { rounds: 6, ..plan() };
    let config = ServeConfig { updates_min: 1, ..serve_config(&ground, &plan, 2) };
    let running = start(&ground, config, 2).await;
    let stop = Stop::new();
    let steps = Mutex::new(0);
    let stopping = stop.clone();
    let dies: EventSink = Arc::new(move |event| {
        if matches!(event, Event::Step { round: 2, .. }) {
            *steps.lock().unwrap() += 1;
            stopping.trigger();
        }
    });
    let data = |index| ClientData { train: texts(index), eval: vec![] };
    let (stays, died) = tokio::join!(
        join(running.join_config(&ground, 1, None, "stays"), &running.clients[0], data(0), no_events(), Stop::new()),
        join(running.join_config(&ground, 2, None, "dies"), &running.clients[1], data(1), dies, stop),
    );
    assert!(died.unwrap_err().to_string().contains("stopped"));
    assert_eq!(stays.unwrap().accepted, 6);
    assert_eq!(running.ended.await.unwrap().unwrap().rounds, 6);
    let events = running.events.lock().unwrap();
    assert!(events.iter().any(|event| matches!(event, Event::Left { name, .. } if name == "dies")), "{events:?}");
}

/// Another base model, a cut that does not exist, a key that was thrown out, a second client with one key: each is told why.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_fit_are_told_why() {
    let ground = ground();
    let running = start(&ground, ServeConfig { first_block: 1, ..serve_config(&ground, &plan(), 2) }, 2).await;
    let refusal = async |config: JoinConfig, who: usize| {
        let data = ClientData { train: texts(0), eval: vec![] };
        join(config, &running.clients[who], data, no_events(), Stop::new()).await.unwrap_err().to_string()
    };
    let told = refusal(running.join_config(&ground, 0, None, "low"), 0).await;
    assert!(told.contains("first that this server holds"), "{told}");
    let told = refusal(running.join_config(&ground, 3, Some(1), "wide"), 0).await;
    assert!(told.contains("3 blocks"), "{told}");
    let other = self::ground();
    let mut config = running.join_config(&other, 1, None, "other model");
    std::fs::write(
        other.model.path().join("config.json"),
        std::fs::read_to_string(other.model.path().join("config.json")).unwrap().replace("10000.0", "20000.0"),
    )
    .unwrap();
    config.model = other.model.path().into();
    let told = refusal(config, 0).await;
    assert!(told.contains("base model"), "{told}");
    running.allow.revoke("client-1").unwrap();
    let told = refusal(running.join_config(&ground, 1, None, "revoked"), 1).await;
    assert!(told.contains("revoked"), "{told}");
    running.stop.trigger();
    let report = running.ended.await.unwrap().unwrap();
    assert!(report.reason.contains("stopped"), "{report:?}");
}

/// A peer that is in, and sends what no client sends.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_frame_ends_its_own_session_alone() {
    let ground = ground();
    let config = ServeConfig { updates_min: 1, ..serve_config(&ground, &plan(), 2) };
    let running = start(&ground, config, 2).await;
    let link = connect(running.addr, &running.clients[1], running.server, None, &LinkConfig::default()).await.unwrap();
    // Bytes that are no message, as the first word.
    let mut control = link.open_control().await.unwrap();
    control.send(&cutlayer_wire::Message::Goodbye { reason: "hello?".into() }).await.unwrap();
    let told = control.recv().await.unwrap_err().to_string();
    assert!(told.contains("closed the connection"), "{told}");
    running.stop.trigger();
    running.ended.await.unwrap().unwrap();
    let refused = |event: &Event| matches!(event, Event::Refused { reason, .. } if reason.contains("Goodbye"));
    assert!(running.events.lock().unwrap().iter().any(refused));
}

fn exists(path: &Path) -> bool {
    path.join("adapter_model.safetensors").exists()
}

/// Stopped before its end, a run leaves the adapter of its last committed round.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_run_keeps_what_it_has() {
    let ground = ground();
    let plan = Plan { rounds: 1000, ..plan() };
    let running = start(&ground, serve_config(&ground, &plan, 1), 1).await;
    let (stop, events) = (running.stop.clone(), running.events.clone());
    let stopper = tokio::spawn(async move {
        while !events.lock().unwrap().iter().any(|event| matches!(event, Event::Committed { round: 2, .. })) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.trigger();
    });
    let data = ClientData { train: texts(0), eval: vec![] };
    let report = join(running.join_config(&ground, 1, None, "a"), &running.clients[0], data, no_events(), Stop::new()).await.unwrap();
    stopper.await.unwrap();
    assert!(report.reason.contains("stopped"), "{report:?}");
    let report = running.ended.await.unwrap().unwrap();
    assert!(report.rounds >= 2 && report.rounds < 1000);
    assert!(exists(&ground.run.path().join("adapter")));
}
