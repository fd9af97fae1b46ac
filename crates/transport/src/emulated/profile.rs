//! Links by name, with numbers that somebody measured where there are such, and where not, said to be ours.
//!
//! They are for comparing runs, not for predicting anybody's network: each is one point of what is a wide spread.

use super::conditions::{Conditions, Lane, Outage, Timetable};
use super::error::ConditionsError;
use super::units::{Rate, Share, Span};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A kind of link.
///
/// | name | up, Mbit/s | down, Mbit/s | round trip, ms | jitter each way, ms | loss | queue, ms |
/// |---|---|---|---|---|---|---|
/// | loopback | - | - | 0 | 0 | 0 | - |
/// | fibre | 1000 | 1000 | 10 | 1 | 0.001 % | 50 |
/// | wifi | 100 | 100 | 6 | 8 | 0.2 % | 100 |
/// | 5g | 40 | 200 | 30 | 8 | 0.1 % | 150 |
/// | lte | 6 | 13 | 70 | 15 | 0.2 % | 250 |
/// | satellite | 10 | 100 | 558 | 10 | 0.5 % | 600 |
/// | train | 6 | 13 | 70 | 30 | 1 %, 5 in a row | 400 |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Profile {
    /// This machine: nothing is added. What the emulator itself costs can be measured with it.
    Loopback,
    /// Fibre to the home of 1 Gbit/s; round trip, jitter and loss to a server nearby are ours.
    Fibre,
    /// A home's wireless network, alone on its channel and with the server in the same town: all numbers ours. The radio repeats what
    /// it loses, so that its errors come out as jitter rather than as loss.
    Wifi,
    /// 5G below 6 GHz: OpenSignal (May 2020) saw 100 to 250 Mbit/s down where it runs in the mid band. Up, round trip (the radio's
    /// 8 to 12 ms and the way beyond), jitter and loss are ours.
    FiveG,
    /// 4G, medians of Huang et al., "A Close Examination of Performance and Power Characteristics of 4G LTE Networks" (MobiSys 2012):
    /// 13 Mbit/s down, 6 up. The round trip of 70 ms, jitter, loss and the long queue are ours. For the issue's
    /// phone on 50 Mbit/s and 50 ms: `rate = "50mbit"`, `delay = "25ms"`.
    Lte,
    /// A geostationary satellite: 558 ms there and back at the edge of its beam (RFC 2488, section 2); 100 and 10 Mbit/s are the
    /// subscription that APNIC's "Fact checking Starlink's performance figures" (2022) compares with. Jitter and loss are ours.
    Satellite,
    /// 4G on a train: `lte` with more jitter, loss in bursts, and nothing for 2 s of every 30. That there are frequent handovers and
    /// fading is known (Garcia et al., "Examining Cellular Access Systems on Trains", TMA 2017); the numbers are ours.
    Train,
}

/// All of them.
pub const PROFILES: [Profile; 7] =
    [Profile::Loopback, Profile::Fibre, Profile::Wifi, Profile::FiveG, Profile::Lte, Profile::Satellite, Profile::Train];

/// Ethernet's, which is what most of the Internet takes.
const MTU_BYTES: u16 = 1500;
/// Linux's loopback.
const MTU_BYTES_LOOPBACK: u16 = 65_535;

impl Profile {
    /// What people write.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Fibre => "fibre",
            Self::Wifi => "wifi",
            Self::FiveG => "5g",
            Self::Lte => "lte",
            Self::Satellite => "satellite",
            Self::Train => "train",
        }
    }

    /// Its numbers.
    pub fn conditions(self) -> Conditions {
        // Mbit/s up and down; ms of round trip, jitter and queue; per cent of loss, and losses in a row.
        let (up, down, rtt_ms, jitter_ms, queue_ms, loss_percent, burst) = match self {
            Self::Loopback => (0, 0, 0, 0, 0, 0.0, 1.0),
            Self::Fibre => (1000, 1000, 10, 1, 50, 0.001, 1.0),
            Self::Wifi => (100, 100, 6, 8, 100, 0.2, 1.0),
            Self::FiveG => (40, 200, 30, 8, 150, 0.1, 1.0),
            Self::Lte => (6, 13, 70, 15, 250, 0.2, 1.0),
            Self::Satellite => (10, 100, 558, 10, 600, 0.5, 1.0),
            Self::Train => (6, 13, 70, 30, 400, 1.0, 5.0),
        };
        let lane = |mbit: u64| Lane {
            rate: (mbit > 0).then(|| Rate::mbit(mbit)),
            delay: Span::ms(rtt_ms / 2),
            jitter: Span::ms(jitter_ms),
            loss: Share::percent(loss_percent),
            burst,
            reorder: Share::default(),
            duplicate: Share::default(),
            queue: Span::ms(queue_ms),
            mtu: if self == Self::Loopback { MTU_BYTES_LOOPBACK } else { MTU_BYTES },
        };
        let tunnels = Outage::new(Span::ms(2000), Span::ms(10_000), Some(Span::ms(30_000)));
        let partitions = if self == Self::Train { vec![tunnels] } else { vec![] };
        Conditions { profile: self, up: lane(up), down: lane(down), timetable: Timetable { partitions, ..Timetable::default() } }
    }
}

impl FromStr for Profile {
    type Err = ConditionsError;

    fn from_str(text: &str) -> Result<Self, ConditionsError> {
        let named = PROFILES.into_iter().find(|profile| profile.name() == text);
        named.ok_or_else(|| ConditionsError::UnknownProfile { found: text.into() })
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

super::units::as_text!(Profile);

#[cfg(test)]
mod tests {
    use super::super::conditions::Changes;
    use super::*;

    /// Goal: every profile is a link, under its own name. Method: all of them through the checks and back.
    #[test]
    fn profiles_are_links() {
        for profile in PROFILES {
            let link = Changes::default().apply(profile).expect("a link");
            assert_eq!(link.profile, profile.name().parse().expect("its name"));
            assert!(link.to_string().starts_with(profile.name()), "{link}");
        }
    }

    /// Goal: a wrong name tells the right ones. Method: a capital and nonsense.
    #[test]
    fn unknown_profiles_name_the_known() {
        for name in ["LTE", "dsl", ""] {
            let error = name.parse::<Profile>().expect_err(name).to_string();
            assert!(error.ends_with("the profiles are loopback, fibre, wifi, 5g, lte, satellite, train"), "{error}");
        }
    }
}
