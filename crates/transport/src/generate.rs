//! One session's stream while a model generates across the cut: records there and back, each whole or not at all.
//!
//! A session may be silent between two records for as long as its connection lives; a record that has begun must come whole. Either side
//! ends the session at once by dropping its half of the stream.

use crate::error::{LinkError, close};
use crate::line::Line;
use bytes::Bytes;
use cutlayer_wire::{DeviceRecord, RECORD_HEADER_BYTES, Record, RecordHeader, RecordLimits, ServerRecord};
use quinn::{RecvStream, SendStream};
use std::marker::PhantomData;
use std::sync::Arc;
use tokio::time::Instant;

/// Records of a few tokens go before prompts: somebody waits for each of them, and they are small. Steps have the first of these
/// priorities, control one more than the last.
const PROMPT_PRIORITY: i32 = 0;
const TOKEN_PRIORITY: i32 = 1;
/// Records up to this size are of a few tokens: a page of them at hidden 1024 in int8.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// A session's stream as the device has it.
pub type DeviceStream = GenerateStream<DeviceRecord, ServerRecord>;
/// A session's stream as the server has it.
pub type ServerStream = GenerateStream<ServerRecord, DeviceRecord>;

/// A session's stream.
#[derive(Debug)]
pub struct GenerateStream<Says, Hears> {
    sender: GenerateSender<Says>,
    receiver: GenerateReceiver<Hears>,
}

/// The half of a session's stream that speaks. To drop it before [`GenerateSender::finish`] is to cancel the session: what was not
/// delivered is thrown away, and the peer learns of it at once.
#[derive(Debug)]
pub struct GenerateSender<R> {
    line: Arc<Line>,
    send: SendStream,
    priority: i32,
    is_finished: bool,
    says: PhantomData<fn(R)>,
}

/// The half of a session's stream that listens. To drop it is to tell the peer that nothing more is read.
#[derive(Debug)]
pub struct GenerateReceiver<R> {
    line: Arc<Line>,
    receive: RecvStream,
    /// What has come of the next record: of its header, or of its body where the header was taken.
    begun: Vec<u8>,
    /// The header that was taken, and the bytes of its body.
    header: Option<(RecordHeader, usize)>,
    hears: PhantomData<fn() -> R>,
}

impl<Says: Record, Hears: Record> GenerateStream<Says, Hears> {
    pub(crate) fn new(line: Arc<Line>, send: SendStream, receive: RecvStream) -> Self {
        let sender = GenerateSender { line: line.clone(), send, priority: PROMPT_PRIORITY, is_finished: false, says: PhantomData };
        let receiver = GenerateReceiver { line, receive, begun: Vec::new(), header: None, hears: PhantomData };
        Self { sender, receiver }
    }

    /// As [`GenerateSender::send`].
    pub async fn send(&mut self, record: Says) -> Result<(), LinkError> {
        self.sender.send(record).await
    }

    /// As [`GenerateReceiver::recv`].
    pub async fn recv(&mut self, limits: &RecordLimits) -> Result<Option<Hears>, LinkError> {
        self.receiver.recv(limits).await
    }

    /// Both halves apart, for two tasks.
    pub fn split(self) -> (GenerateSender<Says>, GenerateReceiver<Hears>) {
        (self.sender, self.receiver)
    }
}

impl<R: Record> GenerateSender<R> {
    /// Sends a record. Its payload is handed over, not copied. Waits while the peer gives no credit, which is its back-pressure; what is
    /// small is sent at once.
    ///
    /// Not cancel-safe: a record sent in part makes the stream useless.
    pub async fn send(&mut self, record: R) -> Result<(), LinkError> {
        let (head, payload) = record.into_parts()?;
        let priority = if head.len() + payload.len() <= TOKEN_BYTES_MAX { TOKEN_PRIORITY } else { PROMPT_PRIORITY };
        if priority != self.priority {
            // To a stream that has ended it makes no difference, and the write says so.
            let _ = self.send.set_priority(priority);
            self.priority = priority;
        }
        let mut parts = [Bytes::from(head), payload.into()];
        // The second is empty for most records, and quinn would look at it once more.
        let parts = if parts[1].is_empty() { &mut parts[..1] } else { &mut parts[..] };
        self.line.write(&mut self.send, parts, "sending to a session").await
    }

    /// Says that nothing more comes from this side. What was sent is still delivered, as long as the connection lives.
    pub fn finish(mut self) {
        // A stream that the peer has ended is over too.
        let _ = self.send.finish();
        self.is_finished = true;
    }
}

impl<R> Drop for GenerateSender<R> {
    /// quinn would finish the stream: its peer would take that for a good end.
    fn drop(&mut self) {
        if !self.is_finished {
            // One that the peer stopped has ended already.
            let _ = self.send.reset(close::CANCELLED);
        }
    }
}

impl<R> Drop for GenerateReceiver<R> {
    fn drop(&mut self) {
        // One that was read to its end has nothing to stop.
        let _ = self.receive.stop(close::CANCELLED);
    }
}

impl<R: Record> GenerateReceiver<R> {
    /// Waits for the next record, as long as the connection lives; once begun, a record must come whole. Nothing where the peer finished
    /// the stream; [`LinkError::Cancelled`] where it gave the session up. Nothing is allocated for a header that breaks `limits`.
    ///
    /// Cancel-safe: what has begun is kept for the next call.
    pub async fn recv(&mut self, limits: &RecordLimits) -> Result<Option<R>, LinkError> {
        let during = "reading from a session";
        // Of this call: who reads seldom must not blame the peer for it.
        let mut until = None;
        loop {
            let wanted = self.header.map_or(RECORD_HEADER_BYTES, |(_, body_bytes)| body_bytes);
            if self.begun.len() == wanted {
                if let Some(record) = self.advance(limits)? {
                    return Ok(Some(record));
                }
                until = None;
                continue;
            }
            let has_begun = self.header.is_some() || !self.begun.is_empty();
            let missing = wanted - self.begun.len();
            let chunk = if has_begun {
                let until = *until.get_or_insert_with(|| Instant::now() + self.line.config.transfer_wait(missing));
                let wait = until.saturating_duration_since(Instant::now());
                let read = async { Ok(self.receive.read_chunk(missing, true).await) };
                self.line.within(wait, during, read).await?
            } else {
                self.receive.read_chunk(missing, true).await
            };
            match chunk {
                Ok(Some(chunk)) => self.begun.extend_from_slice(&chunk.bytes),
                Ok(None) if !has_begun => return Ok(None),
                Ok(None) => return Err(self.line.truncated(self.begun.len(), wanted, during).await),
                Err(error) => return Err(self.line.read_error(error, during).await),
            }
        }
    }

    /// A header or a body is whole: the first is taken and makes way for the second, which ends the record.
    fn advance(&mut self, limits: &RecordLimits) -> Result<Option<R>, LinkError> {
        let bytes = std::mem::take(&mut self.begun);
        if let Some((header, _)) = self.header.take() {
            return Ok(Some(R::assemble(&header, bytes, limits)?));
        }
        let header: [u8; RECORD_HEADER_BYTES] = bytes.try_into().expect("a header was waited for");
        let header = RecordHeader::decode(&header)?;
        let body_bytes = R::check(&header, limits)?;
        // A peer may make us hold a window anyway; beyond it, memory grows with what arrives.
        let eager = usize::try_from(self.line.config.window_bytes()).unwrap_or(0);
        self.begun.reserve(body_bytes.min(eager));
        self.header = Some((header, body_bytes));
        Ok(None)
    }
}
