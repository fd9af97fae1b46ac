//! A connection that is lost, and the next one.

use super::door::{Door, Entered, Pauses};
use super::{Break, Client};
use crate::error::NodeError;
use crate::event::{Event, EventSink};
use crate::stop::Stop;
use cutlayer_wire::Resume;
use std::time::Instant;

/// The first connection: a mistake in the address should show at once, but who was in the run before waits for its server.
pub(super) async fn enter_first(door: &Door<'_>, patient: bool, events: &EventSink, stop: &Stop) -> Result<Entered, NodeError> {
    let (started, mut pauses, mut told) = (Instant::now(), Pauses::new(), false);
    loop {
        match door.enter(None).await {
            Err(error) if patient && error.is_lost() && started.elapsed() < door.config.reconnect => {
                if !std::mem::replace(&mut told, true) {
                    events(Event::Away { client: 0, name: door.config.name.clone(), reason: error.to_string() });
                }
            }
            other => return other,
        }
        tokio::select! {
            () = pauses.wait() => {}
            () = stop.triggered() => return Err(NodeError::Ended { reason: "this client was stopped".into() }),
        }
    }
}

impl Client<'_> {
    /// [`Client::recover`], for who is in the middle of something: it goes on only with a server that still knows it.
    pub(super) async fn resume(&mut self, error: NodeError) -> Result<(), Break> {
        if self.recover(error).await? { Ok(()) } else { Err(Break::Forgotten) }
    }

    /// Gets to the server again, if that is what `error` is about. Says whether the session goes on where it was; if not, whatever was
    /// under way is over, and the server asks for it again.
    pub(super) async fn recover(&mut self, error: NodeError) -> Result<bool, NodeError> {
        if !error.is_lost() {
            return Err(error);
        }
        let (client, name, since) = (self.agreed.client, self.door.config.name.clone(), Instant::now());
        (self.events)(Event::Away { client, name: name.clone(), reason: error.to_string() });
        let mut pauses = Pauses::new();
        let entered = loop {
            let resume = Resume { id: self.id, holds: self.session.adapter_round() };
            match self.door.enter(Some(resume)).await {
                Ok(entered) => break entered,
                Err(again) if !again.is_lost() => return Err(again),
                Err(again) if since.elapsed() >= self.door.config.reconnect => {
                    let waited_s = since.elapsed().as_secs();
                    return Err(NodeError::Gone { addr: self.door.config.server, waited_s, reason: again.to_string() });
                }
                Err(again) => tracing::debug!("still out of reach: {again}"),
            }
            pauses.wait().await;
        };
        let resumed = self.take_up(entered).await?;
        self.report.reconnects += 1;
        (self.events)(Event::Back { client, name, seconds: since.elapsed().as_secs_f64(), resumed });
        Ok(resumed)
    }

    /// Goes on over a new connection.
    async fn take_up(&mut self, entered: Entered) -> Result<bool, NodeError> {
        let Entered { link, control, session, agreed, welcome } = entered;
        if (&agreed.plan, agreed.client, welcome.id.run) != (&self.agreed.plan, self.agreed.client, self.id.run) {
            return Err(NodeError::Ended {
                reason: "the server came back with another run: start this client again to join that one".into(),
            });
        }
        let stats = self.route.link.stats();
        self.earlier_bytes = (self.earlier_bytes.0 + stats.bytes_sent, self.earlier_bytes.1 + stats.bytes_received);
        (self.route.link, self.control, self.id) = (link, control, welcome.id);
        if !welcome.resumed {
            (self.session, self.asked, self.sent) = (session, welcome.awaits, None);
            return Ok(false);
        }
        self.session.resume(welcome.awaits)?;
        match welcome.awaits {
            // What is under way goes on.
            Some(ask) if self.doing == Some(ask) && !self.session.answered(ask) => {}
            // What was sent did not arrive.
            Some(ask) if self.session.answered(ask) => {
                // A connection that is lost again says so to whoever uses it next.
                self.hand_over().await.or_else(|lost| if lost.is_lost() { Ok(()) } else { Err(lost) })?;
            }
            other => self.asked = other,
        }
        Ok(true)
    }
}
