//! The API's connections: accepted up to a [`limit`], closed when they are idle, and with request targets that the HTTP
//! library accepts.
//!
//! A target may hold `<`, `>` and `"`, as in `GET /zstack/v1/vm-instances?q=cpuNum>5 HTTP/1.1`. RFC 3986 requires these
//! characters to be percent-encoded, and the library answers 400 where they are not. The API's own examples, curl and
//! existing clients send them unencoded. So [`target`] encodes them, between the socket and the library. Touches the bytes
//! of accepted connections only.

mod limit;
mod target;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use self::{
    limit::{Limit, Permit, max_connections},
    target::Encoder,
};

/// Bytes that are read at once.
const READ: usize = 16 << 10;

/// A connection without a request is closed after this time: longer than clients keep one for reuse.
const IDLE_TIMEOUT: Duration = Duration::from_secs(100);

/// Accepts the API's connections.
#[derive(Debug)]
pub struct Accepting<L> {
    listener: L,
    limit: Limit,
}

impl<L> Accepting<L> {
    pub fn new(listener: L) -> Self {
        Self { listener, limit: Limit::new(max_connections()) }
    }
}

impl<L: Listener<Addr = SocketAddr>> Listener for Accepting<L> {
    type Io = Connection<L::Io>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (io, address) = self.listener.accept().await;
            match self.limit.admit(address.ip()) {
                Some(permit) => return (Connection::new(io, IDLE_TIMEOUT, permit), address),
                None => tracing::debug!(%address, "a connection is refused: too many are open"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// The address that a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub(super) IpAddr);

impl<L: Listener<Addr = SocketAddr>> Connected<IncomingStream<'_, Accepting<L>>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Accepting<L>>) -> Self {
        Self(stream.remote_addr().ip())
    }
}

/// A connection; the targets of the requests that are read from it are encoded.
#[derive(Debug)]
pub struct Connection<S> {
    inner: S,
    encoder: Encoder,
    /// Encoded bytes, of which `taken` have been read.
    ready: Vec<u8>,
    taken: usize,
    /// A request came whose answer has not begun.
    is_answer_due: bool,
    idle_timeout: Duration,
    /// A request must have come by then.
    deadline: Pin<Box<Sleep>>,
    _permit: Permit,
}

impl<S> Connection<S> {
    fn new(inner: S, idle_timeout: Duration, permit: Permit) -> Self {
        Self {
            inner,
            encoder: Encoder::default(),
            ready: Vec::new(),
            taken: 0,
            is_answer_due: false,
            idle_timeout,
            deadline: Box::pin(sleep(idle_timeout)),
            _permit: permit,
        }
    }

    /// Waits for bytes; an error once no request has come for too long.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_answer_due && self.encoder.is_following() {
            return Poll::Pending;
        }
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// A part of an answer was sent: the client is not idle.
    fn answered(&mut self) {
        self.is_answer_due = false;
        self.deadline.as_mut().reset(Instant::now() + self.idle_timeout);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        while this.taken == this.ready.len() {
            this.ready.clear();
            this.taken = 0;
            if this.encoder.is_passive() {
                return match Pin::new(&mut this.inner).poll_read(context, into) {
                    Poll::Pending => this.wait(context),
                    read @ Poll::Ready(_) => read,
                };
            }
            let mut bytes = [0; READ];
            let mut read = ReadBuf::new(&mut bytes);
            match Pin::new(&mut this.inner).poll_read(context, &mut read) {
                Poll::Pending => return this.wait(context),
                Poll::Ready(read) => read?,
            }
            if read.filled().is_empty() {
                this.encoder.end(&mut this.ready);
                if this.ready.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            } else {
                this.encoder.feed(read.filled(), &mut this.ready);
                // Empty lines are no request.
                this.is_answer_due |= this.ready.iter().any(|byte| !matches!(byte, b'\r' | b'\n'));
            }
        }
        let rest = &this.ready[this.taken..];
        let count = rest.len().min(into.remaining());
        into.put_slice(&rest[..count]);
        this.taken += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.inner).poll_write(context, bytes));
        this.answered();
        Poll::Ready(written)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.inner).poll_write_vectored(context, slices));
        this.answered();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests;
