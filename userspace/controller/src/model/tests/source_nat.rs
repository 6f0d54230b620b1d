//! Source NAT: which of the router's addresses guest networks use.

use std::net::IpAddr;

use serde_json::json;
use vipgate_api::Api;
use vipgate_state::Devices;
use vipgate_state::{Source, VipState};

use super::{Outcome, Router, UNKNOWN, VROUTER};
use crate::model::follow;

/// Two private networks on eth1 and public ones, in one zone.
struct Edge {
    router: Router,
    zone: String,
    public: String,
    guests: [String; 2],
}

impl Edge {
    /// The public network 192.0.2.0/24 is on eth0, where the router is 192.0.2.1.
    async fn new() -> Self {
        let router = Router::new().await;
        let zone = router.zone().await;
        let public = public(&router, &zone, "eth0", "192.0.2.0/24").await;
        let guests = [
            router.network_in(&zone, "eth1", "10.0.0.0/24").await,
            router.network_in(&zone, "eth1", "10.0.1.0/24").await,
        ];
        Self { router, zone, public, guests }
    }

    async fn attach(&self, l3: &str) -> Outcome {
        self.router.ok(Api::AttachNetworkServiceToL3Network, snat(l3)).await
    }

    async fn detach(&self, l3: &str) -> Outcome {
        self.router.ok(Api::DetachNetworkServiceFromL3Network, snat(l3)).await
    }

    /// The router's own VIPs: address, use and the networks that they reach.
    async fn own(&self) -> Vec<String> {
        self.router
            .texts(
                "SELECT v.ip || ' ' || IFNULL(v.use_for, '') || ' ' || IFNULL(v.service_provider, '') || ' ' ||
                        (SELECT COUNT(*) FROM vip_peer_l3_networks p WHERE p.vip_uuid = v.uuid)
                 FROM vips v JOIN resources r ON r.uuid = v.uuid JOIN accounts a ON a.uuid = r.account_uuid
                 WHERE v.own = 1 AND a.name = 'admin' AND $1 = '' ORDER BY v.ip",
                "",
            )
            .await
    }

    /// The uuid of the router's own VIP.
    async fn vip(&self) -> String {
        self.router.text("SELECT uuid FROM vips WHERE own = 1 AND $1 = ''", "").await
    }

    async fn state(&self, vip: &str) -> VipState {
        self.router.store.vip(vip).await.unwrap().unwrap()
    }

    /// As a start of the controller finds a router with these addresses on eth0.
    async fn restart(&self, addresses: &'static [[u8; 4]]) -> Vec<String> {
        let mut tx = self.router.store.begin().await.unwrap();
        let touched = follow(&mut tx, &Eth0(addresses)).await.unwrap();
        tx.commit().await.unwrap();
        touched.into_iter().collect()
    }
}

