//! Where a step's time goes: the phases of either side, timed only where somebody asked.
//!
//! Timing changes nothing but the clock: a device that works behind our back is waited for where a phase ends, and that only
//! when asked. Nothing of this crosses the wire.

use cutlayer_model::{Device, Stage};
use serde::{Deserialize, Serialize};
use std::ops::AddAssign;
use std::time::{Duration, Instant};

/// The time that one side spent on one training step, in microseconds by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Phases {
    /// From received bytes to a tensor.
    pub decode_us: u64,
    /// The layers, forward.
    pub forward_us: u64,
    /// The head and the loss.
    pub loss_us: u64,
    /// The layers, backward.
    pub backward_us: u64,
    /// From a tensor to bytes.
    pub encode_us: u64,
    /// The update of the adapter.
    pub optimizer_us: u64,
}

/// Names one of [`Phases`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Decode,
    Forward,
    Backward,
    Encode,
    Optimizer,
}

impl Phases {
    /// All phases together.
    pub fn total_us(&self) -> u64 {
        self.decode_us + self.forward_us + self.loss_us + self.backward_us + self.encode_us + self.optimizer_us
    }

    fn of(&mut self, phase: Phase) -> &mut u64 {
        match phase {
            Phase::Decode => &mut self.decode_us,
            Phase::Forward => &mut self.forward_us,
            Phase::Backward => &mut self.backward_us,
            Phase::Encode => &mut self.encode_us,
            Phase::Optimizer => &mut self.optimizer_us,
        }
    }
}

impl AddAssign for Phases {
    fn add_assign(&mut self, other: Self) {
        self.decode_us += other.decode_us;
        self.forward_us += other.forward_us;
        self.loss_us += other.loss_us;
        self.backward_us += other.backward_us;
        self.encode_us += other.encode_us;
        self.optimizer_us += other.optimizer_us;
    }
}

/// Adds up the phases of a step; does nothing at all where nobody asked.
pub(crate) struct PhaseClock {
    /// The device to wait for; `None` where nobody asked.
    device: Option<Device>,
    since: Instant,
    phases: Phases,
}

impl PhaseClock {
    /// A clock for what `device` does.
    pub fn new(asked: bool, device: &Device) -> Self {
        Self { device: asked.then(|| device.clone()), since: Instant::now(), phases: Phases::default() }
    }

    /// The next phase begins now.
    pub fn start(&mut self) {
        if self.device.is_some() {
            self.since = Instant::now();
        }
    }

    /// `phase` ends now, and the next begins.
    pub fn end(&mut self, phase: Phase) {
        if let Some(us) = self.lap() {
            *self.phases.of(phase) += us;
        }
    }

    /// A call of [`Stage::loss`] on `stage`, which times its own parts where anybody asked, begins now.
    pub fn start_loss(&mut self, stage: &mut Stage) {
        stage.set_timed(self.device.is_some());
    }

    /// That call ends now.
    pub fn end_loss(&mut self, stage: &Stage) {
        if self.lap().is_some() {
            let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            let times = stage.loss_times();
            self.phases.forward_us += micros(times.forward);
            self.phases.loss_us += micros(times.loss);
            self.phases.backward_us += micros(times.backward);
        }
    }

    /// What has been added up since the last time; `None` where nobody asked.
    pub fn take(&mut self) -> Option<Phases> {
        let phases = std::mem::take(&mut self.phases);
        self.device.as_ref().map(|_| phases)
    }

    fn lap(&mut self) -> Option<u64> {
        let device = self.device.as_ref()?;
        // A device that cannot be waited for fails at its next operation, and says more there.
        let _ = device.sync();
        let now = Instant::now();
        let us = now.duration_since(self.since).as_micros();
        self.since = now;
        Some(u64::try_from(us).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutlayer_model::DeviceChoice;

    /// Goal: a phase gets its own time, and a clock that nobody asked for gives none. Method: sleep through one phase of two.
    #[test]
    fn phases_get_their_own_time() {
        let device = DeviceChoice::Cpu.open().expect("a CPU");
        let mut asked = PhaseClock::new(true, &device);
        asked.start();
        std::thread::sleep(Duration::from_millis(5));
        asked.end(Phase::Forward);
        asked.end(Phase::Encode);
        let phases = asked.take().expect("asked for");
        assert!(phases.forward_us >= 5000 && phases.encode_us < phases.forward_us, "{phases:?}");
        assert_eq!(phases.total_us(), phases.forward_us + phases.encode_us);
        assert_eq!(asked.take(), Some(Phases::default()), "what was taken is gone");

        let mut unasked = PhaseClock::new(false, &device);
        unasked.start();
        unasked.end(Phase::Forward);
        assert_eq!(unasked.take(), None);
    }
}
