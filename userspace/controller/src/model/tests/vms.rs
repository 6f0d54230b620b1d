//! VM instances and their NICs.

use serde_json::json;
use vipgate_api::Api;

use super::{Router, Site, UNKNOWN};

const NIC: &str =
    "SELECT ip || ' ' || mac || ' ' || gateway || ' ' || netmask FROM vm_nics WHERE vm_instance_uuid = $1";

#[tokio::test]
async fn a_vm_has_a_nic_on_each_network_and_runs() {
    let router = Router::new().await;
    let zone = router.zone().await;
    let a = router.network_in(&zone, "eth0", "10.0.0.0/24").await;
    let b = router.network_in(&zone, "eth1", "10.1.0.0/24").await;
    let vm = router.make(Api::CreateVmInstance, json!({"name": "vm", "l3NetworkUuids": [b, a]})).await;
    let sql = "SELECT state || ' ' || type || ' ' || zone_uuid || ' ' || default_l3_network_uuid || ' ' || internal_id
               FROM vm_instances WHERE uuid = $1";
    assert_eq!(router.text(sql, &vm).await, format!("Running UserVm {zone} {b} 1"));
    let sql = "SELECT l3_network_uuid || ' ' || device_id || ' ' || internal_name FROM vm_nics
               WHERE vm_instance_uuid = $1 ORDER BY device_id";
    assert_eq!(router.texts(sql, &vm).await, [format!("{b} 0 vnic1.0"), format!("{a} 1 vnic1.1")]);
}

#[tokio::test]
async fn tags_choose_address_and_mac() {
    let router = Router::new().await;
    let l3 = router.network("eth0", "10.0.0.0/24").await;
    let tags = [format!("staticIp::{l3}::10.0.0.77"), format!("customMac::{l3}::fa:4c:ee:9a:76:00")];
    let arguments = json!({"name": "vm", "l3NetworkUuids": [l3], "systemTags": tags});
    let vm = router.make(Api::CreateVmInstance, arguments).await;
    assert_eq!(router.text(NIC, &vm).await, "10.0.0.77 fa:4c:ee:9a:76:00 10.0.0.1 255.255.255.0");
    assert_eq!(router.texts("SELECT tag FROM system_tags WHERE resource_uuid = $1 ORDER BY rowid", &vm).await, tags);

    let again = |tag: &str| json!({"name": "vm", "l3NetworkUuids": [l3], "systemTags": [tag]});
    router.refuses(Api::CreateVmInstance, again(&tags[0]), "L3.1000", "required ip[10.0.0.77]: it is in use").await;
    router.refuses(Api::CreateVmInstance, again(&tags[1]), "SYS.1006", "fa:4c:ee:9a:76:00 is in use").await;
    let foreign = format!("staticIp::{UNKNOWN}::10.0.0.78");
    router.refuses(Api::CreateVmInstance, again(&foreign), "SYS.1007", &foreign).await;
}

#[tokio::test]
async fn the_strategy_decides_whether_the_vm_runs() {
    let router = Router::new().await;
    let l3 = router.network("eth0", "10.0.0.0/24").await;
    for (strategy, state) in [("InstantStart", "Running"), ("JustCreate", "Stopped"), ("CreateStopped", "Stopped")] {
        let arguments = json!({"name": "vm", "l3NetworkUuids": [l3], "strategy": strategy});
        let vm = router.make(Api::CreateVmInstance, arguments).await;
        assert_eq!(router.text("SELECT state FROM vm_instances WHERE uuid = $1", &vm).await, state);
    }
    let arguments = json!({"name": "vm", "l3NetworkUuids": [l3], "strategy": "Later"});
    router.refuses(Api::CreateVmInstance, arguments, "SYS.1007", "strategy").await;
}

