//! What a client that wishes ill sends. None of it may reach the global adapter, or anyone else's session.

use cutlayer_wire::{AdapterFrame, AdapterState, BaseHash, Encoding, EvalSums, Frame, FrameFlags, HostTensor, Message, RoundId, StepId};

use crate::bytes::{Lane, Packet};
use crate::random::Random;
use crate::toy::{BASE, HIDDEN};

/// How often an update is spoilt, in percent.
const SPOILT: u64 = 60;
/// How often something is said that nobody asked for, in percent.
const STRAY: u64 = 6;

/// An update, usually spoilt.
pub fn spoil(mut frame: AdapterFrame, random: &mut Random) -> Vec<Packet> {
    if !random.chance(SPOILT) {
        return vec![Packet::adapter(&frame)];
    }
    let first = frame.state.keys().next().cloned();
    match random.between(0, 12) {
        0 => frame.round = frame.round.previous(),
        1 => frame.round = frame.round.next(),
        2 => frame.weight = 1e300,
        3 => frame.weight = 0.0,
        4 => frame.weight = f64::NAN,
        5 => frame.base_prefix = BaseHash([8; 32]).prefix(),
        6 => drop(frame.state.insert("layers.99".into(), HostTensor::zeros(vec![2, 3]))),
        7 => frame.state = AdapterState::new(),
        8 => return vec![Packet::adapter(&frame), Packet::adapter(&frame)],
        9 => {
            let mut packet = Packet::adapter(&frame);
            packet.bytes.truncate(random.between(0, packet.bytes.len() as u64) as usize);
            return vec![packet];
        }
        kind => {
            if let Some(tensor) = first.and_then(|key| frame.state.get_mut(&key)) {
                match kind {
                    10 => *tensor = HostTensor::zeros(vec![3, 2]),
                    11 => tensor.values[0] = f32::NAN,
                    _ => tensor.values[5] = f32::INFINITY,
                }
            }
        }
    }
    vec![Packet::adapter(&frame)]
}

/// Something out of order, now and then.
pub fn stray(random: &mut Random) -> Option<Packet> {
    if !random.chance(STRAY) {
        return None;
    }
    let round = RoundId(random.between(0, 6) as u32);
    let sums = EvalSums { loss_sum: 1e9, scored: 1 << 40, correct: 0 };
    Some(match random.between(0, 9) {
        0 => Packet::control(&Message::Evaluated { round, sums }),
        1 => Packet::control(&Message::Train { round }),
        2 => Packet::control(&Message::Finish { adapter: round, reason: "so there".into() }),
        3 => Packet::control(&Message::Goodbye { reason: "or not".into() }),
        4 => noise(Lane::Control, random),
        5 => noise(Lane::Adapter, random),
        6 => noise(Lane::Step, random),
        7 => Packet::adapter(&AdapterFrame::new(round, 1.0, &BASE, AdapterState::new())),
        kind => {
            let train = kind == 8;
            let flags = FrameFlags::NONE.with_if(FrameFlags::TRAIN, train);
            let step = StepId::new(round, random.chance(50) == train, random.between(0, 8) as u32, 0);
            Packet::step(&Frame::forward(step, round, flags, Encoding::F32, HIDDEN, vec![1], vec![0], vec![0; 12]))
        }
    })
}

fn noise(lane: Lane, random: &mut Random) -> Packet {
    let bytes = (0..random.between(0, 100)).map(|_| random.draw() as u8).collect();
    Packet { lane, bytes }
}
