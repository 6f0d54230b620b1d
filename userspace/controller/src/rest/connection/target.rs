//! Percent-encodes `<`, `>` and `"` in request targets, and passes all other bytes unchanged.
//!
//! A connection that is kept alive carries requests one after the other, with or without a body, and clients send bodies
//! of both framings (RFC 9112, section 6): to find the next head, the end of each body must be known. Whatever this cannot
//! follow is passed unchanged, for the HTTP library to accept or refuse.

use httparse::{EMPTY_HEADER, Request, Status, parse_chunk_size};

/// The longest head that is encoded, in bytes: longer than any URL that the library accepts.
pub(super) const MAX_HEAD: usize = 128 << 10;

/// The library accepts as many headers.
const MAX_HEADERS: usize = 100;

/// What the next byte of a connection belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Position {
    #[default]
    Head,
    /// A body, or a chunk with its line end, of which `left` bytes are still to come, and what follows it.
    Body { left: u64, next: Next },
    /// The line before a chunk.
    ChunkSize,
    /// The lines after the last chunk; an empty one ends the request.
    Trailer,
    /// No longer known: all bytes pass unchanged.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Head,
    ChunkSize,
}

/// Encodes the targets of the requests on a connection.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    position: Position,
    /// A head, or a line of a chunked body, that is not complete.
    held: Vec<u8>,
}

impl Encoder {
    /// All later bytes pass unchanged, and none are held.
    pub(super) fn is_passive(&self) -> bool {
        !self.is_following() && self.held.is_empty()
    }

    /// The encoder knows what the next byte belongs to.
    pub(super) fn is_following(&self) -> bool {
        self.position != Position::Unknown
    }

    /// Takes bytes of the connection, and appends to `out` those that can be passed on.
    pub(super) fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            match self.position {
                Position::Unknown => {
                    out.append(&mut self.held);
                    out.extend_from_slice(bytes);
                    return;
                }
                Position::Body { left, next } => {
                    let count = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    out.extend_from_slice(&bytes[..count]);
                    bytes = &bytes[count..];
                    self.position = body(left - count as u64, next);
                }
                Position::Head | Position::ChunkSize | Position::Trailer => {
                    // Up to the end of the line, so that no byte is examined twice.
                    let count = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
                    self.held.extend_from_slice(&bytes[..count]);
                    bytes = &bytes[count..];
                    if self.held.ends_with(b"\n") {
                        self.line(out);
                    }
                    if self.held.len() > MAX_HEAD {
                        self.position = Position::Unknown;
                    }
                }
            }
        }
        if self.position == Position::Unknown {
            out.append(&mut self.held);
        }
    }

    /// The connection has ended: passes on a head that is cut off, which the HTTP library judges.
    pub(super) fn end(&mut self, out: &mut Vec<u8>) {
        self.position = Position::Unknown;
        out.append(&mut self.held);
    }

    /// Handles the line that `held` ends with.
    fn line(&mut self, out: &mut Vec<u8>) {
        match self.position {
            // Empty lines before a request are skipped, as RFC 9112, section 2.2 says.
            Position::Head if self.held.iter().all(|byte| matches!(byte, b'\r' | b'\n')) => out.append(&mut self.held),
            Position::Head => {
                if self.held.ends_with(b"\n\n") || self.held.ends_with(b"\n\r\n") {
                    self.position = encode(&self.held, out).unwrap_or(Position::Unknown);
                    if self.position != Position::Unknown {
                        self.held.clear();
                    }
                }
            }
            Position::ChunkSize => {
                self.position = match parse_chunk_size(&self.held) {
                    Ok(Status::Complete((_, 0))) => Position::Trailer,
                    // The chunk and its line end.
                    Ok(Status::Complete((_, size))) => {
                        size.checked_add(2).map_or(Position::Unknown, |left| body(left, Next::ChunkSize))
                    }
                    Ok(Status::Partial) | Err(_) => Position::Unknown,
                };
                out.append(&mut self.held);
            }
            Position::Trailer => {
                if matches!(self.held.as_slice(), b"\n" | b"\r\n") {
                    self.position = Position::Head;
                }
                out.append(&mut self.held);
            }
            Position::Body { .. } | Position::Unknown => {}
        }
    }
}

const fn body(left: u64, next: Next) -> Position {
    match (left, next) {
        (0, Next::Head) => Position::Head,
        (0, Next::ChunkSize) => Position::ChunkSize,
        _ => Position::Body { left, next },
    }
}

/// Appends the head with its target encoded, and returns what follows it; `None` if it is no head that we understand.
fn encode(head: &[u8], out: &mut Vec<u8>) -> Option<Position> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
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

    // The target follows the method and one space.
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
        (true, _) => Position::ChunkSize,
        (false, length) => body(length.unwrap_or(0), Next::Head),
    })
}
