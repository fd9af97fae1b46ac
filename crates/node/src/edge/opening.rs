//! Frames that open steps, and what is computed from them: for several clients at once where each has an adapter of its own.

use super::{Edge, Opened, Seat};
use crate::answers::Known;
use crate::error::NodeError;
use crate::phases::Phase;
use crate::schedule::StepClock;
use cutlayer_model::{Input, Joint, Labels, Mode, Rows, Stage, StageError, TapeId, Tensor, losses, tape_bytes};
use cutlayer_wire::{EvalSums, Frame, FrameFlags, FrameKind, Plan};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A step whose opening frame was read.
struct Entered {
    client: u32,
    frame: Arc<Frame>,
    rows: Rows,
    hidden: Tensor<2>,
}

impl Entered {
    fn tape(&self) -> TapeId {
        TapeId { client: self.client, step: self.frame.header.step }
    }

    fn trains(&self) -> bool {
        self.frame.header.flags.has(FrameFlags::TRAIN)
    }

    fn mode(&self, plan: &Plan) -> Mode {
        let dropout_seed = || StepClock::of(self.frame.header.step).dropout_seed(plan, self.client);
        if self.trains() { Mode::Train { dropout_seed: dropout_seed() } } else { Mode::Evaluate }
    }

    fn input(&self) -> Input<'static> {
        Input::Hidden(self.hidden.clone(), self.trains() && self.frame.header.flags.has(FrameFlags::NEEDS_GRADIENT))
    }
}

impl Edge {
    /// Bytes that the tape of a step takes until its answer: what a batch of them is bounded by.
    pub fn step_bytes(&self, client: u32, frame: &Frame) -> u64 {
        let train = frame.header.flags.has(FrameFlags::TRAIN);
        let blocks = self.seats.get(&client).map_or(0, |seat| if train { seat.blocks.len() } else { 1 });
        tape_bytes(self.frozen.spec(), blocks, frame.header.tokens as usize)
    }

    /// Answers frames that open steps, at most one of each client: with the gradient or the sums, or with hidden states for a U-shaped client.
    ///
    /// Steps that the server ends are one forward and backward where every client has an adapter of its own. What each comes to does not
    /// depend on the others, and one that fails harms no other.
    pub fn open_many(&mut self, steps: Vec<(u32, Arc<Frame>)>) -> Vec<Result<Opened, NodeError>> {
        let mut opened: Vec<Option<Result<Opened, NodeError>>> = steps.iter().map(|_| None).collect();
        let (mut places, mut joint) = (vec![], vec![]);
        for (place, (client, frame)) in steps.into_iter().enumerate() {
            opened[place] = match self.answered(client, &frame) {
                Err(error) => Some(Err(error)),
                Ok(Some(answer)) => Some(Ok(Opened { over: answer.header.kind != FrameKind::Hidden, answer })),
                Ok(None) => match self.enter(client, frame) {
                    Err(error) => Some(Err(error)),
                    Ok(step) if !self.seats[&client].head => Some(self.pass_on(step)),
                    Ok(step) if self.shared.is_some() => self.score(vec![step]).pop(),
                    Ok(step) => {
                        places.push(place);
                        joint.push(step);
                        None
                    }
                },
            };
        }
        places.into_iter().zip(self.score(joint)).for_each(|(place, outcome)| opened[place] = Some(outcome));
        opened.into_iter().map(|outcome| outcome.expect("each step has one")).collect()
    }

    /// The answer to a step that came before, or that comes too late; `None` where it is to be computed.
    fn answered(&mut self, client: u32, frame: &Frame) -> Result<Option<Frame>, NodeError> {
        if !self.seats.contains_key(&client) {
            // It was in the queue when its session ended.
            return Err(NodeError::Ended { reason: format!("client {client} left") });
        }
        let (header, installed) = (frame.header, self.installed);
        let hidden = self.frozen.spec().hidden;
        let (remembered, seat) = self.seat_of(client);
        match seat.answers.opened(frame, remembered) {
            Known::New => {}
            Known::Answer(answer) => {
                // Both sides remember alike, also what is not computed with.
                if let Some(known) = &mut seat.known {
                    known.unpack(&frame.payload, &frame.lengths, hidden)?;
                }
                return Ok(Some(answer));
            }
            Known::Refused(reason) => return Ok(Some(Frame::failed(&header, reason))),
        }
        let current = if header.flags.has(FrameFlags::TRAIN) { seat.round } else { Some(installed) };
        Ok((current != Some(header.round)).then(|| Frame::failed(&header, "the round went on while this step waited")))
    }

