//! Deletes cascade, free addresses and numbers, and return every VIP that they affect.

use serde_json::json;
use vipgate_api::Api;

use super::{Site, UNKNOWN};

async fn parent(site: &Site, sql: &'static str) -> String {
    site.router.text(sql, &site.public).await
}

#[tokio::test]
async fn everything_of_a_zone_goes_with_it() {
    let site = Site::new().await;
    site.router.add_nic(&site.listener, &site.nic).await;
    let zone = parent(&site, "SELECT zone_uuid FROM l3_networks WHERE uuid = $1").await;
    let outcome = site.router.ok(Api::DeleteZone, json!({"uuid": zone})).await;
    assert_eq!(outcome.vips, site.vips());
    assert!(outcome.devices);
    assert_eq!(site.router.everything().await, Vec::<String>::new());
}

#[tokio::test]
async fn vips_go_with_their_l2_network_l3_network_or_range() {
    for (api, sql) in [
        (Api::DeleteL2Network, "SELECT l2_network_uuid FROM l3_networks WHERE uuid = $1"),
        (Api::DeleteL3Network, "SELECT uuid FROM l3_networks WHERE uuid = $1"),
        (Api::DeleteIpRange, "SELECT uuid FROM ip_ranges WHERE l3_network_uuid = $1"),
    ] {
        let site = Site::new().await;
        let uuid = parent(&site, sql).await;
        let outcome = site.router.ok(api, json!({"uuid": uuid})).await;
        assert_eq!(outcome.vips, site.vips(), "{}", api.name());
        for gone in [&site.vip, &site.balancer, &site.listener] {
            let left = site.router.texts("SELECT type FROM resources WHERE uuid = $1", gone).await;
            assert!(left.is_empty(), "{} left a {left:?}", api.name());
        }
        // The guest's side is another network's.
        assert_eq!(site.router.texts("SELECT type FROM resources WHERE uuid = $1", &site.nic).await, ["VmNicVO"]);
    }
}

#[tokio::test]
async fn nics_go_with_their_network_and_touch_the_vips_they_served() {
    for (api, sql) in [
        (Api::DeleteL2Network, "SELECT l2_network_uuid FROM l3_networks WHERE uuid = $1"),
        (Api::DeleteL3Network, "SELECT uuid FROM l3_networks WHERE uuid = $1"),
        (Api::DeleteIpRange, "SELECT uuid FROM ip_ranges WHERE l3_network_uuid = $1"),
    ] {
        let site = Site::new().await;
        site.router.add_nic(&site.listener, &site.nic).await;
        let uuid = site.router.text(sql, &site.guest).await;
        let outcome = site.router.ok(api, json!({"uuid": uuid})).await;
        assert_eq!(outcome.vips, site.vips(), "{}", api.name());
        assert!(site.router.texts("SELECT type FROM resources WHERE uuid = $1", &site.nic).await.is_empty());
        assert_eq!(site.router.texts("SELECT type FROM resources WHERE uuid = $1", &site.vm).await, ["VmInstanceVO"]);
        assert_eq!(site.router.texts("SELECT type FROM resources WHERE uuid = $1", &site.vip).await, ["VipVO"]);
    }
}

#[tokio::test]
async fn everything_on_a_vip_goes_with_it() {
    let site = Site::new().await;
    site.router.add_nic(&site.listener, &site.nic).await;
    let outcome = site.router.ok(Api::DeleteVip, json!({"uuid": site.vip})).await;
    assert_eq!(outcome.vips, site.vips());
    for gone in [&site.vip, &site.balancer, &site.listener] {
        assert!(site.router.texts("SELECT type FROM resources WHERE uuid = $1", gone).await.is_empty());
        assert!(site.router.texts("SELECT tag FROM system_tags WHERE resource_uuid = $1", gone).await.is_empty());
    }
}

#[tokio::test]
async fn deleting_what_is_not_there_succeeds_for_every_resource_but_listeners_and_tags() {
    let site = Site::new().await;
    for api in [
        Api::DeleteZone,
        Api::DeleteL2Network,
        Api::DeleteL3Network,
        Api::DeleteIpRange,
        Api::DestroyVmInstance,
        Api::DeleteVip,
        Api::DeleteLoadBalancer,
        Api::DeletePortForwardingRule,
        Api::DeleteEip,
    ] {
        assert!(site.router.ok(api, json!({"uuid": UNKNOWN})).await.vips.is_empty(), "{}", api.name());
    }
    for api in [Api::DeleteLoadBalancerListener, Api::DeleteTag] {
        site.router.refuses(api, json!({"uuid": UNKNOWN}), "SYS.1003", "not found").await;
    }
}
