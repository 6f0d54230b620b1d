//! Request targets with `<`, `>` and `"` as they are: `GET /zstack/v1/vm-instances?q=cpuNum>5 HTTP/1.1`.
//!
//! RFC 3986 wants them percent-encoded, and the HTTP library answers 400 where they are not. The API's own examples, curl
//! and existing clients send them as they are; so they are encoded here, between the socket and that library. Everything
//! else passes as it came: what is no HTTP/1 or has a head too long is left to the library to refuse, and no more of that
//! connection is looked at. Whoever asks for nothing is not waited for: a connection on which no request comes to its end of
//! head ends after a while, and there are only so many of them. Touches the bytes of accepted connections only.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use httparse::{EMPTY_HEADER, Request, Status, parse_chunk_size};
use nix::sys::resource::{Resource, getrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// The longest head that is looked at, in bytes: above any URL that the library takes.
const MOST_HEAD: usize = 128 << 10;

/// As many headers as the library takes.
const MOST_HEADERS: usize = 100;

/// Bytes that are read at once.
const READ: usize = 16 << 10;

/// How long a connection may be without a request that we are to answer: longer than clients keep one that they may need again.
const SILENCE: Duration = Duration::from_secs(100);

/// Accepts connections whose request targets may hold those characters.
#[derive(Debug)]
pub struct Accepting<L> {
    listener: L,
    guests: Guests,
}

impl<L> Accepting<L> {
    pub fn new(listener: L) -> Self {
        Self { listener, guests: Guests::new(most_connections()) }
    }
}

/// A quarter of the files that the process may have open: checks, devices and the database keep theirs.
fn most_connections() -> usize {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(files / 4).unwrap_or(usize::MAX).clamp(16, 4096)
}

impl<L: Listener<Addr = SocketAddr>> Listener for Accepting<L> {
    type Io = Encoding<L::Io>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (io, address) = self.listener.accept().await;
            match self.guests.admit(address.ip()) {
                Some(guest) => return (Encoding::new(io, SILENCE, guest), address),
                None => tracing::debug!(%address, "a connection is refused: too many are open"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// Who has connections open: so many in all, half of them from one address.
#[derive(Clone, Debug)]
struct Guests {
    most: usize,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Guests {
    fn new(most: usize) -> Self {
        Self { most, open: Arc::default() }
    }

    fn admit(&self, address: IpAddr) -> Option<Guest> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let own = open.get(&address).copied().unwrap_or_default();
        if own >= self.most / 2 || open.values().sum::<usize>() >= self.most {
            return None;
        }
        open.insert(address, own + 1);
        Some(Guest { address, guests: self.clone() })
    }
}

/// A connection that counts, until it is dropped.
#[derive(Debug)]
struct Guest {
    address: IpAddr,
    guests: Guests,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut open = self.guests.open.lock().unwrap_or_else(PoisonError::into_inner);
        let left = open.get(&self.address).map_or(0, |own| own.saturating_sub(1));
        if left == 0 {
            open.remove(&self.address);
        } else {
            open.insert(self.address, left);
        }
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

/// A connection that encodes the targets of the requests that are read from it.
#[derive(Debug)]
pub struct Encoding<S> {
    inner: S,
    heads: Heads,
    /// What was made ready, and how much of it has been read.
    ready: Vec<u8>,
    taken: usize,
    /// A request came whose answer has not begun.
    asked: bool,
    silence: Duration,
    /// Until when a request must have come.
    waiting: Pin<Box<Sleep>>,
    /// Held while it is open.
    _guest: Guest,
}

impl<S> Encoding<S> {
    fn new(inner: S, silence: Duration, guest: Guest) -> Self {
        let waiting = Box::pin(sleep(silence));
        Self {
            inner,
            heads: Heads::default(),
            ready: Vec::new(),
            taken: 0,
            asked: false,
            silence,
            waiting,
            _guest: guest,
        }
    }

    /// Nothing came; an error once that has been so for too long.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.asked && self.heads.place != Place::Unknown {
            return Poll::Pending;
        }
        ready!(self.waiting.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Something of an answer was sent: whoever takes it is not silent.
    fn answered(&mut self) {
        self.asked = false;
        self.waiting.as_mut().reset(Instant::now() + self.silence);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Encoding<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        while this.taken == this.ready.len() {
            this.ready.clear();
            this.taken = 0;
            if this.heads.place == Place::Unknown && this.heads.held.is_empty() {
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
                // The end; a head that is cut off is for the library to judge.
                this.heads.place = Place::Unknown;
                this.ready.append(&mut this.heads.held);
                if this.ready.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            } else {
                this.heads.feed(read.filled(), &mut this.ready);
                // Empty lines ask for nothing.
                this.asked |= this.ready.iter().any(|byte| !matches!(byte, b'\r' | b'\n'));
            }
        }
        let rest = &this.ready[this.taken..];
        let count = rest.len().min(into.remaining());
        into.put_slice(&rest[..count]);
        this.taken += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Encoding<S> {
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

/// What the next byte of a connection belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Head,
    /// Bytes of a body, or of a chunk with its line end, that are still to come; what follows them.
    Body { left: u64, next: Next },
    /// The line before a chunk.
    ChunkSize,
    /// A line of what follows the last chunk; an empty one ends the request.
    Trailer,
    /// No longer known: everything passes.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Head,
    ChunkSize,
}

/// Finds the heads of the requests on a connection.
#[derive(Debug, Default)]
struct Heads {
    place: Place,
    /// A head, or a line of a chunked body, that is not complete.
    held: Vec<u8>,
}

impl Heads {
    /// Takes what was read; what can be passed on is appended to `out`.
    fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            match self.place {
                Place::Unknown => {
                    out.append(&mut self.held);
                    out.extend_from_slice(bytes);
                    return;
                }
                Place::Body { left, next } => {
                    let count = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    out.extend_from_slice(&bytes[..count]);
                    bytes = &bytes[count..];
                    self.place = body(left - count as u64, next);
                }
                Place::Head | Place::ChunkSize | Place::Trailer => {
                    // To the end of the line, so that no byte is looked at twice.
                    let count = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
                    self.held.extend_from_slice(&bytes[..count]);
                    bytes = &bytes[count..];
                    if self.held.ends_with(b"\n") {
                        self.line(out);
                    }
                    if self.held.len() > MOST_HEAD {
                        self.place = Place::Unknown;
                    }
                }
            }
        }
        if self.place == Place::Unknown {
            out.append(&mut self.held);
        }
    }

    /// What is held ends with a line end.
    fn line(&mut self, out: &mut Vec<u8>) {
        match self.place {
            // Empty lines before a request are skipped, as RFC 9112, section 2.2 says.
            Place::Head if self.held.iter().all(|byte| matches!(byte, b'\r' | b'\n')) => out.append(&mut self.held),
            Place::Head => {
                if self.held.ends_with(b"\n\n") || self.held.ends_with(b"\n\r\n") {
                    self.place = encode(&self.held, out).unwrap_or(Place::Unknown);
                    if self.place != Place::Unknown {
                        self.held.clear();
                    }
                }
            }
            Place::ChunkSize => {
                self.place = match parse_chunk_size(&self.held) {
                    Ok(Status::Complete((_, 0))) => Place::Trailer,
                    // The chunk, and the line end behind it.
                    Ok(Status::Complete((_, size))) => {
                        size.checked_add(2).map_or(Place::Unknown, |left| body(left, Next::ChunkSize))
                    }
                    Ok(Status::Partial) | Err(_) => Place::Unknown,
                };
                out.append(&mut self.held);
            }
            Place::Trailer => {
                if matches!(self.held.as_slice(), b"\n" | b"\r\n") {
                    self.place = Place::Head;
                }
                out.append(&mut self.held);
            }
            Place::Body { .. } | Place::Unknown => {}
        }
    }
}

const fn body(left: u64, next: Next) -> Place {
    match (left, next) {
        (0, Next::Head) => Place::Head,
        (0, Next::ChunkSize) => Place::ChunkSize,
        _ => Place::Body { left, next },
    }
}

/// Appends the head with its target encoded, and says what follows it; `None`: it is not one that we know.
fn encode(head: &[u8], out: &mut Vec<u8>) -> Option<Place> {
    let mut headers = [EMPTY_HEADER; MOST_HEADERS];
    let mut request = Request::new(&mut headers);
    match request.parse(head) {
        Ok(Status::Complete(length)) if length == head.len() => {}
        _ => return None,
    }
    let (method, target) = (request.method?, request.path?);
    let mut chunked = false;
    let mut length = None;
    for header in &*request.headers {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = header.value.eq_ignore_ascii_case(b"chunked");
            if !chunked {
                return None;
            }
        } else if header.name.eq_ignore_ascii_case("content-length") {
            let value = std::str::from_utf8(header.value).ok()?.parse::<u64>().ok()?;
            if length.is_some_and(|other| other != value) {
                return None;
            }
            length = Some(value);
        } else if header.name.eq_ignore_ascii_case("upgrade") {
            return None;
        }
    }

    // The target stands behind the method and one space.
    let (start, rest) = head.split_at_checked(method.len() + 1)?;
    let rest = rest.strip_prefix(target.as_bytes())?;
    out.extend_from_slice(start);
    for byte in target.bytes() {
        match byte {
            b'<' => out.extend_from_slice(b"%3C"),
            b'>' => out.extend_from_slice(b"%3E"),
            b'"' => out.extend_from_slice(b"%22"),
            other => out.push(other),
        }
    }
    out.extend_from_slice(rest);
    Some(match (chunked, length) {
        (true, _) => Place::ChunkSize,
        (false, length) => body(length.unwrap_or(0), Next::Head),
    })
}

#[cfg(test)]
mod tests;
