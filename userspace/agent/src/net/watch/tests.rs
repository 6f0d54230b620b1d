//! Which announcements concern flows, devices and addresses. The announcements are Linux 6.18's own, byte by byte.

use std::net::Ipv4Addr;

use super::*;

/// `ip neighbour replace 10.0.0.2 lladdr 02:00:00:00:00:01 dev e0 nud reachable`
const NEIGHBOUR: &str = "4c0000001c0000000000000003340000 020000000300000002000001 080001000a000002 \
     0a000200020000000001 0000 0800040000000000 1400030000000000000000000000000002000000";
/// `ip neighbour replace fe80::2 lladdr 02:00:00:00:00:01 dev e0 nud reachable`
const NEIGHBOUR_6: &str = "580000001c0000000000000004340000 0a0000000300000002000001 \
     14000100fe800000000000000000000000000002 0a000200020000000001 0000 0800040000000000 \
     1400030000000000000000000000000002000000";
/// `ip address add 10.0.0.1/24 dev e0`
const ADDRESS: &str = "4c00000014000000dbf60d6bad510000 0218800003000000 080001000a000001 080002000a000001 0700030065300000 \
     0800080080000000 14000600ffffffffffffffff1723040017230400";
/// `ip address add 2001:db8::1/64 dev e0 nodad`
const ADDRESS_6: &str = "48000000140000000000000000000000 0a40820003000000 1400010020010db8000000000000000000000001 \
     14000600ffffffffffffffff1723040017230400 0800080082000000";
/// `ip address add 2001:db8::9 peer 2001:db8::8 dev e0 nodad`
const PEER_6: &str = "5c000000140000000000000000000000 0a80820003000000 1400020020010db8000000000000000000000009 \
     1400010020010db8000000000000000000000008 14000600ffffffffffffffff1823040018230400 0800080082000000";
/// `ip route add 10.9.0.0/24 via 10.0.0.2`
const ROUTE: &str = "3c00000018000006dbf60d6bb0510000 02180000fe03000100000000 08000f00fe000000 080001000a090000 \
     080005000a000002 0800040003000000";
/// `ip route add 2001:db8:9::/48 via fe80::2 dev e0`
const ROUTE_6: &str = "8800000018000006dbf60d6bb1510000 0a300000fe03000100000000 08000f00fe000000 \
     1400010020010db8000900000000000000000000 0800060000040000 14000500fe800000000000000000000000000002 0800040003000000 \
     24000c0000000000000000000000000000000000000000000000000000000000 00000000 0500140000000000";
/// `ip route add 10.8.0.0/24 via inet6 fe80::2 dev e0`
const ROUTE_VIA_6: &str = "4c00000018000006dbf60d6bb2510000 02180000fe03000100000000 08000f00fe000000 080001000a080000 \
     160012000a00fe80000000000000000000000000 00020000 0800040003000000";
/// `ip rule add to 10.9.0.0/24 table 7`
const RULE: &str = "4400000020000000dbf60d6bb3510000 021800000700000100000000 08000f0007000000 08000e00ffffffff \
     0500150000000000 08000600fd7f0000 080001000a090000";
/// `ip -6 rule add to 2001:db8::/32 table 7`
const RULE_6: &str = "5000000020000000dbf60d6bb4510000 0a2000000700000100000000 08000f0007000000 08000e00ffffffff \
     0500150000000000 08000600fd7f0000 1400010020010db8000000000000000000000000";

const NEXT_HOPS: Changes = Changes { next_hops: true, devices: false, own_addresses: false };
const ADDRESSES: Changes = Changes { next_hops: false, devices: true, own_addresses: true };
const NOTHING: Changes = Changes { next_hops: false, devices: false, own_addresses: false };

/// Which type of message says that what `message` announces is gone.
const GONE: u8 = 1;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|digit| !digit.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn read(bytes: &[u8]) -> RouteNetlinkMessage {
    match NetlinkMessage::deserialize(bytes).unwrap().payload {
        NetlinkPayload::InnerMessage(message) => message,
        other => panic!("no announcement: {other:?}"),
    }
}

fn announced(hex: &str) -> RouteNetlinkMessage {
    read(&bytes(hex))
}

/// That the same is gone: the next type of message.
fn withdrawn(hex: &str) -> RouteNetlinkMessage {
    let mut bytes = bytes(hex);
    bytes[4] += GONE;
    read(&bytes)
}

