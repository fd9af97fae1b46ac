//! A UDP socket that takes and gives several datagrams at once, where the system can (GRO and GSO).

use super::lane::Passing;
use bytes::Bytes;
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::SockRef;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Bytes that the kernel may hold for us each way. What overflows there is lost without being counted.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;
/// Buffers filled by one call.
const BUFFERS: usize = 8;
/// Bytes of each: the largest that the kernel fuses.
const BUFFER_BYTES: usize = 1 << 16;
/// Bytes that the kernel takes at once, over IPv4.
const SEND_BYTES_MAX: usize = 65_507;

pub(super) struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Socket {
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = std::net::UdpSocket::bind(addr)?;
        let buffers = SockRef::from(&socket);
        let sized = buffers.set_recv_buffer_size(SOCKET_BUFFER_BYTES).and_then(|()| buffers.set_send_buffer_size(SOCKET_BUFFER_BYTES));
        if let Err(error) = sized {
            // More is lost in a burst, and nothing else.
            tracing::debug!("{addr}: the emulator's buffers stay as they are: {error}");
        }
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UdpSocket::from_std(socket)?, state })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Waits for datagrams and shows each to `take`. Cancel-safe.
    pub async fn receive(&self, inbox: &mut Inbox, mut take: impl FnMut(SocketAddr, Option<EcnCodepoint>, Bytes)) -> io::Result<()> {
        let count = loop {
            self.socket.readable().await?;
            let mut slices: Vec<IoSliceMut> = inbox.buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
            let read = || self.state.recv(UdpSockRef::from(&self.socket), &mut slices, &mut inbox.found);
            match self.socket.try_io(Interest::READABLE, read) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => break other?,
            }
        };
        for (found, buffer) in inbox.found[..count].iter().zip(&inbox.buffers) {
            // One copy for all that came together; each is a slice of it.
            let all = Bytes::copy_from_slice(&buffer[..found.len]);
            let stride = found.stride.max(1);
            for start in (0..found.len).step_by(stride) {
                take(found.addr, found.ecn, all.slice(start..found.len.min(start + stride)));
            }
        }
        Ok(())
    }

    /// Sends what `parcel` holds; what the system does not take at once is lost.
    fn send(&self, to: SocketAddr, parcel: &Parcel) -> io::Result<()> {
        let segment_size = (parcel.count > 1).then_some(parcel.segment);
        let transmit = Transmit { destination: to, ecn: parcel.ecn, contents: &parcel.bytes, segment_size, src_ip: None };
        // Not through tokio, to which a socket is not writable before its driver has looked: the first datagram of each would be lost.
        self.state.try_send(UdpSockRef::from(&self.socket), &transmit)
    }
}

/// Where datagrams are read to.
pub(super) struct Inbox {
    buffers: Vec<Vec<u8>>,
    found: Vec<RecvMeta>,
}

impl Inbox {
    pub fn new() -> Self {
        Self { buffers: vec![vec![0; BUFFER_BYTES]; BUFFERS], found: vec![RecvMeta::default(); BUFFERS] }
    }
}

/// Datagrams that leave in one call: of one size but for the last, from one peer and with one mark.
#[derive(Default)]
pub(super) struct Parcel {
    peer: Option<SocketAddr>,
    ecn: Option<EcnCodepoint>,
    segment: usize,
    count: usize,
    bytes: Vec<u8>,
}

impl Parcel {
    /// Whether `passing` may leave in the same call, through `socket`.
    fn fits(&self, passing: &Passing, socket: &Socket) -> bool {
        let same = self.peer == Some(passing.peer) && self.ecn == passing.ecn;
        let regular = self.bytes.len() == self.count * self.segment && (1..=self.segment).contains(&passing.bytes.len());
        same && regular && self.count < socket.state.max_gso_segments() && self.bytes.len() + passing.bytes.len() <= SEND_BYTES_MAX
    }

    fn put(&mut self, passing: &Passing) {
        if self.count == 0 {
            (self.peer, self.ecn, self.segment) = (Some(passing.peer), passing.ecn, passing.bytes.len());
        }
        self.bytes.extend_from_slice(&passing.bytes);
        self.count += 1;
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }
}

/// Datagrams that the system did not take.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Refused {
    pub packets: u64,
    pub bytes: u64,
}

impl Refused {
    fn add(&mut self, packets: usize, bytes: usize) {
        self.packets += packets as u64;
        self.bytes += bytes as u64;
    }
}

/// Sends `passing` in as few calls as can be; returns what the system did not take. `route` says through which socket and to where
/// those of a peer go; nothing, and they are lost: the peer was forgotten.
pub(super) fn send_all<'a>(
    passing: impl Iterator<Item = Passing>,
    parcel: &mut Parcel,
    route: impl Fn(SocketAddr) -> Option<(&'a Socket, SocketAddr)>,
) -> Refused {
    let mut refused = Refused::default();
    for next in passing {
        let Some((socket, _)) = route(next.peer) else {
            refused.add(1, next.bytes.len());
            continue;
        };
        if parcel.count > 0 && !parcel.fits(&next, socket) {
            flush(parcel, &route, &mut refused);
        }
        parcel.put(&next);
    }
    if parcel.count > 0 {
        flush(parcel, &route, &mut refused);
    }
    refused
}

fn flush<'a>(parcel: &mut Parcel, route: impl Fn(SocketAddr) -> Option<(&'a Socket, SocketAddr)>, refused: &mut Refused) {
    let sent = match parcel.peer.and_then(route) {
        Some((socket, to)) => socket.send(to, parcel),
        None => Err(io::ErrorKind::NotConnected.into()),
    };
    if let Err(error) = sent {
        refused.add(parcel.count, parcel.bytes.len());
        tracing::debug!("the emulator could not send {} datagrams: {error}", parcel.count);
    }
    parcel.clear();
}
