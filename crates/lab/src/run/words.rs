//! An event in one line for a person.

use super::table::{bytes, seconds};
use cutlayer_node::Event;

/// The line that tells of `event`, where it is worth one. `name` gives a client's name.
///
/// Steps are many and have no line of their own here.
pub fn describe(event: &Event, name: impl Fn(u32) -> String) -> Option<String> {
    Some(match event {
        Event::Listening { addr, peer_id } => format!("listening on {addr} as {peer_id}"),
        Event::Joined { name, cut, tail, samples, .. } => {
            let tail = tail.map_or(String::new(), |tail| format!(" and {tail} at the end"));
            format!("{name} joined with {samples} records, {cut} blocks{tail}")
        }
        Event::Encodings { name, reason, .. } => format!("{name} sends {reason}"),
        Event::Left { name, reason, .. } => format!("{name} left: {reason}"),
        Event::Away { name, reason, .. } => format!("{name} is cut off: {reason}; waiting for it to come back"),
        Event::Back { name, seconds: gone, resumed, .. } => {
            let how = if *resumed { "goes on where it was" } else { "begins its round again" };
            // One that comes back before it was missed was gone for no time.
            let after = if *gone > 0.0 { format!(" after {}", seconds(*gone)) } else { String::new() };
            format!("{name} is back{after} and {how}")
        }
        Event::Resumed { round, starts } => format!("start {starts} of this run: it goes on after round {round}"),
        Event::Refused { peer, reason } if peer.is_empty() => format!("turned a connection away: {reason}"),
        Event::Refused { peer, reason } => format!("turned {} away: {reason}", peer.get(..8).unwrap_or(peer)),
        Event::RoundStarted { round, clients } => format!("round {round} with {} clients", clients.len()),
        Event::Updated { client, round, accepted: false, reason } => {
            format!("round {round}: the update of {} was refused: {reason}", name(*client))
        }
        Event::Late { round, missing, waited_ms } => {
            format!("round {round} went on without {} after {}", missing.join(", "), seconds(*waited_ms as f64 / 1e3))
        }
        Event::Committed { round, updates, adapter_bytes, seconds: took } => {
            format!("round {round} done: {updates} updates, adapter {}, {}", bytes(*adapter_bytes), seconds(*took))
        }
        Event::Evaluated { round, loss, perplexity, accuracy, scored } => {
            let share = accuracy * 100.0;
            format!("held-out after round {round}: loss {loss:.4}, perplexity {perplexity:.3}, accuracy {share:.1} % of {scored}")
        }
        Event::Finished { rounds, reason } => format!("finished after {rounds} rounds: {reason}"),
        Event::DeviceJoined { peer, name } => format!("{name} ({}) is here to generate", peer.get(..8).unwrap_or(peer)),
        Event::DeviceLeft { peer, reason } => format!("{} left: {reason}", peer.get(..8).unwrap_or(peer)),
        Event::HostAway { reason } => format!("the host is out of reach: {reason}; looking for it"),
        Event::HostBack { seconds: gone, resumed } => {
            let how = if *resumed { "goes on where it was" } else { "was started again; what it held is computed anew" };
            format!("the host is back after {} and {how}", seconds(*gone))
        }
        Event::Step { .. } | Event::Updated { .. } => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a line names who and why. Method: a refused update and an accepted one.
    #[test]
    fn a_refusal_is_told_and_the_usual_is_not() {
        let updated = |accepted| Event::Updated { client: 2, round: 4, accepted, reason: "NaN".into() };
        let line = describe(&updated(false), |client| format!("c{client}")).expect("worth a line");
        assert!(line.contains("c2") && line.contains("NaN"), "{line}");
        assert_eq!(describe(&updated(true), |_| String::new()), None);
    }
}
