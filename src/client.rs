//! The client as an app uses it: what it brings, one value at a time, and then one call.
//!
//! Only gathers and checks what was given; all the work is `node`'s.

use cutlayer_data::Record;
use cutlayer_model::{DeviceChoice, Precision};
use cutlayer_node::{ClientData, ComputeConfig, Event, EventSink, JoinConfig, JoinReport, NodeError, Stop, join, no_events};
use cutlayer_transport::{Identity, IdentityError, LinkConfig};
use cutlayer_wire::{CutPoint, IdError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a server that is out of reach is looked for.
const RECONNECT: Duration = Duration::from_secs(600);

/// A participant of a run: see [`Client::builder`].
#[derive(Clone, Copy, Debug)]
pub struct Client;

impl Client {
    /// Starts describing a client; [`ClientBuilder::join`] ends it.
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            server: None,
            token: None,
            model: None,
            identity: None,
            cut: CutPoint(1),
            tail: None,
            name: "app".into(),
            compute: ComputeConfig::default(),
            data: ClientData::default(),
            link: LinkConfig::default(),
            reconnect: RECONNECT,
            state: None,
            out: None,
            events: no_events(),
            stop: Stop::new(),
        }
    }
}

/// Why a client could not take part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Something without which there is no client.
    #[error("there is no {what}: call `{call}` before `{before}`")]
    Missing {
        /// What.
        what: &'static str,
        /// The call that gives it.
        call: &'static str,
        /// The call that needs it.
        before: &'static str,
    },
    /// The server's address has no meaning here.
    #[error("the server's address {address:?} cannot be used: {source}; write HOST:PORT as the server printed it")]
    Address {
        /// The address given.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The server's key.
    #[error("the server's key: {0}")]
    ServerId(#[from] IdError),
    /// This client's key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The run.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// What there is to train on.
#[derive(Clone, Debug, Default)]
pub struct TrainingData(Vec<Record>);

impl From<Vec<Record>> for TrainingData {
    fn from(records: Vec<Record>) -> Self {
        Self(records)
    }
}

/// Prompts, each with the completion that is learned.
impl<P: Into<String>, C: Into<String>> From<Vec<(P, C)>> for TrainingData {
    fn from(pairs: Vec<(P, C)>) -> Self {
        // The separator that records read from files get, so that both train alike.
        Self(pairs.into_iter().map(|(prompt, completion)| Record::pair(prompt.into() + "\n", completion)).collect())
    }
}

/// Plain texts.
impl From<Vec<String>> for TrainingData {
    fn from(texts: Vec<String>) -> Self {
        Self(texts.into_iter().map(Record::text).collect())
    }
}

/// Plain texts.
impl From<Vec<&str>> for TrainingData {
    fn from(texts: Vec<&str>) -> Self {
        Self(texts.into_iter().map(Record::text).collect())
    }
}

/// A client being described.
#[must_use = "nothing happens before `join`"]
pub struct ClientBuilder {
    server: Option<(String, String)>,
    token: Option<String>,
    model: Option<PathBuf>,
    identity: Option<PathBuf>,
    cut: CutPoint,
    tail: Option<u16>,
    name: String,
    compute: ComputeConfig,
    data: ClientData,
    link: LinkConfig,
    reconnect: Duration,
    state: Option<PathBuf>,
    out: Option<PathBuf>,
    events: EventSink,
    stop: Stop,
}

impl ClientBuilder {
    /// Where the server is (`host:port`) and its key (64 hexadecimal digits), both as it printed them. Needed.
    pub fn server(mut self, address: impl Into<String>, server_id: impl Into<String>) -> Self {
        self.server = Some((address.into(), server_id.into()));
        self
    }

    /// A single-use token, for the first time this client's key meets the server.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Folder of the base model, the same as the server's. Needed.
    pub fn model(mut self, folder: impl Into<PathBuf>) -> Self {
        self.model = Some(folder.into());
        self
    }

    /// Folder of this client's key, which is made there the first time. Needed.
    pub fn identity(mut self, folder: impl Into<PathBuf>) -> Self {
        self.identity = Some(folder.into());
        self
    }

    /// Blocks to run here from the bottom; 1 if not called.
    pub fn cut(mut self, blocks: u16) -> Self {
        self.cut = CutPoint(blocks);
        self
    }

    /// Blocks to run here from the top as well, with the head, so that labels stay here; 0 is the head alone.
    pub fn tail(mut self, blocks: u16) -> Self {
        self.tail = Some(blocks);
        self
    }

    /// What people call this client.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Where to compute; the CPU if not called.
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.compute.device = device;
        self
    }

    /// What the frozen layers are held and multiplied in; f32 by default.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.compute.precision = precision;
        self
    }

    /// Whether blocks are run again on the way back: less memory, a third more time. Off by default.
    pub fn checkpointing(mut self, on: bool) -> Self {
        self.compute.checkpointing = on;
        self
    }

    /// What to train on: records, texts, or prompts with completions. Needed.
    pub fn data(mut self, data: impl Into<TrainingData>) -> Self {
        self.data.train = data.into().0;
        self
    }

    /// Held-out records to score each new global adapter on.
    pub fn held_out(mut self, data: impl Into<TrainingData>) -> Self {
        self.data.eval = data.into().0;
        self
    }

    /// What the link is sized for.
    pub fn link(mut self, link: LinkConfig) -> Self {
        self.link = link;
        self
    }

    /// How long to look for a server that is out of reach; 10 minutes unless told otherwise.
    pub fn reconnect(mut self, wait: Duration) -> Self {
        self.reconnect = wait;
        self
    }

    /// Folder for what each round starts from: an app that was killed and started again takes up its round.
    pub fn state(mut self, folder: impl Into<PathBuf>) -> Self {
        self.state = Some(folder.into());
        self
    }

    /// PEFT folder that gets this client's layers of the last global adapter.
    pub fn out(mut self, folder: impl Into<PathBuf>) -> Self {
        self.out = Some(folder.into());
        self
    }

    /// Called with everything that happens; must not block.
    pub fn on_event(mut self, tell: impl Fn(Event) + Send + Sync + 'static) -> Self {
        self.events = Arc::new(tell);
        self
    }

    /// A flag that ends the client's part when it is raised.
    pub fn stop(mut self, stop: Stop) -> Self {
        self.stop = stop;
        self
    }

    /// Joins the run and trains until it is over.
    ///
    /// Needs a tokio runtime; the computation has a thread of its own.
    pub async fn join(self) -> Result<JoinReport, ClientError> {
        let missing = |what, call| ClientError::Missing { what, call, before: "join" };
        let (address, server_id) = self.server.ok_or(missing("server", "server(address, key)"))?;
        let model = self.model.ok_or(missing("model", "model(folder)"))?;
        let identity = self.identity.ok_or(missing("key", "identity(folder)"))?;
        if self.data.train.is_empty() {
            return Err(missing("data", "data(records)"));
        }
        let config = JoinConfig {
            server: resolve(&address).await?,
            server_id: server_id.parse()?,
            token: self.token,
            model,
            compute: self.compute,
            cut: self.cut,
            tail: self.tail,
            name: self.name,
            link: self.link,
            reconnect: self.reconnect,
            state: self.state,
            out: self.out,
            phases: false,
        };
        let (identity, _) = identity_at(&identity)?;
        Ok(join(config, &identity, self.data, self.events, self.stop).await?)
    }
}