    /// Reads the frame that opens a step, and counts the work.
    fn enter(&mut self, client: u32, frame: Arc<Frame>) -> Result<Entered, NodeError> {
        let rows = Rows::new(&frame.lengths, self.frozen.spec().positions_max)?;
        self.clock.start();
        let hidden = self.read_opening(client, &frame, &rows)?;
        self.clock.end(Phase::Decode);
        let step = Entered { client, frame, rows, hidden };
        if step.trains() {
            let work = &mut self.seat_of(client).1.work;
            work.sequences += step.frame.lengths.len() as u64;
            work.tokens += u64::from(step.frame.header.tokens);
        }
        Ok(step)
    }

    /// Runs the blocks of a U-shaped step.
    fn pass_on(&mut self, step: Entered) -> Result<Opened, NodeError> {
        let (mode, header) = (step.mode(&self.plan), step.frame.header);
        let seat = self.seats.get_mut(&step.client).expect("it entered");
        let stage = seat.own.as_mut().or(self.shared.as_mut()).expect("one of the two adapters");
        let hidden = stage.forward(step.tape(), seat.blocks.clone(), step.input(), &step.rows, mode)?;
        self.clock.end(Phase::Forward);
        if step.trains() {
            seat.doing.insert(header.step, step.rows);
        }
        let encoding = self.activations.forgetful();
        let payload = self.write(step.client, header.step, FrameKind::Hidden, encoding, hidden)?;
        self.clock.end(Phase::Encode);
        Ok(self.keep(step.client, &step.frame, Frame::hidden(&header, encoding, payload)))
    }

    /// Runs the blocks and the head of steps of different clients, as one.
    fn score(&mut self, steps: Vec<Entered>) -> Vec<Result<Opened, NodeError>> {
        // A step that is timed is the only one.
        let only = if let [only] = &steps[..] { Some(only.client) } else { None };
        if let Some(stage) = only.and_then(|client| stage_of(&mut self.seats, &mut self.shared, client)) {
            self.clock.start_loss(stage);
        }
        let mut shared = self.shared.as_mut();
        let mut seats: BTreeMap<u32, &mut Seat> = self.seats.iter_mut().map(|(client, seat)| (*client, seat)).collect();
        let joint = steps.iter().map(|step| {
            let (seat, header) = (seats.remove(&step.client).expect("one step of each client, which has a seat"), step.frame.header);
            let labels = &step.frame.labels;
            Joint {
                blocks: seat.blocks.clone(),
                stage: seat.own.as_mut().or(shared.take()).expect("one of the two adapters"),
                id: step.tape(),
                input: step.input(),
                rows: &step.rows,
                labels: Labels { values: labels, share: share(labels, header.micro_batches, header.step_scored) },
                mode: step.mode(&self.plan),
            }
        });
        let outcomes = losses(joint.collect());
        if let Some(stage) = only.and_then(|client| stage_of(&mut self.seats, &mut self.shared, client)) {
            self.clock.end_loss(stage);
        }
        steps.iter().zip(outcomes).map(|(step, outcome)| self.settle(step, outcome)).collect()
    }

    /// Applies what a step gave, and answers it.
    fn settle(&mut self, step: &Entered, outcome: Result<(EvalSums, Option<Tensor<2>>), StageError>) -> Result<Opened, NodeError> {
        let (sums, gradient) = outcome?;
        if step.trains() {
            let work = &mut self.seat_of(step.client).1.work;
            work.scored = Some(work.scored.unwrap_or(0) + sums.scored);
            self.landed(step.client, &step.frame);
            self.clock.end(Phase::Optimizer);
        }
        let answer = self.answer(step.client, &step.frame, gradient.filter(|_| step.trains()), sums)?;
        self.clock.end(Phase::Encode);
        Ok(self.keep(step.client, &step.frame, answer))
    }

    /// Remembers an answer, should its step come again.
    fn keep(&mut self, client: u32, frame: &Frame, answer: Frame) -> Opened {
        let (remembered, seat) = self.seat_of(client);
        seat.answers.keep(frame, remembered, &answer);
        let over = answer.header.kind != FrameKind::Hidden && !seat.begun.contains_key(&frame.header.step.index());
        Opened { answer, over }
    }
}

/// The part of a step's scored labels that a micro-batch has; 1 for a step that is one batch.
pub(crate) fn share(labels: &[i32], micro_batches: u16, step_scored: u32) -> f64 {
    let scored = labels.iter().filter(|label| **label >= 0).count() as f64;
    if micro_batches <= 1 || scored == 0.0 {
        return 1.0;
    }
    // A sender that counts too few would make its own step larger than it is.
    scored / f64::from(step_scored).max(scored)
}

/// The stage that a client's steps run on.
fn stage_of<'a>(seats: &'a mut BTreeMap<u32, Seat>, shared: &'a mut Option<Stage>, client: u32) -> Option<&'a mut Stage> {
    seats.get_mut(&client)?.own.as_mut().or(shared.as_mut())
}
