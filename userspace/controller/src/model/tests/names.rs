//! The names that belong to a packet's addresses and ports.

use std::net::SocketAddrV4;

use super::*;
use crate::store::named::{self, Named};

const TCP: u8 = 6;
const UDP: u8 = 17;
const CLIENT: &str = "198.51.100.9:40000";

async fn named(router: &Router, from: &str, to: &str, protocol: u8) -> Named {
    let end = |text: &str| -> SocketAddrV4 { text.parse().unwrap() };
    named::of_packet(&mut router.read().await, end(from), end(to), protocol).await.unwrap()
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

    let of_vip = Named { vip: some("vip"), ..Named::default() };
    let to = |port: u16| format!("{vip}:{port}");
    let listener = Named { listener: some("listener"), ..of_vip.clone() };
    assert_eq!(named(router, CLIENT, &to(80), TCP).await, listener);
    assert_eq!(named(router, &to(80), CLIENT, TCP).await, listener, "and the other way round");
    assert_eq!(named(router, CLIENT, &to(80), UDP).await, of_vip, "another protocol's port");
    assert_eq!(named(router, CLIENT, &to(81), TCP).await, of_vip, "no listener's port");
    assert_eq!(named(router, CLIENT, &to(0), 1).await, of_vip, "ICMP has none");
    let rule = Named { rule: some("ssh"), ..of_vip.clone() };
    assert_eq!(named(router, CLIENT, &to(2250), TCP).await, rule, "within its range");
    assert_eq!(named(router, CLIENT, "203.0.113.1:80", TCP).await, Named::default(), "nobody's");

    let inside = format!("{guest}:8080");
    let of_guest = Named { guest: some("vm"), ..Named::default() };
    assert_eq!(named(router, &inside, CLIENT, TCP).await, of_guest);
    router.add_nic(&site.listener, &site.nic).await;
    let backend = Named { backend: some("vm"), ..Named::default() };
    assert_eq!(named(router, CLIENT, &inside, TCP).await, backend);
}

#[tokio::test]
async fn an_elastic_ip_has_its_own_name_whatever_the_port() {
    let site = Site::new().await;
    let vip = site.router.vip(&site.public).await;
    let address = site.router.text("SELECT ip FROM vips WHERE uuid = $1", &vip).await;
    site.router.make(Api::CreateEip, json!({"name": "mail", "vipUuid": vip})).await;
    let expected = Named { vip: some("vip"), eip: some("mail"), ..Named::default() };
    assert_eq!(named(&site.router, CLIENT, &format!("{address}:25"), TCP).await, expected);
    assert_eq!(named(&site.router, &format!("{address}:0"), CLIENT, 47).await, expected);
}
