//! Clients that are late, gone, wrong or hostile.

use super::*;

fn check_update_refused(says: &str, spoil: impl FnOnce(&mut AdapterFrame)) {
    let mut bench = Bench::training(CoordinatorConfig { min_updates: 2, ..config(3, 1) });
    bench.good(0, 1);
    let mut frame = AdapterFrame::new(RoundId(1), 10.0, &BASE, layers(&[("0", 100.0)]));
    spoil(&mut frame);
    let refused = bench.hear(Event::Updated { peer: peer(1), frame });
    assert!(words(&refused)[0].starts_with("refuse"), "{refused:?}");
    let reason = refusal_in(&refused);
    assert!(reason.contains(says), "{reason:?} does not say {says:?}");
    check_words(&bench.good(2, 1), &["collect 1 0,2"]);
    let done = bench.server_part(1, vec![]);
    let summary = summary_of(&done);
    assert_eq!(summary.refused.len(), 1);
    assert_eq!(summary.refused[0].0, peer(1));
    assert_eq!(bench.value_of("0"), 1.0, "the round is unharmed");
}

/// Goal: a spoilt update is refused, its client told, the round unharmed. Method: each way, one of three.
#[test]
fn a_spoilt_update_harms_nobody_else() {
    let set = |frame: &mut AdapterFrame, value| frame.state.get_mut("0").unwrap().values[1] = value;
    check_update_refused("NaN or infinite", |frame| set(frame, f32::NAN));
    check_update_refused("NaN or infinite", |frame| set(frame, f32::INFINITY));
    check_update_refused("has shape [3]", |frame| {
        frame.state.insert("0".into(), HostTensor::zeros(vec![3]));
    });
    check_update_refused("does not train", |frame| {
        frame.state.insert("1".into(), HostTensor::zeros(vec![2]));
    });
    check_update_refused("lacks \"0\"", |frame| frame.state.clear());
    check_update_refused("base model", |frame| frame.base_prefix += 1);
    check_update_refused("weighs NaN", |frame| frame.weight = f64::NAN);
    check_update_refused("weighs 1001", |frame| frame.weight = WEIGHT_MAX + 1.0);
    check_update_refused("of round 2, this is round 1", |frame| frame.round = RoundId(2));
}

/// Goal: an update counts once. Method: the same again, and again while the server's part is collected.
#[test]
fn a_repeated_update_counts_once() {
    let mut bench = Bench::training(config(2, 1));
    bench.good(0, 1);
    check_words(&bench.update(0, 1, 10.0, layers(&[("0", 50.0)])), &[]);
    bench.good(1, 1);
    check_words(&bench.update(0, 1, 10.0, layers(&[("0", 50.0)])), &[]);
    bench.server_part(1, vec![]);
    assert_eq!(bench.value_of("0"), 1.0);
}

/// Goal: a late update is dropped, counted and its client told. Method: during collection, and a round later.
#[test]
fn a_late_update_is_dropped() {
    let mut bench = Bench::training(CoordinatorConfig { min_updates: 1, ..config(2, 2) });
    bench.good(0, 1);
    let overdue = bench.wait(DEADLINE_MS);
    check_words(&overdue, &["missing updates 1 1", "collect 1 0"]);
    let late = bench.good(1, 1);
    check_words(&late, &["refuse 1 1"]);
    assert!(refusal_in(&late).contains("closed before"));
    let summary = summary_of(&bench.server_part(1, vec![]));
    assert_eq!((summary.late, summary.missing), (1, peers(&[1])));
    let late = bench.good(1, 1);
    assert!(refusal_in(&late).contains("over before"), "{late:?}");
    check_words(&bench.good(1, 2), &[]);
    bench.good(0, 2);
    assert_eq!(summary_of(&bench.server_part(2, vec![])).late, 1);
}

/// Goal: a deadline names who is missing, and for how long. Method: one of three answers; two suffice not.
#[test]
fn a_deadline_names_who_is_missing() {
    let mut bench = Bench::training(CoordinatorConfig { min_updates: 1, ..config(3, 1) });
    assert_eq!(bench.coordinator.next_deadline_ms(), Some(DEADLINE_MS));
    bench.good(1, 1);
    check_words(&bench.wait(DEADLINE_MS - 1), &[]);
    let overdue = bench.wait(1);
    let missing = Action::Missing { round: RoundId(1), wait: Wait::Updates, peers: peers(&[0, 2]), waited_ms: DEADLINE_MS };
    assert_eq!(overdue[0], missing);
    check_words(&overdue[1..], &["collect 1 1"]);
}

