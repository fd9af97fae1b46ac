//! The device's connection to its host: made when first needed, shared by all sequences, and made again when it is lost.

use super::device::Remote;
use crate::client::Pauses;
use crate::error::NodeError;
use crate::event::{Event, EventSink};
use cutlayer_transport::{Control, DeviceStream, Identity, Link, LinkError, LinkStats, connect};
use cutlayer_wire::{BaseHash, Message, PROTOCOL_VERSION};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Mutex;

/// A connection on which the host said welcome.
pub(super) struct Live {
    link: Link,
    /// Open as long as the connection: its end is the device's goodbye.
    _control: Control,
    /// Which start of the host it is.
    pub start: u64,
    pub adapters: Vec<String>,
}

/// How to get to the host, and the connection that there is.
pub(super) struct Line {
    remote: Remote,
    identity: Arc<Identity>,
    base: BaseHash,
    blocks: u16,
    hidden: u32,
    name: String,
    events: EventSink,
    live: Mutex<Option<Arc<Live>>>,
}

/// What a model is to the host.
pub(super) struct About {
    pub base: BaseHash,
    pub blocks: u16,
    pub hidden: u32,
    pub name: String,
}

impl Line {
    pub fn new(remote: Remote, identity: Arc<Identity>, about: About, events: EventSink) -> Self {
        let About { base, blocks, hidden, name } = about;
        Self { remote, identity, base, blocks, hidden, name, events, live: Mutex::new(None) }
    }

    /// The connection, made if there is none. One that is lost is looked for until the host is given up.
    pub async fn live(&self) -> Result<Arc<Live>, NodeError> {
        let mut place = self.live.lock().await;
        if let Some(live) = place.as_ref() {
            return Ok(live.clone());
        }
        let live = Arc::new(self.enter().await?);
        *place = Some(live.clone());
        Ok(live)
    }

    /// A stream for a sequence on `live`.
    pub async fn stream(&self, live: &Live) -> Result<DeviceStream, NodeError> {
        Ok(live.link.open_generate().await?)
    }

    /// Gets to the host again after `error` on `lost`, unless another sequence already did.
    pub async fn recover(&self, lost: &Arc<Live>, error: NodeError) -> Result<Arc<Live>, NodeError> {
        if !is_gone(&error) {
            return Err(error);
        }
        let mut place = self.live.lock().await;
        match place.as_ref() {
            Some(live) if !Arc::ptr_eq(live, lost) => return Ok(live.clone()),
            _ => *place = None,
        }
        let since = Instant::now();
        (self.events)(Event::HostAway { reason: error.to_string() });
        let mut pauses = Pauses::new();
        let live = loop {
            match self.enter().await {
                Ok(live) => break Arc::new(live),
                Err(again) if !is_gone(&again) => return Err(again),
                Err(again) if since.elapsed() >= self.remote.reconnect => {
                    let waited_s = since.elapsed().as_secs();
                    return Err(NodeError::Gone { addr: self.remote.server, waited_s, reason: again.to_string() });
                }
                Err(again) => tracing::debug!("still out of reach: {again}"),
            }
            pauses.wait().await;
        };
        (self.events)(Event::HostBack { seconds: since.elapsed().as_secs_f64(), resumed: live.start == lost.start });
        *place = Some(live.clone());
        Ok(live)
    }

    /// What the connection has carried, if there is one.
    pub async fn stats(&self) -> Option<LinkStats> {
        self.live.lock().await.as_ref().map(|live| live.link.stats())
    }

    async fn enter(&self) -> Result<Live, NodeError> {
        let remote = &self.remote;
        let link = connect(remote.server, &self.identity, remote.server_id, remote.token.as_deref(), &remote.link).await?;
        let mut control = link.open_control().await?;
        let hello = Message::HelloGenerate {
            version: PROTOCOL_VERSION,
            base: self.base,
            blocks: self.blocks,
            hidden: self.hidden,
            cut: remote.cut,
            tail: remote.tail,
            encoding: remote.encoding,
            name: self.name.clone(),
        };
        control.send(&hello).await?;
        match control.recv().await? {
            Message::WelcomeGenerate { start, adapters, .. } => Ok(Live { link, _control: control, start, adapters }),
            Message::Refused { code, reason } => Err(NodeError::Refused { code, reason }),
            other => Err(NodeError::Ended { reason: format!("the server answered hello with {}", other.name()) }),
        }
    }
}

/// Whether the host may be found again: its connection is lost, or it ended and may be started again.
pub(super) fn is_gone(error: &NodeError) -> bool {
    error.is_lost() || matches!(error, NodeError::Link(LinkError::Closed { .. }))
}

impl Live {
    /// Smoothed round trip, in milliseconds.
    pub fn rtt_ms(&self) -> f64 {
        self.link.stats().rtt_ms
    }
}
