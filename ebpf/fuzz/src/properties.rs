//! Clients and backends get exactly the expected bytes, whatever the packet: compared with frames whose checksums are
//! computed in full.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{MutexGuard, PoisonError},
};

use proptest::prelude::*;

use crate::{
    TURN,
    frame::{Frame, tcp},
    hook::{Arriving, Hook, Verdict},
    input::{Buffer, Step},
    wire::{TCP, UDP},
    world::{self, PRIVATE, PUBLIC, World},
};

/// The MAC addresses that `world` gives its interfaces.
const PUBLIC_MAC: [u8; 6] = [0x02, 0xff, 0, 0, 0, 1];
const PRIVATE_MAC: [u8; 6] = [0x02, 0xff, 0, 0, 0, 2];
/// The only backend.
const BACKEND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 9), 8081);

/// Locks the tables while a case runs.
fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn frame(protocol: u8, src: SocketAddrV4, dst: SocketAddrV4, payload: &[u8]) -> Frame {
    if protocol == UDP { Frame::udp(src, dst) } else { Frame::tcp(src, dst, tcp::SYN) }.payload(payload)
}

/// Sets the tables up for a service with one backend. Returns the client's and the service's addresses.
fn serve(client: u8, port: u16, protocol: u8) -> (SocketAddrV4, SocketAddrV4) {
    let mut world = World::new(7, 1);
    let number = if protocol == UDP { 8 } else { 0 };
    // Backend 9 is host 9 of the second network, at its second port, and the service's only backend.
    assert!(world.change(&Step::Backend { number: 9, address: 0x20 | 9, port: 1 }));
    assert!(world.change(&Step::Serve { service: number, what: 0, ring: vec![9] }));
    let (vip, _, vip_port) = world::service(number);
    let client = SocketAddrV4::new(Ipv4Addr::from(world::address(client)), port);
    (client, SocketAddrV4::new(Ipv4Addr::from(vip), vip_port))
}

/// Runs a frame that must be forwarded. Returns the frame that leaves.
fn sent(hook: Hook, frame: &Frame, ifindex: u32) -> Vec<u8> {
    let outcome = Arriving::by(ifindex, frame.clone()).run(hook);
    assert!(matches!(outcome.verdict, Verdict::Redirect(_)), "{:?} for {frame:?}", outcome.verdict);
    outcome.bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_asked_comes_to_the_backend_and_its_answer_back(
        (client, port) in (0..32u8, 1..=u16::MAX),
        protocol in prop_oneof![Just(TCP), Just(UDP)],
        asked in prop::collection::vec(any::<u8>(), 0..1400),
        answered in prop::collection::vec(any::<u8>(), 0..1400),
    ) {
        let _turn = turn();
        for hook in [Hook::Xdp, Hook::Tc] {
            let (client, vip) = serve(client, port, protocol);
            let ask = frame(protocol, client, vip, &asked);
            let expected = ask.clone().between(client, BACKEND).forwarded(PRIVATE_MAC, mac(BACKEND));
            prop_assert_eq!(sent(hook, &ask, PUBLIC), expected.bytes());
            let answer = frame(protocol, BACKEND, client, &answered);
            let expected = answer.clone().between(vip, client).forwarded(PUBLIC_MAC, mac(client));
            prop_assert_eq!(sent(hook, &answer, PRIVATE), expected.bytes());
        }
    }

    #[test]
    fn an_error_about_what_was_asked_quotes_what_the_client_sent(
        (client, port) in (0..32u8, 1..=u16::MAX),
        protocol in prop_oneof![Just(TCP), Just(UDP)],
        asked in prop::collection::vec(any::<u8>(), 0..600),
        // 37 bytes would end within the TCP checksum, which then cannot be translated.
        quoted in prop_oneof![28..37usize, 38..548usize],
        kind in prop_oneof![Just([3, 1]), Just([3, 4]), Just([11, 0]), Just([12, 0])],
        rest: u32,
        // Words of options in the error's header, and in the quoted header.
        (own, options) in (0..=10usize, 0..=10usize),
    ) {
        let _turn = turn();
        for hook in [Hook::Xdp, Hook::Tc] {
            let (client, vip) = serve(client, port, protocol);
            let ask = frame(protocol, client, vip, &asked).ip_options(&vec![1; 4 * options]);
            let quoted = quoted + 4 * options;
            let mut translated = ask.clone().between(client, BACKEND);
            sent(hook, &ask, PUBLIC);
            // The backend sends the error; the client knows the VIP only.
            translated.ttl = 9;
            let error = Frame::icmp_error(*BACKEND.ip(), *client.ip(), kind, rest, &translated, quoted).ip_options(&vec![1; 4 * own]);
            let original = translated.clone().between(client, vip);
            let expected = Frame::icmp_error(*vip.ip(), *client.ip(), kind, rest, &original, quoted)
                .ip_options(&vec![1; 4 * own])
                .forwarded(PUBLIC_MAC, mac(client));
            prop_assert_eq!(sent(hook, &error, PRIVATE), expected.bytes());
        }
    }
}

/// The datagram is shorter than the headers that the pipeline pulls.
#[test]
fn a_short_datagram_without_directly_readable_bytes_is_sent_on() {
    let _turn = turn();
    for length in 0..16 {
        let (client, vip) = serve(1, 40_000, UDP);
        let ask = frame(UDP, client, vip, &vec![7; length]);
        for linear in [14, 34, 41] {
            let buffer = Buffer { linear, segments: 0, segment_size: 0, partial_checksum: false };
            let outcome = Arriving { buffer: Some(buffer), ..Arriving::by(PUBLIC, ask.clone()) }.run(Hook::Tc);
            let expected = ask.clone().between(client, BACKEND).forwarded(PRIVATE_MAC, mac(BACKEND));
            assert_eq!(outcome.bytes, expected.bytes(), "{length} bytes of data, {linear} readable");
        }
    }
}

fn mac(host: SocketAddrV4) -> [u8; 6] {
    vipgate_host_kernel::kernel::neighbour(host.ip().octets())
}
