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
mod tests {
    use std::net::Ipv4Addr;

    use vipgate_abi::flow::State;

    use super::*;

    #[test]
    fn numbers_and_addresses_read_as_everywhere() {
        let shown = |fill: &dyn Fn(&mut Lines)| {
            let mut lines = Lines(Vec::new());
            fill(&mut lines);
            String::from_utf8(lines.0).expect("text")
        };
        for number in [0, 1, 9, 10, 99, 100, 12_345, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            assert_eq!(shown(&|lines| lines.number(number)), number.to_string());
        }
        for (address, port) in [([0; 4], 0), ([10, 1, 0, 101], 80), ([255; 4], u16::MAX)] {
            let socket = SocketAddrV4::new(Ipv4Addr::from(address), port);
            assert_eq!(shown(&|lines| lines.socket(socket)), socket.to_string());
        }
    }

    #[test]
    fn a_table_is_aligned_and_what_is_wider_than_its_cell_is_whole() {
        let short = Connection {
            outward: false,
            protocol: 6,
            client: SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 101), 40_000),
            vip: SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 10), 80),
            backend: SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 11), 8080),
            state: State::Established,
            idle: 3,
            packets_in: 12,
            bytes_in: 3456,
            packets_out: 7,
            bytes_out: 890,
        };
        let long = Connection {
            outward: true,
            protocol: 17,
            client: SocketAddrV4::new(Ipv4Addr::new(255, 255, 255, 255), 65_535),
            idle: 1_234_567,
            bytes_out: u64::MAX,
            ..short
        };
        let mut table = Vec::new();
        write(&[short, long], 5, &mut table).expect("written");
        let expected = "\
DIR PROTO CLIENT                VIP                   BACKEND               STATE         IDLE  PACKETS-IN       BYTES-IN PACKETS-OUT      BYTES-OUT
in  tcp   10.1.0.101:40000      10.1.0.10:80          10.2.0.11:8080        established     3s          12           3456           7            890
out udp   255.255.255.255:65535 10.1.0.10:80          10.2.0.11:8080        established 1234567s          12           3456           7 18446744073709551615
2 of 5 connections
";
        assert_eq!(String::from_utf8(table).expect("text"), expected);
    }

    #[test]
    fn long_tables_come_whole_in_pieces() {
        let flow = Connection {
            outward: false,
            protocol: 6,
            client: SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 101), 40_000),
            vip: SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 10), 80),
            backend: SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 11), 8080),
            state: State::Closing,
            idle: 0,
            packets_in: 1,
            bytes_in: 60,
            packets_out: 1,
            bytes_out: 60,
        };
        let mut table = Vec::new();
        write(&vec![flow; 5000], 5000, &mut table).expect("written");
        let text = String::from_utf8(table).expect("text");
        assert_eq!(text.lines().count(), 5002);
        assert!(text.ends_with("\n5000 connections\n"));
        assert_eq!(text.lines().filter(|line| line.contains("closing")).count(), 5000);
    }
}
