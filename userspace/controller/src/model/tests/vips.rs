//! Virtual IPs.

use serde_json::json;
use vipgate_api::{Api, Reply};

use super::{Router, Site, UNKNOWN, with};

/// A network 10.0.0.0/29: addresses .2 to .6.
async fn small() -> (Router, String) {
    let router = Router::new().await;
    let l3 = router.network("eth0", "10.0.0.0/29").await;
    (router, l3)
}

async fn ip(router: &Router, vip: &str) -> String {
    router.text("SELECT ip FROM vips WHERE uuid = $1", vip).await
}

#[tokio::test]
async fn the_required_address_is_taken_exactly() {
    let (router, l3) = small().await;
    let vip = router.make(Api::CreateVip, json!({"name": "v", "l3NetworkUuid": l3, "requiredIp": "10.0.0.5"})).await;
    let sql = "SELECT ip || ' ' || netmask || ' ' || gateway || ' ' || state FROM vips WHERE uuid = $1";
    assert_eq!(router.text(sql, &vip).await, "10.0.0.5 255.255.255.248 10.0.0.1 Enabled");
}

#[tokio::test]
async fn a_required_address_that_can_not_be_had_is_refused() {
    let (router, l3) = small().await;
    let want = |ip: &str| json!({"name": "v", "l3NetworkUuid": l3, "requiredIp": ip});
    router.refuses(Api::CreateVip, want("10.0.0"), "SYS.1007", "requiredIp").await;
    router.refuses(Api::CreateVip, want("fe80::1"), "SYS.1007", "requiredIp").await;
    router.refuses(Api::CreateVip, want("10.0.0.1"), "L3.1000", "required ip[10.0.0.1]: no IP range").await;
    router.refuses(Api::CreateVip, want("10.9.9.9"), "L3.1000", "no IP range").await;
    router.make(Api::CreateVip, want("10.0.0.5")).await;
    router.refuses(Api::CreateVip, want("10.0.0.5"), "SYS.1006", "with ip[10.0.0.5]").await;
    let tag = format!("staticIp::{l3}::10.0.0.6");
    router.make(Api::CreateVmInstance, json!({"name": "vm", "l3NetworkUuids": [l3], "systemTags": [tag]})).await;
    router.refuses(Api::CreateVip, want("10.0.0.6"), "L3.1000", "it is in use").await;
}

#[tokio::test]
async fn every_address_is_given_once_and_then_none() {
    for strategy in ["RandomIpAllocatorStrategy", "FirstAvailableIpAllocatorStrategy"] {
        let (router, l3) = small().await;
        let arguments = json!({"name": "v", "l3NetworkUuid": l3, "allocatorStrategy": strategy});
        let mut given = Vec::new();
        for _ in 0..5 {
            let vip = router.make(Api::CreateVip, arguments.clone()).await;
            given.push(ip(&router, &vip).await);
        }
        if strategy.starts_with("First") {
            assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        }
        given.sort();
        given.dedup();
        assert_eq!(given.len(), 5, "{strategy}");
        let words = format!("strategy[{strategy}] failed");
        router.refuses(Api::CreateVip, arguments, "L3.1000", &words).await;
    }
}

#[tokio::test]
async fn an_unknown_strategy_is_refused() {
    let (router, l3) = small().await;
    let arguments = json!({"name": "v", "l3NetworkUuid": l3, "allocatorStrategy": "AscDelayRecycle"});
    router.refuses(Api::CreateVip, arguments, "SYS.1007", "no strategy `AscDelayRecycle`").await;
}

#[tokio::test]
async fn a_network_without_a_range_gives_no_vip() {
    let router = Router::new().await;
    let l2 = router.l2(&router.zone().await, "eth0").await;
    let arguments = json!({"name": "v", "l3NetworkUuid": router.l3(&l2).await});
    router.refuses(Api::CreateVip, arguments, "L3.1000", "has no IP range").await;
    let arguments = json!({"name": "v", "l3NetworkUuid": UNKNOWN});
    router.refuses(Api::CreateVip, arguments, "SYS.1003", "L3NetworkVO] not found").await;
}

