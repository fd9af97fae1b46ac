//! A step under way: its micro-batches, each on a stream of its own, until the answer to each is here.
//!
//! What was sent is kept until it is answered, so that a connection that is lost takes nothing with it: over the next one the same
//! frames are sent again, and the server answers those that it knows as it did before. An exchange that nobody waits for any more is left
//! to end: broken off in the middle of a frame, it would look like a fault.

use crate::compute::Compute;
use crate::error::NodeError;
use crate::phases::Phases;
use crate::side::{ClientSide, Doing};
use cutlayer_transport::{Link, LinkError, StepStream};
use cutlayer_wire::{EvalSums, Frame, FrameKind, FrameLimits};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// One step under way.
pub(super) struct Flight {
    /// Micro-batches that are not answered yet, in order.
    pub parts: VecDeque<Part>,
    /// Tokens in the batch, in its padded rectangle, and labels scored.
    pub told: (u32, u32, u32),
    pub sums: EvalSums,
    /// Bytes up and down.
    pub bytes: (u64, u64),
    pub waited: Duration,
    pub computed: Duration,
    pub phases: Option<Phases>,
}

/// One micro-batch under way.
pub(super) struct Part {
    pub doing: Doing,
    forward: Frame,
    /// A U-shape's own half of the step, once it is computed: it must not be computed twice.
    tail: Arc<Mutex<Option<Tail>>>,
    answer: JoinHandle<Result<Answer, NodeError>>,
}

#[derive(Clone)]
struct Tail {
    sums: EvalSums,
    /// What is owed to the server, in training.
    gradient: Option<Frame>,
    phases: Option<Phases>,
}

/// What a micro-batch came to.
pub(super) struct Answer {
    /// The server's last frame; `None` where a U-shaped evaluation leaves nothing to answer.
    pub frame: Option<Frame>,
    pub sums: EvalSums,
    pub bytes: (u64, u64),
    /// Time in the tail.
    pub computed: Duration,
    pub phases: Option<Phases>,
}

/// Where frames go, and what is believed of the answers.
#[derive(Clone)]
pub(super) struct Route {
    pub link: Link,
    pub limits: FrameLimits,
    pub side: Compute<ClientSide>,
}

impl Part {
    /// Sends a step's opening. Streams are opened in the order of the calls, which is the order in which the server serves.
    pub async fn send(route: &Route, doing: Doing, forward: Frame) -> Self {
        let tail = Arc::default();
        let answer = begin(route, &doing, &forward, &tail).await;
        Self { doing, forward, tail, answer }
    }

    /// Sends it again, over another connection.
    pub async fn send_again(&mut self, route: &Route) {
        self.answer.abort();
        self.answer = begin(route, &self.doing, &self.forward, &self.tail).await;
    }

    /// Waits for the answer.
    pub async fn answer(&mut self) -> Result<Answer, NodeError> {
        let panicked = |_| NodeError::Panicked { during: "a step's exchange".into() };
        (&mut self.answer).await.map_err(panicked)?
    }
}

async fn begin(route: &Route, doing: &Doing, forward: &Frame, tail: &Arc<Mutex<Option<Tail>>>) -> JoinHandle<Result<Answer, NodeError>> {
    let stream = route.link.open_step().await;
    tokio::spawn(exchange(stream, route.clone(), doing.clone(), forward.clone(), tail.clone()))
}

/// The frames of one micro-batch, there and back.
async fn exchange(
    stream: Result<StepStream, LinkError>,
    Route { limits, side, .. }: Route,
    doing: Doing,
    forward: Frame,
    tail: Arc<Mutex<Option<Tail>>>,
) -> Result<Answer, NodeError> {
    let mut stream = stream?;
    let limits = limits.answering(&forward.header);
    let mut bytes = (forward.header.payload_bytes, 0);
    stream.send(forward).await?;
    let mut frame = check(stream.recv(&limits).await?)?;
    bytes.1 += frame.header.payload_bytes;
    let (mut sums, mut computed, mut phases) = (frame.header.sums(), Duration::ZERO, None);
    if frame.header.kind == FrameKind::Hidden {
        let started = Instant::now();
        let own = side.run("tail", move |side| finish_once(side, &doing, &frame, &tail)).await??;
        (sums, computed, phases) = (own.sums, started.elapsed(), own.phases);
        let Some(gradient) = own.gradient else {
            stream.finish().await?;
            return Ok(Answer { frame: None, sums, bytes, computed, phases });
        };
        bytes.0 += gradient.header.payload_bytes;
        stream.send(gradient).await?;
        frame = check(stream.recv(&limits).await?)?;
        bytes.1 += frame.header.payload_bytes;
    }
    stream.finish().await?;
    Ok(Answer { frame: Some(frame), sums, bytes, computed, phases })
}

/// The U-shape's own half, computed once however often the step is sent. What it gave is noted on the compute thread, where nothing can
/// come between the two.
fn finish_once(side: &mut ClientSide, doing: &Doing, hidden: &Frame, tail: &Mutex<Option<Tail>>) -> Result<Tail, NodeError> {
    let mut known = tail.lock().expect("no holder of this lock panics");
    if let Some(known) = &*known {
        return Ok(known.clone());
    }
    side.take_phases();
    let (sums, gradient) = side.finish(doing, hidden)?;
    let own = Tail { sums, gradient, phases: side.take_phases() };
    *known = Some(own.clone());
    Ok(own)
}

/// A step that failed on the server fails here, in the server's words.
fn check(answer: Frame) -> Result<Frame, NodeError> {
    match answer.reason() {
        Some(reason) => Err(NodeError::StepFailed { step: answer.header.step, reason: reason.into() }),
        None => Ok(answer),
    }
}
