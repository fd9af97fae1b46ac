//! The UDP socket beneath an endpoint.

use crate::config::LinkConfig;
use crate::reset;
use quinn::{Endpoint, TokioRuntime};
use socket2::SockRef;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

/// Bytes that the kernel may hold for us each way. Its 200 KiB overflow in a millisecond of a fast link, while the cores compute,
/// and congestion control takes that for a bad network. The kernel caps this at its own limit (net.core.rmem_max).
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// A socket at `addr`, and QUIC on it: a server's with `server` and its own secret, a client's without. Needs a tokio runtime.
pub(crate) fn open(addr: SocketAddr, server: Option<(quinn::ServerConfig, &[u8])>) -> io::Result<Endpoint> {
    let socket = UdpSocket::bind(addr)?;
    let buffers = SockRef::from(&socket);
    if let Err(error) = buffers.set_recv_buffer_size(SOCKET_BUFFER_BYTES).and_then(|()| buffers.set_send_buffer_size(SOCKET_BUFFER_BYTES)) {
        // Slower, not wrong.
        tracing::debug!("{addr}: the socket's buffers stay as they are: {error}");
    }
    let mut config = LinkConfig::endpoint();
    let server = server.map(|(server, secret)| {
        reset::outlive(&mut config, secret);
        server
    });
    Endpoint::new(config, server, socket, Arc::new(TokioRuntime))
}
