//! The memory a process holds, and the most it has held, as Linux counts it; elsewhere nobody says.

use std::fs;

/// The largest resident set so far (VmHWM) of the process `id`, or of this one.
pub(crate) fn peak_bytes(id: Option<u32>) -> Option<u64> {
    status(id, "VmHWM:")
}

/// The resident set now (VmRSS) of the process `id`, or of this one.
pub(crate) fn resident_bytes(id: Option<u32>) -> Option<u64> {
    status(id, "VmRSS:")
}

fn status(id: Option<u32>, name: &str) -> Option<u64> {
    let process = id.map_or("self".into(), |id| id.to_string());
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Goal: a peak is a peak. Method: hold and drop 64 MiB, and look at both ways to name this process.
    #[test]
    fn what_was_held_once_counts() {
        const HELD: usize = 64 << 20;
        drop(std::hint::black_box(vec![1u8; HELD]));
        let peaks = [None, Some(std::process::id())].map(|id| peak_bytes(id).expect("Linux says"));
        assert!(peaks.iter().all(|peak| *peak > HELD as u64), "{peaks:?}");
        assert_eq!(peak_bytes(Some(u32::MAX)), None);
        assert!(resident_bytes(None).expect("Linux says") < peaks[0], "what was dropped is still held");
    }
}
