//! The steps of all sessions, waiting in one line for the compute thread, which takes as many at once as its memory allows.
//!
//! Who is next is decided by [`Line`], which knows no clock, socket or tensor. What a step comes to does not depend on who is in its batch.

use crate::compute::{Compute, JOBS_MAX};
use crate::edge::{Edge, Opened};
use crate::error::NodeError;
use crate::phases::Phases;
use cutlayer_wire::Frame;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Steps that may wait; a session that has another waits with it, and so does its client.
const WAITING_MAX: usize = JOBS_MAX;

/// A job on a step, once it has run.
pub(crate) struct Ran {
    /// What the client is owed.
    pub outcome: Result<Opened, NodeError>,
    /// Its part, by tokens, of the time its batch took.
    pub compute_ms: f64,
    pub phases: Option<Phases>,
}

/// The line in front of the compute thread.
pub(crate) struct StepQueue {
    edge: Compute<Edge>,
    line: Arc<Mutex<Line<Asked>>>,
    room: Arc<Semaphore>,
    bytes_max: u64,
}

/// A step that waits, and who asked.
struct Asked {
    frame: Arc<Frame>,
    ran: oneshot::Sender<Ran>,
    _room: OwnedSemaphorePermit,
}

impl StepQueue {
    /// Batches of steps whose tapes take at most `bytes_max` together; 0 takes one step at a time.
    pub fn new(edge: Compute<Edge>, bytes_max: u64) -> Self {
        Self { edge, line: Arc::default(), room: Arc::new(Semaphore::new(WAITING_MAX)), bytes_max }
    }

    /// Puts the frame that opens a step of `client` in line, once there is room: steps that are put in one after the other are served so.
    /// From then on it is computed, and counts, whether or not anyone still waits for its answer.
    pub async fn push(&self, client: u32, frame: Arc<Frame>) -> Queued {
        let room = self.room.clone().acquire_owned().await.expect("the line is never closed");
        let (ran, queued) = oneshot::channel();
        lock(&self.line).push(client, Asked { frame, ran, _room: room });
        // A job for each step: the first to run takes what waits, and leaves the others less to do, or nothing.
        let (edge, line, bytes_max) = (self.edge.clone(), self.line.clone(), self.bytes_max);
        tokio::spawn(async move { edge.run("step", move |edge| serve(edge, &line, bytes_max)).await });
        Queued(queued)
    }
}

/// A step in line.
pub(crate) struct Queued(oneshot::Receiver<Ran>);

impl Queued {
    /// Waits until it has run.
    pub async fn ran(self) -> Result<Ran, NodeError> {
        self.0.await.map_err(|_| NodeError::Panicked { during: "step".into() })
    }
}

/// Takes the next batch and answers it.
fn serve(edge: &mut Edge, line: &Mutex<Line<Asked>>, bytes_max: u64) {
    let bytes = |client: u32, asked: &Asked| edge.step_bytes(client, &asked.frame);
    let batch = lock(line).take(bytes_max, bytes);
    if batch.is_empty() {
        return;
    }
    let tokens = |frame: &Frame| f64::from(frame.header.tokens);
    let all_tokens: f64 = batch.iter().map(|(_, asked)| tokens(&asked.frame)).sum();
    edge.take_phases();
    let started = Instant::now();
    let answers = edge.open_many(batch.iter().map(|(client, asked)| (*client, asked.frame.clone())).collect());
    let took_ms = started.elapsed().as_secs_f64() * 1e3;
    let phases = edge.take_phases();
    for ((_, asked), answer) in batch.into_iter().zip(answers) {
        let compute_ms = took_ms * tokens(&asked.frame) / all_tokens;
        // The asker may have gone; what it asked for is done all the same.
        let _ = asked.ran.send(Ran { outcome: answer, compute_ms, phases });
    }
}

fn lock<T>(line: &Mutex<Line<T>>) -> MutexGuard<'_, Line<T>> {
    line.lock().expect("no holder of this lock panics")
}

