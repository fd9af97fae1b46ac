//! How a client gets to its server, and back to it.

use super::JoinConfig;
use crate::error::NodeError;
use crate::side::Agreement;
use cutlayer_transport::{Control, Identity, Link, connect};
use cutlayer_wire::{BaseHash, ClientSession, EncodingPart, Message, PROTOCOL_VERSION, Resume};
use std::time::Duration;

/// The first pause between two tries to get back.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// The longest: a server that is back is found within it.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What a client says of itself, as often as it comes.
pub(super) struct Door<'a> {
    pub config: &'a JoinConfig,
    pub identity: &'a Identity,
    pub base: BaseHash,
    pub blocks: u16,
    pub hidden: u32,
    pub samples: u64,
    pub eval_samples: u64,
}

/// A connection on which Welcome was said.
pub(super) struct Entered {
    pub link: Link,
    pub control: Control,
    /// A session that has just been welcomed.
    pub session: ClientSession,
    pub agreed: Agreement,
    pub welcome: Welcome,
}

/// What a Welcome says of the session, beside what both sides agreed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Welcome {
    pub id: cutlayer_wire::RunId,
    pub resumed: bool,
    pub awaits: Option<cutlayer_wire::Ask>,
}

impl Door<'_> {
    /// Connects, says Hello and hears the answer.
    pub async fn enter(&self, resume: Option<Resume>) -> Result<Entered, NodeError> {
        let config = self.config;
        let link = connect(config.server, self.identity, config.server_id, config.token.as_deref(), &config.link).await?;
        let mut control = link.open_control().await?;
        let mut session = ClientSession::new();
        let hello = Message::Hello {
            version: PROTOCOL_VERSION,
            base: self.base,
            blocks: self.blocks,
            hidden: self.hidden,
            cut: config.cut,
            tail: config.tail,
            encodings: EncodingPart::ALL.to_vec(),
            samples: self.samples,
            eval_samples: self.eval_samples,
            name: config.name.clone(),
            resume,
        };
        session.sent(&hello)?;
        control.send(&hello).await?;
        let answer = control.recv().await?;
        session.handle(&answer)?;
        match answer {
            Message::Welcome { plan, activations, gradients, adapters, client, id, resumed, awaits, .. } => {
                plan.validate()?;
                let (cut, tail) = (config.cut.0.into(), config.tail.map(usize::from));
                let (phases, compute) = (config.phases, config.compute);
                let agreed = Agreement { plan, activations, gradients, adapters, client, cut, tail, phases, compute };
                Ok(Entered { link, control, session, agreed, welcome: Welcome { id, resumed, awaits } })
            }
            Message::Refused { code, reason } => Err(NodeError::Refused { code, reason }),
            other => Err(NodeError::Ended { reason: format!("the server answered Hello with {}", other.name()) }),
        }
    }
}

/// Pauses between tries, each longer than the one before, and none as long as another client's: a server that comes back is not met by
/// all of them at once.
pub(crate) struct Pauses {
    next: Duration,
}

impl Pauses {
    pub fn new() -> Self {
        Self { next: PAUSE_FIRST }
    }

    /// Waits before the next try.
    pub async fn wait(&mut self) {
        let share = rand::random_range(0.5..1.0);
        tokio::time::sleep(self.next.mul_f64(share)).await;
        self.next = (self.next * 2).min(PAUSE_MAX);
    }
}
