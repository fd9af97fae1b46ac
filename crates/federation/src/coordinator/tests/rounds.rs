//! Runs in which nothing goes wrong.

use super::*;

/// Goal: the flow is the one documented. Method: two clients, two rounds, every action in order.
#[test]
fn a_run_goes_as_documented() {
    let mut bench = Bench::new(CoordinatorConfig { evaluate_every: 1, ..config(2, 2) });
    check_words(&bench.join(1, &["0"]), &[]);
    let start = ["broadcast 0 to 0,1", "evaluate 0 0", "evaluate 0 1"];
    check_words(&bench.join(0, &["0"]), &start);
    check_words(&bench.score(0, 0), &[]);
    assert_eq!(bench.coordinator.waiting_for(), peers(&[1]));
    check_words(&bench.score(1, 0), &["scored 0 by 2", "train 1 0", "train 1 1"]);
    assert_eq!(bench.coordinator.waiting_for(), peers(&[0, 1]));
    check_words(&bench.good(1, 1), &[]);
    check_words(&bench.good(0, 1), &["collect 1 0,1"]);
    let commit = ["commit 1", "accept 1 0", "accept 1 1", "broadcast 1 to 0,1", "evaluate 1 0", "evaluate 1 1"];
    check_words(&bench.server_part(1, vec![]), &commit);
    bench.score(0, 1);
    check_words(&bench.score(1, 1), &["scored 1 by 2", "train 2 0", "train 2 1"]);
    bench.good(0, 2);
    bench.good(1, 2);
    bench.server_part(2, vec![]);
    bench.score(0, 2);
    let end = bench.score(1, 2);
    check_words(&end, &["scored 2 by 2", "finish"]);
    assert_eq!(finish_reason(&end), "all 2 rounds are done");
    assert!(bench.coordinator.is_finished());
    assert_eq!(bench.coordinator.next_deadline_ms(), None);
    check_words(&bench.good(0, 3), &[]);
}

/// Goal: scores add up. Method: two clients' sums by hand, and each apart, in client order.
#[test]
fn scores_add_up() {
    let mut bench = Bench::new(config(2, 1));
    (0..2).for_each(|client| drop(bench.join(client, &[])));
    bench.score(1, 0);
    let actions = bench.score(0, 0);
    let Some(Action::EvalDone { sums, per_peer, .. }) = actions.first() else {
        panic!("scores first: {actions:?}");
    };
    assert_eq!(*sums, EvalSums { loss_sum: 3.0, scored: 4, correct: 2 });
    assert_eq!(per_peer.iter().map(|(peer, _)| *peer).collect::<Vec<_>>(), peers(&[0, 1]));
    assert_eq!(per_peer[1].1.loss_sum, 2.0);
}

fn check_evaluated(every: u32, rounds: u32, expected: &[u32]) {
    let mut bench = Bench::new(CoordinatorConfig { evaluate_every: every, ..config(1, rounds) });
    let mut actions = bench.join(0, &["0"]);
    let mut evaluated = Vec::new();
    while !bench.coordinator.is_finished() {
        let last = actions.last().expect("the run goes on").clone();
        actions = match last {
            Action::Evaluate { round, .. } => {
                evaluated.push(round.0);
                bench.score(0, round.0)
            }
            Action::Train { round, .. } => bench.good(0, round.0),
            Action::CollectServerPart { round, .. } => bench.server_part(round.0, vec![]),
            other => panic!("{other:?} ends nothing"),
        };
    }
    assert_eq!(evaluated, expected, "every {every} of {rounds}");
}

/// Goal: evaluation keeps to its rhythm, first and last always. Method: several rhythms.
#[test]
fn evaluation_keeps_its_rhythm() {
    check_evaluated(0, 4, &[0, 4]);
    check_evaluated(1, 3, &[0, 1, 2, 3]);
    check_evaluated(2, 5, &[0, 2, 4, 5]);
    check_evaluated(9, 0, &[0]);
}

