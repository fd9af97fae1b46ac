//! Sessions in order and out of it, on both sides.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::encoding::{Encoding, EncodingPart};
use crate::frame::Frame;
use crate::frame_header::{FrameFlags, FrameHeader};
use crate::ids::{BaseHash, CutPoint};
use crate::message::{Message, PROTOCOL_VERSION, RunId};

fn hello() -> Message {
    Message::Hello {
        version: PROTOCOL_VERSION,
        base: BaseHash([0; 32]),
        blocks: 5,
        hidden: 64,
        cut: CutPoint(2),
        tail: None,
        encodings: vec![EncodingPart::F32],
        samples: 1,
        eval_samples: 1,
        name: "a".into(),
        resume: None,
    }
}

fn welcome() -> Message {
    let text = r#"
        task = "causal_lm"
        adapter = { rank = 4, alpha = 8.0, rslora = true, dropout = 0.1, targets = ["query"] }
        batch = { sequences = 8, tokens_max = 64, layout = "packed", group_by_length = false }
        rounds = 2
        local_steps = 3
        seed = 1
        server_adapters = "shared"
        step_order = "lockstep"
        weighting = "uniform"
        evaluate_every = 1
        pipeline = { micro_batches = 2, staleness = 0 }
        [optimizer]
        kind = "sgd"
        learning_rate = 1e-3
        schedule = "constant"
        warmup_steps = 0
        reset_each_round = false
    "#;
    let (activations, gradients, adapters) = (Encoding::F32, Encoding::F32, Encoding::F32);
    let plan = toml::from_str(text).unwrap();
    let id = RunId { run: 7, start: 1 };
    let (resumed, awaits, updated) = (false, None, None);
    Message::Welcome { plan, activations, gradients, adapters, client: 0, clients: 1, id, resumed, awaits, updated }
}

/// Goal: a peer that wants to generate is known as such by a run that trains, and can be told so; nobody else says its words. Method: its
/// hello at both sides, before and after another, and the refusal.
#[test]
fn generation_is_another_servers() {
    let generate = Message::HelloGenerate {
        version: PROTOCOL_VERSION,
        base: BaseHash([0; 32]),
        blocks: 5,
        hidden: 64,
        cut: CutPoint(2),
        tail: None,
        encoding: Encoding::INT8,
        name: "a".into(),
    };
    let yes = Message::WelcomeGenerate { start: 1, adapters: vec![], positions_max: 1, sessions_max: 1 };
    let mut server = ServerSession::new();
    assert_eq!(server.handle(&generate), Err(SessionError::Purpose));
    assert!(matches!(server.sent(&yes), Err(SessionError::Unexpected { .. })));
    let refused = Message::Refused { code: RefusalCode::Purpose, reason: "this server trains".into() };
    assert_eq!(server.sent(&refused), Ok(()));
    let mut server = ServerSession::new();
    server.handle(&hello()).unwrap();
    for word in [&generate, &yes] {
        assert!(matches!(server.handle(word), Err(SessionError::Unexpected { .. })));
    }
    let mut client = ClientSession::new();
    assert!(matches!(client.sent(&generate), Err(SessionError::Unexpected { .. })));
    client.sent(&hello()).unwrap();
    assert!(matches!(client.handle(&yes), Err(SessionError::Unexpected { .. })));
    assert_eq!(client.handle(&refused), Ok(SessionEvent::Refused { code: RefusalCode::Purpose }));
}

fn train(round: u32) -> Message {
    Message::Train { round: RoundId(round) }
}

fn evaluate(round: u32) -> Message {
    Message::Evaluate { round: RoundId(round) }
}

fn evaluated(round: u32) -> Message {
    Message::Evaluated { round: RoundId(round), sums: EvalSums::default() }
}

fn settled(round: u32) -> Message {
    Message::Settled { round: RoundId(round), accepted: true, reason: String::new() }
}

fn finish() -> Message {
    Message::Finish { adapter: RoundId(2), reason: "done".into() }
}

fn goodbye() -> Message {
    Message::Goodbye { reason: "done".into() }
}

