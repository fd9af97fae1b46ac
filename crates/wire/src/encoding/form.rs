//! The two forms of an encoding's name: text for people and run files, twelve bytes for messages and headers.
//!
//! Either form is read whole or refused; a name that parses is a combination that can be computed.

use super::{Encoding, EncodingError, TOP_ALL, Values};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Where the number of an integer's bits begins; 0 to 2 are f32, bf16 and f16, for ever.
const INT: u8 = 0x10;

const HADAMARD: u8 = 1;
const STOCHASTIC: u8 = 2;
const ZSTD: u8 = 4;
const DELTA: u8 = 8;
const FEEDBACK: u8 = 16;
/// Every stage there is.
const STAGES: u8 = HADAMARD | STOCHASTIC | ZSTD | DELTA | FEEDBACK;

impl Encoding {
    /// Bytes of its binary form.
    pub const BYTES: usize = 12;

    /// Its binary form: values, stages, then group, kept share, projection and share moved as u16, and two spare bytes.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let values = match self.values {
            Values::F32 => 0,
            Values::Bf16 => 1,
            Values::F16 => 2,
            Values::Int(bits) => INT + bits,
        };
        let stages =
            [(self.hadamard, HADAMARD), (self.stochastic, STOCHASTIC), (self.zstd, ZSTD), (self.delta, DELTA), (self.feedback, FEEDBACK)];
        let stages = stages.into_iter().fold(0, |stages, (on, bit)| if on { stages | bit } else { stages });
        let [group, top, projection, moved] = [self.group, self.top, self.projection, self.moved].map(u16::to_le_bytes);
        let mut bytes = [0; Self::BYTES];
        let fields = [[values, stages], group, top, projection, moved];
        bytes.iter_mut().zip(fields.as_flattened()).for_each(|(byte, field)| *byte = *field);
        bytes
    }

    /// The encoding of these bytes.
    pub fn from_bytes(found: [u8; Self::BYTES]) -> Result<Self, EncodingError> {
        let [number, stages, g, g2, t, t2, p, p2, m, m2, spare @ ..] = found;
        let unknown = EncodingError::UnknownBytes { found };
        let values = match number {
            0 => Values::F32,
            1 => Values::Bf16,
            2 => Values::F16,
            _ => Values::Int(number.wrapping_sub(INT)),
        };
        let encoding = Self {
            values,
            group: u16::from_le_bytes([g, g2]),
            top: u16::from_le_bytes([t, t2]),
            projection: u16::from_le_bytes([p, p2]),
            moved: u16::from_le_bytes([m, m2]),
            hadamard: stages & HADAMARD != 0,
            stochastic: stages & STOCHASTIC != 0,
            zstd: stages & ZSTD != 0,
            delta: stages & DELTA != 0,
            feedback: stages & FEEDBACK != 0,
        };
        match encoding.consistent() {
            Ok(()) if stages & !STAGES == 0 && spare == [0; 2] => Ok(encoding),
            _ => Err(unknown),
        }
    }

    /// Whether its stages go together; if not, why.
    fn consistent(self) -> Result<(), &'static str> {
        let integer = matches!(self.values, Values::Int(_));
        let rules = [
            (!matches!(self.values, Values::Int(bits) if !(2..=8).contains(&bits)), "integers have 2 to 8 bits: write int2 to int8"),
            (integer || self.group == 0, "only integers have a scale for a group: write int8/64 or int4/64"),
            (integer || !self.hadamard, "a rotation only helps integers: write int4/64+hadamard"),
            (integer || !self.stochastic, "only integers are rounded by chance: write int8+stochastic"),
            (self.group == 0 || self.group >= 8, "a group has 8 features or more: write int4/64"),
            (
                !self.hadamard || self.group == 0 || self.group.is_power_of_two(),
                "a rotated group is a power of two: write int4/64+hadamard",
            ),
            (self.top <= TOP_ALL, "topk is the share of a row that is kept, from 0.0001 to 1: write topk=0.05"),
            (self.top == 0 || self.group == 0, "topk keeps one scale a row: drop the group"),
            (self.top == 0 || !self.hadamard, "a rotation spreads what topk looks for: drop one of them"),
            (self.top == 0 || self.projection == 0, "a projection spreads what topk looks for: drop one of them"),
            (self.delta || self.moved == 0, "only differences tell what moved: write int4/64+moved=0.05"),
            (self.moved <= TOP_ALL, "moved is a share of a token's norm, up to 1: write moved=0.05"),
            (self.projection == 0 || !self.hadamard, "a projection rotates already: drop hadamard"),
            (!self.feedback || !self.delta, "differences make up for what was left out already: drop feedback"),
            (!self.feedback || !self.is_lossless(), "f32 leaves nothing out that could be fed back: drop feedback"),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, reason)) => Err(reason),
        }
    }

    /// Adds one stage of a name; `None` where it is no stage, or was said before.
    fn with_stage(mut self, stage: &str) -> Option<Self> {
        let set = |on: &mut bool| !std::mem::replace(on, true);
        let number = |place: &mut u16, value: u16| *place == 0 && value > 0 && std::mem::replace(place, value) == 0;
        let fresh = match stage.split_once('=') {
            None => match stage {
                "hadamard" => set(&mut self.hadamard),
                "stochastic" => set(&mut self.stochastic),
                "zstd" => set(&mut self.zstd),
                "delta" => set(&mut self.delta),
                "feedback" => set(&mut self.feedback),
                _ => false,
            },
            Some(("topk", share)) => number(&mut self.top, share_of(share)?),
            Some(("moved", share)) => set(&mut self.delta) && number(&mut self.moved, share_of(share)?),
            Some(("proj", coordinates)) => number(&mut self.projection, coordinates.parse().ok()?),
            Some(_) => false,
        };
        fresh.then_some(self)
    }
}

