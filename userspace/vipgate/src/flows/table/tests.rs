//! Cells and lines of the table.

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
