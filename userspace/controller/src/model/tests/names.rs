//! The names that belong to a packet's addresses and ports.

use std::net::SocketAddr;

use super::*;
use crate::store::packet_names::{self, PacketNames};

const TCP: u8 = 6;
const UDP: u8 = 17;
const CLIENT: &str = "198.51.100.9:40000";

async fn names(router: &Router, from: &str, to: &str, protocol: u8) -> PacketNames {
    let end = |text: &str| -> SocketAddr { text.parse().unwrap() };
    packet_names::of_packet(&mut router.read().await, end(from), end(to), protocol).await.unwrap()
}

fn some(name: &str) -> Option<String> {
    Some(name.to_owned())
}

#[tokio::test]
async fn a_packets_ends_have_the_names_of_what_is_there() {
    let site = Site::new().await;
    let router = &site.router;
    let vip = router.text("SELECT ip FROM vips WHERE uuid = $1", &site.vip).await;
    let guest = router.text("SELECT ip FROM vm_nics WHERE uuid = $1", &site.nic).await;
    let rule =
        json!({"name": "ssh", "vipUuid": site.vip, "vipPortStart": 2200, "vipPortEnd": 2299, "protocolType": "TCP"});
    router.make(Api::CreatePortForwardingRule, rule).await;

    let of_vip = PacketNames { vip: some("vip"), ..PacketNames::default() };
    let to = |port: u16| format!("{vip}:{port}");
    let listener = PacketNames { listener: some("listener"), ..of_vip.clone() };
    assert_eq!(names(router, CLIENT, &to(80), TCP).await, listener);
    assert_eq!(names(router, &to(80), CLIENT, TCP).await, listener, "and the other way round");
    assert_eq!(names(router, CLIENT, &to(80), UDP).await, of_vip, "another protocol's port");
    assert_eq!(names(router, CLIENT, &to(81), TCP).await, of_vip, "no listener's port");
    assert_eq!(names(router, CLIENT, &to(0), 1).await, of_vip, "ICMP has none");
    let rule = PacketNames { rule: some("ssh"), ..of_vip.clone() };
    assert_eq!(names(router, CLIENT, &to(2250), TCP).await, rule, "within its range");
    assert_eq!(names(router, CLIENT, "203.0.113.1:80", TCP).await, PacketNames::default(), "nobody's");

    let inside = format!("{guest}:8080");
    let of_guest = PacketNames { guest: some("vm"), ..PacketNames::default() };
    assert_eq!(names(router, &inside, CLIENT, TCP).await, of_guest);
    router.add_nic(&site.listener, &site.nic).await;
    let backend = PacketNames { backend: some("vm"), ..PacketNames::default() };
    assert_eq!(names(router, CLIENT, &inside, TCP).await, backend);
}

#[tokio::test]
async fn an_elastic_ip_has_its_own_name_whatever_the_port() {
    let site = Site::new().await;
    let vip = site.router.vip(&site.public).await;
    let address = site.router.text("SELECT ip FROM vips WHERE uuid = $1", &vip).await;
    site.router.make(Api::CreateEip, json!({"name": "mail", "vipUuid": vip})).await;
    let expected = PacketNames { vip: some("vip"), eip: some("mail"), ..PacketNames::default() };
    assert_eq!(names(&site.router, CLIENT, &format!("{address}:25"), TCP).await, expected);
    assert_eq!(names(&site.router, &format!("{address}:0"), CLIENT, 47).await, expected);
}