/// A share such as 0.05 in ten-thousandths; more than all where it is above one.
fn share_of(text: &str) -> Option<u16> {
    let share: f64 = text.parse().ok()?;
    let parts = (share * f64::from(TOP_ALL)).round();
    (share > 0.0 && share.is_finite()).then(|| parts.clamp(1.0, f64::from(u16::MAX)) as u16)
}

/// `int4/64` and the like, without stages.
fn values_of(text: &str) -> Option<Encoding> {
    let plain = |values| Some(Encoding { values, ..Encoding::F32 });
    match text {
        "f32" => return plain(Values::F32),
        "bf16" => return plain(Values::Bf16),
        "f16" => return plain(Values::F16),
        _ => {}
    }
    let (bits, group) = match text.strip_prefix("int")?.split_once('/') {
        None => (text.strip_prefix("int")?, 0),
        Some((bits, group)) => (bits, group.parse().ok().filter(|group| *group > 0)?),
    };
    // "+4" and "04" parse as numbers, and are no names.
    let bits = bits.parse().ok().filter(|number: &u8| number.to_string() == bits)?;
    Some(Encoding { values: Values::Int(bits), group, ..Encoding::F32 })
}

impl FromStr for Encoding {
    type Err = EncodingError;

    /// Stages may stand in any order; `topk=0.05` alone is short for `bf16+topk=0.05`.
    fn from_str(text: &str) -> Result<Self, EncodingError> {
        let unknown = || EncodingError::UnknownName { found: text.into() };
        let mut words = text.split('+');
        let first = words.next().unwrap_or_default();
        let start = values_of(first).or_else(|| first.starts_with("topk=").then(|| Self::BF16.with_stage(first)).flatten());
        let encoding = words.try_fold(start.ok_or_else(unknown)?, |encoding, stage| encoding.with_stage(stage)).ok_or_else(unknown)?;
        encoding.consistent().map_err(|reason| EncodingError::Combination { found: text.into(), reason })?;
        Ok(encoding)
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = match self.values {
            Values::F32 => "f32".to_owned(),
            Values::Bf16 => "bf16".to_owned(),
            Values::F16 => "f16".to_owned(),
            Values::Int(bits) => format!("int{bits}"),
        };
        if self.group > 0 {
            text += &format!("/{}", self.group);
        }
        for (on, stage) in [(self.hadamard, "+hadamard"), (self.stochastic, "+stochastic")] {
            text += if on { stage } else { "" };
        }
        if self.top > 0 {
            text += &format!("+topk={}", f64::from(self.top) / f64::from(TOP_ALL));
        }
        if self.projection > 0 {
            text += &format!("+proj={}", self.projection);
        }
        text += if self.feedback { "+feedback" } else { "" };
        text += if self.zstd { "+zstd" } else { "" };
        match (self.delta, self.moved) {
            (false, _) => {}
            (true, 0) => text += "+delta",
            (true, moved) => text += &format!("+moved={}", f64::from(moved) / f64::from(TOP_ALL)),
        }
        out.pad(&text)
    }
}

impl Serialize for Encoding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.to_bytes().serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Encoding {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            Self::from_bytes(<[u8; Self::BYTES]>::deserialize(deserializer)?).map_err(D::Error::custom)
        }
    }
}
