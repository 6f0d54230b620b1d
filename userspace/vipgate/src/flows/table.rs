//! Connections as a table for people: lines of aligned cells.
//!
//! Cells are put together by hand: with the standard library's formatting a million lines, of twenty numbers each, take
//! longer than everything else that it takes to list them.

use std::{
    io::{self, Write},
    net::SocketAddrV4,
};

use vipgate::packet_log::protocol;
use vipgate_agent::loader::Connection;

use super::Direction;
use crate::status::flow_state;

/// Lines are given on in pieces of so many bytes.
const PIECE: usize = 1 << 18;

/// Widths of the cells that begin at the left, and of those that end at the right.
const DIRECTION: usize = 3;
const PROTOCOL: usize = 5;
const SOCKET: usize = 21;
const STATE: usize = 11;
const IDLE: usize = 6;
const PACKETS: usize = 11;
const BYTES: usize = 14;

/// Writes those of the `found` connections that are to be shown.
pub(super) fn write(flows: &[Connection], found: usize, to: &mut impl Write) -> io::Result<()> {
    let mut lines = Lines(Vec::with_capacity(PIECE + 512));
    if !flows.is_empty() {
        lines.left(DIRECTION, |cell| cell.text("DIR"));
        lines.left(PROTOCOL, |cell| cell.text("PROTO"));
        for (width, name) in [(SOCKET, "CLIENT"), (SOCKET, "VIP"), (SOCKET, "BACKEND"), (STATE, "STATE")] {
            lines.left(width, |cell| cell.text(name));
        }
        lines.right(IDLE, |cell| cell.text("IDLE"));
        for (packets, bytes) in [("PACKETS-IN", "BYTES-IN"), ("PACKETS-OUT", "BYTES-OUT")] {
            lines.right(PACKETS, |cell| cell.text(packets));
            lines.right(BYTES, |cell| cell.text(bytes));
        }
        lines.end();
    }
    for flow in flows {
        lines.left(DIRECTION, |cell| cell.text(Direction::of(flow).name()));
        lines.left(PROTOCOL, |cell| cell.text(&protocol(flow.protocol)));
        for socket in [flow.client, flow.vip, flow.backend] {
            lines.left(SOCKET, |cell| cell.socket(socket));
        }
        lines.left(STATE, |cell| cell.text(flow_state(flow.state)));
        lines.right(IDLE, |cell| {
            cell.number(flow.idle.into());
            cell.text("s");
        });
        for (packets, bytes) in [(flow.packets_in, flow.bytes_in), (flow.packets_out, flow.bytes_out)] {
            lines.right(PACKETS, |cell| cell.number(packets.into()));
            lines.right(BYTES, |cell| cell.number(bytes));
        }
        lines.end();
        if lines.0.len() >= PIECE {
            to.write_all(&lines.0)?;
            lines.0.clear();
        }
    }
    to.write_all(&lines.0)?;
    let connections = if found == 1 { "connection" } else { "connections" };
    if flows.len() < found {
        writeln!(to, "{} of {found} {connections}", flows.len())
    } else {
        writeln!(to, "{found} {connections}")
    }
}

/// Lines that are being put together, cell by cell. What is wider than its cell moves the rest of its line.
struct Lines(Vec<u8>);

impl Lines {
    /// A cell that begins at the left.
    fn left(&mut self, width: usize, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        fill(self);
        let end = self.0.len().max(start + width);
        self.0.resize(end + 1, b' ');
    }

    /// A cell that ends at the right.
    fn right(&mut self, width: usize, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        fill(self);
        let missing = (start + width).saturating_sub(self.0.len());
        self.0.resize(self.0.len() + missing, b' ');
        self.0[start..].rotate_right(missing);
        self.0.push(b' ');
    }

    /// Ends a line, without the blank that parts its last cell from a next one.
    fn end(&mut self) {
        self.0.pop();
        self.0.push(b'\n');
    }

    fn text(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, mut number: u64) {
        /// Digits of the largest number.
        const DIGITS: usize = 20;
        let mut digits = [b'0'; DIGITS];
        let mut first = DIGITS;
        loop {
            first -= 1;
            digits[first] += (number % 10).to_le_bytes()[0];
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.0.extend_from_slice(&digits[first..]);
    }

    fn socket(&mut self, socket: SocketAddrV4) {
        for (octet, after) in socket.ip().octets().into_iter().zip(*b"...:") {
            self.number(octet.into());
            self.0.push(after);
        }
        self.number(socket.port().into());
    }
}

#[cfg(test)]
mod tests;
