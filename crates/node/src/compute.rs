//! One thread that owns what computes: tensors never block the network, and jobs run in the order they were sent.

use crate::error::NodeError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokio::sync::{mpsc, oneshot};

/// Jobs that may wait; more and the sender waits, which is the back-pressure a busy server gives its clients.
pub(crate) const JOBS_MAX: usize = 64;

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// A handle on the thread that owns an `S`. Clones share it; it ends with the last one.
pub(crate) struct Compute<S> {
    jobs: mpsc::Sender<Job<S>>,
}

impl<S> Clone for Compute<S> {
    fn clone(&self) -> Self {
        Self { jobs: self.jobs.clone() }
    }
}

impl<S: 'static> Compute<S> {
    /// Starts the thread; `make` builds the state on it.
    pub async fn start<E: Send + 'static>(name: &str, make: impl FnOnce() -> Result<S, E> + Send + 'static) -> Result<Self, NodeError>
    where
        NodeError: From<E>,
    {
        let (jobs, mut queue) = mpsc::channel::<Job<S>>(JOBS_MAX);
        let (ready, made) = oneshot::channel();
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let mut state = match make() {
                    Ok(state) => state,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                if ready.send(Ok(())).is_ok() {
                    while let Some(job) = queue.blocking_recv() {
                        job(&mut state);
                    }
                }
            })
            .map_err(NodeError::Thread)?;
        made.await.map_err(|_| NodeError::Panicked { during: "start".into() })??;
        Ok(Self { jobs })
    }

    /// Runs `job` on the state and returns what it returns. A panic in it is an error for this job alone. Once in the queue it runs,
    /// whether or not anybody still waits for it.
    pub async fn run<R: Send + 'static>(&self, what: &'static str, job: impl FnOnce(&mut S) -> R + Send + 'static) -> Result<R, NodeError> {
        let (done, result) = oneshot::channel();
        let panicked = || NodeError::Panicked { during: what.into() };
        let job: Job<S> = Box::new(move |state| {
            if let Ok(value) = catch_unwind(AssertUnwindSafe(|| job(state))) {
                // The asker may have gone; its answer goes with it.
                let _ = done.send(value);
            }
        });
        self.jobs.send(job).await.map_err(|_| panicked())?;
        result.await.map_err(|_| panicked())
    }
}
