//! Zones, L2 and L3 networks, ranges, name servers and network services.

use serde_json::{Value, json};
use vipgate_api::{Api, Reply, Resource};

use super::{Router, UNKNOWN, VROUTER, with};

#[tokio::test]
async fn a_zone_is_enabled_and_of_type_zstack() {
    let router = Router::new().await;
    let zone = router.zone().await;
    assert_eq!(router.text("SELECT state || ' ' || type FROM zones WHERE uuid = $1", &zone).await, "Enabled zstack");
    router.refuses(Api::CreateZone, json!({"name": "z", "type": "other"}), "SYS.1007", "zone type `other`").await;
}

#[tokio::test]
async fn a_name_is_mandatory_and_has_at_most_255_characters() {
    let router = Router::new().await;
    router.refuses(Api::CreateZone, json!({}), "SYS.1007", "field[name]").await;
    router.refuses(Api::CreateZone, json!({"name": "é".repeat(256)}), "SYS.1007", "255").await;
    router.ok(Api::CreateZone, json!({"name": "é".repeat(255)})).await;
}

#[tokio::test]
async fn a_wanted_uuid_is_given_once() {
    let router = Router::new().await;
    let arguments = json!({"name": "zone", "resourceUuid": UNKNOWN});
    assert_eq!(router.make(Api::CreateZone, arguments.clone()).await, UNKNOWN);
    router.refuses(Api::CreateZone, arguments, "SYS.1007", "is in use by a ZoneVO").await;
}

#[tokio::test]
async fn an_l2_network_needs_a_zone() {
    let router = Router::new().await;
    let arguments = json!({"name": "wire", "zoneUuid": UNKNOWN, "physicalInterface": "eth0"});
    let words = format!("invalid field[zoneUuid], resource[uuid:{UNKNOWN}, type:ZoneVO] not found");
    router.refuses(Api::CreateL2NoVlanNetwork, arguments, "SYS.1003", &words).await;
}

#[tokio::test]
async fn an_l2_network_needs_a_device_that_the_router_has() {
    let router = Router::new().await;
    let arguments = json!({"name": "wire", "zoneUuid": router.zone().await, "physicalInterface": "eth9"});
    router.refuses(Api::CreateL2NoVlanNetwork, arguments, "SYS.1007", "no device `eth9`; it has: eth0, eth1").await;
}

#[tokio::test]
async fn a_vlan_network_is_refused_with_the_way_round_it() {
    let router = Router::new().await;
    let zone = router.zone().await;
    let vlan =
        |id: i64, device: &str| json!({"name": "wire", "zoneUuid": zone, "physicalInterface": device, "vlan": id});
    router.refuses(Api::CreateL2VlanNetwork, vlan(100, "eth0"), "SYS.1014", "physicalInterface eth0.100").await;
    router.refuses(Api::CreateL2VlanNetwork, vlan(100, "eth9"), "SYS.1007", "no device `eth9`").await;
    router.refuses(Api::CreateL2VlanNetwork, vlan(4095, "eth0"), "SYS.1007", "4094").await;
}

#[tokio::test]
async fn category_and_system_of_an_l3_network_agree() {
    let router = Router::new().await;
    let l2 = router.l2(&router.zone().await, "eth0").await;
    let base = || json!({"name": "net", "l2NetworkUuid": l2});
    for (more, expected) in [
        (json!({}), "Private 0"),
        (json!({"category": "Public"}), "Public 0"),
        (json!({"category": "Public", "system": false}), "Public 0"),
        (json!({"category": "System"}), "System 1"),
        (json!({"system": true}), "System 1"),
    ] {
        let l3 = router.make(Api::CreateL3Network, with(base(), more)).await;
        let stored = router.text("SELECT category || ' ' || system FROM l3_networks WHERE uuid = $1", &l3).await;
        assert_eq!(stored, expected);
    }
    for more in [json!({"category": "System", "system": false}), json!({"category": "Private", "system": true})] {
        router.refuses(Api::CreateL3Network, with(base(), more), "SYS.1007", "contradict").await;
    }
    router.refuses(Api::CreateL3Network, with(base(), json!({"category": "Secret"})), "SYS.1007", "category").await;
    let other_type = with(base(), json!({"type": "L3VpcNetwork"}));
    router.refuses(Api::CreateL3Network, other_type, "SYS.1007", "L3VpcNetwork").await;
    let no_l2 = json!({"name": "net", "l2NetworkUuid": UNKNOWN});
    router.refuses(Api::CreateL3Network, no_l2, "SYS.1003", "L2NetworkVO] not found").await;
}

