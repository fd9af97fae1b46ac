//! The listener: connections within bounds, and an end that lets answers finish. It must never let one client hold a connection for nothing.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;

use crate::config::{ServeError, ServerConfig};
use crate::engine::Engine;
use crate::routes::{Shared, router};

/// Longest head of a request, and most bytes that are written ahead of a slow client.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Connections that the operating system keeps until they are accepted; it may allow fewer.
const BACKLOG_MAX: u32 = 4096;
/// Pause after the operating system had no room for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens at an address, with room for a crowd that connects at once: the usual room is 128, beyond which Linux resets connections.
pub fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A server that starts again takes its port over from connections that are still closing.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket.listen(BACKLOG_MAX)?)
}

/// Answers at `listener` (see [`listen`]) until `shutdown`, then lets requests under way finish, for as long as the configuration allows.
pub async fn serve(
    listener: TcpListener,
    engine: Arc<dyn Engine>,
    config: ServerConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let address = listener.local_addr()?;
    config.check(address)?;
    let drain_time_max = config.drain_time_max;
    let places = Arc::new(Semaphore::new(config.connections_max.min(Semaphore::MAX_PERMITS)));
    let shared = Arc::new(Shared::new(engine, config, address.ip().is_loopback()));
    let service = TowerToHyperService::new(router(shared.clone()));
    // Dropped, it tells every connection to end.
    let (closing, closed) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let (config, service, closed) = (shared.config.clone(), service.clone(), closed.clone());
                connections.spawn(connection(stream, place, config, service, closed));
            }
            // Out of file descriptors, or a client that left while it was accepted: neither ends the service.
            Err(error) => {
                tracing::warn!("a connection could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop((listener, closing));
    let drained = timeout(drain_time_max, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!("{} connections were cut off after {} s", connections.len(), drain_time_max.as_secs());
    }
    Ok(())
}

/// Waits for a place first, so that more clients wait in the operating system's queue.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // A token is a small write, and nobody should wait for it.
    stream.set_nodelay(true)?;
    Ok((stream, place))
}

async fn connection(
    stream: TcpStream,
    place: OwnedSemaphorePermit,
    config: ServerConfig,
    service: TowerToHyperService<axum::Router>,
    mut closed: watch::Receiver<()>,
) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(config.write_stall_max));
    let io = TokioIo::new(Box::pin(stream));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(config.head_time_max).max_buf_size(HEAD_BYTES_MAX);
    let mut serving = pin!(http.serve_connection(io, service));
    let ended = tokio::select! {
        ended = &mut serving => ended,
        _ = closed.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
    drop(place);
}
