//! Rates, times and shares as people write them: `50mbit`, `25ms`, `1%`. Text in, numbers out, and the same text back.

use super::error::ConditionsError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The fastest rate that can be asked for, in bits per second: beyond it, leave the rate out.
const RATE_BPS_MAX: u64 = 100_000_000_000;
/// The longest time that can be asked for: a day.
const SPAN_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Bits per second, IP headers included. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate(u64);

impl Rate {
    /// So many Mbit/s.
    pub const fn mbit(mbit: u64) -> Self {
        assert!(mbit > 0 && mbit <= RATE_BPS_MAX / 1_000_000);
        Self(mbit * 1_000_000)
    }

    /// Bits per second.
    pub const fn bps(self) -> u64 {
        self.0
    }

    /// Bytes that pass within `time`.
    pub fn bytes_in(self, time: Duration) -> u64 {
        let bytes = u128::from(self.0) * time.as_nanos() / 8_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

impl FromStr for Rate {
    type Err = ConditionsError;

    fn from_str(text: &str) -> Result<Self, ConditionsError> {
        let wrong = || ConditionsError::unit(text, "a rate", "50mbit, 1gbit or 300kbit, of at most 100gbit");
        let units = [("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9), ("bit", 1.0)];
        let bps = number_with_unit(text, &units).ok_or_else(wrong)?;
        if (1.0..=RATE_BPS_MAX as f64).contains(&bps) { Ok(Self(bps.round() as u64)) } else { Err(wrong()) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bps if bps.is_multiple_of(1_000_000_000) => write!(out, "{}gbit", bps / 1_000_000_000),
            bps if bps.is_multiple_of(1_000_000) => write!(out, "{}mbit", bps / 1_000_000),
            bps if bps.is_multiple_of(1000) => write!(out, "{}kbit", bps / 1000),
            bps => write!(out, "{bps}bit"),
        }
    }
}

/// A length of time, or a moment counted from the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(Duration);

impl Span {
    /// So many milliseconds.
    pub const fn ms(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    /// The same in the standard library's words.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = ConditionsError;

    /// A moment may be written `@60s`.
    fn from_str(text: &str) -> Result<Self, ConditionsError> {
        let wrong = || ConditionsError::unit(text, "a time", "25ms, 1.5s or 2m, of at most a day");
        let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let seconds = number_with_unit(text.trim().trim_start_matches('@'), &units).ok_or_else(wrong)?;
        if seconds <= SPAN_MAX.as_secs_f64() { Ok(Self(Duration::from_secs_f64(seconds))) } else { Err(wrong()) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_micros() {
            us if us.is_multiple_of(1_000_000) => write!(out, "{}s", us / 1_000_000),
            us if us.is_multiple_of(1000) => write!(out, "{}ms", us / 1000),
            us => write!(out, "{us}us"),
        }
    }
}

/// A share of all datagrams, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Share(f64);

impl Share {
    /// So many in a hundred.
    pub const fn percent(percent: f64) -> Self {
        assert!(percent >= 0.0 && percent <= 100.0);
        Self(percent / 100.0)
    }

    /// From 0 to 1.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl FromStr for Share {
    type Err = ConditionsError;

    fn from_str(text: &str) -> Result<Self, ConditionsError> {
        let wrong = || ConditionsError::unit(text, "a share", "1% or 0.5%, of at most 100%");
        let percent = number_with_unit(text, &[("%", 1.0)]).ok_or_else(wrong)?;
        if percent <= 100.0 { Ok(Self(percent / 100.0)) } else { Err(wrong()) }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nine digits are more than anybody gives, and hide that 0.3 is no binary fraction.
        write!(out, "{}%", (self.0 * 1e11).round() / 1e9)
    }
}

/// The three read and write as strings, so that a run file says what the command line says.
macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = ConditionsError;

            fn try_from(text: String) -> Result<Self, ConditionsError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )*};
}
pub(super) use as_text;
as_text!(Rate, Span, Share);

/// A number of at least 0, times what its unit stands for. 0 needs no unit.
fn number_with_unit(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().ok()?;
    if unit.is_empty() && number == 0.0 {
        return Some(0.0);
    }
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    Some(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: FromStr<Err = ConditionsError> + fmt::Display>(text: &str, again: &str) {
        let value: T = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(value.to_string(), again, "{text}");
    }

    /// Goal: what is written is what is meant, and reads back. Method: each unit, fractions, capitals, a moment.
    #[test]
    fn quantities_read_as_written() {
        for (text, again) in [("50mbit", "50mbit"), ("1.5 Gbit", "1500mbit"), ("300kbit", "300kbit"), ("9bit", "9bit"), ("1gbit", "1gbit")]
        {
            check::<Rate>(text, again);
        }
        for (text, again) in [("25ms", "25ms"), ("1.5s", "1500ms"), ("2m", "120s"), ("@60s", "60s"), ("0", "0s"), ("250us", "250us")] {
            check::<Span>(text, again);
        }
        for (text, again) in [("1%", "1%"), ("0.3%", "0.3%"), ("100%", "100%"), ("0", "0%")] {
            check::<Share>(text, again);
        }
    }

    /// Goal: a slip is named with what would do. Method: no unit, another unit, no number, nothing, too much.
    #[test]
    fn slips_are_explained() {
        for text in ["50", "50mb", "fast", "", "0", "101gbit", "-3mbit"] {
            let error = text.parse::<Rate>().expect_err(text).to_string();
            assert!(error.contains("50mbit") && error.contains(text), "{error}");
        }
        for text in ["25", "25sec", "25h", "1e3ms"] {
            assert!(text.parse::<Span>().expect_err(text).to_string().contains("25ms"), "{text}");
        }
        for text in ["0.01", "101%", "%"] {
            assert!(text.parse::<Share>().expect_err(text).to_string().contains("1%"), "{text}");
        }
    }

    /// Goal: a rate is bytes in a time. Method: a second and a millisecond of 8 Mbit/s.
    #[test]
    fn rates_count_bytes() {
        assert_eq!(Rate::mbit(8).bytes_in(Duration::from_secs(1)), 1_000_000);
        assert_eq!(Rate::mbit(8).bytes_in(Duration::from_millis(1)), 1000);
    }
}
