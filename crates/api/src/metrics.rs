//! What the endpoint counts, told in Prometheus's text format. It must never name a client or a prompt.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::Usage;

/// What was asked for.
#[derive(Clone, Copy)]
pub(crate) enum Endpoint {
    Completions,
    Chat,
    Embeddings,
}

/// How a request ended.
#[derive(Clone, Copy)]
pub(crate) enum Outcome {
    Answered,
    /// The client's mistake, or no room.
    Refused,
    /// Ours.
    Failed,
    /// The client went away.
    Cancelled,
}

const ENDPOINTS: [(Endpoint, &str); 3] =
    [(Endpoint::Completions, "completions"), (Endpoint::Chat, "chat"), (Endpoint::Embeddings, "embeddings")];
const OUTCOMES: [(Outcome, &str); 4] =
    [(Outcome::Answered, "answered"), (Outcome::Refused, "refused"), (Outcome::Failed, "failed"), (Outcome::Cancelled, "cancelled")];

/// The counts since the start.
#[derive(Default)]
pub(crate) struct Metrics {
    over: [[AtomicU64; OUTCOMES.len()]; ENDPOINTS.len()],
    busy: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    completion_tokens: AtomicU64,
}

impl Metrics {
    pub fn over(&self, endpoint: Endpoint, outcome: Outcome) {
        add(&self.over[endpoint as usize][outcome as usize], 1);
    }

    /// Nobody had room for it.
    pub fn refused_busy(&self) {
        add(&self.busy, 1);
    }

    /// Counted as they come, so that a cancelled answer's count too.
    pub fn generated_token(&self) {
        add(&self.completion_tokens, 1);
    }

    pub fn prompt(&self, usage: &Usage) {
        add(&self.prompt_tokens, usage.prompt_tokens);
        add(&self.cached_tokens, usage.cached_tokens);
    }

    /// The page, with the requests that are under way: those answered and those that wait.
    pub fn page(&self, (active, waiting): (usize, usize)) -> String {
        let mut page = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, values: &[(String, u64)]| {
            let name = format!("cutlayer_api_{name}");
            // A String takes whatever is written.
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in values {
                let _ = writeln!(page, "{name}{labels} {value}");
            }
        };
        let one = |value: u64| [(String::new(), value)];
        let read = |count: &AtomicU64| one(count.load(Ordering::Relaxed));
        metric("requests_active", "gauge", "Requests that are answered now.", &one(active as u64));
        metric("requests_waiting", "gauge", "Requests that are read or wait for their turn.", &one(waiting as u64));
        metric("requests_total", "counter", "Requests that are over, by how they ended.", &self.requests());
        metric("requests_busy_total", "counter", "Requests that were refused for want of room.", &read(&self.busy));
        metric("prompt_tokens_total", "counter", "Tokens of prompts.", &read(&self.prompt_tokens));
        metric("cached_tokens_total", "counter", "Tokens of prompts that were not computed again.", &read(&self.cached_tokens));
        metric("completion_tokens_total", "counter", "Tokens generated.", &read(&self.completion_tokens));
        page
    }

    fn requests(&self) -> Vec<(String, u64)> {
        let of = |(endpoint, name): &(Endpoint, &str)| {
            let counts = &self.over[*endpoint as usize];
            let row = |(outcome, word): &(Outcome, &str)| {
                (format!("{{endpoint=\"{name}\",outcome=\"{word}\"}}"), counts[*outcome as usize].load(Ordering::Relaxed))
            };
            OUTCOMES.iter().map(row).collect::<Vec<_>>()
        };
        ENDPOINTS.iter().flat_map(of).collect()
    }
}

fn add(count: &AtomicU64, by: u64) {
    count.fetch_add(by, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_line() {
        let metrics = Metrics::default();
        metrics.over(Endpoint::Chat, Outcome::Cancelled);
        metrics.over(Endpoint::Chat, Outcome::Cancelled);
        metrics.prompt(&Usage { prompt_tokens: 5, completion_tokens: 0, cached_tokens: 3 });
        let page = metrics.page((2, 7));
        for line in [
            "cutlayer_api_requests_active 2",
            "cutlayer_api_requests_waiting 7",
            "cutlayer_api_requests_total{endpoint=\"chat\",outcome=\"cancelled\"} 2",
            "cutlayer_api_requests_total{endpoint=\"completions\",outcome=\"answered\"} 0",
            "cutlayer_api_prompt_tokens_total 5",
            "cutlayer_api_cached_tokens_total 3",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
    }
}
