//! One step's stream: frames there and back, whole or not at all.

use crate::error::LinkError;
use crate::line::Line;
use cutlayer_wire::{Frame, FrameHeader, FrameLimits};
use quinn::{RecvStream, SendStream};
use std::sync::Arc;

/// One step's stream.
#[derive(Debug)]
pub struct StepStream {
    line: Arc<Line>,
    send: SendStream,
    receive: RecvStream,
}

impl StepStream {
    pub(crate) fn new(line: Arc<Line>, send: SendStream, receive: RecvStream) -> Self {
        Self { line, send, receive }
    }

    /// Sends a frame. The payload is handed over, not copied.
    pub async fn send(&mut self, frame: Frame) -> Result<(), LinkError> {
        let mut parts = [frame.encode_prefix().into(), frame.payload.into()];
        self.line.write(&mut self.send, &mut parts, "sending a step").await
    }

    /// Waits for the next frame, at most as long as a step may take and its bytes need. Nothing is allocated for a header that
    /// breaks `limits`.
    ///
    /// Not cancel-safe: a frame read in part is lost, and the stream with it.
    pub async fn recv(&mut self, limits: &FrameLimits) -> Result<Frame, LinkError> {
        let (line, receive) = (&self.line, &mut self.receive);
        let header = FrameHeader::decode(&line.read_header(receive, line.config.step_wait, "waiting for a step").await?)?;
        let plan = header.check(limits)?;
        let lists = line.read_body(receive, plan.prefix_bytes(), "reading a step's lengths and labels").await?;
        let payload = line.read_body(receive, plan.payload_bytes, "reading a step's tensor").await?;
        Ok(Frame::assemble(header, &lists, payload)?)
    }

    /// Says that nothing more comes from this side.
    pub async fn finish(&mut self) -> Result<(), LinkError> {
        // A stream that was reset or finished before has ended too.
        let _ = self.send.finish();
        Ok(())
    }
}
