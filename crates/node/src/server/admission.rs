//! Who is let in: Hello and its answer, for a client that comes and for one that comes back.

use super::Hub;
use super::roster::{Command, Hello, Seat, Visit};
use super::session::Session;
use crate::auto::Encodings;
use crate::error::NodeError;
use crate::event::Event;
use cutlayer_model::lora;
use cutlayer_transport::{Control, Link};
use cutlayer_wire::{Message, PROTOCOL_VERSION, RefusalCode, Resume, ServerSession, SessionError};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;

/// How long a client may take to introduce itself.
const HELLO_WAIT: Duration = Duration::from_secs(30);

/// Hello and its answer, over the connection that was the `accepted`-th. `None` where the client was refused, and told why, or lost again.
pub(super) async fn admit(
    hub: &Arc<Hub>,
    link: &Link,
    accepted: u64,
) -> Result<Option<(Session, Control, mpsc::Receiver<Command>)>, NodeError> {
    let silent = || NodeError::Ended { reason: format!("it did not say Hello within {} s", HELLO_WAIT.as_secs()) };
    let mut order = ServerSession::new();
    let introduced = async {
        let mut control = link.accept_control().await?;
        let hello = control.recv().await?;
        Ok::<_, NodeError>((control, hello))
    };
    let (mut control, hello) = tokio::time::timeout(HELLO_WAIT, introduced).await.map_err(|_| silent())??;
    let generates = match order.handle(&hello) {
        Err(SessionError::Purpose) => true,
        Err(error) => return Err(error.into()),
        Ok(_) => false,
    };
    let peer = link.peer();
    let over = || (RefusalCode::Busy, "the run is over".to_owned());
    let seat = match judge(hub, &hello) {
        _ if generates => Err((RefusalCode::Purpose, "this server trains; generate with one that `cutlayer host` started".into())),
        Ok((hello, _)) if hub.over.load(Ordering::Relaxed) && !hub.roster.holds(&peer, &hello) => Err(over()),
        Ok((hello, resume)) => {
            let found = |client: u32| encodings_of(hub, client, &hello);
            hub.roster
                .enter(peer, &hello, order, found)
                .await
                .map(|entered| (entered, resume))
                .map_err(|reason| (RefusalCode::Full, reason))
        }
        Err(refused) => Err(refused),
    };
    let ((seat, new), resume) = match seat {
        Ok(seat) => seat,
        Err((code, reason)) => {
            (hub.events)(Event::Refused { peer: peer.to_hex(), reason: reason.clone() });
            control.send(&Message::Refused { code, reason: reason.clone() }).await?;
            control.finish().await;
            link.close(&reason).await;
            return Ok(None);
        }
    };
    let keys = client_keys(hub, seat.hello.cut.into(), seat.hello.tail.map(usize::from))?;
    if new {
        take_in(hub, &seat, keys.clone()).await?;
    }
    let Some(Visit { number, commands, resumed, awaits, updated, away }) = seat.connect((link, accepted), resume, hub.id) else {
        // A newer connection of this client was faster.
        link.break_off();
        return Ok(None);
    };
    let (client, encodings) = (seat.client, seat.encodings);
    if !new && !resumed {
        hub.edge.run("forget samples", move |edge| edge.forget_samples(client)).await?;
    }
    let welcome = Message::Welcome {
        plan: hub.plan.clone(),
        activations: encodings.activations,
        gradients: encodings.gradients,
        adapters: encodings.adapters,
        client,
        clients: hub.clients_expected,
        id: hub.id,
        resumed,
        awaits,
        updated,
    };
    if !new {
        let seconds = away.map_or(0.0, |away| away.as_secs_f64());
        (hub.events)(Event::Back { client, name: seat.hello.name.clone(), seconds, resumed });
    }
    let session = Session { hub: hub.clone(), link: link.clone(), seat, visit: number, keys, served: Mutex::default() };
    match control.send(&welcome).await {
        Ok(()) => Ok(Some((session, control, commands))),
        Err(lost) => {
            session.end(Err(lost.into())).await;
            Ok(None)
        }
    }
}

/// Gives a new client its layers on the server, and tells the coordinator of it.
async fn take_in(hub: &Arc<Hub>, seat: &Seat, keys: Vec<String>) -> Result<(), NodeError> {
    let (peer, client, hello) = (seat.peer, seat.client, &seat.hello);
    let (cut, tail) = (usize::from(hello.cut), hello.tail.map(usize::from));
    let encodings = seat.encodings;
    let seated = hub.edge.run("seat", move |edge| edge.seat(client, peer, (cut, tail), encodings)).await.and_then(|seated| seated);
    if let Err(error) = seated {
        // The seat is free again for whoever comes next.
        hub.roster.remove(&peer);
        return Err(error);
    }
    let (tail, samples, name) = (hello.tail, hello.samples, hello.name.clone());
    (hub.events)(Event::Joined { client, name, peer_id: peer.to_hex(), cut: hello.cut, tail, samples });
    let joined = cutlayer_federation::Event::Joined { peer, client, keys };
    hub.reports.send(joined).await.map_err(|_| NodeError::Ended { reason: "the run is over".into() })
}

/// What is wrong with a Hello, in the client's words.
fn judge(hub: &Hub, hello: &Message) -> Result<(Hello, Option<Resume>), (RefusalCode, String)> {
    let Message::Hello { version, base, blocks, hidden, cut, tail, encodings, samples, name, resume, .. } = hello else {
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
    let Encodings { activations, gradients, adapters } = hub.encodings;
    for needed in [activations, gradients, adapters] {
        if let Some(part) = needed.parts().into_iter().find(|part| !encodings.contains(part)) {
            let reason = format!("the run uses encoding {needed}, and this client does not know {part}; update it");
            return Err((RefusalCode::Encoding, reason));
        }
    }
    let hello = Hello { cut: cut.0, tail: *tail, name: name.clone(), samples: *samples, encodings: encodings.clone() };
    Ok((hello, *resume))
}

/// The encodings of a client: the run's, or those that suit its link; then everybody is told which.
fn encodings_of(hub: &Hub, client: u32, hello: &Hello) -> Encodings {
    let of = (&hub.plan, hub.spec.hidden);
    let Some(choice) = hub.auto.as_ref().and_then(|auto| auto.choose(client, of, hello.tail.is_some(), &hello.encodings)) else {
        return hub.encodings;
    };
    let [activations, gradients, adapters] = [choice.activations, choice.gradients, choice.adapters].map(|encoding| encoding.to_string());
    (hub.events)(Event::Encodings { client, name: hello.name.clone(), activations, gradients, adapters, reason: choice.to_string() });
    Encodings::from(&choice)
}

/// Tensors that a client trains itself.
fn client_keys(hub: &Hub, cut: usize, tail: Option<usize>) -> Result<Vec<String>, NodeError> {
    let blocks = hub.spec.blocks;
    let own = (0..cut).chain(blocks - tail.unwrap_or(0)..blocks);
    let classes = crate::prepare::classes(&hub.plan.task);
    Ok(lora::shapes(&hub.spec, &hub.plan.adapter, own, tail.is_some(), classes)?.into_keys().collect())
}