/// Goal: an evaluation does not wait for ever either. Method: one of two answers; the answer is too late.
#[test]
fn late_scores_are_not_waited_for() {
    let mut bench = Bench::new(config(2, 1));
    (0..2).for_each(|client| drop(bench.join(client, &["0"])));
    bench.score(0, 0);
    let overdue = bench.wait(DEADLINE_MS);
    check_words(&overdue, &["missing scores 0 1", "scored 0 by 1", "train 1 0", "train 1 1"]);
    check_words(&bench.score(1, 0), &[]);
}

/// Goal: scores of another round, twice, from a stranger or impossible ones count nothing.
/// Method: each of them.
#[test]
fn stray_scores_count_nothing() {
    let mut bench = Bench::new(config(2, 1));
    (0..2).for_each(|client| drop(bench.join(client, &["0"])));
    check_words(&bench.score(0, 1), &[]);
    check_words(&bench.score(7, 0), &[]);
    bench.score(0, 0);
    check_words(&bench.score(0, 0), &[]);
    let sums = EvalSums { loss_sum: f64::NAN, scored: 1, correct: 0 };
    let done = bench.hear(Event::Evaluated { peer: peer(1), round: RoundId(0), sums });
    assert_eq!(words(&done)[0], "scored 0 by 1");
}

/// Goal: a client that leaves mid-round does not hold the others up. Method: before its update, and after.
#[test]
fn a_leaver_does_not_hold_the_round_up() {
    let mut bench = Bench::training(CoordinatorConfig { min_updates: 2, ..config(3, 2) });
    bench.good(0, 1);
    bench.good(1, 1);
    check_words(&bench.leave(2), &["collect 1 0,1"]);
    check_words(&bench.leave(0), &[]);
    let done = bench.server_part(1, vec![]);
    let wait_again = ["commit 1", "accept 1 1"];
    check_words(&done, &wait_again);
    let summary = summary_of(&done);
    assert_eq!(summary.accepted, [(peer(0), 10.0), (peer(1), 10.0)], "its work was done");
    assert_eq!(summary.left, [(peer(2), "gone".to_string()), (peer(0), "gone".to_string())]);
    assert_eq!(bench.coordinator.next_deadline_ms(), Some(JOIN_MS), "too few for round 2");
    check_words(&bench.join(2, &["0"]), &["broadcast 1 to 1,2", "train 2 1", "train 2 2"]);
}

/// Goal: a leaver does not hold an evaluation up, and strangers may leave. Method: both.
#[test]
fn a_leaver_does_not_hold_scores_up() {
    let mut bench = Bench::new(CoordinatorConfig { min_updates: 1, ..config(2, 1) });
    (0..2).for_each(|client| drop(bench.join(client, &["0"])));
    check_words(&bench.leave(9), &[]);
    bench.score(0, 0);
    check_words(&bench.leave(1), &["scored 0 by 1", "train 1 0"]);
}

/// Goal: a round that cannot be saved ends at once, unchanged, and says so. Method: one of two leaves.
#[test]
fn a_hopeless_round_is_skipped() {
    let mut bench = Bench::training(config(2, 3));
    bench.good(0, 1);
    let skipped = bench.leave(1);
    check_words(&skipped, &["refuse 1 0", "skip 1"]);
    assert!(refusal_in(&skipped).contains("1 of the 2 updates needed"), "{skipped:?}");
    assert_eq!(bench.value_of("0"), 0.0);
    let restarted = bench.join(1, &["0"]);
    check_words(&restarted, &["broadcast 1 to 0,1", "train 2 0", "train 2 1"]);
}

/// Goal: a run that gets nowhere ends, and says why. Method: deadlines without updates.
#[test]
fn skips_in_a_row_end_the_run() {
    let mut bench = Bench::training(config(1, 10));
    for round in 1..SKIPPED_ROUNDS_MAX {
        let skipped = bench.wait(DEADLINE_MS);
        let words = words(&skipped);
        assert_eq!(words[..2], [format!("missing updates {round} 0"), format!("skip {round}")]);
    }
    let end = bench.wait(DEADLINE_MS);
    let reason = finish_reason(&end);
    assert!(reason.contains("3 rounds in a row") && reason.contains("round_deadline_ms"), "{reason}");
}

