//! Which encodings a client's step travels in, where the run leaves that to be found: `auto`.
//!
//! Pure: what the link, the device and the step are comes in as numbers, the choice goes out with its reason. The ladder below is
//! what `experiments/encodings` measured; each rung is coarser than the one before it.

use crate::encoding::{Encoding, EncodingPart};
use std::fmt;

/// A client's network, as its operator says it or as it was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkFacts {
    /// From the client, in Mbit/s.
    pub up_mbit: f64,
    /// To the client, in Mbit/s.
    pub down_mbit: f64,
    /// There and back, in milliseconds.
    pub rtt_ms: f64,
}

/// A client's step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepFacts {
    /// Tokens of a full batch.
    pub tokens: u32,
    /// The model's hidden size.
    pub hidden: u32,
    /// Whether hidden states and gradients cross two cuts (U-shape), not one.
    pub u_shaped: bool,
    /// Time that both sides compute on a step, in milliseconds; 0 where it is not known yet.
    pub compute_ms: f64,
    /// How much slower the device encodes than the one that the ladder was timed on.
    pub slower: f64,
}

/// What was chosen, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Encoding of activations.
    pub activations: Encoding,
    /// Encoding of gradients.
    pub gradients: Encoding,
    /// Encoding of adapters.
    pub adapters: Encoding,
    /// How much higher the final loss may be, as a share: the worst of the measured tasks, of their means over seeds.
    pub quality_cost: f64,
    /// Time of a step, in milliseconds.
    pub step_ms: f64,
    /// The same in f32.
    pub f32_ms: f64,
    /// Bytes of a step, both ways.
    pub bytes: f64,
    /// The link that it was chosen for.
    pub link: LinkFacts,
}

/// The first rung whose step takes at most this much longer than the fastest allowed one is fine enough.
const SLACK: f64 = 1.05;

/// The widest group that is rotated.
const GROUP_MAX: u32 = 64;

/// One rung: names with `G` for the group, the loss that it costs, rounded up; bits a value up and down as they were where zstd found
/// least, and nanoseconds a value of encoding and decoding on one core.
struct Rung {
    activations: &'static str,
    gradients: &'static str,
    quality_cost: f64,
    bits: [f64; 2],
    ns_per_value: f64,
}

const LADDER: &[Rung] = &[
    Rung { activations: "f32", gradients: "f32", quality_cost: 0.0, bits: [32.0, 32.0], ns_per_value: 0.8 },
    Rung { activations: "bf16", gradients: "bf16", quality_cost: 0.0001, bits: [16.0, 16.0], ns_per_value: 1.2 },
    Rung { activations: "int8/G", gradients: "int8/G", quality_cost: 0.0005, bits: [8.25, 8.25], ns_per_value: 1.6 },
    Rung { activations: "int6/G+hadamard", gradients: "int6/G+hadamard", quality_cost: 0.001, bits: [6.25, 6.25], ns_per_value: 4.4 },
    Rung {
        activations: "int5/G+hadamard+zstd",
        gradients: "int4/G+hadamard+zstd",
        quality_cost: 0.002,
        bits: [5.25, 4.0],
        ns_per_value: 5.5,
    },
    Rung {
        activations: "int5/G+hadamard+zstd",
        gradients: "int3/G+hadamard+zstd",
        quality_cost: 0.003,
        bits: [5.25, 3.2],
        ns_per_value: 5.5,
    },
    Rung {
        activations: "int4/G+hadamard+zstd",
        gradients: "int4/G+hadamard+zstd",
        quality_cost: 0.008,
        bits: [3.9, 4.0],
        ns_per_value: 5.0,
    },
    Rung { activations: "int3/G+hadamard", gradients: "int3/G+hadamard", quality_cost: 0.03, bits: [3.25, 3.25], ns_per_value: 4.2 },
];

/// The finest encodings whose step is about as fast as any within `budget`, the share by which the final loss may be higher, that a
/// peer of these parts speaks. Every peer speaks f32, which costs nothing: there is always a choice.
pub fn choose(link: LinkFacts, step: StepFacts, budget: f64, parts: &[EncodingPart]) -> Choice {
    let speaks = |encoding: Encoding| {
        let knows = encoding.parts().iter().all(|part| parts.contains(part));
        encoding == Encoding::F32 || (knows && encoding.check_columns(step.hidden).is_ok())
    };
    let group = GROUP_MAX.min(1 << step.hidden.trailing_zeros().min(GROUP_MAX.ilog2()));
    let found = |rung: &Rung| {
        let name = |name: &str| name.replace('G', &group.to_string()).parse::<Encoding>().ok().filter(|encoding| speaks(*encoding));
        Some((name(rung.activations)?, name(rung.gradients)?))
    };
    let f32_ms = step_ms(link, step, &LADDER[0]);
    let choices = LADDER.iter().filter(|rung| rung.quality_cost <= budget.max(0.0)).filter_map(|rung| {
        let (activations, gradients) = found(rung)?;
        let (step_ms, bytes) = (step_ms(link, step, rung), bytes(step, rung).iter().sum());
        let adapters = if rung.quality_cost > 0.001 { "int8+zstd".parse().ok().filter(|encoding| speaks(*encoding)) } else { None };
        let adapters = adapters.unwrap_or(Encoding::F32);
        Some(Choice { activations, gradients, adapters, quality_cost: rung.quality_cost, step_ms, f32_ms, bytes, link })
    });
    let choices: Vec<Choice> = choices.collect();
    let fastest = choices.iter().map(|choice| choice.step_ms).fold(f64::INFINITY, f64::min);
    let fine = choices.into_iter().find(|choice| choice.step_ms <= fastest * SLACK);
    fine.expect("f32 costs nothing, and every peer speaks it")
}

/// Bytes of a step, up and down.
fn bytes(step: StepFacts, rung: &Rung) -> [f64; 2] {
    let values = f64::from(step.tokens) * f64::from(step.hidden);
    let [activations, gradients] = rung.bits.map(|bits| values * bits / 8.0);
    if step.u_shaped { [activations + gradients; 2] } else { [activations, gradients] }
}

/// A step's time: what is computed, what crosses the link one after the other, and encoding at both ends.
fn step_ms(link: LinkFacts, step: StepFacts, rung: &Rung) -> f64 {
    let [up, down] = bytes(step, rung);
    let trips = if step.u_shaped { 2.0 } else { 1.0 };
    let values = f64::from(step.tokens) * f64::from(step.hidden) * 2.0 * trips;
    let wire_ms = up * 8e-3 / link.up_mbit.max(1e-3) + down * 8e-3 / link.down_mbit.max(1e-3);
    step.compute_ms + wire_ms + trips * link.rtt_ms + values * rung.ns_per_value * 1e-6 * step.slower
}

impl fmt::Display for Choice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LinkFacts { up_mbit, down_mbit, rtt_ms } = self.link;
        write!(
            out,
            "activations {}, gradients {}, adapters {}: over {up_mbit:.0}/{down_mbit:.0} Mbit/s and {rtt_ms:.0} ms about {:.0} ms of a step, \
             {:.0} ms in f32; at most {:.2} % of the loss",
            self.activations,
            self.gradients,
            self.adapters,
            self.step_ms,
            self.f32_ms,
            self.quality_cost * 100.0,
        )
    }
}
