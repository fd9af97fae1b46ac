//! What can be wrong with the description of a link, in words that say what to write instead.

use super::profile::PROFILES;

/// Why a link cannot be emulated as described.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConditionsError {
    /// A quantity that is none.
    #[error("`{found}` is not {what}: write {examples}")]
    Quantity {
        /// What was written.
        found: String,
        /// What it should be.
        what: &'static str,
        /// What would do.
        examples: &'static str,
    },
    /// A profile without a name here.
    #[error("no link profile is called `{found}`; the profiles are {}", names())]
    UnknownProfile {
        /// What was asked for.
        found: String,
    },
    /// A number that no link has.
    #[error("{what} is {found}: {remedy}")]
    Impossible {
        /// What.
        what: &'static str,
        /// Its value.
        found: String,
        /// What to write instead.
        remedy: &'static str,
    },
}

impl ConditionsError {
    pub(super) fn unit(found: &str, what: &'static str, examples: &'static str) -> Self {
        Self::Quantity { found: found.into(), what, examples }
    }
}

fn names() -> String {
    PROFILES.map(|profile| profile.name()).join(", ")
}
