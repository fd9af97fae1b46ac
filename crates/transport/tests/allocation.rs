//! No length that a peer merely claims is ever allocated for, over a real connection.
//!
//! Counting needs an allocator of our own, hence the one place beside this crate with `unsafe`.

#![allow(unsafe_code)]

use cutlayer_transport::{AllowList, Identity, Link, LinkConfig, LinkError, Server, connect};
use cutlayer_wire::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the whole process may hold more while it refuses a frame: packets and their bookkeeping, on both sides.
const GROWTH_BYTES_MAX: usize = 4 << 20;
const TOKENS: u32 = 1 << 20;
const HIDDEN: u32 = 1024;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is passed to the system's allocator unchanged; counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract, which is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer came from `alloc` above, that is from the system, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Both ends of a connection.
async fn connected(folder: &std::path::Path) -> (Link, Link, Server) {
    let (here, there) = (Identity::generate().expect("randomness"), Identity::generate().expect("randomness"));
    let allow = AllowList::open(folder).expect("an empty list");
    allow.allow("alice", there.peer_id()).expect("a free name");
    let config = LinkConfig { idle_timeout: std::time::Duration::from_secs(2), ..LinkConfig::default() };
    let mut server = Server::bind(([127, 0, 0, 1], 0).into(), &here, allow.into(), &config).expect("a free port");
    let client = connect(server.local_addr(), &there, here.peer_id(), None, &config).await.expect("it is enrolled");
    (client, server.accept().await.expect("the same connection"), server)
}

/// Sends a header that claims `header.payload_bytes` and nothing after it; returns the refusal and what the process grew by.
async fn refuse(client: &Link, server: &Link, header: FrameHeader, limits: &FrameLimits) -> (LinkError, usize) {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let mut stream = client.open_step().await.expect("a stream");
    let frame = Frame { header, lengths: vec![header.tokens], labels: Vec::new(), samples: Vec::new(), payload: Vec::new() };
    stream.send(frame).await.expect("there is room for a header");
    stream.finish().await.expect("the stream is open");
    let mut served = server.accept_step().await.expect("a step");
    let error = served.recv(limits).await.expect_err("nothing follows the header");
    (error, PEAK.load(Ordering::Relaxed).saturating_sub(before))
}

/// Goal: a header costs what a header costs, whatever it claims. Method: 4 GiB beyond the limits; then 64 MiB within them, of
/// which nothing comes: more than a window is allocated as it arrives.
#[tokio::test]
async fn a_claim_is_not_allocated_for() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (client, server, _open) = connected(folder.path()).await;
    let limits = FrameLimits::new(HIDDEN, 64 << 10, 16);
    let asked = |tokens: u32| FrameHeader {
        kind: FrameKind::Forward,
        encoding: Encoding::F32,
        step: StepId(1),
        round: RoundId(0),
        flags: FrameFlags::TRAIN,
        micro_batches: 1,
        segments: 1,
        tokens,
        hidden: HIDDEN,
        labels: 0,
        samples: 0,
        step_scored: 0,
        payload_bytes: u64::from(tokens) * u64::from(HIDDEN) * 4,
        loss_sum: 0.0,
        scored: 0,
        correct: 0,
    };
    assert_eq!(asked(TOKENS).payload_bytes, 4 << 30);
    let (error, grown) = refuse(&client, &server, asked(TOKENS), &limits).await;
    assert!(matches!(error, LinkError::Frame(FrameError::Count { field: "tokens", .. })), "{error}");
    assert!(grown < GROWTH_BYTES_MAX, "refusing 4 GiB took {grown} B");

    let (error, grown) = refuse(&client, &server, asked(16 << 10), &limits).await;
    assert!(matches!(error, LinkError::Truncated { found: 0, expected: 0x400_0000, .. }), "{error}");
    let window = LinkConfig::default().window_bytes() as usize;
    assert!(grown < window + GROWTH_BYTES_MAX, "64 MiB that never came took {grown} B");
}
