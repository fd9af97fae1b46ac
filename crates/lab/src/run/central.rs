//! The uncut run: same file, same batches, same order, one thread of this process.

use super::child::{LINES_MAX, Who};
use super::{Record, RunOptions};
use crate::config::RunConfig;
use crate::error::LabError;
use crate::folder::RunFolder;
use crate::memory::peak_bytes;
use cutlayer_node::{ClientData, Event, EventSink, Stop, central};
use std::sync::Arc;
use tokio::sync::mpsc;

/// What the one process is called.
const NAME: &str = "central";

/// Trains the uncut model and keeps what it tells.
pub(super) async fn run(
    config: &RunConfig,
    options: &RunOptions,
    data: Vec<ClientData>,
    folder: &RunFolder,
    record: &mut Record,
    stop: &Stop,
) -> Result<(), LabError> {
    let samples = data.iter().map(|client| client.train.len() as u64).sum();
    let mut job = config.central_config(data, folder.adapter())?;
    job.phases = options.phases;
    let (tell, mut heard) = mpsc::channel::<Event>(LINES_MAX);
    // The training thread waits for its listener rather than losing an event.
    let events: EventSink = Arc::new(move |event| {
        let _ = tell.blocking_send(event);
    });
    let asked = stop.clone();
    let training = tokio::task::spawn_blocking(move || central(job, &events, &asked));
    let joined = Event::Joined { client: 0, name: NAME.into(), peer_id: String::new(), cut: 0, tail: None, samples };
    record.tally.add(Who::Server, &joined);
    let mut stopping = false;
    loop {
        tokio::select! {
            event = heard.recv() => match event {
                Some(event) => {
                    record.tally.peak(Who::Server, peak_bytes(None));
                    record.event(Who::Server, NAME, &event)?;
                }
                None => break,
            },
            () = stop.triggered(), if !stopping => {
                stopping = true;
                record.progress.note("stopping after this round; once more to kill");
            }
        }
    }
    training.await.map_err(|error| LabError::Panicked(error.to_string()))??;
    Ok(())
}