/// The header of step `index` of a round.
fn step(index: u32, round: u32, train: bool) -> FrameHeader {
    let flags = FrameFlags::NONE.with_if(FrameFlags::TRAIN, train);
    let (step, round) = (StepId::new(RoundId(round), train, index, 0), RoundId(round));
    Frame::forward(step, round, flags, Encoding::F32, 1, vec![1], vec![], vec![0; 4]).header
}

/// A server that welcomed its client.
fn server() -> ServerSession {
    let mut session = ServerSession::new();
    assert_eq!(session.handle(&hello()), Ok(SessionEvent::Hello));
    session.sent(&welcome()).unwrap();
    session
}

/// A client that was welcomed.
fn client() -> ClientSession {
    let mut session = ClientSession::new();
    session.sent(&hello()).unwrap();
    assert_eq!(session.handle(&welcome()), Ok(SessionEvent::Welcome));
    session
}

/// Goal: the order the protocol is made for passes on both sides. Method: two rounds, end to end.
#[test]
fn a_whole_run_is_in_order() {
    let (mut server, mut client) = (server(), client());
    client.adapter(RoundId(0)).unwrap();
    for round in 0..3 {
        if round > 0 {
            server.sent(&train(round)).unwrap();
            let from = RoundId(round - 1);
            let event = SessionEvent::Train { round: RoundId(round), from };
            assert_eq!(client.handle(&train(round)), Ok(event));
            for index in 0..2 {
                let id = client.open_step(RoundId(round), true, index, 0).unwrap();
                let header = step(index, round, true);
                assert_eq!((server.step(&header), header.step), (Ok(SessionEvent::Step { train: true }), id));
            }
            client.update(RoundId(round)).unwrap();
            let event = SessionEvent::Update { round: RoundId(round) };
            assert_eq!(server.update(RoundId(round)), Ok(event));
            server.sent(&settled(round)).unwrap();
            client.handle(&settled(round)).unwrap();
            client.adapter(RoundId(round)).unwrap();
        }
        server.sent(&evaluate(round)).unwrap();
        client.handle(&evaluate(round)).unwrap();
        let id = client.open_step(RoundId(round), false, 0, 0).unwrap();
        let header = step(0, round, false);
        assert_eq!((server.step(&header), header.step), (Ok(SessionEvent::Step { train: false }), id));
        client.sent(&evaluated(round)).unwrap();
        server.handle(&evaluated(round)).unwrap();
    }
    server.sent(&finish()).unwrap();
    assert_eq!(client.handle(&finish()), Ok(SessionEvent::Finish { adapter: RoundId(2) }));
    client.sent(&goodbye()).unwrap();
    assert_eq!(server.handle(&goodbye()), Ok(SessionEvent::Goodbye));
    assert_eq!((server.late(), server.phase(), client.phase()), (0, Phase::Closed, Phase::Closed));
}

/// Goal: Hello is first, and once. Method: anything before it, and it again, on both sides.
#[test]
fn hello_is_first_and_once() {
    for message in [evaluated(0), goodbye(), train(1)] {
        let error = ServerSession::new().handle(&message).expect_err("no Hello yet");
        assert!(matches!(error, SessionError::Unexpected { .. }), "{error}");
    }
    assert_eq!(server().handle(&hello()), Err(SessionError::HelloRepeated));
    assert_eq!(client().sent(&hello()), Err(SessionError::HelloRepeated));
    assert!(ClientSession::new().handle(&welcome()).is_err());
    assert!(ServerSession::new().step(&step(1, 1, true)).is_err());
    assert!(ServerSession::new().update(RoundId(1)).is_err());
    assert!(ServerSession::new().sent(&welcome()).is_err());
}

/// Goal: neither side plays the other's part. Method: every message from the wrong side.
#[test]
fn nobody_speaks_the_others_lines() {
    for message in [welcome(), train(1), evaluate(1), settled(1), finish()] {
        let error = server().handle(&message).expect_err("a server's line");
        assert!(matches!(error, SessionError::Unexpected { .. }), "{error}");
        assert!(client().sent(&message).is_err());
    }
    assert!(client().handle(&hello()).is_err());
    assert!(client().handle(&evaluated(1)).is_err());
    assert!(server().sent(&hello()).is_err());
    assert!(server().sent(&evaluated(0)).is_err());
}

