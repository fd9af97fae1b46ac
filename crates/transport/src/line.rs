//! One connection's reads and writes: bounded in time, sized by what arrives, and put in words when they fail.
//!
//! This must never allocate for a length that was not checked before, nor wait without a bound.

use crate::closing::Closing;
use crate::config::LinkConfig;
use crate::error::{LinkError, Place, close};
use bytes::Bytes;
use quinn::{Connection, ReadError, ReadExactError, RecvStream, SendStream, VarInt, WriteError};
use std::time::Duration;

/// Read at a time, in bytes.
const CHUNK_BYTES: usize = 1 << 20;
/// How long a broken stream waits for the reason of the close that mostly follows it.
const REASON_WAIT: Duration = Duration::from_millis(500);

/// A connection, and what is known of it on this side.
#[derive(Debug)]
pub(crate) struct Line {
    pub connection: Connection,
    pub place: Place,
    pub config: LinkConfig,
    pub closing: Closing,
}

impl Drop for Line {
    /// The connection, if it is open still, closes with its last handle.
    fn drop(&mut self) {
        self.closing.begin();
    }
}

impl Line {
    /// Closes the connection. What is still being sent is thrown away.
    pub fn close(&self, code: VarInt, reason: &[u8]) {
        self.closing.begin();
        self.connection.close(code, reason);
    }

    /// `work`, given up after `wait`.
    pub async fn within<T>(
        &self,
        wait: Duration,
        during: &'static str,
        work: impl Future<Output = Result<T, LinkError>>,
    ) -> Result<T, LinkError> {
        match tokio::time::timeout(wait, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(LinkError::TimedOut { addr: self.place.addr, during, seconds: wait.as_secs_f64() }),
        }
    }

    /// Reads a header, within `wait`.
    pub async fn read_header<const N: usize>(
        &self,
        receive: &mut RecvStream,
        wait: Duration,
        during: &'static str,
    ) -> Result<[u8; N], LinkError> {
        let mut header = [0; N];
        let read = async {
            match receive.read_exact(&mut header).await {
                Ok(()) => Ok(()),
                Err(ReadExactError::FinishedEarly(found)) => Err(self.truncated(found, N, during).await),
                Err(ReadExactError::ReadError(error)) => Err(self.read_error(error, during).await),
            }
        };
        self.within(wait, during, read).await?;
        Ok(header)
    }

    /// Reads `bytes` bytes, a number that was checked, in chunks as they come.
    pub async fn read_body(&self, receive: &mut RecvStream, bytes: usize, during: &'static str) -> Result<Vec<u8>, LinkError> {
        let read = async {
            // A peer may make us hold a window anyway: that much is allocated at once, and saves copies. Beyond it, memory
            // grows with what arrives, not with what was promised.
            let eager = usize::try_from(self.config.window_bytes()).unwrap_or(CHUNK_BYTES);
            let mut body = Vec::with_capacity(bytes.min(eager));
            while body.len() < bytes {
                match receive.read_chunk((bytes - body.len()).min(CHUNK_BYTES), true).await {
                    Ok(Some(chunk)) => body.extend_from_slice(&chunk.bytes),
                    Ok(None) => return Err(self.truncated(body.len(), bytes, during).await),
                    Err(error) => return Err(self.read_error(error, during).await),
                }
            }
            Ok(body)
        };
        self.within(self.config.transfer_wait(bytes), during, read).await
    }

    /// The stream must end here.
    pub async fn read_end(&self, receive: &mut RecvStream, during: &'static str) -> Result<(), LinkError> {
        let read = async {
            match receive.read_chunk(1, true).await {
                Ok(None) => Ok(()),
                Ok(Some(_)) => Err(LinkError::Overlong { addr: self.place.addr, during }),
                Err(error) => Err(self.read_error(error, during).await),
            }
        };
        self.within(self.config.transfer_wait(0), during, read).await
    }

    /// Writes `parts`, which are handed over, not copied. Waits while the peer gives no credit: that is its back-pressure,
    /// and may last as long as a step.
    pub async fn write(&self, send: &mut SendStream, parts: &mut [Bytes], during: &'static str) -> Result<(), LinkError> {
        let wait = self.config.step_wait + self.config.transfer_wait(parts.iter().map(Bytes::len).sum());
        let written = async {
            match send.write_all_chunks(parts).await {
                Ok(()) => Ok(()),
                Err(error) => Err(self.write_error(error, during).await),
            }
        };
        self.within(wait, during, written).await
    }

    /// A stream's early end, in words.
    pub async fn truncated(&self, found: usize, expected: usize, during: &'static str) -> LinkError {
        self.reason_or(LinkError::Truncated { addr: self.place.addr, during, found, expected }, during).await
    }

    pub async fn read_error(&self, error: ReadError, during: &'static str) -> LinkError {
        match error {
            ReadError::ConnectionLost(error) => self.place.error(error, during),
            ReadError::Reset(close::CANCELLED) => LinkError::Cancelled { addr: self.place.addr, during },
            other => self.reason_or(self.lost(other.to_string(), during), during).await,
        }
    }

    pub async fn write_error(&self, error: WriteError, during: &'static str) -> LinkError {
        match error {
            WriteError::ConnectionLost(error) => self.place.error(error, during),
            WriteError::Stopped(close::CANCELLED) => LinkError::Cancelled { addr: self.place.addr, during },
            WriteError::Stopped(_) => self.reason_or(self.lost("the peer reads no more of it".into(), during), during).await,
            other => self.reason_or(self.lost(other.to_string(), during), during).await,
        }
    }

    fn lost(&self, reason: String, during: &'static str) -> LinkError {
        LinkError::Lost { addr: self.place.addr, during, reason }
    }

    /// A peer that breaks off a stream mostly closes the connection next, and says why: that says more than the broken stream.
    async fn reason_or(&self, otherwise: LinkError, during: &'static str) -> LinkError {
        match tokio::time::timeout(REASON_WAIT, self.connection.closed()).await {
            Ok(error) => self.place.error(error, during),
            Err(_) => otherwise,
        }
    }
}
