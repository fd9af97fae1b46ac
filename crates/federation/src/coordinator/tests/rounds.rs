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

fn at(round: u32, evaluated: bool, skipped_in_a_row: u32) -> Progress {
    Progress { round: RoundId(round), evaluated, skipped_in_a_row }
}

/// Goal: a run resumes where it stopped, and scores only what is due and was not scored. Method: rounds of a run of 4, of which
/// every second is scored.
#[test]
fn a_run_resumes() {
    let check = |start, expected: &[&str]| {
        let mut bench = Bench::resumed(CoordinatorConfig { evaluate_every: 2, ..config(1, 4) }, start);
        check_words(&bench.join(0, &["0"]), expected);
    };
    check(at(0, false, 0), &["broadcast 0 to 0", "evaluate 0 0"]);
    check(at(0, true, 0), &["broadcast 0 to 0", "train 1 0"]);
    check(at(1, false, 0), &["broadcast 1 to 0", "train 2 0"]);
    check(at(2, false, 0), &["broadcast 2 to 0", "evaluate 2 0"]);
    check(at(2, true, 0), &["broadcast 2 to 0", "train 3 0"]);
    check(at(4, false, 0), &["broadcast 4 to 0", "evaluate 4 0"]);
    check(at(4, true, 0), &["broadcast 4 to 0", "finish"]);
}

/// Goal: a run resumes with all its clients, not with the first that is back. Method: two of them, min_updates 1.
#[test]
fn a_run_resumes_with_everyone() {
    let mut bench = Bench::resumed(CoordinatorConfig { min_updates: 1, ..config(2, 4) }, at(3, true, 0));
    check_words(&bench.join(0, &["0"]), &[]);
    assert_eq!(bench.coordinator.next_deadline_ms(), Some(JOIN_MS));
    check_words(&bench.join(1, &["0"]), &["broadcast 3 to 0,1", "train 4 0", "train 4 1"]);
}

/// Goal: a server that was killed when all was done does not call that a failure, though its clients have gone home. Method: nobody comes,
/// and one of two.
#[test]
fn a_run_that_is_over_ends_well_without_its_clients() {
    for joined in 0..2 {
        let mut bench = Bench::resumed(config(2, 4), at(4, true, 0));
        (0..joined).for_each(|client| check_words(&bench.join(client, &["0"]), &[]));
        assert_eq!(finish_reason(&bench.wait(JOIN_MS)), "all 4 rounds are done", "{joined} came");
    }
}

/// Goal: what is saved at a commit and at an evaluation is all that a new start needs. Method: a run that is started again from it
/// at each of them does what the one that never stopped did.
#[test]
fn progress_is_all_that_a_new_start_needs() {
    let config = || CoordinatorConfig { evaluate_every: 2, ..config(1, 3) };
    let mut bench = Bench::new(config());
    let mut again = bench.join(0, &["0"]);
    let mut seen = Vec::new();
    while !bench.coordinator.is_finished() {
        let progress = bench.coordinator.progress();
        let mut resumed = Bench::resumed(config(), progress);
        let next = |actions: &[Action]| words(actions).last().cloned();
        assert_eq!(next(&resumed.join(0, &["0"])), next(&again));
        seen.push((progress.round.0, progress.evaluated));
        again = match again.last().unwrap() {
            Action::Evaluate { round, .. } => bench.score(0, round.0),
            Action::Train { round, .. } => {
                bench.good(0, round.0);
                bench.server_part(round.0, vec![])
            }
            other => panic!("{other:?} ends nothing"),
        };
    }
    assert_eq!(seen, [(0, false), (0, true), (1, false), (2, false), (2, true), (3, false)]);
    assert_eq!(bench.coordinator.progress(), at(3, true, 0));
}

/// Goal: a server that is restarted between skips does not skip for ever. Method: two skips, a restart, one more; then another start.
#[test]
fn skips_are_counted_over_restarts() {
    let mut bench = Bench::training(config(1, 10));
    (1..SKIPPED_ROUNDS_MAX).for_each(|_| drop(bench.wait(DEADLINE_MS)));
    let progress = bench.coordinator.progress();
    assert_eq!(progress, at(2, false, 2));
    let mut resumed = Bench::resumed(config(1, 10), progress);
    resumed.join(0, &["0"]);
    assert!(finish_reason(&resumed.wait(DEADLINE_MS)).contains("3 rounds in a row"));
    let mut resumed = Bench::resumed(config(1, 10), resumed.coordinator.progress());
    check_words(&resumed.join(0, &["0"]), &["broadcast 3 to 0", "train 4 0"]);
    resumed.good(0, 4);
    resumed.server_part(4, vec![]);
    assert_eq!(resumed.coordinator.progress(), at(4, false, 0));
}

/// Goal: a start that does not fit the run is refused by name. Method: more rounds than there are; another adapter.
#[test]
fn a_start_is_checked() {
    let global = layers(&[("0", 5.0)]);
    let contract = Contract::of(BASE, &global, WEIGHT_MAX);
    let start = |round, global| Coordinator::new(0, config(1, 4), contract.clone(), Box::new(FedAvg), at(round, false, 0), global);
    assert_eq!(start(5, global).err().expect("too far").field, "rounds");
    assert_eq!(start(0, layers(&[("9", 0.0)])).err().expect("a foreign adapter").field, "the starting adapter");
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
