//! Sits between the broker's bytes and the AMQP client: repairs short strings that are not UTF-8, and holds deliveries
//! back until there is room for them.
//!
//! AMQP 0-9-1 asks for UTF-8 in message ids, routing keys and header names, and RabbitMQ takes any bytes. The client
//! ends the connection over them, so the broker would redeliver the same message for ever. Here each offending byte
//! becomes a question mark, and a note says which delivery it was: the relay dead-letters it. Nothing else is changed:
//! a stream without such strings passes byte by byte, and bodies are never looked at.
//!
//! The client reads whatever comes and keeps it until it is asked for. So while the [`Budget`](crate::budget::Budget)
//! is used up, no further delivery is read from the socket. The broker's heartbeats are stuck behind that delivery, so
//! the client gets one from here after each of its own writes, as long as these get through.

use std::{
    future::Future,
    io::{self, Read, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use async_rs::{
    Runtime, Tokio,
    traits::{Executor, Reactor, RuntimeKit},
    util::Task,
};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::{Stream, future::Either};
use rustls_connector::AsyncTlsStream;

mod frames;
mod strings;

use frames::Frames;
pub(crate) use frames::{ConnectionNotes, DeliveryNote};

/// Plain, or TLS.
type Socket = Either<<Tokio as Reactor>::TcpStream, AsyncTlsStream<<Tokio as Reactor>::TcpStream>>;

/// Tokio as the client's runtime, with [`Wire`] as its stream.
#[derive(Debug, Clone)]
pub(crate) struct WireKit(Tokio);

/// A connection to the broker, plain or TLS, from which the client reads repaired bytes.
pub(crate) struct Wire {
    socket: Socket,
    frames: Frames,
    /// The reader, while a delivery waits for room.
    reader: Option<Waker>,
    /// Something was written meanwhile.
    wrote: bool,
}

impl WireKit {
    /// The caller's runtime, for the client.
    pub(crate) fn runtime() -> Runtime<Self> {
        Runtime::new(Self(Tokio::current()))
    }

    /// The caller's runtime, for opening sockets.
    pub(crate) fn sockets() -> Runtime<Tokio> {
        Runtime::tokio_current()
    }
}

impl Wire {
    /// Reads from `socket`, and records in `notes` what it repairs.
    pub(crate) fn new(socket: Socket, notes: ConnectionNotes) -> Self {
        Self { socket, frames: Frames::new(notes), reader: None, wrote: false }
    }

    /// Records that something was written, so that a waiting reader gets a heartbeat.
    fn note(&mut self, written: &Poll<io::Result<usize>>) {
        if self.frames.is_waiting() && matches!(written, Poll::Ready(Ok(1..))) {
            self.wrote = true;
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let Self { socket, frames, reader, wrote } = self.get_mut();
        loop {
            let given = frames.read(buffer);
            if given > 0 || buffer.is_empty() {
                return Poll::Ready(Ok(given));
            }
            let wrote = std::mem::take(wrote);
            if frames.poll_delivery(context).is_pending() {
                if wrote {
                    frames.insert_heartbeat();
                    continue;
                }
                *reader = Some(context.waker().clone());
                return Poll::Pending;
            }
            if frames.is_ready() {
                continue;
            }
            let read = ready!(Pin::new(&mut *socket).poll_read(context, frames.spare()))?;
            if read == 0 {
                return Poll::Ready(Ok(0));
            }
            frames.fill(read);
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, parts);
        self.note(&written);
        written
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_close(context)
    }
}

impl RuntimeKit for WireKit {}

impl Executor for WireKit {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, future: F) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(&self, work: F) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(work)
    }
}

impl Reactor for WireKit {
    type TcpStream = Wire;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, period: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(period)
    }

    fn tcp_connect_addr(&self, address: SocketAddr) -> impl Future<Output = io::Result<Wire>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async { Ok(Wire::new(Either::Left(connecting.await?), ConnectionNotes::default())) }
    }
}
