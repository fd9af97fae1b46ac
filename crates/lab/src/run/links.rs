//! The emulated links of a run: one in front of each client whose profile asks for it, in this process, for as long as the run.

use crate::error::LabError;
use crate::manifest::EmulatedLink;
use cutlayer_node::NodeError;
use cutlayer_transport::{Emulator, EmulatorCounts};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// What tells the dice of one client's link from another's.
const CLIENT_STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

/// What `metrics.jsonl` says of a link.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum LinkLine {
    /// It stands.
    Link {
        #[serde(flatten)]
        link: EmulatedLink,
        /// Where the client finds it.
        addr: SocketAddr,
    },
    /// The run is over.
    LinkEnded {
        client: u32,
        name: String,
        /// What passed.
        #[serde(flatten)]
        counts: EmulatorCounts,
    },
}

/// The links that stand. Dropping them cuts their clients off.
#[derive(Debug, Default)]
pub(super) struct Links {
    standing: BTreeMap<u32, (EmulatedLink, Emulator)>,
}

impl Links {
    /// Puts every link that is asked for in front of the server.
    pub fn start(links: Vec<EmulatedLink>, server: SocketAddr, seed: u64) -> Result<Self, LabError> {
        let own = match server {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::LOCALHOST, 0)),
        };
        let start = |link: EmulatedLink| {
            let seed = seed.wrapping_add(CLIENT_STRIDE.wrapping_mul(u64::from(link.client) + 1));
            let emulator = Emulator::start(own, server, &link.conditions, seed).map_err(NodeError::from)?;
            Ok((link.client, (link, emulator)))
        };
        Ok(Self { standing: links.into_iter().map(start).collect::<Result<_, LabError>>()? })
    }

    /// Where client `client` finds the server: behind its link, where it has one.
    pub fn address_for(&self, client: u32, server: SocketAddr) -> SocketAddr {
        self.standing.get(&client).map_or(server, |(_, emulator)| emulator.local_addr())
    }

    /// Lets nothing pass between a client, or all of them, and the server for so long; returns who has a link to cut.
    pub fn cut(&self, client: Option<u32>, length: Duration) -> Vec<String> {
        let hit = self.standing.iter().filter(|(standing, _)| client.is_none_or(|client| client == **standing));
        hit.map(|(_, (link, emulator))| {
            emulator.cut(length);
            link.name.clone()
        })
        .collect()
    }

    /// What is to be written down at the start.
    pub fn begun(&self) -> Vec<LinkLine> {
        self.standing.values().map(|(link, emulator)| LinkLine::Link { link: link.clone(), addr: emulator.local_addr() }).collect()
    }

    /// And at the end.
    pub fn ended(&self) -> Vec<LinkLine> {
        let line = |(link, emulator): &(EmulatedLink, Emulator)| LinkLine::LinkEnded {
            client: link.client,
            name: link.name.clone(),
            counts: emulator.counts(),
        };
        self.standing.values().map(line).collect()
    }
}