/// Goal: a refused client is refused. Method: the refusal on both sides, then anything.
#[test]
fn nothing_follows_a_refusal() {
    let refused = Message::Refused { code: RefusalCode::Full, reason: "full".into() };
    let mut server = ServerSession::new();
    server.handle(&hello()).unwrap();
    server.sent(&refused).unwrap();
    assert!(matches!(server.handle(&evaluated(0)), Err(SessionError::AfterEnd { .. })));
    let mut client = ClientSession::new();
    client.sent(&hello()).unwrap();
    let event = client.handle(&refused).unwrap();
    assert_eq!(event, SessionEvent::Refused { code: RefusalCode::Full });
    assert!(matches!(client.handle(&train(1)), Err(SessionError::AfterEnd { .. })));
}

/// Goal: a client that was welcomed too soon can still be turned away, but nobody is refused in the middle of a run.
/// Method: a refusal after Welcome, and one after Train.
#[test]
fn a_welcome_can_be_taken_back_until_there_is_work() {
    let refused = Message::Refused { code: RefusalCode::Plan, reason: "a foreign layer".into() };
    let (mut welcoming, mut welcomed) = (server(), client());
    welcoming.sent(&refused).unwrap();
    assert_eq!(welcomed.handle(&refused), Ok(SessionEvent::Refused { code: RefusalCode::Plan }));
    assert_eq!((welcoming.phase(), welcomed.phase()), (Phase::Closed, Phase::Closed));
    let (mut asking, mut asked) = (server(), client());
    asking.sent(&train(1)).unwrap();
    asked.handle(&train(1)).unwrap();
    assert!(matches!(asking.sent(&refused), Err(SessionError::Unexpected { .. })));
    assert!(matches!(asked.handle(&refused), Err(SessionError::Unexpected { .. })));
}

/// Goal: a step that comes again is told apart, so that it is applied once. Method: the same id, an older one, and the next.
#[test]
fn a_repeated_step_is_known() {
    let mut server = server();
    server.sent(&train(1)).unwrap();
    server.step(&step(5, 1, true)).unwrap();
    for index in [5, 4] {
        assert_eq!(server.step(&step(index, 1, true)), Ok(SessionEvent::Again { round: RoundId(1) }));
    }
    assert_eq!(server.step(&step(9, 1, true)), Ok(SessionEvent::Step { train: true }));
}

/// Goal: an id says where its step stands. Method: a header that says otherwise.
#[test]
fn a_step_is_where_its_id_says() {
    let mut server = server();
    server.sent(&train(1)).unwrap();
    let mut header = step(0, 1, true);
    header.step = StepId::new(RoundId(2), true, 0, 0);
    assert!(matches!(server.step(&header), Err(SessionError::StepPlace { .. })));
    header.step = StepId::new(RoundId(1), false, 0, 0);
    assert!(matches!(server.step(&header), Err(SessionError::StepPlace { .. })));
}

/// Goal: a session outlives its connection. Method: a Train and an update that were lost, one that arrived, a Finish said twice.
#[test]
fn a_session_goes_on_over_a_new_connection() {
    let (mut server, mut client) = (server(), client());
    server.sent(&train(1)).unwrap();
    server.resume();
    assert_eq!(server.awaits(), Some(Ask::Train(RoundId(1))));
    client.resume(server.awaits()).unwrap();
    assert_eq!(client.asked_for(), Some(Ask::Train(RoundId(1))));
    client.open_step(RoundId(1), true, 0, 0).unwrap();
    client.resume(server.awaits()).unwrap();
    client.open_step(RoundId(1), true, 1, 0).unwrap();
    client.update(RoundId(1)).unwrap();
    assert!(client.answered(Ask::Train(RoundId(1))) && server.awaits().is_some(), "the update was lost: it is sent again");
    server.update(RoundId(1)).unwrap();
    assert_eq!((server.awaits(), server.updated()), (None, Some(RoundId(1))));
    client.resume(server.awaits()).unwrap();
    server.sent(&finish()).unwrap();
    client.handle(&finish()).unwrap();
    server.resume();
    client.resume(server.awaits()).unwrap();
    server.sent(&finish()).unwrap();
    assert_eq!(client.handle(&finish()), Ok(SessionEvent::Finish { adapter: RoundId(2) }));
}