#[tokio::test]
async fn a_second_range_is_used_when_the_first_is_full() {
    let router = Router::new().await;
    let l2 = router.l2(&router.zone().await, "eth0").await;
    let l3 = router.l3(&l2).await;
    for (start, end) in [("10.0.0.10", "10.0.0.10"), ("10.0.0.20", "10.0.0.20")] {
        let range = json!({"l3NetworkUuid": l3, "name": "r", "startIp": start, "endIp": end,
                           "netmask": "255.255.255.0", "gateway": "10.0.0.1"});
        router.make(Api::AddIpRange, range).await;
    }
    let mut given = Vec::new();
    for _ in 0..2 {
        given.push(ip(&router, &router.vip(&l3).await).await);
    }
    given.sort();
    assert_eq!(given, ["10.0.0.10", "10.0.0.20"]);
}

#[tokio::test]
async fn an_address_is_used_once_also_where_networks_overlap() {
    let (router, here) = small().await;
    let there = router.network("eth1", "10.0.0.0/29").await;
    let mut given = Vec::new();
    for l3 in [&here, &there, &here, &there, &here] {
        given.push(ip(&router, &router.vip(l3).await).await);
    }
    given.sort();
    given.dedup();
    assert_eq!(given.len(), 5);
    let arguments = json!({"name": "v", "l3NetworkUuid": there});
    router.refuses(Api::CreateVip, arguments, "L3.1000", "every address is in use").await;
}

#[tokio::test]
async fn the_routers_own_address_is_never_given() {
    let router = Router::new().await;
    let l3 = router.network("eth0", "10.7.0.0/29").await;
    let own = json!({"name": "v", "l3NetworkUuid": l3, "requiredIp": "10.7.0.3"});
    router.refuses(Api::CreateVip, own, "L3.1000", "it is the router's own").await;
    let tags = [format!("staticIp::{l3}::10.7.0.3")];
    let vm = json!({"name": "vm", "l3NetworkUuids": [l3], "systemTags": tags});
    router.refuses(Api::CreateVmInstance, vm, "L3.1000", "it is the router's own").await;
    let mut given = Vec::new();
    for _ in 0..4 {
        given.push(ip(&router, &router.vip(&l3).await).await);
    }
    given.sort();
    assert_eq!(given, ["10.7.0.2", "10.7.0.4", "10.7.0.5", "10.7.0.6"]);
    let arguments = json!({"name": "v", "l3NetworkUuid": l3});
    router.refuses(Api::CreateVip, arguments, "L3.1000", "every address is in use").await;
}

#[tokio::test]
async fn a_deleted_vip_frees_its_address() {
    let (router, l3) = small().await;
    let arguments = json!({"name": "v", "l3NetworkUuid": l3, "requiredIp": "10.0.0.5"});
    let vip = router.make(Api::CreateVip, arguments.clone()).await;
    let outcome = router.ok(Api::DeleteVip, json!({"uuid": vip, "deleteMode": "Enforcing"})).await;
    assert_eq!((outcome.reply, outcome.vips), (Reply::Empty, [vip].into()));
    router.make(Api::CreateVip, arguments).await;
}

#[tokio::test]
async fn deleting_an_unknown_vip_succeeds_if_it_looks_like_a_uuid() {
    let router = Router::new().await;
    let outcome = router.ok(Api::DeleteVip, json!({"uuid": UNKNOWN})).await;
    assert!(outcome.reply == Reply::Empty && outcome.vips.is_empty());
    router.refuses(Api::DeleteVip, json!({"uuid": "nonsense"}), "SYS.1003", "type:VipVO] not found").await;
    let zone = router.zone().await;
    router.refuses(Api::DeleteVip, json!({"uuid": zone}), "SYS.1003", "type:VipVO] not found").await;
    let mode = json!({"uuid": UNKNOWN, "deleteMode": "Gently"});
    router.refuses(Api::DeleteVip, mode, "SYS.1007", "deleteMode").await;
}

#[tokio::test]
async fn an_update_changes_only_what_it_names() {
    let (router, l3) = small().await;
    let vip = router.make(Api::CreateVip, json!({"name": "old", "description": "words", "l3NetworkUuid": l3})).await;
    let sql = "SELECT name || ' ' || description FROM vips WHERE uuid = $1";
    assert_eq!(router.make(Api::UpdateVip, json!({"uuid": vip, "name": "new"})).await, vip);
    assert_eq!(router.text(sql, &vip).await, "new words");
    router.make(Api::UpdateVip, json!({"uuid": vip, "description": "other"})).await;
    assert_eq!(router.text(sql, &vip).await, "new other");
    router.refuses(Api::UpdateVip, json!({"uuid": UNKNOWN, "name": "new"}), "SYS.1003", "VipVO] not found").await;
}