/// Goal: only the sampled train, and only they are sent the adapter. Method: 2 of 4, all evaluated at the end.
#[test]
fn only_the_sampled_train() {
    let config = CoordinatorConfig { clients_per_round: 2, min_updates: 2, ..config(4, 3) };
    let mut bench = Bench::training(config.clone());
    let chosen = bench.coordinator.waiting_for();
    assert_eq!(chosen.len(), 2);
    assert_eq!(Bench::training(config).coordinator.waiting_for(), chosen, "sampling repeats");
    let idle = (0..4).find(|client| !chosen.contains(&peer(*client))).unwrap();
    let refused = bench.good(idle, 1);
    check_words(&refused, &[&format!("refuse 1 {idle}")]);
    assert!(refusal_in(&refused).contains("not asked"));
    let clients = chosen.iter().map(|peer| u32::from(200 - peer.0[0])).collect::<Vec<_>>();
    bench.good(clients[0], 1);
    bench.good(clients[1], 1);
    let next = bench.server_part(1, vec![]);
    let told = bench.coordinator.waiting_for();
    assert!(next.contains(&Action::Broadcast { peers: told, round: RoundId(1) }), "{next:?}");
}

/// Goal: a newcomer joins the next round, with the newest adapter. Method: it comes mid-round.
#[test]
fn a_newcomer_joins_the_next_round() {
    let mut bench = Bench::training(config(1, 2));
    check_words(&bench.join(1, &["1"]), &[]);
    assert_eq!(bench.coordinator.waiting_for(), peers(&[0]));
    bench.good(0, 1);
    let next = bench.server_part(1, vec![]);
    check_words(&next, &["commit 1", "accept 1 0", "broadcast 1 to 0,1", "train 2 0", "train 2 1"]);
}

/// Goal: a run resumes where it stopped. Method: from round 3 of 4; nobody trains 1 to 3 again.
#[test]
fn a_run_resumes() {
    let global = layers(&[("0", 5.0)]);
    let contract = Contract::of(BASE, &global, WEIGHT_MAX);
    let resume = |start, rounds| {
        let strategy = Box::new(FedAvg);
        let (contract, global) = (contract.clone(), global.clone());
        Coordinator::new(0, config(1, rounds), contract, strategy, RoundId(start), global)
    };
    let mut bench = Bench { coordinator: resume(3, 4).unwrap(), now_ms: 0 };
    check_words(&bench.join(0, &["0"]), &["broadcast 3 to 0", "evaluate 3 0"]);
    check_words(&bench.score(0, 3), &["scored 3 by 1", "train 4 0"]);
    assert_eq!(resume(5, 4).err().expect("too far").field, "rounds");
    let (wrong, strategy) = (layers(&[("9", 0.0)]), Box::new(FedAvg));
    let error = Coordinator::new(0, config(1, 1), contract, strategy, RoundId(0), wrong);
    assert_eq!(error.err().expect("a foreign adapter").field, "the starting adapter");
}

/// Goal: uniform weighting ignores what clients claim. Method: claims of 1 and 100.
#[test]
fn uniform_weights_ignore_claims() {
    let mut bench = Bench::training(CoordinatorConfig { weighting: Weighting::Uniform, ..config(2, 1) });
    bench.update(0, 1, 1.0, layers(&[("0", 2.0)]));
    let collect = bench.update(1, 1, 100.0, layers(&[("0", 4.0)]));
    let peers = vec![(peer(0), 1.0), (peer(1), 1.0)];
    assert_eq!(collect, [Action::CollectServerPart { round: RoundId(1), peers }]);
    bench.server_part(1, vec![]);
    assert_eq!(bench.value_of("0"), 3.0);
}

/// Goal: an unusable configuration is refused by field. Method: spoil one at a time.
#[test]
fn configurations_are_checked() {
    let check = |field: &str, spoil: fn(&mut CoordinatorConfig)| {
        let mut config = config(3, 5);
        config.validate().unwrap();
        spoil(&mut config);
        let error = config.validate().expect_err(field);
        assert_eq!(error.field, field, "{error}");
    };
    check("min_clients", |c| (c.min_clients, c.min_updates) = (0, 1));
    check("min_updates", |c| c.min_updates = 0);
    check("min_updates", |c| c.min_updates = 4);
    check("min_updates", |c| c.clients_per_round = 2);
    check("rounds", |c| c.rounds = u32::MAX);
    check("round_deadline_ms", |c| c.round_deadline_ms = 0);
    check("join_deadline_ms", |c| c.join_deadline_ms = 0);
}