#[tokio::test]
async fn the_networks_of_a_vm_are_known_distinct_of_one_zone_and_no_system_networks() {
    let router = Router::new().await;
    let here = router.network("eth0", "10.0.0.0/24").await;
    let elsewhere = router.network("eth1", "10.1.0.0/24").await;
    let l2 = router.l2(&router.zone().await, "eth0").await;
    let system = router.make(Api::CreateL3Network, json!({"name": "s", "l2NetworkUuid": l2, "system": true})).await;
    let api = Api::CreateVmInstance;
    let vm = |networks: &[&str]| json!({"name": "vm", "l3NetworkUuids": networks});
    router.refuses(api, vm(&[]), "SYS.1007", "l3NetworkUuids").await;
    router.refuses(api, vm(&[UNKNOWN]), "SYS.1003", "field[l3NetworkUuids]").await;
    router.refuses(api, vm(&[&here, &here]), "SYS.1007", "is named twice").await;
    router.refuses(api, vm(&[&here, &elsewhere]), "SYS.1007", "is in another zone").await;
    router.refuses(api, vm(&[&system]), "SYS.1007", "is a system network").await;
    let other_zone = json!({"name": "vm", "l3NetworkUuids": [here], "zoneUuid": UNKNOWN});
    router.refuses(api, other_zone, "SYS.1007", "is in another zone").await;
    let default = json!({"name": "vm", "l3NetworkUuids": [here], "defaultL3NetworkUuid": elsewhere});
    router.refuses(api, default, "SYS.1007", "defaultL3NetworkUuid").await;
    let appliance = json!({"name": "vm", "l3NetworkUuids": [here], "type": "ApplianceVm"});
    router.refuses(api, appliance, "SYS.1007", "ApplianceVm").await;
}

#[tokio::test]
async fn offering_and_image_are_kept_and_not_required() {
    let router = Router::new().await;
    let l3 = router.network("eth0", "10.0.0.0/24").await;
    let arguments = json!({"name": "vm", "l3NetworkUuids": [l3], "imageUuid": "i", "instanceOfferingUuid": "o"});
    let vm = router.make(Api::CreateVmInstance, arguments).await;
    let sql = "SELECT image_uuid || instance_offering_uuid FROM vm_instances WHERE uuid = $1";
    assert_eq!(router.text(sql, &vm).await, "io");
}

#[tokio::test]
async fn a_stopped_vm_is_inactive_behind_its_listeners() {
    let site = Site::new().await;
    let router = &site.router;
    router.add_nic(&site.listener, &site.nic).await;
    let outcome = router.ok(Api::StopVmInstance, json!({"uuid": site.vm})).await;
    assert_eq!(outcome.vips, site.vips());
    assert_eq!(router.status(&site.nic).await, "Inactive");
    // Already stopped: nothing more happens.
    assert!(router.ok(Api::StopVmInstance, json!({"uuid": site.vm})).await.vips.is_empty());
    let outcome = router.ok(Api::StartVmInstance, json!({"uuid": site.vm})).await;
    assert_eq!(outcome.vips, site.vips());
    assert_eq!(router.status(&site.nic).await, "Pending");
    router.refuses(Api::StartVmInstance, json!({"uuid": UNKNOWN}), "SYS.1003", "VmInstanceVO] not found").await;
}

#[tokio::test]
async fn a_destroyed_vm_leaves_its_listeners_and_frees_its_addresses() {
    let site = Site::new().await;
    let router = &site.router;
    router.add_nic(&site.listener, &site.nic).await;
    let ip = router.text("SELECT ip FROM vm_nics WHERE vm_instance_uuid = $1", &site.vm).await;
    let outcome = router.ok(Api::DestroyVmInstance, json!({"uuid": site.vm})).await;
    assert_eq!(outcome.vips, site.vips());
    for sql in [
        "SELECT vm_nic_uuid FROM load_balancer_listener_vm_nic_refs WHERE vm_nic_uuid = $1",
        "SELECT uuid FROM resources WHERE uuid = $1",
    ] {
        assert!(router.texts(sql, &site.nic).await.is_empty(), "{sql}");
    }
    let tag = format!("staticIp::{}::{ip}", site.guest);
    router
        .make(Api::CreateVmInstance, json!({"name": "vm", "l3NetworkUuids": [site.guest], "systemTags": [tag]}))
        .await;
}