#[tokio::test]
async fn making_or_deleting_an_l3_network_changes_the_devices() {
    let router = Router::new().await;
    let l2 = router.l2(&router.zone().await, "eth0").await;
    let outcome = router.ok(Api::CreateL3Network, json!({"name": "net", "l2NetworkUuid": l2})).await;
    assert!(outcome.devices);
    let Reply::Inventory(Resource::L3Network, l3) = outcome.reply else { panic!("no L3 network") };
    assert!(router.ok(Api::DeleteL3Network, json!({"uuid": l3})).await.devices);
}

#[tokio::test]
async fn ranges_of_a_network_do_not_overlap_and_share_cidr_and_gateway() {
    let router = Router::new().await;
    let l2 = router.l2(&router.zone().await, "eth0").await;
    let l3 = router.l3(&l2).await;
    let range = |start: &str, end: &str, netmask: &str, gateway: &str| json!({"l3NetworkUuid": l3, "name": "range", "startIp": start, "endIp": end, "netmask": netmask, "gateway": gateway});
    let mask = "255.255.255.0";
    router.make(Api::AddIpRange, range("10.0.0.10", "10.0.0.20", mask, "10.0.0.1")).await;
    router.make(Api::AddIpRange, range("10.0.0.21", "10.0.0.30", mask, "10.0.0.1")).await;
    for (start, end) in [("10.0.0.5", "10.0.0.10"), ("10.0.0.20", "10.0.0.20"), ("10.0.0.5", "10.0.0.99")] {
        router.refuses(Api::AddIpRange, range(start, end, mask, "10.0.0.1"), "SYS.1007", "overlaps").await;
    }
    let other_gateway = range("10.0.0.40", "10.0.0.50", mask, "10.0.0.2");
    router.refuses(Api::AddIpRange, other_gateway, "SYS.1007", "share one gateway").await;
    let other_cidr = range("10.0.0.40", "10.0.0.50", "255.255.255.128", "10.0.0.1");
    router.refuses(Api::AddIpRange, other_cidr, "SYS.1007", "share one CIDR").await;
    let by_cidr = json!({"l3NetworkUuid": l3, "name": "range", "networkCidr": "10.0.1.0/24"});
    router.refuses(Api::AddIpRangeByNetworkCidr, by_cidr, "SYS.1007", "share one").await;
}

#[tokio::test]
async fn a_range_needs_its_network() {
    let router = Router::new().await;
    let arguments = json!({"l3NetworkUuid": UNKNOWN, "name": "range", "networkCidr": "10.0.1.0/24"});
    router.refuses(Api::AddIpRangeByNetworkCidr, arguments, "SYS.1003", "L3NetworkVO] not found").await;
}

#[tokio::test]
async fn name_servers_are_ipv4_and_come_once() {
    let router = Router::new().await;
    let l2 = router.l2(&router.zone().await, "eth0").await;
    let l3 = router.l3(&l2).await;
    let dns = |dns: &str| json!({"l3NetworkUuid": l3, "dns": dns});
    router.make(Api::AddDnsToL3Network, dns("9.9.9.9")).await;
    router.refuses(Api::AddDnsToL3Network, dns("9.9.9.9"), "SYS.1006", "has DNS 9.9.9.9 already").await;
    router.refuses(Api::AddDnsToL3Network, dns("2620:fe::fe"), "SYS.1007", "no IPv4 address").await;
    router.make(Api::RemoveDnsFromL3Network, dns("9.9.9.9")).await;
    assert!(router.texts("SELECT dns FROM l3_network_dns WHERE l3_network_uuid = $1", &l3).await.is_empty());
}

