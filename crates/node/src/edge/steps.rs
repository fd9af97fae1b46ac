//! The steps themselves: several clients' at once where each has an adapter of its own, and each counted once.

use super::{Edge, Seat};
use crate::answers::Known;
use crate::error::NodeError;
use crate::phases::Phase;
use crate::schedule::{Sender, StepClock, frame_seed};
use crate::visits::samples;
use cutlayer_model::{Input, Joint, Labels, Mode, Rows, Stage, StageError, TapeId, Tensor, encoding, losses, tape_bytes};
use cutlayer_wire::{Encoding, EvalSums, Frame, FrameFlags, FrameKind, Plan, StepId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a step's frame came to.
pub(crate) struct Opened {
    /// What the client is owed.
    pub answer: Frame,
    /// Whether the step is over on this side: the optimizer stepped, now or when it came before.
    pub over: bool,
}

/// A step whose opening frame was read.
struct Entered {
    client: u32,
    frame: Arc<Frame>,
    rows: Rows,
    hidden: Tensor<2>,
    train: bool,
    /// U-shape: the client goes on from the hidden states itself.
    hidden_wanted: bool,
}

impl Entered {
    fn tape(&self) -> TapeId {
        TapeId { client: self.client, step: self.frame.header.step }
    }

    fn mode(&self, plan: &Plan) -> Mode {
        if self.train {
            Mode::Train { dropout_seed: StepClock::of(self.frame.header.step).dropout_seed(plan, self.client) }
        } else {
            Mode::Evaluate
        }
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
    /// Steps that the server ends are one forward and backward where every client has an adapter of its own; what each comes to does not
    /// depend on the others, and one that fails harms no other.
    /// One that came before is answered as it was, one that comes too late is refused: neither is computed.
    pub fn open_many(&mut self, steps: Vec<(u32, Arc<Frame>)>) -> Vec<Result<Opened, NodeError>> {
        let mut answers: Vec<Option<Result<Opened, NodeError>>> = steps.iter().map(|_| None).collect();
        let mut joint = vec![];
        for (place, (client, frame)) in steps.into_iter().enumerate() {
            match self.answered(client, &frame) {
                Ok(None) => {}
                Ok(Some(answer)) => {
                    answers[place] = Some(self.opened(client, answer));
                    continue;
                }
                Err(error) => {
                    answers[place] = Some(Err(error));
                    continue;
                }
            }
            match self.enter(client, frame) {
                Ok(step) if step.hidden_wanted => answers[place] = Some(self.pass_on(step)),
                Ok(step) if self.shared.is_some() => answers[place] = self.score(vec![step]).pop(),
                Ok(step) => joint.push((place, step)),
                Err(error) => answers[place] = Some(Err(error)),
            }
        }
        let (places, joint): (Vec<usize>, Vec<Entered>) = joint.into_iter().unzip();
        places.into_iter().zip(self.score(joint)).for_each(|(place, answer)| answers[place] = Some(answer));
        answers.into_iter().map(|answer| answer.expect("each step has one")).collect()
    }

    /// The answer to a step that came before, or that comes too late; `None` where it is to be computed.
    fn answered(&mut self, client: u32, frame: &Frame) -> Result<Option<Frame>, NodeError> {
        let (header, installed) = (frame.header, self.installed);
        let hidden = self.frozen.spec().hidden;
        let (remembered, seat) = self.seat_of(client)?;
        match seat.answers.opened(frame, remembered) {
            Known::New => {}
            Known::Answer(answer) => {
                // Both sides remember alike, also what is not computed with.
                if let Some(known) = seat.known.activations() {
                    known.unpack(&frame.payload, &frame.lengths, hidden)?;
                }
                return Ok(Some(answer));
            }
            Known::Refused(reason) => return Ok(Some(Frame::failed(&header, reason))),
        }
        let current = if header.flags.has(FrameFlags::TRAIN) { seat.round.filter(|_| !seat.updated) } else { Some(installed) };
        Ok((current != Some(header.round)).then(|| Frame::failed(&header, "the round went on while this step waited")))
    }

    /// A client's seat, and whether what it sends depends on what is remembered of it. A client may leave while its step waits.
    fn seat_of(&mut self, client: u32) -> Result<(bool, &mut Seat), NodeError> {
        let gone = || NodeError::Ended { reason: format!("client {client} left") };
        let seat = self.seats.get_mut(&client).ok_or_else(gone)?;
        Ok((seat.encodings.activations.differences().is_some(), seat))
    }

    /// Keeps what a step was answered.
    fn kept(&mut self, client: u32, frame: &Frame, answer: Frame) -> Result<Opened, NodeError> {
        let (remembered, seat) = self.seat_of(client)?;
        seat.answers.keep(frame, remembered, &answer);
        self.opened(client, answer)
    }

    /// An answer, new or kept, with what it means for its step: one whose other micro-batches are still to come is not over.
    fn opened(&mut self, client: u32, answer: Frame) -> Result<Opened, NodeError> {
        let (_, seat) = self.seat_of(client)?;
        let over = answer.header.kind != FrameKind::Hidden && !seat.begun.contains_key(&answer.header.step.index());
        Ok(Opened { answer, over })
    }

    /// Takes in the frame that opens a step.
    fn enter(&mut self, client: u32, frame: Arc<Frame>) -> Result<Entered, NodeError> {
        let header = frame.header;
        let train = header.flags.has(FrameFlags::TRAIN);
        let rows = Rows::new(&frame.lengths, self.frozen.spec().positions_max)?;
        self.clock.start();
        let hidden = self.read_opening(client, &frame, &rows)?;
        self.clock.end(Phase::Decode);
        let (_, seat) = self.seat_of(client)?;
        if train {
            seat.work.sequences += frame.lengths.len() as u64;
            seat.work.tokens += u64::from(header.tokens);
        }
        Ok(Entered { client, frame, rows, hidden, train, hidden_wanted: !seat.head })
    }

    /// Runs the blocks of a U-shaped step.
    fn pass_on(&mut self, step: Entered) -> Result<Opened, NodeError> {
        let (mode, tape, header) = (step.mode(&self.plan), step.tape(), step.frame.header);
        let Entered { client, frame, rows, hidden, train, .. } = step;
        let seat = self.seats.get_mut(&client).expect("it entered");
        let stage = seat.own.as_mut().or(self.shared.as_mut()).expect("one of the two adapters");
        let input = Input::Hidden(hidden, train && header.flags.has(FrameFlags::NEEDS_GRADIENT));
        let hidden = stage.forward(tape, seat.blocks.clone(), input, &rows, mode)?;
        self.clock.end(Phase::Forward);
        if train {
            seat.doing.insert(header.step, rows);
        }
        let encoding = seat.encodings.activations.forgetful();
        let payload = self.write(client, header.step, FrameKind::Hidden, encoding, hidden)?;
        self.clock.end(Phase::Encode);
        self.kept(client, &frame, Frame::hidden(&header, encoding, payload))
    }

    /// Runs the blocks and the head of steps of different clients, as one.
    fn score(&mut self, steps: Vec<Entered>) -> Vec<Result<Opened, NodeError>> {
        // What is timed goes alone: then there is one step.
        let timed = match &steps[..] {
            [only] => Some(only.client),
            _ => None,
        };
        if let Some(stage) = timed.and_then(|client| stage_of(&mut self.seats, &mut self.shared, client)) {
            self.clock.start_loss(stage);
        }
        let mut shared = self.shared.as_mut();
        let mut seats: BTreeMap<u32, &mut Seat> = self.seats.iter_mut().map(|(client, seat)| (*client, seat)).collect();
        let joint = steps.iter().map(|step| {
            let seat = seats.remove(&step.client).expect("one step of each client, which has a seat");
            Joint {
                stage: seat.own.as_mut().or(shared.take()).expect("one of the two adapters"),
                id: step.tape(),
                blocks: seat.blocks.clone(),
                input: Input::Hidden(step.hidden.clone(), step.train && step.frame.header.flags.has(FrameFlags::NEEDS_GRADIENT)),
                rows: &step.rows,
                labels: labels_of(&step.frame),
                mode: step.mode(&self.plan),
            }
        });
        let outcomes = losses(joint.collect());
        if let Some(stage) = timed.and_then(|client| stage_of(&mut self.seats, &mut self.shared, client)) {
            self.clock.end_loss(stage);
        }
        steps.iter().zip(outcomes).map(|(step, outcome)| self.settle(step, outcome)).collect()
    }

    /// Applies what a step gave, and answers it.
    fn settle(&mut self, step: &Entered, outcome: Result<(EvalSums, Option<Tensor<2>>), StageError>) -> Result<Opened, NodeError> {
        let (sums, gradient) = outcome?;
        if step.train {
            let seat = self.seats.get_mut(&step.client).expect("it entered");
            seat.work.scored = Some(seat.work.scored.unwrap_or(0) + sums.scored);
            self.landed(step.client, &step.frame);
            self.clock.end(Phase::Optimizer);
        }
        let answer = self.answer(step.client, &step.frame, gradient.filter(|_| step.train), sums)?;
        self.clock.end(Phase::Encode);
        self.kept(step.client, &step.frame, answer)
    }

    /// Answers the gradient of a U-shaped step with the gradient at the cut.
    pub fn close(&mut self, client: u32, opened: &Frame, gradient: &Frame) -> Result<Opened, NodeError> {
        let step = opened.header.step;
        let tape = TapeId { client, step };
        let (_, seat) = self.seat_of(client)?;
        if let Known::Answer(answer) = seat.answers.closed(step) {
            return Ok(Opened { answer, over: !seat.begun.contains_key(&step.index()) });
        }
        if seat.updated || seat.round != Some(opened.header.round) {
            let answer = Frame::failed(&opened.header, "the round went on while this step waited");
            return Ok(Opened { answer, over: true });
        }
        let rows = seat.doing.remove(&step).ok_or(cutlayer_model::StageError::NoTape { step })?;
        self.clock.start();
        let gradient = self.read(step, gradient, &rows)?;
        self.clock.end(Phase::Decode);
        let seat = self.seats.get_mut(&client).expect("looked up above");
        let stage = seat.own.as_mut().or(self.shared.as_mut()).expect("one of the two adapters");
        let upstream = stage.backward(tape, gradient)?;
        self.clock.end(Phase::Backward);
        self.landed(client, opened);
        self.clock.end(Phase::Optimizer);
        let answer = self.answer(client, opened, upstream, EvalSums::default())?;
        self.clock.end(Phase::Encode);
        let (_, seat) = self.seat_of(client)?;
        seat.answers.keep_last(step, &answer);
        Ok(Opened { answer, over: !seat.begun.contains_key(&step.index()) })
    }

    /// The gradients of a micro-batch are here: with the last of its step, the optimizer steps.
    fn landed(&mut self, client: u32, opened: &Frame) {
        let step = opened.header.step;
        let seat = self.seats.get_mut(&client).expect("a session has a seat until it ends");
        let landed = seat.begun.entry(step.index()).or_default();
        landed.push(step);
        if landed.len() < usize::from(opened.header.micro_batches) {
            return;
        }
        seat.begun.remove(&step.index());
        let stage = seat.own.as_mut().or(self.shared.as_mut()).expect("one of the two adapters");
        let (first, last) = step.siblings().into_inner();
        let steps = TapeId { client, step: first }..=TapeId { client, step: last };
        stage.update(steps, &self.plan.optimizer, StepClock::of(step).learning_rate(&self.plan));
    }

    fn answer(&mut self, client: u32, opened: &Frame, gradient: Option<Tensor<2>>, sums: EvalSums) -> Result<Frame, NodeError> {
        let Some(gradient) = gradient else { return Ok(Frame::done(&opened.header, sums)) };
        let step = opened.header.step;
        let seed = frame_seed(&self.plan, client, step, FrameKind::Gradient, Sender::Server);
        let (_, seat) = self.seat_of(client)?;
        let encoding = seat.encodings.gradients;
        let payload = match seat.known.gradients() {
            None => self.write(client, step, FrameKind::Gradient, encoding, gradient)?,
            Some(feedback) => {
                let [_, width] = gradient.dims();
                feedback.pack(&samples(&opened.samples, &opened.lengths), &encoding::values(gradient), width, seed)?
            }
        };
        Ok(Frame::gradient(&opened.header, encoding, sums, payload))
    }

    fn write(&self, client: u32, step: StepId, kind: FrameKind, encoding: Encoding, tensor: Tensor<2>) -> Result<Vec<u8>, NodeError> {
        let seed = frame_seed(&self.plan, client, step, kind, Sender::Server);
        encoding::encode(encoding, tensor, seed).map_err(|source| NodeError::Tensor { step, source })
    }

    /// The activations that open a step: what the client's samples differ by, where they are remembered.
    fn read_opening(&mut self, client: u32, frame: &Frame, rows: &Rows) -> Result<Tensor<2>, NodeError> {
        let step = frame.header.step;
        let Some(known) = self.seats.get_mut(&client).and_then(|seat| seat.known.activations()) else {
            return self.read(step, frame, rows);
        };
        let hidden = self.frozen.spec().hidden;
        let values = known.unpack(&frame.payload, &frame.lengths, hidden)?;
        encoding::tensor(values, hidden, self.frozen.device()).map_err(|source| NodeError::Tensor { step, source })
    }

    fn read(&self, step: StepId, frame: &Frame, rows: &Rows) -> Result<Tensor<2>, NodeError> {
        encoding::decode(frame.header.encoding, &frame.payload, rows.tokens(), self.frozen.spec().hidden, self.frozen.device())
            .map_err(|source| NodeError::Tensor { step, source })
    }
}

/// The labels of a step's frame, and the part that they are of the whole step's.
fn labels_of(frame: &Frame) -> Labels<'_> {
    Labels { values: &frame.labels, share: share(&frame.labels, frame.header.micro_batches, frame.header.step_scored) }
}

/// The stage that a client's steps run on.
fn stage_of<'a>(seats: &'a mut BTreeMap<u32, Seat>, shared: &'a mut Option<Stage>, client: u32) -> Option<&'a mut Stage> {
    seats.get_mut(&client)?.own.as_mut().or(shared.as_mut())
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
