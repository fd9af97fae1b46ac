//! Threads that stay awake while a step of decoding runs, for work of a few microseconds.
//!
//! One token is some hundred products of 20 to 200 microseconds each. Rayon's threads fall asleep between two of them, and to wake one
//! costs as much as it would save. Within [`muster`] helpers spin instead, and take part in whatever [`each`] is given; elsewhere `each` is
//! rayon's. Who muster second, while the helpers serve another thread, is rayon's too.

use rayon::prelude::*;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::Thread;

/// Looks for work before a helper offers its core to others, each time it looks.
const SPINS: u32 = 2000;

thread_local! {
    /// How deep this thread is in `muster`.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// Whether the helpers serve this thread.
    static SERVED: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread is within a piece of work.
    static WORKING: Cell<bool> = const { Cell::new(false) };
}

static CREW: OnceLock<Crew> = OnceLock::new();

/// The helpers and what they share with whom they serve.
struct Crew {
    helpers: Vec<Thread>,
    shared: &'static Shared,
}

struct Shared {
    /// Whether the helpers serve somebody.
    taken: AtomicBool,
    /// Odd while a job is open; every job has a number of its own.
    job: AtomicU64,
    /// Helpers that may look at the open job.
    inside: AtomicUsize,
    /// Whether one of them panicked in it.
    panicked: AtomicBool,
    /// The open job's work. Written while no job is open and nobody is inside.
    work: std::cell::UnsafeCell<&'static (dyn Fn(usize) + Sync)>,
    /// What is left for each thread: the first piece in the low half, the end in the high half.
    left: Vec<Left>,
}

/// On a cache line of its own.
#[repr(align(128))]
struct Left(AtomicU64);

// SAFETY: `work` is written by the one thread that is served, while no job is open and no helper inside; helpers read it in between.
unsafe impl Sync for Shared {}

/// Runs `f`; what it does by [`each`] is done with helpers that are awake.
pub(in crate::ops) fn muster<T>(f: impl FnOnce() -> T) -> T {
    struct Dismiss;
    impl Drop for Dismiss {
        fn drop(&mut self) {
            DEPTH.set(DEPTH.get() - 1);
            if DEPTH.get() == 0 && SERVED.replace(false) {
                crew().shared.taken.store(false, Ordering::Release);
            }
        }
    }
    DEPTH.set(DEPTH.get() + 1);
    let _dismiss = Dismiss;
    f()
}

/// `work(0)` to `work(count - 1)`, on all threads. Each thread starts on a run of neighbours.
pub(super) fn each(count: usize, work: impl Fn(usize) + Sync) {
    if count < 2 || WORKING.get() {
        return (0..count).for_each(work);
    }
    if is_awake() && is_served() {
        return crew().shared.run(count, &work);
    }
    (0..count).into_par_iter().for_each(&work);
}

/// Whether `each` finds threads that are awake, as far as this one knows.
pub(super) fn is_awake() -> bool {
    DEPTH.get() > 0
}

/// Whether the helpers serve this thread, now that it asks.
fn is_served() -> bool {
    if SERVED.get() {
        return true;
    }
    let crew = crew();
    let free = !crew.helpers.is_empty() && !crew.shared.taken.swap(true, Ordering::AcqRel);
    if free {
        SERVED.set(true);
        crew.helpers.iter().for_each(Thread::unpark);
    }
    free
}

fn crew() -> &'static Crew {
    CREW.get_or_init(|| {
        let threads = rayon::current_num_threads();
        let shared: &'static Shared = Box::leak(Box::new(Shared {
            taken: AtomicBool::new(false),
            job: AtomicU64::new(0),
            inside: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            work: std::cell::UnsafeCell::new(&|_| {}),
            left: (0..threads).map(|_| Left(AtomicU64::new(0))).collect(),
        }));
        let start = |own: usize| {
            let named = std::thread::Builder::new().name(format!("crew {own}"));
            // Without a thread the others do its share.
            named.spawn(move || shared.help(own)).ok().map(|handle| handle.thread().clone())
        };
        Crew { helpers: (1..threads).filter_map(start).collect(), shared }
    })
}

