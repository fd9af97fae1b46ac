//! Texts to vectors, by an encoder that runs here whole, or split with a host: the mean of a text's hidden states, at length 1, as
//! sentence-transformers takes it (Reimers and Gurevych 2019).
//!
//! A host of an encoder computes its blocks and gives hidden states back, as in a U-shape: the mean is taken here.

use super::device::{GeneratorConfig, Shared};
use super::line::Live;
use super::path::{failed, heard, out_of_turn};
use super::worker::{Came, Job, Leaving, Opening, Outcome};
use crate::error::NodeError;
use crate::event::EventSink;
use cutlayer_data::Tokenizer;
use cutlayer_model::spec::ModelSpec;
use cutlayer_transport::{Identity, LinkStats};
use cutlayer_wire::{DeviceRecord, Encoding, FailureCode, Open, RECORD_ROWS_MAX, RowsRecord, ServerRecord, Wanted};
use futures_util::{StreamExt, TryStreamExt};
use std::sync::Arc;

/// Texts under way at once: enough that passes over the weights are shared.
const UNDER_WAY_MAX: usize = 16;
/// What a length is divided by at least.
const LENGTH_MIN: f64 = 1e-12;

/// Turns texts into vectors. Clones share everything.
#[derive(Clone)]
pub struct Embedder(Arc<Shared>);

impl Embedder {
    /// Loads this side's layers. The host, if there is one, is looked for by the first text.
    pub async fn open(mut config: GeneratorConfig, identity: Arc<Identity>, events: EventSink) -> Result<Self, NodeError> {
        if let Some(remote) = &mut config.remote {
            // Hidden states come back: nothing is drawn.
            remote.tail = Some(0);
        }
        let loaded = tokio::task::spawn_blocking(move || Shared::load(config, identity, events)).await;
        let shared = loaded.map_err(|_| NodeError::Panicked { during: "loading the model".into() })??;
        if shared.spec.block.causal {
            let family = shared.spec.family;
            return Err(NodeError::Task(format!(
                "{family} models generate; embeddings need an encoder's folder, such as all-MiniLM-L6-v2's"
            )));
        }
        Ok(Self(Arc::new(shared)))
    }

    /// A vector of length 1 for each text, given as tokens with their special ones.
    ///
    /// Needs a tokio runtime. A text longer than the model's positions is refused, with its place.
    pub async fn embed(&self, ids: Vec<Vec<u32>>) -> Result<Vec<Vec<f32>>, NodeError> {
        for (place, ids) in ids.iter().enumerate() {
            self.check(place, ids)?;
        }
        futures_util::stream::iter(ids).map(|ids| self.one(ids)).buffered(UNDER_WAY_MAX).try_collect().await
    }

    /// The same for text, tokenised here.
    pub async fn embed_text(&self, text: &str) -> Result<Vec<f32>, NodeError> {
        let Some(tokenizer) = self.tokenizer() else {
            return Err(failed(FailureCode::Malformed, "the encoder's folder has no tokenizer.json: give a folder with one".into()));
        };
        let ids = tokenizer.encode(text, true)?;
        Ok(self.embed(vec![ids]).await?.pop().expect("one vector for one text"))
    }

