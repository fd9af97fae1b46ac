//! `cut = 2`, or `cut = [1, 2, 3]`: where the clients cut, as a run file says it.

use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Blocks on the client side: the same for all, or one number for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Cuts {
    /// The same for all.
    Same(u16),
    /// The n-th number is client n's.
    Each(Vec<u16>),
}

impl Cuts {
    /// The cut of one client; nothing where the list is too short.
    pub fn of(&self, client: usize) -> Option<u16> {
        match self {
            Self::Same(cut) => Some(*cut),
            Self::Each(cuts) => cuts.get(client).copied(),
        }
    }
}

/// By hand, because serde's message for an untagged enum names neither form.
impl<'de> Deserialize<'de> for Cuts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CutsVisitor)
    }
}

struct CutsVisitor;

impl<'de> Visitor<'de> for CutsVisitor {
    type Value = Cuts;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a number of blocks such as 2, or a list with one number for each client such as [1, 2, 3]")
    }

    fn visit_i64<E: Error>(self, cut: i64) -> Result<Cuts, E> {
        u16::try_from(cut).map(Cuts::Same).map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(cut), &self))
    }

    fn visit_u64<E: Error>(self, cut: u64) -> Result<Cuts, E> {
        u16::try_from(cut).map(Cuts::Same).map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(cut), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Cuts, A::Error> {
        let mut cuts = Vec::new();
        while let Some(cut) = list.next_element()? {
            cuts.push(cut);
        }
        Ok(Cuts::Each(cuts))
    }
}