/// Goal: one good round forgives the skipped ones. Method: two skips, a commit, two skips.
#[test]
fn a_commit_forgives_skips() {
    let mut bench = Bench::training(config(1, 10));
    (0..2).for_each(|_| drop(bench.wait(DEADLINE_MS)));
    bench.good(0, 3);
    bench.server_part(3, vec![]);
    (0..2).for_each(|_| drop(bench.wait(DEADLINE_MS)));
    assert!(!bench.coordinator.is_finished());
}

/// Goal: a run nobody joins ends and says who did. Method: one of two joins; later all leave.
#[test]
fn waiting_for_clients_ends() {
    let mut bench = Bench::new(config(2, 1));
    bench.join(0, &["0"]);
    check_words(&bench.wait(JOIN_MS - 1), &[]);
    let end = bench.wait(1);
    let reason = finish_reason(&end);
    assert!(reason.contains("1 of 2 clients") && reason.contains("c8c8c8c8"), "{reason}");
    check_words(&end, &["broadcast 0 to 0", "finish"]);

    let mut bench = Bench::training(config(1, 5));
    check_words(&bench.leave(0), &["skip 1"]);
    let end = bench.wait(JOIN_MS);
    assert!(finish_reason(&end).contains("0 of 1 clients"), "{end:?}");
    assert!(finish_reason(&end).contains("nobody"), "{end:?}");
}

/// Goal: Ctrl-C ends a run with what it has. Method: in each phase.
#[test]
fn a_stop_ends_with_what_there_is() {
    let stop = || Event::Stop { reason: "Ctrl-C".into() };
    let mut bench = Bench::new(config(2, 1));
    bench.join(0, &["0"]);
    check_words(&bench.hear(stop()), &["broadcast 0 to 0", "finish"]);

    let mut bench = Bench::training(config(2, 2));
    bench.good(0, 1);
    bench.good(1, 1);
    bench.server_part(1, vec![]);
    bench.good(1, 2);
    let end = bench.hear(stop());
    check_words(&end, &["refuse 2 1", "finish"]);
    assert_eq!(finish_reason(&end), "Ctrl-C");
    assert_eq!(bench.coordinator.global().0, RoundId(1));
    assert_eq!(bench.value_of("0"), 1.0);

    let mut bench = Bench::training(config(1, 1));
    bench.good(0, 1);
    check_words(&bench.hear(stop()), &["refuse 1 0", "finish"]);
    check_words(&bench.server_part(1, vec![]), &[]);
}

/// Goal: a client of another model is turned away. Method: a key that the plan does not have.
#[test]
fn a_foreign_client_is_rejected() {
    let mut bench = Bench::new(config(1, 1));
    let rejected = bench.join(0, &["0", "9"]);
    check_words(&rejected, &["reject 0"]);
    assert!(refusal_in(&rejected).contains("\"9\""));
}

/// Goal: a client that connects again starts afresh. Method: mid-round, without a word of leaving.
#[test]
fn a_reconnection_is_a_leaver_and_a_newcomer() {
    let mut bench = Bench::training(CoordinatorConfig { min_updates: 1, ..config(2, 2) });
    bench.join(1, &["0"]);
    assert_eq!(bench.coordinator.waiting_for(), peers(&[0]));
    bench.good(0, 1);
    let next = bench.server_part(1, vec![]);
    check_words(&next[2..], &["broadcast 1 to 0,1", "train 2 0", "train 2 1"]);
}

/// Goal: nobody is told what became of an update that it does not know of. Method: one of two updates, loses its connection and
/// comes back before the round ends, by a commit and by a skip.
#[test]
fn who_comes_back_is_told_nothing_of_its_earlier_update() {
    let mut bench = Bench::training(config(2, 2));
    bench.good(0, 1);
    bench.leave(0);
    check_words(&bench.join(0, &["0"]), &[]);
    bench.good(1, 1);
    let done = bench.server_part(1, vec![]);
    check_words(&done, &["commit 1", "accept 1 1", "broadcast 1 to 0,1", "train 2 0", "train 2 1"]);
    assert_eq!(summary_of(&done).accepted, [(peer(0), 10.0), (peer(1), 10.0)], "its work was done");

    bench.good(0, 2);
    bench.leave(0);
    bench.join(0, &["0"]);
    check_words(&bench.leave(1)[..1], &["skip 2"]);
}