/// What it changes that this came and went.
fn of(hex: &str) -> [Changes; 2] {
    [announced(hex), withdrawn(hex)].map(|message| note(&mut Neighbours::default(), message))
}

fn neighbour(hex: &str, state: NeighbourState, mac: u8) -> NeighbourMessage {
    let RouteNetlinkMessage::NewNeighbour(mut message) = announced(hex) else { panic!("{hex}") };
    message.header.state = state;
    for attribute in &mut message.attributes {
        if let NeighbourAttribute::LinkLayerAddress(address) = attribute {
            address[5] = mac;
        }
    }
    message
}

#[test]
fn only_what_a_flow_may_remember_wrongly_counts_as_a_change() {
    for hex in [NEIGHBOUR, NEIGHBOUR_6] {
        let neighbour = |state, mac| neighbour(hex, state, mac);
        let mut neighbours = Neighbours::default();
        assert!(!neighbours.learn(&neighbour(NeighbourState::Reachable, 1)), "new: no flow knows it");
        assert!(!neighbours.learn(&neighbour(NeighbourState::Stale, 1)), "only older");
        assert!(!neighbours.learn(&neighbour(NeighbourState::Probe, 1)), "only asked again");
        assert!(neighbours.learn(&neighbour(NeighbourState::Reachable, 2)), "moved");
        assert!(neighbours.learn(&neighbour(NeighbourState::Failed, 2)), "gone");
        assert!(!neighbours.learn(&neighbour(NeighbourState::Incomplete, 2)), "was gone");
        assert!(!neighbours.learn(&neighbour(NeighbourState::Reachable, 2)), "back");
        assert!(neighbours.forget(&neighbour(NeighbourState::Stale, 2)));
        assert!(!neighbours.forget(&neighbour(NeighbourState::Stale, 2)));
    }
}

#[test]
fn neighbours_of_both_families_are_known_by_device_and_address() {
    let mut neighbours = Neighbours::default();
    for hex in [NEIGHBOUR, NEIGHBOUR_6] {
        assert!(!neighbours.learn(&neighbour(hex, NeighbourState::Reachable, 7)));
    }
    let mac = vec![2, 0, 0, 0, 0, 7];
    let addresses = ["10.0.0.2", "fe80::2"].map(|address| address.parse::<IpAddr>().unwrap());
    assert_eq!(neighbours.known, addresses.map(|address| ((3, address), mac.clone())).into());
}

#[test]
fn a_multicast_group_is_no_next_hop() {
    let mut group = neighbour(NEIGHBOUR_6, NeighbourState::Noarp, 1);
    group.attributes[0] = NeighbourAttribute::Destination("ff02::16".parse::<IpAddr>().unwrap().into());
    let mut neighbours = Neighbours::default();
    assert!(!neighbours.learn(&group));
    assert!(!neighbours.forget(&group));
}

#[test]
fn addresses_of_both_families_are_read_and_ipv4_is_taken_out() {
    let of = |hex| match announced(hex) {
        RouteNetlinkMessage::NewAddress(address) => HeldAddress::of(&address).unwrap(),
        other => panic!("{other:?}"),
    };
    let (ifindex, vip) = (3, false);
    let held = |address: &str, prefix_len| HeldAddress { ifindex, address: address.parse().unwrap(), prefix_len, vip };
    assert_eq!(of(ADDRESS), held("10.0.0.1", 24));
    assert_eq!(of(ADDRESS_6), held("2001:db8::1", 64));
    assert_eq!(of(PEER_6), held("2001:db8::9", 128), "not the other end's");
    let ipv4 = HeldAddress { ifindex, address: Ipv4Addr::new(10, 0, 0, 1), prefix_len: 24, vip };
    assert_eq!(of(ADDRESS).ipv4(), Some(ipv4));
    assert_eq!([ADDRESS_6, PEER_6].map(|hex| of(hex).ipv4()), [None, None]);
}

#[test]
fn an_ipv4_address_route_or_rule_is_news_and_an_ipv6_one_is_none() {
    assert_eq!(of(ADDRESS), [ADDRESSES; 2]);
    for hex in [ROUTE, ROUTE_VIA_6, RULE] {
        assert_eq!(of(hex), [NEXT_HOPS; 2], "{hex}");
    }
    for hex in [ADDRESS_6, PEER_6, ROUTE_6, RULE_6] {
        assert_eq!(of(hex), [NOTHING; 2], "{hex}");
    }
}