/// The identity kept in `folder`, made there if there is none; says whether it was made.
pub fn identity_at(folder: &Path) -> Result<(Identity, bool), IdentityError> {
    match Identity::load(folder) {
        Err(IdentityError::Absent { .. }) => {
            let identity = Identity::generate()?;
            identity.save(folder)?;
            Ok((identity, true))
        }
        loaded => Ok((loaded?, false)),
    }
}

pub(crate) async fn resolve(address: &str) -> Result<SocketAddr, ClientError> {
    let refused = |source| ClientError::Address { address: address.into(), source };
    let mut found = tokio::net::lookup_host(address).await.map_err(refused)?;
    found.next().ok_or_else(|| refused(std::io::ErrorKind::NotFound.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(client: ClientBuilder, word: &str) {
        let error = client.join().await.expect_err("not enough").to_string();
        assert!(error.contains(word), "{error}");
    }

    /// Goal: what is missing is named with the call that gives it. Method: leave out one thing after another.
    #[tokio::test]
    async fn what_is_missing_is_named() {
        let client = || Client::builder().server("127.0.0.1:1", "00");
        check(Client::builder(), "server(address, key)").await;
        check(client(), "model(folder)").await;
        check(client().model("m"), "identity(folder)").await;
        check(client().model("m").identity("k"), "data(records)").await;
        check(client().model("m").identity("k").data(vec!["text"]), "64 hexadecimal digits").await;
    }

    /// Goal: pairs from an app train as pairs from a file do. Method: look at the record.
    #[test]
    fn pairs_get_the_separator() {
        let data = TrainingData::from(vec![("a", "b")]);
        assert_eq!(data.0, [Record::pair("a\n", "b")]);
    }
}
