//! The control stream: small messages, each after its length.

use crate::error::LinkError;
use crate::line::Line;
use bytes::Bytes;
use cutlayer_wire::{CONTROL_PREFIX_BYTES, CodecError, Message, decode, encode};
use quinn::{RecvStream, SendStream};
use std::sync::Arc;
use std::time::Duration;

/// How long a last message may take to arrive.
const FINISH_WAIT: Duration = Duration::from_secs(2);

/// The control stream.
#[derive(Debug)]
pub struct Control {
    sender: ControlSender,
    receiver: ControlReceiver,
}

/// The half of a control stream that speaks.
#[derive(Debug)]
pub struct ControlSender {
    send: SendStream,
    line: Arc<Line>,
}

/// The half of a control stream that listens.
#[derive(Debug)]
pub struct ControlReceiver {
    receive: RecvStream,
    line: Arc<Line>,
    /// What has come of the next message, its prefix included.
    begun: Vec<u8>,
}

impl Control {
    pub(crate) fn new(line: Arc<Line>, send: SendStream, receive: RecvStream) -> Self {
        let sender = ControlSender { send, line: line.clone() };
        Self { sender, receiver: ControlReceiver { receive, line, begun: Vec::new() } }
    }

    /// Sends one message.
    pub async fn send(&mut self, message: &Message) -> Result<(), LinkError> {
        self.sender.send(message).await
    }

    /// Waits for the next message, as long as the connection lives. Cancel-safe.
    pub async fn recv(&mut self) -> Result<Message, LinkError> {
        self.receiver.recv().await
    }

    /// Both halves apart.
    pub fn split(self) -> (ControlSender, ControlReceiver) {
        (self.sender, self.receiver)
    }

    /// Ends the stream and waits a moment until the peer has its last message.
    ///
    /// [`crate::Link::close`] throws away what is still on its way: finish first, so that last words arrive.
    pub async fn finish(self) {
        self.sender.finish().await;
    }
}

impl ControlSender {
    /// Sends one message.
    pub async fn send(&mut self, message: &Message) -> Result<(), LinkError> {
        let body = encode(message)?;
        let length = u32::try_from(body.len()).expect("the codec bounds a message far below 4 GiB");
        let prefix = Bytes::copy_from_slice(&length.to_le_bytes());
        self.line.write(&mut self.send, &mut [prefix, body.into()], "sending a message").await
    }

    /// Ends the stream and waits a moment until the peer has its last message.
    pub async fn finish(mut self) {
        if self.send.finish().is_ok() {
            // Past this wait the peer may miss our last words, and reads the reason of the close instead.
            let _ = tokio::time::timeout(FINISH_WAIT, self.send.stopped()).await;
        }
    }
}

impl ControlReceiver {
    /// Waits for the next message, as long as the connection lives; once begun, a message must come whole. Cancel-safe.
    pub async fn recv(&mut self) -> Result<Message, LinkError> {
        let during = "reading a message";
        loop {
            let wanted = self.wanted()?;
            if self.begun.len() == wanted {
                return Ok(decode(&std::mem::take(&mut self.begun)[CONTROL_PREFIX_BYTES..])?);
            }
            let missing = wanted - self.begun.len();
            let chunk = if self.begun.is_empty() {
                self.receive.read_chunk(missing, true).await
            } else {
                let wait = self.line.config.transfer_wait(missing);
                let read = async { Ok(self.receive.read_chunk(missing, true).await) };
                self.line.within(wait, during, read).await?
            };
            match chunk {
                Ok(Some(chunk)) => self.begun.extend_from_slice(&chunk.bytes),
                Ok(None) => return Err(self.line.truncated(self.begun.len(), wanted, during).await),
                Err(error) => return Err(self.line.read_error(error, during).await),
            }
        }
    }

    /// Bytes until the next decision: the prefix, then the message whose length it gives.
    fn wanted(&self) -> Result<usize, CodecError> {
        match self.begun.first_chunk() {
            Some(prefix) => Ok(CONTROL_PREFIX_BYTES + CodecError::check_length(*prefix)?),
            None => Ok(CONTROL_PREFIX_BYTES),
        }
    }
}
