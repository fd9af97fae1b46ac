//! Split inference as an app uses it: what it brings, one value at a time, and then as many prompts as it likes.
//!
//! Only gathers and checks what was given; all the work is `node`'s.

use crate::client::{ClientError, identity_at, resolve};
use cutlayer_model::{DeviceChoice, Precision};
use cutlayer_node::{
    ComputeConfig, Drafting, Event, EventSink, GenerateRequest, Generation, Generator, GeneratorConfig, NamedAdapter, Remote, no_events,
};
use cutlayer_transport::LinkConfig;
use cutlayer_wire::{CutPoint, Encoding};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Bytes for keys and values unless told otherwise.
const CACHE_BYTES: u64 = 256 << 20;
/// Sequences at once unless told otherwise.
const SEQUENCES_MAX: u32 = 64;
/// How long a host that is out of reach is looked for.
const RECONNECT: Duration = Duration::from_secs(600);

/// A model ready to generate: here, or split with a host. Clones share it.
///
/// ```no_run
/// # async fn ask() -> Result<(), Box<dyn std::error::Error>> {
/// use cutlayer::{Piece, Session};
///
/// let session = Session::builder()
///     .model("models/smollm")
///     .identity("keys")
///     .host("10.0.0.5:4434", "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c")
///     .cut(2)
///     .open()
///     .await?;
/// let mut answer = session.generate("Where is the kettle?");
/// while let Some(piece) = answer.next().await {
///     if let Piece::Token(token) = piece? {
///         print!("{}", token.text);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Session(Generator);

impl Session {
    /// Starts describing a session; [`SessionBuilder::open`] ends it.
    pub fn builder() -> SessionBuilder {
        SessionBuilder {
            model: None,
            identity: None,
            host: None,
            token: None,
            cut: CutPoint(1),
            tail: None,
            encoding: Encoding::F32,
            adapters: vec![],
            drafting: Drafting::Off,
            compute: ComputeConfig::default(),
            link: LinkConfig::default(),
            reconnect: RECONNECT,
            cache_bytes: CACHE_BYTES,
            events: no_events(),
        }
    }

    /// The likeliest continuation of `prompt`, token by token: a [`futures_util::Stream`]. Dropping it cancels.
    pub fn generate(&self, prompt: impl Into<String>) -> Generation {
        self.0.generate(GenerateRequest::greedy(prompt))
    }

    /// A continuation with every choice one's own.
    pub fn generate_with(&self, request: GenerateRequest) -> Generation {
        self.0.generate(request)
    }

    /// What is underneath.
    pub fn generator(&self) -> &Generator {
        &self.0
    }
}

/// A session being described.
#[must_use = "nothing happens before `open`"]
pub struct SessionBuilder {
    model: Option<PathBuf>,
    identity: Option<PathBuf>,
    host: Option<(String, String)>,
    token: Option<String>,
    cut: CutPoint,
    tail: Option<u16>,
    encoding: Encoding,
    adapters: Vec<NamedAdapter>,
    drafting: Drafting,
    compute: ComputeConfig,
    link: LinkConfig,
    reconnect: Duration,
    cache_bytes: u64,
    events: EventSink,
}

impl SessionBuilder {
    /// Folder of the base model, the same as the host's. Needed.
    pub fn model(mut self, folder: impl Into<PathBuf>) -> Self {
        self.model = Some(folder.into());
        self
    }

    /// Folder of this device's key, which is made there the first time. Needed.
    pub fn identity(mut self, folder: impl Into<PathBuf>) -> Self {
        self.identity = Some(folder.into());
        self
    }

    /// Where the host is (`host:port`) and its key, both as `cutlayer host` printed them. Without it the whole model runs here.
    pub fn host(mut self, address: impl Into<String>, host_id: impl Into<String>) -> Self {
        self.host = Some((address.into(), host_id.into()));
        self
    }

    /// A single-use token, for the first time this device's key meets the host.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Blocks to run here from the bottom; 1 if not called. With 0 the host sees embeddings, which are tokens under another name.
    pub fn cut(mut self, blocks: u16) -> Self {
        self.cut = CutPoint(blocks);
        self
    }

    /// Blocks to run here from the top as well, with the head, so that tokens are drawn here; 0 is the head alone.
    pub fn tail(mut self, blocks: u16) -> Self {
        self.tail = Some(blocks);
        self
    }

    /// How hidden states travel; f32 if not called.
    pub fn encoding(mut self, encoding: Encoding) -> Self {
        self.encoding = encoding;
        self
    }

    /// An adapter that requests can name: its PEFT folder, or this device's layers of it. The host needs it under the same name.
    pub fn adapter(mut self, name: impl Into<String>, folder: impl Into<PathBuf>) -> Self {
        self.adapters.push(NamedAdapter { name: name.into(), folder: folder.into() });
        self
    }

    /// What guesses tokens ahead, to hide the round trip; nothing if not called.
    pub fn drafting(mut self, drafting: Drafting) -> Self {
        self.drafting = drafting;
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

    /// What the link is sized for.
    pub fn link(mut self, link: LinkConfig) -> Self {
        self.link = link;
        self
    }

    /// How long to look for a host that is out of reach; 10 minutes unless told otherwise.
    pub fn reconnect(mut self, wait: Duration) -> Self {
        self.reconnect = wait;
        self
    }

    /// Bytes for the keys and values of all sequences here; 256 MiB unless told otherwise.
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// Called with what happens to the connection; must not block.
    pub fn on_event(mut self, tell: impl Fn(Event) + Send + Sync + 'static) -> Self {
        self.events = Arc::new(tell);
        self
    }

    /// Loads this device's layers. The host is looked for by the first prompt.
    ///
    /// Needs a tokio runtime; the computation has threads of its own.
    pub async fn open(self) -> Result<Session, ClientError> {
        let missing = |what, call| ClientError::Missing { what, call, before: "open" };
        let model = self.model.ok_or(missing("model", "model(folder)"))?;
        let identity = self.identity.ok_or(missing("identity", "identity(folder)"))?;
        let (identity, _) = identity_at(&identity)?;
        let remote = match self.host {
            None => None,
            Some((address, host_id)) => {
                let server = resolve(&address).await?;
                let (token, cut, tail, encoding) = (self.token, self.cut, self.tail, self.encoding);
                let server_id = host_id.parse()?;
                Some(Remote { server, server_id, token, cut, tail, encoding, link: self.link, reconnect: self.reconnect })
            }
        };
        let config = GeneratorConfig {
            model,
            compute: self.compute,
            remote,
            adapters: self.adapters,
            cache_bytes: self.cache_bytes,
            sessions_max: SEQUENCES_MAX,
            drafting: self.drafting,
            name: "app".into(),
        };
        Ok(Session(Generator::open(config, Arc::new(identity), self.events).await?))
    }
}
