//! A flag that ends a run: Ctrl-C, an app's button, a test.

use std::sync::Arc;
use tokio::sync::watch;

/// Asks a run to end with what it has. Clones share one flag.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

impl Stop {
    /// A flag that is not raised.
    pub fn new() -> Self {
        Self(Arc::new(watch::channel(false).0))
    }

    /// Raises it.
    pub fn trigger(&self) {
        self.0.send_replace(true);
    }

    /// Whether it is raised.
    pub fn is_triggered(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is raised.
    pub async fn triggered(&self) {
        let mut flag = self.0.subscribe();
        // The sender lives in `self`, so that waiting cannot fail.
        let _ = flag.wait_for(|raised| *raised).await;
    }
}
