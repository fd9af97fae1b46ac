//! Streams of a link: whole messages and whole frames, read only as far as their headers were believed.

use crate::error::{LinkError, Place};
use cutlayer_wire::{CONTROL_PREFIX_BYTES, CodecError, FRAME_HEADER_BYTES, Frame, FrameHeader, FrameLimits, Message, decode, encode};
use quinn::{Connection, ReadError, ReadExactError, RecvStream, SendStream, WriteError};
use std::sync::Arc;
use std::time::Duration;

/// Read at a time: memory grows with what arrives, not with what a header promises.
const CHUNK_BYTES: usize = 1 << 20;
/// How long a last message may take to arrive.
const FINISH_WAIT: Duration = Duration::from_secs(2);

impl Place {
    /// A failed write, in words.
    pub(crate) fn write_error(&self, error: WriteError, during: &'static str, connection: &Connection) -> LinkError {
        match (error, connection.close_reason()) {
            (WriteError::ConnectionLost(error), _) | (_, Some(error)) => self.error(error, during),
            (other, None) => LinkError::Lost { addr: self.addr, during, reason: other.to_string() },
        }
    }

    /// A failed read, in words.
    fn read_error(&self, error: ReadError, during: &'static str, connection: &Connection) -> LinkError {
        match (error, connection.close_reason()) {
            (ReadError::ConnectionLost(error), _) | (_, Some(error)) => self.error(error, during),
            (other, None) => LinkError::Lost { addr: self.addr, during, reason: other.to_string() },
        }
    }
}

/// Fills `buffer`.
pub(crate) async fn read_exactly(
    receive: &mut RecvStream,
    buffer: &mut [u8],
    what: &'static str,
    place: &Place,
    connection: &Connection,
) -> Result<(), LinkError> {
    let expected = buffer.len();
    match receive.read_exact(buffer).await {
        Ok(()) => Ok(()),
        // The peer's reason for leaving says more than a short read.
        Err(ReadExactError::FinishedEarly(found)) => match connection.close_reason() {
            Some(error) => Err(place.error(error, what)),
            None => Err(LinkError::Truncated { addr: place.addr, what, found, expected }),
        },
        Err(ReadExactError::ReadError(error)) => Err(place.read_error(error, what, connection)),
    }
}

/// Reads `bytes` bytes.
pub(crate) async fn read_body(
    receive: &mut RecvStream,
    bytes: usize,
    what: &'static str,
    place: &Place,
    connection: &Connection,
) -> Result<Vec<u8>, LinkError> {
    let mut body = Vec::with_capacity(bytes.min(CHUNK_BYTES));
    while body.len() < bytes {
        match receive.read_chunk((bytes - body.len()).min(CHUNK_BYTES), true).await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk.bytes),
            Ok(None) => return Err(LinkError::Truncated { addr: place.addr, what, found: body.len(), expected: bytes }),
            Err(error) => return Err(place.read_error(error, what, connection)),
        }
    }
    Ok(body)
}

/// The control stream.
#[derive(Debug)]
pub struct Control {
    pub(crate) sender: ControlSender,
    pub(crate) receiver: ControlReceiver,
}

/// The half of a control stream that speaks.
#[derive(Debug)]
pub struct ControlSender {
    pub(crate) send: SendStream,
    pub(crate) connection: Connection,
    pub(crate) place: Arc<Place>,
}

/// The half of a control stream that listens.
#[derive(Debug)]
pub struct ControlReceiver {
    pub(crate) receive: RecvStream,
    pub(crate) connection: Connection,
    pub(crate) place: Arc<Place>,
}

impl Control {
    /// Sends one message.
    pub async fn send(&mut self, message: &Message) -> Result<(), LinkError> {
        self.sender.send(message).await
    }

    /// Waits for the next message. Not cancel-safe: a message read in part is lost.
    pub async fn recv(&mut self) -> Result<Message, LinkError> {
        self.receiver.recv().await
    }

    /// Both halves apart.
    pub fn split(self) -> (ControlSender, ControlReceiver) {
        (self.sender, self.receiver)
    }

    /// Ends the stream and waits a moment until the peer has its last message.
    pub async fn finish(mut self) {
        if self.sender.send.finish().is_ok() {
            // Past this wait the peer may miss our last words, and reads the reason of the close instead.
            let _ = tokio::time::timeout(FINISH_WAIT, self.sender.send.stopped()).await;
        }
    }
}

impl ControlSender {
    /// Sends one message.
    pub async fn send(&mut self, message: &Message) -> Result<(), LinkError> {
        let body = encode(message)?;
        let length = u32::try_from(body.len()).expect("a message is shorter than CONTROL_BYTES_MAX");
        let bytes = [&length.to_le_bytes()[..], &body].concat();
        let written = self.send.write_all(&bytes).await;
        written.map_err(|error| self.place.write_error(error, "sending a message", &self.connection))
    }
}

impl ControlReceiver {
    /// Waits for the next message. Not cancel-safe: a message read in part is lost.
    pub async fn recv(&mut self) -> Result<Message, LinkError> {
        let during = "waiting for a message";
        let mut prefix = [0; CONTROL_PREFIX_BYTES];
        read_exactly(&mut self.receive, &mut prefix, during, &self.place, &self.connection).await?;
        let length = CodecError::check_length(prefix)?;
        Ok(decode(&read_body(&mut self.receive, length, "a message", &self.place, &self.connection).await?)?)
    }
}

/// One step's stream.
#[derive(Debug)]
pub struct StepStream {
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
    pub(crate) connection: Connection,
    pub(crate) place: Arc<Place>,
    pub(crate) wait: Duration,
}

impl StepStream {
    /// Sends a frame. The payload is handed over, not copied.
    pub async fn send(&mut self, frame: Frame) -> Result<(), LinkError> {
        let mut parts = [frame.encode_prefix().into(), frame.payload.into()];
        let written = self.send.write_all_chunks(&mut parts).await;
        written.map_err(|error| self.place.write_error(error, "sending a step", &self.connection))
    }

    /// Waits for the next frame, at most as long as a step may take. Nothing is allocated for a header that breaks `limits`.
    pub async fn recv(&mut self, limits: &FrameLimits) -> Result<Frame, LinkError> {
        let (addr, seconds) = (self.place.addr, self.wait.as_secs());
        let received = tokio::time::timeout(self.wait, self.recv_frame(limits)).await;
        received.map_err(|_| LinkError::TimedOut { addr, during: "computing a step", seconds })?
    }

    async fn recv_frame(&mut self, limits: &FrameLimits) -> Result<Frame, LinkError> {
        let mut header = [0; FRAME_HEADER_BYTES];
        read_exactly(&mut self.receive, &mut header, "a step's header", &self.place, &self.connection).await?;
        let header = FrameHeader::decode(&header)?;
        let plan = header.check(limits)?;
        let lists = read_body(&mut self.receive, plan.prefix_bytes(), "a step's lengths", &self.place, &self.connection).await?;
        let payload = read_body(&mut self.receive, plan.payload_bytes, "a step's tensor", &self.place, &self.connection).await?;
        Ok(Frame::assemble(header, &lists, payload)?)
    }

    /// Says that nothing more comes.
    pub async fn finish(&mut self) -> Result<(), LinkError> {
        // A stream that was reset or finished before has ended too.
        let _ = self.send.finish();
        Ok(())
    }
}
