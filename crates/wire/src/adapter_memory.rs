//! Global adapters on their way to one client: after the first, each travels as the difference from what the client holds.
//!
//! The server's end decodes what it sends, so that it knows what the client holds to the bit: what an encoding left out of one
//! global adapter is in the difference to the next, and the client's update, a difference from what it holds, means the same at
//! both ends. A client without a past, or one that may have missed an adapter, gets it whole. In a lossless encoding an adapter
//! always travels whole: a difference of floats cannot be undone to the bit.

use crate::adapter_error::AdapterFrameError;
use crate::adapter_frame::{AdapterFrame, AdapterLimits};
use crate::encoding::Encoding;
use crate::ids::{BaseHash, RoundId};
use crate::tensor::AdapterState;

/// The server's end, one for each client.
#[derive(Clone, Debug)]
pub struct GlobalSender {
    encoding: Encoding,
    held: Option<(RoundId, AdapterState)>,
}

/// The client's end.
#[derive(Clone, Debug)]
pub struct GlobalReceiver {
    encoding: Encoding,
    held: Option<(RoundId, AdapterState)>,
}

impl GlobalSender {
    /// For a client that holds nothing yet; `encoding` is the one agreed for adapters.
    pub fn new(encoding: Encoding) -> Self {
        Self { encoding, held: None }
    }

    /// The frame that brings the client the global adapter of `round`, of its layers.
    pub fn pack(&mut self, round: RoundId, base: &BaseHash, state: AdapterState) -> Result<AdapterFrame, AdapterFrameError> {
        let whole = AdapterFrame::new(round, 0.0, base, state);
        if self.encoding.is_lossless() {
            return Ok(AdapterFrame { encoding: self.encoding, ..whole });
        }
        let Some((from, held)) = &self.held else {
            self.held = Some((round, whole.state.clone()));
            return Ok(whole);
        };
        let frame = whole.against(self.encoding, *from, held)?;
        let decoded = AdapterFrame::decode(&frame.encode(), &AdapterLimits::WIDEST)?.restored(Some((*from, held)))?;
        self.held = Some((round, decoded.state));
        Ok(frame)
    }

    /// What the client holds once it has read the last frame; nothing where updates travel whole.
    pub fn held(&self) -> Option<(RoundId, &AdapterState)> {
        self.held.as_ref().map(|(round, state)| (*round, state))
    }

    /// The client came back, and says what it holds: if that is not the last adapter, the next one travels whole.
    pub fn returned(&mut self, holds: Option<RoundId>) {
        self.held = self.held.take().filter(|(round, _)| Some(*round) == holds);
    }
}

impl GlobalReceiver {
    /// Nothing held yet; `encoding` is the one agreed for adapters.
    pub fn new(encoding: Encoding) -> Self {
        Self { encoding, held: None }
    }

    /// What to let in of a client's adapters of so many values: whole, or in the encoding agreed.
    pub fn limits(&self, values: u64) -> AdapterLimits {
        let (whole, encoded) = (AdapterLimits::for_values(values), AdapterLimits::encoded(values, self.encoding));
        AdapterLimits { payload_bytes_max: whole.payload_bytes_max.max(encoded.payload_bytes_max), encoding: None, ..whole }
    }

    /// The global adapter that a frame brings, whole. A frame that is refused changes nothing.
    pub fn unpack(&mut self, frame: AdapterFrame) -> Result<AdapterFrame, AdapterFrameError> {
        let expected = match (self.encoding.is_lossless(), frame.from) {
            (true, _) | (false, Some(_)) => self.encoding,
            (false, None) => Encoding::F32,
        };
        if frame.encoding != expected {
            return Err(AdapterFrameError::Agreed { round: frame.round, found: frame.encoding, expected });
        }
        let whole = frame.restored(self.held())?;
        if !self.encoding.is_lossless() {
            self.held = Some((whole.round, whole.state.clone()));
        }
        Ok(whole)
    }

    /// The adapter that updates are differences from; nothing where they travel whole.
    pub fn held(&self) -> Option<(RoundId, &AdapterState)> {
        self.held.as_ref().map(|(round, state)| (*round, state))
    }

    /// The frame of an update, which is `weight` heavy: as a difference, where that was agreed.
    pub fn update(&self, round: RoundId, weight: f64, base: &BaseHash, state: AdapterState) -> Result<AdapterFrame, AdapterFrameError> {
        let whole = AdapterFrame::new(round, weight, base, state);
        match self.held() {
            Some((from, held)) => whole.against(self.encoding, from, held),
            None => Ok(AdapterFrame { encoding: self.encoding, ..whole }),
        }
    }
}