/// A router whose only device has these addresses.
struct Eth0(&'static [[u8; 4]]);

impl Devices for Eth0 {
    fn list(&self) -> Vec<String> {
        vec!["eth0".to_owned()]
    }

    fn addresses_by_device(&self) -> Vec<(String, IpAddr)> {
        self.0.iter().map(|address| ("eth0".to_owned(), IpAddr::from(*address))).collect()
    }
}

async fn public(router: &Router, zone: &str, device: &str, cidr: &str) -> String {
    let l2 = router.l2(zone, device).await;
    let network = json!({"name": "wan", "l2NetworkUuid": l2, "category": "Public"});
    let l3 = router.make(Api::CreateL3Network, network).await;
    range(router, &l3, cidr).await;
    l3
}

async fn range(router: &Router, l3: &str, cidr: &str) -> Outcome {
    let range = json!({"l3NetworkUuid": l3, "name": "range", "networkCidr": cidr});
    router.ok(Api::AddIpRangeByNetworkCidr, range).await
}

fn snat(l3: &str) -> serde_json::Value {
    json!({"l3NetworkUuid": l3, "networkServices": {VROUTER: ["SNAT"]}})
}

#[tokio::test]
async fn the_first_network_makes_the_routers_address_a_vip_and_the_last_one_takes_it_away() {
    let edge = Edge::new().await;
    let [one, two] = &edge.guests;
    let attached = edge.attach(one).await;
    assert_eq!(edge.own().await, ["192.0.2.1 SNAT vrouter 1"]);
    let vip = edge.vip().await;
    assert_eq!(attached.vips, [vip.clone()].into());
    let state = edge.state(&vip).await;
    assert!(state.own && state.enabled);
    assert_eq!((state.address, state.device.as_str()), (IpAddr::from([192, 0, 2, 1]), "eth0"));
    let networks = |state: &VipState| state.masquerades.iter().map(|m| m.network.to_string()).collect::<Vec<_>>();
    assert_eq!(networks(&state), ["10.0.0.0/24"]);
    assert_eq!(edge.router.text("SELECT name FROM vips WHERE uuid = $1", &vip).await, "router on wan");

    edge.attach(two).await;
    assert_eq!(edge.own().await, ["192.0.2.1 SNAT vrouter 2"]);
    assert_eq!(networks(&edge.state(&vip).await), ["10.0.0.0/24", "10.0.1.0/24"]);
    assert_eq!(edge.detach(one).await.vips, [vip.clone()].into());
    assert_eq!(edge.own().await, ["192.0.2.1 SNAT vrouter 1"]);
    assert_eq!(networks(&edge.state(&vip).await), ["10.0.1.0/24"]);
    assert_eq!(edge.detach(two).await.vips, [vip.clone()].into());
    assert!(edge.own().await.is_empty());
    let free = edge.router.texts("SELECT ip FROM used_ips WHERE ip = $1", "192.0.2.1").await;
    assert!(free.is_empty() && edge.detach(two).await.vips.is_empty());
}

#[tokio::test]
async fn networks_that_are_not_private_take_no_source_nat() {
    let edge = Edge::new().await;
    let api = Api::AttachNetworkServiceToL3Network;
    edge.router.refuses(api, snat(&edge.public), "SYS.1007", "of category Public").await;
    let l2 = edge.router.l2(&edge.zone, "eth1").await;
    let system = json!({"name": "sys", "l2NetworkUuid": l2, "category": "System"});
    let system = edge.router.make(Api::CreateL3Network, system).await;
    edge.router.refuses(api, snat(&system), "SYS.1007", "of category System").await;
}

#[tokio::test]
async fn without_an_address_of_the_router_the_networks_that_were_looked_at_are_told() {
    let router = Router::new().await;
    let zone = router.zone().await;
    let guest = router.network_in(&zone, "eth1", "10.0.0.0/24").await;
    let api = Api::AttachNetworkServiceToL3Network;
    router.refuses(api, snat(&guest), "SYS.1006", "no L3 network of category Public").await;
    // The router's address of that network is on another device.
    public(&router, &zone, "eth1", "192.0.2.0/24").await;
    router.refuses(api, snat(&guest), "SYS.1006", "192.0.2.0/24 on eth1 has none").await;
    // The public network of another zone does not count.
    let elsewhere = router.zone().await;
    public(&router, &elsewhere, "eth0", "192.0.2.0/24").await;
    router.refuses(api, snat(&guest), "SYS.1006", "ip address add").await;
}

#[tokio::test]
async fn a_way_out_is_no_ordinary_vip() {
    let edge = Edge::new().await;
    edge.attach(&edge.guests[0]).await;
    let (router, vip) = (&edge.router, edge.vip().await);
    router.refuses(Api::DeleteVip, json!({"uuid": vip}), "SYS.1006", "can't be deleted").await;
    let enforcing = json!({"uuid": vip, "deleteMode": "Enforcing"});
    router.refuses(Api::DeleteVip, enforcing, "SYS.1006", "detach SNAT from them").await;
    let again = json!({"name": "v", "l3NetworkUuid": edge.public, "requiredIp": "192.0.2.1"});
    router.refuses(Api::CreateVip, again, "SYS.1006", "with ip[192.0.2.1]").await;
    router.ok(Api::ChangeVipState, json!({"uuid": vip, "stateEvent": "disable"})).await;
    let state = edge.state(&vip).await;
    assert!(!state.enabled && state.masquerades.len() == 1);
    router.ok(Api::DeleteVip, json!({"uuid": UNKNOWN})).await;
}

#[tokio::test]
async fn services_share_the_routers_address_but_not_its_own_ports() {
    let edge = Edge::new().await;
    edge.attach(&edge.guests[0]).await;
    let (router, vip) = (&edge.router, edge.vip().await);
    let balancer = router.balancer(&vip).await;
    assert_eq!(edge.own().await, ["192.0.2.1 SNAT,LoadBalancer vrouter 1"]);
    for port in [22, 7272, 8443] {
        let listener = json!({"name": "l", "loadBalancerUuid": balancer, "loadBalancerPort": port});
        let words = format!("TCP port {port} is the router's");
        router.refuses(Api::CreateLoadBalancerListener, listener, "SYS.1007", &words).await;
        let udp = json!({"name": "l", "loadBalancerUuid": balancer, "loadBalancerPort": port, "protocol": "udp"});
        router.ok(Api::CreateLoadBalancerListener, udp).await;
    }
    let rule = json!({"name": "r", "vipUuid": vip, "vipPortStart": 20, "vipPortEnd": 30, "protocolType": "TCP"});
    router.refuses(Api::CreatePortForwardingRule, rule, "SYS.1007", "TCP port 22").await;
    let listener = router.listener(&balancer, 80).await;
    assert_eq!(edge.state(&vip).await.listeners.len(), 4);

    // A service on it outlives the last network, and the VIP is deleted with it.
    edge.detach(&edge.guests[0]).await;
    assert_eq!(edge.own().await, ["192.0.2.1 LoadBalancer vrouter 1"]);
    edge.attach(&edge.guests[1]).await;
    assert_eq!((edge.vip().await, edge.own().await), (vip, vec!["192.0.2.1 LoadBalancer,SNAT vrouter 2".to_owned()]));
    edge.detach(&edge.guests[1]).await;
    router.ok(Api::DeleteLoadBalancerListener, json!({"uuid": listener})).await;
    router.ok(Api::DeleteLoadBalancer, json!({"uuid": balancer})).await;
    assert!(edge.own().await.is_empty());
}

#[tokio::test]
async fn what_is_deleted_takes_its_way_out_with_it() {
    for what in ["guest's L3", "guest's range", "public L3", "public range", "zone"] {
        let edge = Edge::new().await;
        let [one, two] = &edge.guests;
        edge.attach(one).await;
        edge.attach(two).await;
        let vip = edge.vip().await;
        let l3 = if what.starts_with("guest") { one } else { &edge.public };
        let (api, uuid) = match what {
            "zone" => (Api::DeleteZone, edge.zone.clone()),
            _ if what.ends_with("L3") => (Api::DeleteL3Network, l3.clone()),
            _ => (
                Api::DeleteIpRange,
                edge.router.text("SELECT uuid FROM ip_ranges WHERE l3_network_uuid = $1", l3).await,
            ),
        };
        let outcome = edge.router.ok(api, json!({"uuid": uuid})).await;
        assert!(outcome.vips.contains(&vip), "{what}: the packet path is told");
        match what.starts_with("guest") {
            true => assert_eq!(edge.state(&vip).await.masquerades.len(), 1, "{what}"),
            false => assert!(edge.own().await.is_empty(), "{what}"),
        }
    }
}

#[tokio::test]
async fn the_last_network_that_is_deleted_takes_the_vip_with_it() {
    let edge = Edge::new().await;
    edge.attach(&edge.guests[0]).await;
    let vip = edge.vip().await;
    let outcome = edge.router.ok(Api::DeleteL3Network, json!({"uuid": edge.guests[0]})).await;
    assert!(outcome.vips.contains(&vip) && edge.own().await.is_empty());
}

#[tokio::test]
async fn public_networks_and_ranges_that_come_later_are_ways_out_too() {
    let edge = Edge::new().await;
    let [one, two] = &edge.guests;
    edge.attach(one).await;
    edge.attach(two).await;
    let later = public(&edge.router, &edge.zone, "eth0", "10.7.0.0/29").await;
    assert_eq!(edge.own().await, ["10.7.0.3 SNAT vrouter 2", "192.0.2.1 SNAT vrouter 2"]);
    edge.router.ok(Api::DeleteL3Network, json!({"uuid": later})).await;
    assert_eq!(edge.own().await, ["192.0.2.1 SNAT vrouter 2"]);

    // A guest network that gets its addresses after the service.
    let l2 = edge.router.l2(&edge.zone, "eth1").await;
    let bare = edge.router.l3(&l2).await;
    edge.attach(&bare).await;
    let vip = edge.vip().await;
    assert_eq!(edge.state(&vip).await.masquerades.len(), 2);
    assert!(range(&edge.router, &bare, "10.0.9.0/24").await.vips.contains(&vip));
    assert_eq!(edge.state(&vip).await.masquerades.len(), 3);
}

#[tokio::test]
async fn a_start_follows_the_routers_address_and_keeps_what_is_on_it() {
    let edge = Edge::new().await;
    edge.attach(&edge.guests[0]).await;
    let vip = edge.vip().await;
    edge.router.balancer(&vip).await;
    assert!(edge.restart(&[[192, 0, 2, 1]]).await.is_empty(), "nothing changed");
    assert!(edge.restart(&[]).await.is_empty(), "an address that is not there yet is waited for");
    assert!(edge.restart(&[[192, 0, 2, 9], [192, 0, 2, 1]]).await.is_empty(), "it still has that one");
    assert_eq!(edge.restart(&[[192, 0, 2, 9]]).await, [vip.as_str()]);
    assert_eq!(edge.own().await, ["192.0.2.9 SNAT,LoadBalancer vrouter 1"]);
    assert_eq!(edge.state(&vip).await.address, IpAddr::from([192, 0, 2, 9]));
    let used = edge.router.texts("SELECT ip FROM used_ips WHERE ip LIKE $1", "192.0.2.%").await;
    assert_eq!(used, ["192.0.2.9"], "the old one is free");
}

#[tokio::test]
async fn an_address_that_a_vip_has_is_no_way_out() {
    let edge = Edge::new().await;
    let taken = json!({"name": "v", "l3NetworkUuid": edge.public, "requiredIp": "192.0.2.9"});
    edge.router.make(Api::CreateVip, taken).await;
    edge.attach(&edge.guests[0]).await;
    assert!(edge.restart(&[[192, 0, 2, 9]]).await.is_empty());
    assert_eq!(edge.own().await, ["192.0.2.1 SNAT vrouter 1"]);
}
