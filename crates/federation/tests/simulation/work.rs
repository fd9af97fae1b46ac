//! What a client does when it is asked: a round's steps and its update, or the scores of an adapter.

use std::collections::VecDeque;

use cutlayer_wire::{
    AdapterFrame, Ask, EvalSums, FRAME_HEADER_BYTES, Frame, FrameFlags, FrameHeader, FrameKind, FrameLimits, Message, RoundId,
    SessionError, Weighting,
};

use crate::bytes::{Packet, read_frame};
use crate::client::{Client, Effect};
use crate::mischief;
use crate::scenario::Temper;
use crate::toy::{self, At, BASE, HIDDEN, Moment};

/// What a client keeps from round to round beside the adapter: its sampler's place and its optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mind {
    pub drawn: u64,
    pub moment: Moment,
}

/// What a client keeps on its disk, so that a new process can take a round again, or the one after it.
#[derive(Clone, Copy, Debug)]
pub struct Saved {
    pub round: RoundId,
    /// Before the round's first step. A round that its server lost is trained again from here.
    pub start: Mind,
    /// After its last: on the disk before the update is sent, because the next round may be all that a new process hears of.
    pub end: Option<Mind>,
}

/// How far an ask is.
#[derive(Clone, Debug)]
pub struct Work {
    ask: Ask,
    sums: EvalSums,
    sequences: u64,
    index: u32,
}

/// The micro-batches of a step that the server has.
#[derive(Clone, Debug, Default)]
pub struct Flight {
    /// Not answered yet, in order.
    asked: VecDeque<(FrameHeader, Packet)>,
    sums: EvalSums,
    sequences: u64,
    gradients: Vec<Vec<f32>>,
}

/// What a client is in the middle of.
#[derive(Clone, Debug)]
pub enum Doing {
    Nothing,
    /// The adapter is not here yet.
    Adopting(Work),
    /// Half a step is computed.
    Computing(Work),
    Waiting(Work, Flight),
    /// The run is over, this adapter is not here yet.
    Leaving(RoundId),
}

impl Doing {
    pub fn ask(&self) -> Option<Ask> {
        match self {
            Self::Adopting(work) | Self::Computing(work) | Self::Waiting(work, _) => Some(work.ask),
            Self::Nothing | Self::Leaving(_) => None,
        }
    }

    /// The adapter without which it does not go on.
    pub fn needs(&self) -> Option<RoundId> {
        match self {
            Self::Adopting(Work { ask: Ask::Train(round), .. }) => Some(round.previous()),
            Self::Adopting(Work { ask: Ask::Evaluate(round), .. }) | Self::Leaving(round) => Some(*round),
            Self::Nothing | Self::Computing(_) | Self::Waiting(..) => None,
        }
    }
}

impl Client {
    pub(crate) fn begin(&mut self, ask: Ask) {
        if let Ask::Train(round) = ask {
            self.recall(round);
        }
        self.doing = Doing::Adopting(Work { ask, sums: EvalSums::default(), sequences: 0, index: 0 });
    }

    /// A round that was begun before begins as it did then.
    fn recall(&mut self, round: RoundId) {
        assert!(self.saved.is_none_or(|saved| saved.round <= round), "round {round} was committed before: {:?}", self.saved);
        if let Some(saved) = self.saved.filter(|saved| saved.round == round) {
            self.mind = saved.start;
        }
        self.saved = Some(Saved { round, start: self.mind, end: None });
    }

    /// Installs the newest adapter that `from` needs, if it is here.
    pub(crate) fn adopt(&mut self, from: RoundId) -> Result<bool, String> {
        while self.session.adapter_round().is_none_or(|have| have < from) {
            let Some(frame) = self.adapters.pop_front() else { return Ok(false) };
            self.session.adapter(frame.round).map_err(|error| error.to_string())?;
            assert_eq!(frame.state.keys().cloned().collect::<Vec<_>>(), toy::keys(0..self.plan.cut), "a client is sent its own layers");
            self.own = frame.state;
        }
        Ok(true)
    }

    /// The adapter that was waited for is here.
    pub(crate) fn adopted(&mut self) {
        match std::mem::replace(&mut self.doing, Doing::Nothing) {
            Doing::Adopting(work) => self.compute(work),
            Doing::Leaving(_) => self.leave(),
            other => self.doing = other,
        }
    }

    /// Over a new connection: what was being computed is, and what the server had to answer is asked again, in order.
    pub(crate) fn again(&mut self) {
        match &self.doing {
            Doing::Computing(work) => self.compute(work.clone()),
            Doing::Waiting(_, flight) => {
                let packets: Vec<_> = flight.asked.iter().map(|(_, packet)| packet.clone()).collect();
                packets.into_iter().for_each(|packet| self.send(packet));
            }
            Doing::Adopting(_) | Doing::Nothing | Doing::Leaving(_) => {}
        }
    }

    fn compute(&mut self, work: Work) {
        self.doing = Doing::Computing(work);
        let after_ms = self.random.between(0, self.plan.compute_ms);
        self.effects.push(Effect::Wake { after_ms, life: self.life });
    }

    fn at(&self, work: &Work, micro: u32) -> At {
        match work.ask {
            Ask::Train(_) => At { seed: self.seed, client: self.number, draw: self.mind.drawn + u64::from(micro) },
            Ask::Evaluate(_) => At::held_out(self.seed, self.number, work.index),
        }
    }

