//! The end of a round: the server's part, the aggregation and the commit.
//!
//! A layer is folded over whoever trained it. A client brings its own layers; for the rest the server
//! either kept a copy for that client alone, which weighs what the client weighs, or one copy for all,
//! which weighs, tensor by tensor, what all those clients weigh that do not hold the tensor themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cutlayer_wire::{AdapterState, RoundId};

use super::event::Action;
use super::phase::{Collecting, Phase, Seat};
use super::{Coordinator, Progress, SKIPPED_ROUNDS_MAX, UpdateRefused};
use crate::update::{Source, Update};

impl Coordinator {
    /// The server's part is here: fold the round, or skip it if the part takes too many clients with it.
    pub(super) fn server_part(&mut self, now_ms: u64, round: RoundId, parts: Vec<Update>) {
        // A part that was asked for before the run was stopped, or the answer came twice.
        let asked = matches!(&self.phase, Phase::Collecting(open) if open.round == round);
        if !asked {
            return;
        }
        let Phase::Collecting(mut open) = std::mem::replace(&mut self.phase, Phase::Finished) else {
            unreachable!("the phase was just looked at");
        };
        let parts = self.believe_parts(&mut open, parts);
        if open.accepted.len() < self.config.min_updates as usize {
            return self.skip(now_ms, open, None);
        }
        let updates = in_client_order(&mut open.accepted, parts);
        let folded = self.aggregator.aggregate(round, &self.global, &updates);
        let folded = folded.map_err(|error| error.to_string()).and_then(|next| {
            // A strategy is code of ours, but what it makes is checked like anyone's.
            self.contract.check_state(&next).map_err(|refused| refused.to_string()).map(|()| next)
        });
        match folded {
            Ok(next) => self.commit(now_ms, open, next),
            Err(reason) => self.skip(now_ms, open, Some(reason)),
        }
    }

    /// The parts that count, weighed. A client whose part is spoilt loses its whole update.
    fn believe_parts(&mut self, open: &mut Collecting, mut parts: Vec<Update>) -> Vec<(Option<Seat>, Update)> {
        let mut believed = Vec::new();
        // Clients first: the shared part weighs only the clients that are left.
        parts.sort_by_key(|part| part.source);
        for mut part in parts {
            part.round = open.round;
            let checked = self.contract.check_part(&part.tensors);
            match part.source {
                Source::SharedServer => match checked {
                    Ok(()) => {
                        let weighed = weigh_shared(&open.accepted, part);
                        believed.extend(weighed.into_iter().map(|part| (None, part)));
                    }
                    Err(refused) => open.summary.server_refused = Some(refused.to_string()),
                },
                Source::Client(peer) => {
                    let Some(seat) = open.accepted.keys().copied().find(|s| s.peer == peer) else {
                        continue;
                    };
                    let own = &open.accepted[&seat];
                    part.weight = own.weight;
                    let both = part.tensors.keys().find(|key| own.tensors.contains_key(*key));
                    let both = both.map(|key| UpdateRefused::UnknownKey { key: key.clone() });
                    if let Some(refused) = checked.err().or(both) {
                        let reason = format!("the server's part for this client is spoilt: {refused}");
                        open.accepted.remove(&seat);
                        believed.retain(|(whose, _)| *whose != Some(seat));
                        open.summary.refused.push((peer, reason.clone()));
                        let round = open.round;
                        if self.waits_for_word(peer, round) {
                            self.actions.push(Action::Refuse { peer, round, reason });
                        }
                    } else {
                        believed.push((Some(seat), part));
                    }
                }
            }
        }
        believed
    }

    fn commit(&mut self, now_ms: u64, open: Collecting, next: AdapterState) {
        let Collecting { round, since_ms, accepted, mut summary } = open;
        summary.accepted = accepted.iter().map(|(seat, update)| (seat.peer, update.weight)).collect();
        summary.late = std::mem::take(&mut self.late);
        summary.took_ms = now_ms.saturating_sub(since_ms);
        self.global = Arc::new(next);
        self.progress = Progress { round, evaluated: false, skipped_in_a_row: 0 };
        self.actions.push(Action::Commit { round, state: self.global.clone(), summary });
        let waiting = accepted.keys().filter(|seat| self.waits_for_word(seat.peer, round));
        let accept: Vec<Action> = waiting.map(|seat| Action::Accept { peer: seat.peer, round }).collect();
        self.actions.extend(accept);
        self.after_commit(now_ms);
    }

    /// Commits the round with the adapter unchanged, because of `trouble` or for want of updates.
    pub(super) fn skip(&mut self, now_ms: u64, open: Collecting, trouble: Option<String>) {
        let Collecting { round, since_ms, accepted, mut summary } = open;
        let needed = self.config.min_updates;
        let trouble = trouble.unwrap_or_else(|| format!("{} of the {needed} updates needed came in time", accepted.len()));
        let reason = format!("round {round} is skipped: {trouble}");
        self.refuse_all(round, &accepted, &reason);
        summary.refused.extend(accepted.keys().map(|seat| (seat.peer, reason.clone())));
        summary.late = std::mem::take(&mut self.late);
        summary.took_ms = now_ms.saturating_sub(since_ms);
        summary.skipped = Some(trouble);
        let skipped_in_a_row = self.progress.skipped_in_a_row.saturating_add(1);
        self.progress = Progress { round, evaluated: false, skipped_in_a_row };
        self.actions.push(Action::Commit { round, state: self.global.clone(), summary });
        if skipped_in_a_row >= SKIPPED_ROUNDS_MAX {
            return self.finish(format!(
                "{SKIPPED_ROUNDS_MAX} rounds in a row were skipped, the last because {reason}: raise round_deadline_ms, lower min_updates or look at the clients' logs"
            ));
        }
        self.after_commit(now_ms);
    }
}

/// The shared part, split so that each tensor weighs what the clients do that left it to the server.
fn weigh_shared(accepted: &BTreeMap<Seat, Update>, part: Update) -> Vec<Update> {
    let mut by_trainers: BTreeMap<BTreeSet<Seat>, AdapterState> = BTreeMap::new();
    for (key, tensor) in part.tensors {
        let left_it = accepted.iter().filter(|(_, own)| !own.tensors.contains_key(&key));
        let trainers = left_it.map(|(seat, _)| *seat).collect();
        by_trainers.entry(trainers).or_default().insert(key, tensor);
    }
    // A tensor that every client holds itself was trained by nobody here.
    by_trainers.retain(|trainers, _| !trainers.is_empty());
    let weigh = |(trainers, tensors): (BTreeSet<Seat>, AdapterState)| Update {
        source: Source::SharedServer,
        round: part.round,
        weight: trainers.iter().map(|seat| accepted[seat].weight).sum(),
        tensors,
    };
    by_trainers.into_iter().map(weigh).collect()
}

/// Each client's own part, then the server's for it, client by client; the shared part last. Takes the
/// tensors out of `accepted`, because an adapter is too large to copy.
fn in_client_order(accepted: &mut BTreeMap<Seat, Update>, parts: Vec<(Option<Seat>, Update)>) -> Vec<Update> {
    let take = |(seat, update): (&Seat, &mut Update)| {
        let tensors = std::mem::take(&mut update.tensors);
        (Some(*seat), Update { tensors, ..*update })
    };
    let mut updates: Vec<_> = accepted.iter_mut().map(take).chain(parts).collect();
    // Stable, so an own part stays ahead of the server's; `None`, the shared part, goes last.
    updates.sort_by_key(|(seat, _)| (seat.is_none(), *seat));
    updates.into_iter().map(|(_, update)| update).collect()
}
