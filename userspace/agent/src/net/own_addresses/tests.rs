//! Which announcements concern the router's own addresses.

use std::net::IpAddr;

use netlink_packet_core::NetlinkHeader;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressProtocol};

use super::*;

fn announced(message: RouteNetlinkMessage) -> Vec<u8> {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn address(prefix_len: u8, mark: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = netlink_packet_route::AddressFamily::Inet;
    message.header.prefix_len = prefix_len;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))),
        AddressAttribute::Protocol(AddressProtocol::from(mark)),
    ];
    message
}

fn is_news(announced: &[u8]) -> bool {
    messages(announced).any(|message| message.is_none_or(concerns))
}

#[test]
fn what_has_the_mark_is_a_vip_and_no_news_and_what_has_none_is_the_routers_own() {
    for prefix_len in [24, 32] {
        let (vip, own) = (address(prefix_len, 0x56), address(prefix_len, 0));
        assert!(!is_news(&announced(RouteNetlinkMessage::NewAddress(vip.clone()))));
        assert!(!is_news(&announced(RouteNetlinkMessage::DelAddress(vip.clone()))));
        assert!(is_news(&announced(RouteNetlinkMessage::NewAddress(own.clone()))));
        assert!(is_news(&announced(RouteNetlinkMessage::DelAddress(own.clone()))));
        let both = [vip, own].map(|address| announced(RouteNetlinkMessage::NewAddress(address))).concat();
        assert!(is_news(&both), "the second of two that come at once");
    }
    assert!(is_news(&announced(RouteNetlinkMessage::DelLink(Default::default()))));
    assert!(is_news(b"no message"));
}

#[test]
fn what_is_kept_is_what_is_listed() {
    let mut own = OwnAddresses::open().unwrap();
    let first = own.addresses();
    assert_eq!(first, listed().unwrap());
    assert_eq!(own.addresses(), first);
    assert!(first.contains(&("lo".to_owned(), Ipv4Addr::LOCALHOST)));
}