/// Goal: a client that never heard its Welcome does not resume a session that it does not have. Method: each first word of a client.
#[test]
fn a_session_that_the_client_does_not_know_of_is_not_resumed() {
    let resumable = |say: fn(&mut ServerSession) -> Result<SessionEvent, SessionError>| {
        let mut server = server();
        server.sent(&train(1)).unwrap();
        server.resume();
        assert!(!server.is_resumable(), "only the server spoke");
        say(&mut server).unwrap();
        server.is_resumable()
    };
    assert!(resumable(|server| server.step(&step(0, 1, true))));
    assert!(resumable(|server| server.update(RoundId(1))));
    assert!(resumable(|server| server.handle(&goodbye())));
}

/// Goal: a process that was started again takes up the round that its server is in. Method: a Welcome that says so.
#[test]
fn a_new_process_is_asked_at_welcome() {
    let Message::Welcome { plan, activations, gradients, adapters, client, clients, id, .. } = welcome() else { unreachable!() };
    let (resumed, awaits, updated) = (false, Some(Ask::Train(RoundId(3))), Some(RoundId(2)));
    let welcome = Message::Welcome { plan, activations, gradients, adapters, client, clients, id, resumed, awaits, updated };
    let mut session = ClientSession::new();
    session.sent(&hello()).unwrap();
    session.handle(&welcome).unwrap();
    assert_eq!(session.asked_for(), awaits);
    session.open_step(RoundId(3), true, 0, 0).unwrap();
    session.handle(&settled(2)).unwrap();
}

/// Goal: steps come only while their round runs, for its purpose, before its update.
/// Method: one misplaced step for each rule.
#[test]
fn a_misplaced_step_is_refused() {
    let not_asked = |session: &mut ServerSession, header| match session.step(&header).expect_err("misplaced") {
        SessionError::NotAsked { .. } => (),
        other => panic!("{other}"),
    };
    not_asked(&mut server(), step(1, 1, true));
    let mut session = server();
    session.sent(&train(1)).unwrap();
    not_asked(&mut session, step(1, 2, true));
    let error = session.step(&step(2, 1, false)).expect_err("wrong purpose");
    assert!(matches!(error, SessionError::StepPurpose { train: false, .. }), "{error}");
    session.update(RoundId(1)).unwrap();
    let error = session.step(&step(3, 1, true)).expect_err("after the update");
    assert_eq!(error, SessionError::StepAfterUpdate { step: StepId::new(RoundId(1), true, 3, 0), round: RoundId(1) });
    let done = Frame::done(&step(4, 1, true), EvalSums::default()).header;
    assert!(matches!(session.step(&done), Err(SessionError::StepKind { .. })));
}

/// Goal: one update a round counts, and only for a round that was asked for. Method: early, twice.
#[test]
fn updates_come_once_and_when_asked() {
    let mut server = server();
    assert!(matches!(server.update(RoundId(1)), Err(SessionError::NotAsked { .. })));
    server = self::server();
    server.sent(&train(1)).unwrap();
    server.update(RoundId(1)).unwrap();
    assert_eq!(server.update(RoundId(1)), Ok(SessionEvent::Again { round: RoundId(1) }));
    assert!(matches!(server.update(RoundId(2)), Err(SessionError::NotAsked { .. })));
}

/// Goal: a straggler is not a criminal. Method: everything about a round the server left behind.
#[test]
fn late_answers_are_dropped_and_counted() {
    let mut server = server();
    server.sent(&evaluate(0)).unwrap();
    server.sent(&train(1)).unwrap();
    let late = |round| Ok(SessionEvent::Late { round: RoundId(round) });
    assert_eq!(server.step(&step(1, 0, false)), late(0));
    assert_eq!(server.handle(&evaluated(0)), late(0));
    server.sent(&evaluate(1)).unwrap();
    assert_eq!(server.step(&step(2, 1, true)), late(1));
    assert_eq!(server.update(RoundId(1)), late(1));
    assert_eq!(server.update(RoundId(1)), Ok(SessionEvent::Again { round: RoundId(1) }));
    server.sent(&finish()).unwrap();
    assert_eq!(server.handle(&evaluated(1)), late(1));
    assert_eq!(server.step(&step(3, 1, false)), late(1));
    assert_eq!(server.late(), 6);
}

