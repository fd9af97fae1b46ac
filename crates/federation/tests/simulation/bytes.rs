//! What travels: real bytes, written and read by the real codec, as the transport would.

use cutlayer_wire::{
    AdapterFrame, AdapterLimits, CONTROL_PREFIX_BYTES, CodecError, FRAME_HEADER_BYTES, Frame, FrameHeader, FrameLimits, Message, decode,
    encode,
};

/// The streams of a connection: each is reliable and in order, none waits for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    Control,
    Adapter,
    Step,
}

/// One message on one lane.
#[derive(Clone, Debug)]
pub struct Packet {
    pub lane: Lane,
    pub bytes: Vec<u8>,
}

impl Packet {
    pub fn control(message: &Message) -> Self {
        let body = encode(message).expect("a message of ours can be encoded");
        let length = u32::try_from(body.len()).expect("a control message fits a u32");
        let bytes = [&length.to_le_bytes()[..], &body].concat();
        Self { lane: Lane::Control, bytes }
    }

    pub fn adapter(frame: &AdapterFrame) -> Self {
        Self { lane: Lane::Adapter, bytes: frame.encode() }
    }

    pub fn step(frame: &Frame) -> Self {
        Self { lane: Lane::Step, bytes: frame.encode() }
    }
}

/// The control message in `bytes`, length prefix included.
pub fn read_control(bytes: &[u8]) -> Result<Message, String> {
    let (prefix, body) = bytes.split_first_chunk::<CONTROL_PREFIX_BYTES>().ok_or("the stream ended in a length")?;
    let length = CodecError::check_length(*prefix).map_err(|error| error.to_string())?;
    let body = body.get(..length).ok_or("the stream ended in a message")?;
    decode(body).map_err(|error| error.to_string())
}

/// The step frame in `bytes`.
pub fn read_frame(bytes: &[u8], limits: &FrameLimits) -> Result<Frame, String> {
    let (header, body) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>().ok_or("the stream ended in a header")?;
    let header = FrameHeader::decode(header).map_err(|error| error.to_string())?;
    let plan = header.check(limits).map_err(|error| error.to_string())?;
    Frame::assemble_whole(header, &plan, body.to_vec()).map_err(|error| error.to_string())
}

/// The adapter in `bytes`.
pub fn read_adapter(bytes: &[u8], limits: &AdapterLimits) -> Result<AdapterFrame, String> {
    AdapterFrame::decode(bytes, limits).map_err(|error| error.to_string())
}