/// Steps in the order in which they came, and when each client was last served.
struct Line<T> {
    waiting: Vec<(u32, T)>,
    /// The number of the last batch that each client had a step in.
    served: BTreeMap<u32, u64>,
    batches: u64,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { waiting: vec![], served: BTreeMap::new(), batches: 0 }
    }
}

impl<T> Line<T> {
    fn push(&mut self, client: u32, step: T) {
        self.waiting.push((client, step));
    }

    /// The next batch: of each client its oldest step, those first who were served longest ago, and among them those who came first, while
    /// their bytes fit. The first is taken whatever its bytes; one that does not fit is not passed over for a smaller one, and comes
    /// first the next time.
    fn take(&mut self, bytes_max: u64, bytes: impl Fn(u32, &T) -> u64) -> Vec<(u32, T)> {
        let mut oldest: BTreeMap<u32, usize> = BTreeMap::new();
        for (place, (client, _)) in self.waiting.iter().enumerate() {
            oldest.entry(*client).or_insert(place);
        }
        let mut next: Vec<usize> = oldest.into_values().collect();
        next.sort_by_key(|&place| (self.served.get(&self.waiting[place].0).copied().unwrap_or(0), place));
        let mut room = bytes_max;
        let fits = |&(turn, &place): &(usize, &usize)| {
            let (client, step) = &self.waiting[place];
            let needed = bytes(*client, step);
            let fits = turn == 0 || needed <= room;
            room = room.saturating_sub(needed);
            fits
        };
        let taken: Vec<usize> = next.iter().enumerate().take_while(fits).map(|(_, &place)| place).collect();
        self.batches += u64::from(!taken.is_empty());
        let mut left = vec![];
        let mut batch: Vec<(usize, (u32, T))> = vec![];
        for (place, step) in std::mem::take(&mut self.waiting).into_iter().enumerate() {
            match taken.iter().position(|&other| other == place) {
                Some(turn) => batch.push((turn, step)),
                None => left.push(step),
            }
        }
        self.waiting = left;
        batch.sort_by_key(|(turn, _)| *turn);
        let number = self.batches;
        self.served.extend(batch.iter().map(|(_, (client, _))| (*client, number)));
        batch.into_iter().map(|(_, step)| step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(steps: &[(u32, u64)]) -> Line<u64> {
        let mut line = Line::default();
        steps.iter().for_each(|&(client, bytes)| line.push(client, bytes));
        line
    }

    fn next(line: &mut Line<u64>, bytes_max: u64) -> Vec<(u32, u64)> {
        line.take(bytes_max, |_, &bytes| bytes)
    }

    #[test]
    fn a_batch_has_a_step_of_each_client_in_the_order_they_came() {
        let mut line = line(&[(2, 11), (0, 12), (2, 13), (1, 14)]);
        assert_eq!(next(&mut line, 100), [(2, 11), (0, 12), (1, 14)]);
        assert_eq!(next(&mut line, 100), [(2, 13)]);
        assert_eq!(next(&mut line, 100), []);
    }

    #[test]
    fn bytes_are_bounded_and_one_step_always_goes() {
        let mut line = line(&[(0, 60), (1, 60), (2, 10), (3, 500)]);
        assert_eq!(next(&mut line, 100), [(0, 60)], "what does not fit is not passed over");
        assert_eq!(next(&mut line, 100), [(1, 60), (2, 10)]);
        assert_eq!(next(&mut line, 100), [(3, 500)], "it would never fit");
        line.push(0, 1);
        line.push(1, 1);
        assert_eq!(next(&mut line, 0), [(0, 1)], "no room: one at a time");
    }

    /// Goal: nobody starves. Method: one client always has many steps waiting, another one; there is room for one step a batch.
    #[test]
    fn a_client_with_many_steps_starves_no_other() {
        let mut line = line(&[(7, 1); 20]);
        let mut turns = vec![];
        for step in 0..10 {
            if step % 2 == 0 {
                line.push(3, 1);
            }
            turns.push(next(&mut line, 1)[0].0);
        }
        assert_eq!(turns, [7, 3, 7, 3, 7, 3, 7, 3, 7, 3]);
    }
}