#[tokio::test]
async fn state_changes_are_idempotent_and_reach_the_kernel() {
    let (router, l3) = small().await;
    let vip = router.vip(&l3).await;
    for (event, state) in [("disable", "Disabled"), ("disable", "Disabled"), ("enable", "Enabled")] {
        let outcome = router.ok(Api::ChangeVipState, json!({"uuid": vip, "stateEvent": event})).await;
        assert!(outcome.vips.contains(&vip));
        assert_eq!(router.text("SELECT state FROM vips WHERE uuid = $1", &vip).await, state);
    }
    router.refuses(Api::ChangeVipState, json!({"uuid": vip, "stateEvent": "pause"}), "SYS.1007", "stateEvent").await;
    router.refuses(Api::ChangeVipState, json!({"uuid": vip}), "SYS.1007", "stateEvent").await;
}

#[tokio::test]
async fn used_ports_are_those_of_the_listeners_of_one_protocol() {
    let site = Site::new().await;
    let router = &site.router;
    let other = router.balancer(&site.vip).await;
    router.listener(&other, 9).await;
    let udp = json!({"name": "u", "loadBalancerUuid": other, "loadBalancerPort": 500, "protocol": "udp"});
    router.make(Api::CreateLoadBalancerListener, udp).await;
    for (protocol, expected) in [("TCP", json!(["9", "80"])), ("udp", json!(["500"]))] {
        let outcome = router.ok(Api::GetVipUsedPorts, json!({"uuid": site.vip, "protocol": protocol})).await;
        let Reply::Members(members) = outcome.reply else { panic!("no members") };
        let expected = json!([{"uuid": site.vip, "protocol": protocol.to_uppercase(), "usedPorts": expected}]);
        assert_eq!(members["inventories"], expected);
    }
    let api = Api::GetVipUsedPorts;
    router.refuses(api, json!({"uuid": site.vip}), "SYS.1007", "protocol").await;
    router.refuses(api, json!({"uuid": site.vip, "protocol": "sctp"}), "SYS.1007", "protocol").await;
    router.refuses(api, json!({"uuid": UNKNOWN, "protocol": "TCP"}), "SYS.1003", "VipVO] not found").await;
}

#[tokio::test]
async fn use_provider_and_guest_networks_follow_the_load_balancers() {
    let site = Site::new().await;
    let router = &site.router;
    let sql = "SELECT IFNULL(use_for, '-') || ' ' || IFNULL(service_provider, '-') FROM vips WHERE uuid = $1";
    let peers = "SELECT l3_network_uuid FROM vip_peer_l3_networks WHERE vip_uuid = $1";
    assert_eq!(router.text(sql, &site.vip).await, "LoadBalancer -");
    router.add_nic(&site.listener, &site.nic).await;
    assert_eq!(router.text(sql, &site.vip).await, "LoadBalancer vrouter");
    assert_eq!(router.texts(peers, &site.vip).await, [site.guest.as_str()]);

    let other = router.balancer(&site.vip).await;
    let outcome = router.ok(Api::DeleteLoadBalancer, json!({"uuid": site.balancer})).await;
    assert_eq!(outcome.vips, site.vips());
    assert_eq!(router.text(sql, &site.vip).await, "LoadBalancer vrouter");
    router.ok(Api::DeleteLoadBalancer, json!({"uuid": other})).await;
    assert_eq!(router.text(sql, &site.vip).await, "- -");
    assert!(router.texts(peers, &site.vip).await.is_empty());
}

#[tokio::test]
async fn a_vip_that_another_service_owns_takes_no_load_balancer() {
    let (router, l3) = small().await;
    let vip = router.vip(&l3).await;
    router.make(Api::CreateEip, json!({"name": "eip", "vipUuid": vip})).await;
    let arguments = json!({"name": "lb", "vipUuid": vip});
    router.refuses(Api::CreateLoadBalancer, arguments.clone(), "SYS.1007", "is used for Eip").await;
    let arguments = with(arguments, json!({"vipUuid": UNKNOWN}));
    router.refuses(Api::CreateLoadBalancer, arguments, "SYS.1003", "field[vipUuid]").await;
}