#[tokio::test]
async fn the_types_name_their_providers() {
    let router = Router::new().await;
    let Reply::Members(members) = router.ok(Api::GetNetworkServiceTypes, json!({})).await.reply else { panic!() };
    let types = ["Eip", "LoadBalancer", "PortForwarding", "SNAT", "VipQos"];
    let types = types.map(|name| (name.to_owned(), json!([VROUTER])));
    assert_eq!(members["types"], Value::Object(types.into_iter().collect()));
}

#[tokio::test]
async fn services_are_attached_once_and_only_as_offered() {
    let router = Router::new().await;
    let l2 = router.l2(&router.zone().await, "eth0").await;
    let l3 = router.l3(&l2).await;
    let api = Api::AttachNetworkServiceToL3Network;
    let services = |map| json!({"l3NetworkUuid": l3, "networkServices": map});
    router.refuses(api, services(json!({})), "SYS.1007", "networkServices").await;
    router.refuses(api, services(json!({VROUTER: []})), "SYS.1007", "networkServices").await;
    router.refuses(api, services(json!({UNKNOWN: ["LoadBalancer"]})), "SYS.1007", "no provider").await;
    router
        .refuses(api, services(json!({VROUTER: ["LoadBalancer", "DHCP"]})), "SYS.1007", "does not offer `DHCP`")
        .await;
    router.make(api, services(json!({VROUTER: ["LoadBalancer"]}))).await;
    router.refuses(api, services(json!({VROUTER: ["LoadBalancer"]})), "SYS.1006", "already").await;
    let elsewhere = json!({"l3NetworkUuid": UNKNOWN, "networkServices": {VROUTER: ["LoadBalancer"]}});
    router.refuses(api, elsewhere, "SYS.1003", "L3NetworkVO] not found").await;
}

#[tokio::test]
async fn detaching_passes_over_what_is_not_attached() {
    let router = Router::new().await;
    let l3 = router.network("eth0", "10.0.0.0/24").await;
    let api = Api::DetachNetworkServiceFromL3Network;
    let types = ["LoadBalancer", "PortForwarding", "Eip", "SNAT", "VipQos"];
    let services = json!({"l3NetworkUuid": l3, "networkServices": {VROUTER: types}});
    for _ in 0..2 {
        assert_eq!(router.make(api, services.clone()).await, l3);
    }
    let sql = "SELECT network_service_type FROM network_service_l3_network_refs WHERE l3_network_uuid = $1";
    assert!(router.texts(sql, &l3).await.is_empty());
}

#[tokio::test]
async fn system_tags_are_refused_where_there_are_none() {
    let router = Router::new().await;
    let arguments = json!({"name": "zone", "systemTags": ["balancerAlgorithm::source"]});
    router.refuses(Api::CreateZone, arguments, "SYS.1007", "no system tag matches [balancerAlgorithm::source]").await;
}

#[tokio::test]
async fn user_tags_are_kept_and_can_be_deleted() {
    let router = Router::new().await;
    let zone = router.make(Api::CreateZone, json!({"name": "zone", "userTags": ["blue", "blue", "green"]})).await;
    let sql = "SELECT uuid FROM user_tags WHERE resource_uuid = $1 ORDER BY tag";
    let tags = router.texts(sql, &zone).await;
    assert_eq!(tags.len(), 2);
    router.ok(Api::DeleteTag, json!({"uuid": tags[0]})).await;
    assert_eq!(router.texts(sql, &zone).await, tags[1..]);
}