/// Goal: scores count once. Method: the same answer again.
#[test]
fn scores_come_once() {
    let mut server = server();
    server.sent(&evaluate(0)).unwrap();
    server.handle(&evaluated(0)).unwrap();
    assert_eq!(server.handle(&evaluated(0)), Ok(SessionEvent::Again { round: RoundId(0) }));
}

/// Goal: nothing after the end. Method: a word after Goodbye, and work after Finish.
#[test]
fn nothing_follows_the_end() {
    let mut server = server();
    server.sent(&finish()).unwrap();
    assert!(matches!(server.sent(&train(1)), Err(SessionError::AfterEnd { .. })));
    server.handle(&goodbye()).unwrap();
    assert!(matches!(server.handle(&evaluated(0)), Err(SessionError::AfterEnd { .. })));
    assert!(matches!(server.step(&step(1, 1, true)), Err(SessionError::AfterEnd { .. })));
    assert!(matches!(server.update(RoundId(1)), Err(SessionError::AfterEnd { .. })));
    assert!(matches!(server.sent(&train(1)), Err(SessionError::AfterEnd { .. })));
    let mut client = client();
    client.handle(&finish()).unwrap();
    assert!(matches!(client.handle(&train(1)), Err(SessionError::AfterEnd { .. })));
    client.sent(&goodbye()).unwrap();
    assert!(matches!(client.sent(&goodbye()), Err(SessionError::AfterEnd { .. })));
    assert!(matches!(client.adapter(RoundId(0)), Err(SessionError::AfterEnd { .. })));
}

/// Goal: rounds only go forward. Method: every step back, on both sides.
#[test]
fn rounds_only_go_forward() {
    for (first, then) in [(train(2), train(2)), (train(2), train(1)), (evaluate(2), train(2)), (evaluate(2), evaluate(2))] {
        let mut server = server();
        server.sent(&first).unwrap();
        assert!(matches!(server.sent(&then), Err(SessionError::Backward { .. })));
        let mut client = client();
        client.handle(&first).unwrap();
        assert!(matches!(client.handle(&then), Err(SessionError::Backward { .. })));
    }
    assert!(matches!(client().handle(&train(0)), Err(SessionError::Backward { .. })));
    let mut client = client();
    client.adapter(RoundId(1)).unwrap();
    assert!(matches!(client.adapter(RoundId(1)), Err(SessionError::Repeated { .. })));
}

/// Goal: a slow client learns that the server moved on. Method: work for a round that is over.
#[test]
fn a_slow_client_drops_its_work() {
    let mut client = client();
    client.handle(&train(1)).unwrap();
    client.open_step(RoundId(1), true, 0, 0).unwrap();
    client.handle(&train(2)).unwrap();
    let over = |error| matches!(error, SessionError::Superseded { round: RoundId(1), .. });
    assert!(over(client.open_step(RoundId(1), true, 0, 0).unwrap_err()));
    assert!(over(client.update(RoundId(1)).unwrap_err()));
    assert_eq!(client.open_step(RoundId(2), true, 0, 0), Ok(StepId::new(RoundId(2), true, 0, 0)));
    client.update(RoundId(2)).unwrap();
    assert!(client.update(RoundId(2)).is_err());
    assert!(client.open_step(RoundId(2), true, 0, 0).is_err());
}

/// Goal: a server settles what was sent, once. Method: too early, twice.
#[test]
fn only_an_update_is_settled() {
    let mut client = client();
    assert!(matches!(client.handle(&settled(1)), Err(SessionError::NotAsked { .. })));
    client.handle(&train(1)).unwrap();
    client.update(RoundId(1)).unwrap();
    assert!(matches!(client.handle(&settled(2)), Err(SessionError::NotAsked { .. })));
    client.handle(&settled(1)).unwrap();
    assert_eq!(client.handle(&settled(1)), Ok(SessionEvent::Again { round: RoundId(1) }));
}