impl Shared {
    fn run(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        /// Whatever happens, nobody is inside when the work's borrows end.
        struct Close<'a>(&'a Shared);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                self.0.job.fetch_add(1, Ordering::SeqCst);
                while self.0.inside.load(Ordering::SeqCst) > 0 {
                    std::hint::spin_loop();
                }
            }
        }
        let threads = self.left.len();
        for (own, left) in self.left.iter().enumerate() {
            let (from, to) = (count * own / threads, count * (own + 1) / threads);
            left.0.store(pack(from, to), Ordering::Relaxed);
        }
        // SAFETY: no job is open and nobody is inside; `Close` ends the job before the borrow ends.
        unsafe { *self.work.get() = std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work) };
        self.panicked.store(false, Ordering::Relaxed);
        self.job.fetch_add(1, Ordering::SeqCst);
        let close = Close(self);
        self.take_part(0, work);
        drop(close);
        assert!(!self.panicked.load(Ordering::Acquire), "a helper panicked: see above");
    }

    /// Does its own pieces first to last, then others' last to first.
    fn take_part(&self, own: usize, work: &(dyn Fn(usize) + Sync)) {
        struct Done;
        impl Drop for Done {
            fn drop(&mut self) {
                WORKING.set(false);
            }
        }
        WORKING.set(true);
        let _done = Done;
        let threads = self.left.len();
        for which in (own..threads).chain(0..own) {
            while let Some(piece) = self.left[which].take(which == own) {
                work(piece);
            }
        }
    }

    /// A helper's life.
    fn help(&self, own: usize) {
        let (mut done, mut looks) = (0, 0u32);
        loop {
            if !self.taken.load(Ordering::Acquire) {
                std::thread::park();
                looks = 0;
                continue;
            }
            let job = self.job.load(Ordering::Acquire);
            if job.is_multiple_of(2) || job == done {
                looks = looks.saturating_add(1);
                if looks < SPINS {
                    std::hint::spin_loop()
                } else {
                    std::thread::yield_now()
                }
                continue;
            }
            self.inside.fetch_add(1, Ordering::SeqCst);
            if self.job.load(Ordering::SeqCst) == job {
                // SAFETY: the job is open, and stays so in memory until we are out.
                let work = unsafe { *self.work.get() };
                if catch_unwind(AssertUnwindSafe(|| self.take_part(own, work))).is_err() {
                    self.panicked.store(true, Ordering::Release);
                }
            }
            self.inside.fetch_sub(1, Ordering::SeqCst);
            (done, looks) = (job, 0);
        }
    }
}

const fn pack(from: usize, to: usize) -> u64 {
    from as u64 | (to as u64) << 32
}

impl Left {
    /// The first piece that is left, or the last.
    fn take(&self, first: bool) -> Option<usize> {
        let mut now = self.0.load(Ordering::Relaxed);
        loop {
            let (from, to) = (now as u32 as usize, (now >> 32) as usize);
            if from >= to {
                return None;
            }
            let (piece, then) = if first { (from, pack(from + 1, to)) } else { (to - 1, pack(from, to - 1)) };
            match self.0.compare_exchange_weak(now, then, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Some(piece),
                Err(found) => now = found,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(count: usize) -> Vec<usize> {
        let times: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
        each(count, |i| {
            times[i].fetch_add(1, Ordering::Relaxed);
        });
        times.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn each_piece_is_done_once_in_and_out_of_a_muster() {
        for count in [0, 1, 2, 3, 100, 1025] {
            assert_eq!(counted(count), vec![1; count]);
            for _ in 0..200 {
                assert_eq!(muster(|| counted(count)), vec![1; count]);
            }
        }
    }

    #[test]
    fn many_muster_at_once_and_within_each_other() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        muster(|| (0..20).for_each(|_| assert_eq!(muster(|| counted(33)), [1; 33])));
                    }
                });
            }
        });
    }

    #[test]
    fn work_within_work_is_done() {
        let sums: Vec<AtomicUsize> = (0..40).map(|_| AtomicUsize::new(0)).collect();
        muster(|| {
            each(40, |i| {
                each(10, |j| {
                    sums[i].fetch_add(j, Ordering::Relaxed);
                });
            });
        });
        assert!(sums.into_iter().all(|sum| sum.into_inner() == 45));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_next_job_is_done() {
        for bad in [0, 63] {
            let result = catch_unwind(AssertUnwindSafe(|| muster(|| each(64, |i| assert!(i != bad, "on purpose")))));
            assert!(result.is_err(), "piece {bad} panicked");
            assert_eq!(muster(|| counted(64)), [1; 64]);
        }
    }
}
