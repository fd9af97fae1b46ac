//! The allocator of the command, and the one setting of it that a training step feels.
//!
//! A step takes and returns the same large tensors over and over. Left alone, the allocator gives pages back to the system that were
//! idle for a second, and the next step pays for getting them zeroed again: a quarter of the time of steps that take two.

use libmimalloc_sys::{mi_option_get, mi_option_set, mi_option_t};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay`, in milliseconds; the bindings leave it out.
const PURGE_DELAY: mi_option_t = 15;
/// What mimalloc sets it to.
const ITS_OWN: std::ffi::c_long = 1000;
/// What we do: steps keep their pages, and a process that waits for long gives them back.
const OURS: std::ffi::c_long = 60_000;

/// Sets it, unless `MIMALLOC_PURGE_DELAY` says otherwise; its own default, said there, cannot be told from silence.
pub(crate) fn keep_pages() {
    // SAFETY: reads and writes one number of a table; `PURGE_DELAY` is within it, as the test below holds.
    unsafe {
        if mi_option_get(PURGE_DELAY) == ITS_OWN {
            mi_option_set(PURGE_DELAY, OURS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the number still names the purge delay after an update of mimalloc. Method: its default, which no other option has.
    #[test]
    fn the_option_is_the_purge_delay() {
        // SAFETY: as above.
        let found: Vec<mi_option_t> = (0..30).filter(|&option| unsafe { mi_option_get(option) } == ITS_OWN).collect();
        assert_eq!(found, [PURGE_DELAY]);
        keep_pages();
        // SAFETY: as above.
        assert_eq!(unsafe { mi_option_get(PURGE_DELAY) }, OURS);
    }
}
