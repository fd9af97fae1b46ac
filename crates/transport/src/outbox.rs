//! Adapters on their way out: sent in the background, the newest first.
//!
//! A peer in the middle of its local steps reads no adapter, and one larger than a stream window then waits for credit. Nobody
//! else may wait with it: the message that makes the peer read it mostly comes after it.

use crate::error::LinkError;
use crate::line::Line;
use bytes::Bytes;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::task::JoinHandle;

/// The adapter to send next, and the task that sends.
#[derive(Debug, Default)]
struct State {
    next: Option<Bytes>,
    sending: Option<JoinHandle<()>>,
    /// Why the last one was not sent.
    failed: Option<LinkError>,
}

/// At most one adapter under way and one that waits.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Arc<Mutex<State>>,
}

impl Outbox {
    /// Takes an adapter's bytes. One that has not begun to be sent gives way: a newer adapter is all that its peer needs.
    pub fn offer(&self, line: &Arc<Line>, bytes: Bytes) -> Result<(), LinkError> {
        let mut state = lock(&self.state);
        if let Some(error) = state.failed.take() {
            return Err(error);
        }
        if state.next.replace(bytes).is_some() {
            tracing::debug!("{}: an adapter gave way to a newer one", line.place.addr);
        }
        if state.sending.as_ref().is_none_or(JoinHandle::is_finished) {
            state.sending = Some(tokio::spawn(send_all(line.clone(), self.state.clone())));
        }
        Ok(())
    }
}

impl Drop for Outbox {
    /// Who drops a link has no use for what it still sends; and the task would keep the connection open.
    fn drop(&mut self) {
        if let Some(sending) = lock(&self.state).sending.take() {
            sending.abort();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no holder of this lock panics")
}

async fn send_all(line: Arc<Line>, state: Arc<Mutex<State>>) {
    loop {
        let bytes = {
            let mut state = lock(&state);
            match state.next.take() {
                Some(bytes) => bytes,
                None => {
                    // Under the same lock as `offer`: it either sees this, or its adapter was seen here.
                    state.sending = None;
                    return;
                }
            }
        };
        if let Err(error) = send(&line, bytes).await {
            let mut state = lock(&state);
            (state.failed, state.sending) = (Some(error), None);
            return;
        }
    }
}

/// One adapter on a stream of its own. The wait for the stream and for credit ends with the connection at the latest.
async fn send(line: &Line, bytes: Bytes) -> Result<(), LinkError> {
    let during = "sending an adapter";
    let mut send = line.connection.open_uni().await.map_err(|error| line.place.error(error, during))?;
    if let Err(error) = send.write_all_chunks(&mut [bytes]).await {
        return Err(line.write_error(error, during).await);
    }
    // Finishing a stream that was not finished cannot fail. Its bytes are the connection's to deliver now.
    let _ = send.finish();
    Ok(())
}