    /// Half a step, or the whole work, is computed: send it.
    pub(crate) fn computed(&mut self) -> Result<(), String> {
        if self.plan.temper == Temper::Nonsense {
            let stray = mischief::stray(&mut self.random);
            stray.into_iter().for_each(|packet| self.send(packet));
        }
        let Doing::Computing(work) = std::mem::replace(&mut self.doing, Doing::Nothing) else { return Ok(()) };
        let sent = match work.ask {
            Ask::Train(round) if work.index < self.run.local_steps => self.open_step(work, round, self.run.pipeline.micro_batches),
            Ask::Evaluate(round) if work.index < self.eval_steps => self.open_step(work, round, 1),
            Ask::Train(round) => self.send_update(&work, round),
            Ask::Evaluate(round) => self.send_scores(&work, round),
        };
        match sent {
            Ok(()) => Ok(()),
            Err(SessionError::Superseded { round, .. }) => {
                self.superseded += 1;
                self.effects.push(Effect::Note(format!("drops round {round}: the server went on")));
                Ok(())
            }
            Err(other) => Err(other.to_string()),
        }
    }

    fn open_step(&mut self, work: Work, round: RoundId, micro_batches: u16) -> Result<(), SessionError> {
        let train = matches!(work.ask, Ask::Train(_));
        let flags = FrameFlags::NONE.with_if(FrameFlags::TRAIN, train).with_if(FrameFlags::NEEDS_GRADIENT, self.plan.cut > 0);
        let mut flight = Flight::default();
        for micro in 0..u32::from(micro_batches) {
            let step = self.session.open_step(round, train, work.index, micro)?;
            let at = self.at(&work, micro);
            let lengths = toy::lengths(at);
            let mut values = toy::activations(&self.own, at);
            if self.plan.temper == Temper::Fickle {
                // As a device whose sums come out in another order in each process.
                values[0] += self.process as f32;
            }
            let tokens: u32 = lengths.iter().sum();
            flight.sequences += lengths.len() as u64;
            let payload = self.encodings.0.encode(&values, HIDDEN as usize, step.0).expect("rows of the hidden size");
            let labels = vec![1; tokens as usize];
            let frame = Frame::forward(step, round, flags, self.encodings.0, HIDDEN, lengths, labels, payload);
            let frame = frame.micro(micro_batches, 0);
            let packet = Packet::step(&frame);
            flight.asked.push_back((frame.header, packet.clone()));
            self.send(packet);
        }
        self.doing = Doing::Waiting(work, flight);
        Ok(())
    }

    pub(crate) fn answered(&mut self, bytes: &[u8]) -> Result<(), String> {
        let (header, _) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>().ok_or("the stream ended in a header")?;
        let header = FrameHeader::decode(header).map_err(|error| error.to_string())?;
        if let Some(place) = self.dropped.iter().position(|step| *step == header.step) {
            self.dropped.remove(place);
            return Ok(());
        }
        let Doing::Waiting(mut work, mut flight) = std::mem::replace(&mut self.doing, Doing::Nothing) else {
            return Err("an answer to a step that was not asked".into());
        };
        let (asked, _) = flight.asked.pop_front().ok_or("an answer to a step that was not asked")?;
        let limits = FrameLimits::new(HIDDEN, 9, 9).encoded(self.encodings.0, self.encodings.1).answering(&asked);
        let answer = read_frame(bytes, &limits)?;
        match answer.header.kind {
            FrameKind::Failed => {
                self.dropped.extend(flight.asked.iter().map(|(header, _)| header.step));
                let reason = answer.reason().unwrap_or_default();
                self.effects.push(Effect::Note(format!("gives round {} up: {reason}", asked.round)));
                return Ok(());
            }
            FrameKind::Gradient => {
                let values = answer
                    .header
                    .encoding
                    .decode(&answer.payload, answer.header.tokens as usize, HIDDEN as usize)
                    .map_err(|error| error.to_string())?;
                flight.gradients.push(values);
            }
            FrameKind::Done => {}
            other => return Err(format!("{other:?} answers nothing")),
        }
        flight.sums.add(&answer.header.sums());
        if !flight.asked.is_empty() {
            self.doing = Doing::Waiting(work, flight);
            return Ok(());
        }
        if let Ask::Train(_) = work.ask {
            toy::optimize(&mut self.own, &mut self.mind.moment, &flight.gradients);
            self.mind.drawn += u64::from(self.run.pipeline.micro_batches);
        }
        work.sums.add(&flight.sums);
        work.sequences += flight.sequences;
        work.index += 1;
        self.compute(work);
        Ok(())
    }

    fn send_update(&mut self, work: &Work, round: RoundId) -> Result<(), SessionError> {
        if let Some(saved) = self.saved.as_mut().filter(|saved| saved.round == round) {
            saved.end = Some(self.mind);
        }
        self.session.update(round)?;
        let weight = match self.run.weighting {
            Weighting::Tokens => work.sums.scored as f64,
            Weighting::Samples => work.sequences as f64,
            Weighting::Uniform => 1.0,
        };
        let frame = AdapterFrame::new(round, weight, &BASE, self.own.clone());
        let packets = match self.plan.temper {
            Temper::Nonsense => mischief::spoil(frame, &mut self.random),
            _ => vec![Packet::adapter(&frame)],
        };
        self.reply(work.ask, packets);
        Ok(())
    }

    fn send_scores(&mut self, work: &Work, round: RoundId) -> Result<(), SessionError> {
        let scores = Message::Evaluated { round, sums: work.sums };
        self.session.sent(&scores)?;
        self.reply(work.ask, vec![Packet::control(&scores)]);
        Ok(())
    }

    fn reply(&mut self, ask: Ask, packets: Vec<Packet>) {
        self.answer = Some((ask, packets.clone()));
        packets.into_iter().for_each(|packet| self.send(packet));
    }
}