    /// The encoder's tokenizer, if its folder has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.0.tokenizer.as_ref()
    }

    /// The encoder.
    pub fn spec(&self) -> &ModelSpec {
        &self.0.spec
    }

    /// What the connection to the host has carried; `None` without one.
    pub async fn link_stats(&self) -> Option<LinkStats> {
        match &self.0.line {
            Some(line) => line.stats().await,
            None => None,
        }
    }

    fn check(&self, place: usize, ids: &[u32]) -> Result<(), NodeError> {
        let spec = &self.0.spec;
        let most = spec.positions_max.min(RECORD_ROWS_MAX.into());
        if ids.is_empty() {
            return Err(failed(FailureCode::Malformed, format!("text {place} has no tokens; write at least one word")));
        }
        if ids.len() > most {
            let reason = format!("text {place} has {} tokens and the encoder takes {most}; shorten it", ids.len());
            return Err(failed(FailureCode::TooLong, reason));
        }
        match ids.iter().find(|&&id| id as usize >= spec.vocab) {
            Some(id) => {
                let reason = format!("text {place}: token {id} is outside the encoder's vocabulary of {}", spec.vocab);
                Err(failed(FailureCode::Malformed, reason))
            }
            None => Ok(()),
        }
    }

    async fn one(&self, ids: Vec<u32>) -> Result<Vec<f32>, NodeError> {
        let shared = &self.0;
        let (hidden, rows) = (shared.spec.hidden, ids.len());
        let Some(line) = &shared.line else {
            let payload = self.front(ids, Encoding::F32).await?;
            return pooled(&Encoding::F32.decode(&payload, rows, hidden)?, hidden);
        };
        let sent = self.front(ids, shared.encoding).await?;
        loop {
            let live = line.live().await?;
            match self.rest(&live, rows, sent.clone()).await {
                Ok(payload) => return pooled(&shared.encoding.decode(&payload, rows, hidden)?, hidden),
                // An error that is not of the connection comes back from here.
                Err(error) => drop(line.recover(&live, error).await?),
            }
        }
    }

    /// This side's blocks.
    async fn front(&self, ids: Vec<u32>, encoding: Encoding) -> Result<Vec<u8>, NodeError> {
        let front = &self.0.front;
        let opening = Opening {
            owner: 0,
            scope: 0,
            adapter: None,
            blocks: front.blocks.clone(),
            leaving: Leaving::Encoded(encoding),
            tokens_max: ids.len() as u32,
            prefix: vec![],
        };
        let seat = front.worker.open(opening).await.map_err(|(code, reason)| failed(code, reason))?;
        match seat.run(Job { position: 0, came: Came::Tokens(ids), wanted: Wanted::All, digests: vec![] }).await {
            Outcome::Encoded(_, payload) => Ok(payload),
            Outcome::Failed(code, reason) => Err(failed(code, reason)),
            Outcome::Done | Outcome::Drawn(_) | Outcome::Held(_) => unreachable!("an encoder keeps nothing and draws nothing"),
        }
    }

    /// The host's blocks.
    async fn rest(&self, live: &Arc<Live>, rows: usize, payload: Vec<u8>) -> Result<Vec<u8>, NodeError> {
        let line = self.0.line.as_ref().expect("asked for");
        let (mut sender, mut receiver) = line.stream(live).await?.split();
        let open = Open { adapter: None, sampling: None, tokens_max: rows as u32, prefix: vec![], generated: (0, vec![]) };
        sender.send(DeviceRecord::Open(open)).await?;
        let record = RowsRecord { position: 0, rows: rows as u16, wanted: Wanted::All, digests: vec![], payload };
        sender.send(DeviceRecord::Rows(record)).await?;
        let mut greeted = false;
        loop {
            match heard(receiver.recv(&self.0.limits).await)? {
                ServerRecord::Held(0) if !greeted => greeted = true,
                ServerRecord::Rows { position: 0, rows: count, payload } if usize::from(count) == rows => {
                    sender.finish();
                    return Ok(payload);
                }
                ServerRecord::Failed { code, reason } => return Err(failed(code, reason)),
                _ => return Err(out_of_turn("an answer to something else")),
            }
        }
    }
}

/// The mean of the rows, at length 1.
fn pooled(values: &[f32], hidden: usize) -> Result<Vec<f32>, NodeError> {
    let mut sums = vec![0.0f64; hidden];
    for row in values.chunks_exact(hidden) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    let length = sums.iter().map(|sum| sum * sum).sum::<f64>().sqrt();
    if !length.is_finite() {
        return Err(failed(FailureCode::Internal, "the encoder gave numbers that are none: is its folder whole?".into()));
    }
    Ok(sums.into_iter().map(|sum| (sum / length.max(LENGTH_MIN)) as f32).collect())
}

/// How alike two vectors of length 1 are: the cosine of their angle.
pub(super) fn cosine(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_has_length_one() {
        let mean = pooled(&[3.0, 0.0, 3.0, 8.0], 2).unwrap();
        assert!((mean[0] - 0.6).abs() < 1e-6 && (mean[1] - 0.8).abs() < 1e-6, "{mean:?}");
        assert_eq!(pooled(&[1.0, -1.0, -1.0, 1.0], 2).unwrap(), [0.0, 0.0], "opposites have no direction, and no NaN");
        assert!(pooled(&[f32::INFINITY, 0.0], 2).is_err());
        assert!((cosine(&mean, &mean) - 1.0).abs() < 1e-6);
    }
}
