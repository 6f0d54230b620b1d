//! Elastic IPs.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use vipgate_api::{Api, Reply, Resource};
use vipgate_state::{ElasticState, Source};

use super::{Router, Site, UNKNOWN, VROUTER, with};

const CREATE: Api = Api::CreateEip;
const ATTACH: Api = Api::AttachEip;
const DETACH: Api = Api::DetachEip;

/// A site with an unused VIP on the public network.
async fn site() -> (Site, String) {
    let site = Site::new().await;
    let vip = site.router.vip(&site.public).await;
    (site, vip)
}

fn on(vip: &str, more: Value) -> Value {
    with(json!({"name": "eip", "vipUuid": vip}), more)
}

/// Elastic IPs on VIPs of their own, attached to the site's NIC in their order: the VIPs, and the elastic IPs.
async fn attached<const N: usize>(site: &Site) -> ([String; N], [String; N]) {
    let (mut vips, mut eips) = ([const { String::new() }; N], [const { String::new() }; N]);
    for (vip, eip) in vips.iter_mut().zip(&mut eips) {
        *vip = site.router.vip(&site.public).await;
        *eip = site.router.make(CREATE, on(vip, json!({"vmNicUuid": site.nic}))).await;
    }
    (vips, eips)
}

async fn elastic(router: &Router, vip: &str) -> Option<ElasticState> {
    let state = router.store.vip(vip).await.unwrap().unwrap();
    let all = router.store.vips().await.unwrap();
    assert_eq!(all.iter().find(|other| other.uuid == vip), Some(&state), "read alone and with the others");
    state.elastic
}

/// For each VIP whether it is the source of the guest's own connections; `None` if it is in force for no guest.
async fn leads<const N: usize>(router: &Router, vips: &[String; N]) -> [Option<bool>; N] {
    let mut leads = [None; N];
    for (vip, leads) in vips.iter().zip(&mut leads) {
        *leads = elastic(router, vip).await.map(|eip| eip.leads);
    }
    leads
}

async fn use_and_provider(router: &Router, vip: &str) -> String {
    let sql = "SELECT IFNULL(use_for, '-') || ' ' || IFNULL(service_provider, '-') FROM vips WHERE uuid = $1";
    router.text(sql, vip).await
}

async fn peers(router: &Router, vip: &str) -> Vec<String> {
    router.texts("SELECT l3_network_uuid FROM vip_peer_l3_networks WHERE vip_uuid = $1", vip).await
}

async fn nic_of(router: &Router, eip: &str) -> String {
    router.text("SELECT IFNULL(vm_nic_uuid, '-') FROM eips WHERE uuid = $1", eip).await
}

/// Changes the state; the VIPs that the call names.
async fn set_state(router: &Router, eip: &str, event: &str) -> BTreeSet<String> {
    router.ok(Api::ChangeEipState, json!({"uuid": eip, "stateEvent": event})).await.vips
}

async fn candidates(router: &Router, arguments: Value) -> Vec<String> {
    match router.ok(Api::GetEipAttachableVmNics, arguments).await.reply {
        Reply::Inventories(Resource::VmNic, nics) => nics,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_elastic_ip_takes_an_unused_and_enabled_vip() {
    let (site, vip) = site().await;
    let router = &site.router;
    router.refuses(CREATE, on(&site.vip, json!({})), "SYS.1006", "is used for LoadBalancer").await;
    router.refuses(CREATE, on(UNKNOWN, json!({})), "SYS.1003", "field[vipUuid]").await;
    router.ok(Api::ChangeVipState, json!({"uuid": vip, "stateEvent": "disable"})).await;
    router.refuses(CREATE, on(&vip, json!({})), "SYS.1006", "is Disabled; enable it").await;
    router.ok(Api::ChangeVipState, json!({"uuid": vip, "stateEvent": "enable"})).await;
    router.make(CREATE, on(&vip, json!({}))).await;
    router.refuses(CREATE, on(&vip, json!({})), "SYS.1006", "is used for Eip").await;
}

#[tokio::test]
async fn its_vip_takes_nothing_else_and_has_no_used_ports() {
    let (site, vip) = site().await;
    let router = &site.router;
    router.make(CREATE, on(&vip, json!({"vmNicUuid": site.nic}))).await;
    router.refuses(Api::CreateLoadBalancer, on(&vip, json!({})), "SYS.1007", "is used for Eip").await;
    let rule = on(&vip, json!({"vipPortStart": 22, "protocolType": "TCP"}));
    router.refuses(Api::CreatePortForwardingRule, rule, "SYS.1007", "is used for Eip").await;
    let Reply::Members(members) = router.ok(Api::GetVipUsedPorts, json!({"uuid": vip, "protocol": "tcp"})).await.reply
    else {
        panic!("no members")
    };
    assert_eq!(members["inventories"][0]["usedPorts"], json!([]));
}

#[tokio::test]
async fn use_provider_and_guest_network_of_its_vip_follow_it() {
    let (site, vip) = site().await;
    let router = &site.router;
    let eip = router.make(CREATE, on(&vip, json!({}))).await;
    assert_eq!(use_and_provider(router, &vip).await, "Eip -");
    router.ok(ATTACH, json!({"eipUuid": eip, "vmNicUuid": site.nic})).await;
    assert_eq!(use_and_provider(router, &vip).await, "Eip vrouter");
    assert_eq!(peers(router, &vip).await, std::slice::from_ref(&site.guest));
    router.ok(DETACH, json!({"uuid": eip})).await;
    assert_eq!(use_and_provider(router, &vip).await, "Eip vrouter");
    let outcome = router.ok(Api::DeleteEip, json!({"uuid": eip, "deleteMode": "Enforcing"})).await;
    assert_eq!((outcome.reply, outcome.vips), (Reply::Empty, [vip.clone()].into()));
    assert_eq!(use_and_provider(router, &vip).await, "- -");
    assert!(peers(router, &vip).await.is_empty());
    router.balancer(&vip).await;
}

#[tokio::test]
async fn deleting_one_that_is_not_there_succeeds_if_it_looks_like_a_uuid() {
    let (site, vip) = site().await;
    let eip = site.router.make(CREATE, on(&vip, json!({}))).await;
    for uuid in [eip.as_str(), &eip, UNKNOWN] {
        site.router.ok(Api::DeleteEip, json!({"uuid": uuid})).await;
    }
    for other in ["nonsense", &vip] {
        site.router.refuses(Api::DeleteEip, json!({"uuid": other}), "SYS.1003", "type:EipVO] not found").await;
    }
}

#[tokio::test]
async fn it_is_attached_once_and_detached_once() {
    let (site, vip) = site().await;
    let router = &site.router;
    let vips = BTreeSet::from([vip.clone()]);
    let eip = router.make(CREATE, on(&vip, json!({}))).await;
    assert_eq!(elastic(router, &vip).await, None);
    router.refuses(DETACH, json!({"uuid": eip}), "SYS.1006", "attached to no VM NIC").await;
    let to = json!({"eipUuid": eip, "vmNicUuid": site.nic});
    let outcome = router.ok(ATTACH, to.clone()).await;
    assert_eq!((outcome.reply, &outcome.vips), (Reply::Inventory(Resource::Eip, eip.clone()), &vips));
    let ip = router.text("SELECT ip FROM vm_nics WHERE uuid = $1", &site.nic).await;
    let state = elastic(router, &vip).await.unwrap();
    assert_eq!((&state.uuid, state.guest.to_string(), state.leads), (&eip, ip.clone(), true));
    let shown = "SELECT vip_ip || ' ' || guest_ip FROM eips WHERE uuid = $1";
    let vip_ip = router.text("SELECT ip FROM vips WHERE uuid = $1", &vip).await;
    assert_eq!(router.text(shown, &eip).await, format!("{vip_ip} {ip}"));
    router.refuses(ATTACH, to.clone(), "SYS.1006", "already; detach it first").await;
    assert_eq!(router.ok(DETACH, json!({"uuid": eip})).await.vips, vips);
    assert_eq!(elastic(router, &vip).await, None);
    router.refuses(DETACH, json!({"uuid": eip}), "SYS.1006", "attached to no VM NIC").await;
    router.ok(ATTACH, to).await;
}

#[tokio::test]
async fn calls_need_an_elastic_ip_and_a_nic_that_are_there() {
    let (site, vip) = site().await;
    let router = &site.router;
    router.refuses(CREATE, on(&vip, json!({"vmNicUuid": UNKNOWN})), "SYS.1003", "field[vmNicUuid]").await;
    let eip = router.make(CREATE, on(&vip, json!({}))).await;
    router.refuses(ATTACH, json!({"eipUuid": eip, "vmNicUuid": UNKNOWN}), "SYS.1003", "field[vmNicUuid]").await;
    router.refuses(ATTACH, json!({"eipUuid": UNKNOWN, "vmNicUuid": site.nic}), "SYS.1003", "field[eipUuid]").await;
    let state = json!({"uuid": UNKNOWN, "stateEvent": "enable"});
    router.refuses(Api::ChangeEipState, state, "SYS.1003", "EipVO] not found").await;
    for api in [DETACH, Api::UpdateEip] {
        router.refuses(api, json!({"uuid": UNKNOWN}), "SYS.1003", "EipVO] not found").await;
    }
}

#[tokio::test]
async fn a_nic_that_its_vip_cannot_serve_is_refused() {
    let (site, vip) = site().await;
    let router = &site.router;
    let free = router.make(CREATE, on(&router.vip(&site.public).await, json!({}))).await;
    let refuses = async |nic: &str, code: &str, words: &str| {
        router.refuses(CREATE, on(&vip, json!({"vmNicUuid": nic})), code, words).await;
        router.refuses(ATTACH, json!({"eipUuid": free, "vmNicUuid": nic}), code, words).await;
    };
    refuses(&router.vm(&site.public).await.1, "SYS.1007", "on the L3 network of VIP").await;

    let both = json!({"name": "vm", "l3NetworkUuids": [site.guest, site.public]});
    let both = router.make(Api::CreateVmInstance, both).await;
    let sql = "SELECT uuid FROM vm_nics WHERE vm_instance_uuid = $1 AND device_id = 0";
    refuses(&router.text(sql, &both).await, "SYS.1007", "VM instance[uuid:").await;

    let zone = router.text("SELECT zone_uuid FROM l3_networks WHERE uuid = $1", &site.public).await;
    let around = router.network_in(&zone, "eth1", "192.0.0.0/16").await;
    refuses(&router.vm(&around).await.1, "SYS.1006", "is an address of the subnet of VM NIC").await;

    let elsewhere = router.network("eth1", "10.9.0.0/24").await;
    refuses(&router.vm(&elsewhere).await.1, "SYS.1006", "another zone").await;

    let without = json!({"l3NetworkUuid": site.guest, "networkServices": {VROUTER: ["Eip"]}});
    router.ok(Api::DetachNetworkServiceFromL3Network, without).await;
    refuses(&site.nic, "SYS.1006", "has no Eip service").await;
}

#[tokio::test]
async fn a_disabled_one_is_in_force_for_nobody_and_is_not_attached() {
    let (site, vip) = site().await;
    let router = &site.router;
    let eip = router.make(CREATE, on(&vip, json!({"vmNicUuid": site.nic}))).await;
    for _ in 0..2 {
        assert_eq!(set_state(router, &eip, "disable").await, [vip.clone()].into());
        assert_eq!(elastic(router, &vip).await, None);
    }
    router.ok(DETACH, json!({"uuid": eip})).await;
    router.refuses(ATTACH, json!({"eipUuid": eip, "vmNicUuid": site.nic}), "SYS.1006", "is Disabled").await;
    router.refuses(Api::GetEipAttachableVmNics, json!({"eipUuid": eip}), "SYS.1006", "is Disabled").await;
    set_state(router, &eip, "enable").await;
    router.ok(ATTACH, json!({"eipUuid": eip, "vmNicUuid": site.nic})).await;
    assert!(elastic(router, &vip).await.is_some());
    let wrong = json!({"uuid": eip, "stateEvent": "off"});
    router.refuses(Api::ChangeEipState, wrong, "SYS.1007", "stateEvent").await;
}

/// Unlike a rule, which the real system leaves unattached then.
#[tokio::test]
async fn a_stopped_vm_gets_its_elastic_ip_when_it_starts() {
    let (site, vip) = site().await;
    let router = &site.router;
    router.ok(Api::StopVmInstance, json!({"uuid": site.vm})).await;
    let eip = router.make(CREATE, on(&vip, json!({"vmNicUuid": site.nic}))).await;
    router.ok(DETACH, json!({"uuid": eip})).await;
    router.ok(ATTACH, json!({"eipUuid": eip, "vmNicUuid": site.nic})).await;
    assert_eq!((nic_of(router, &eip).await, elastic(router, &vip).await), (site.nic.clone(), None));
    let vips = BTreeSet::from([vip.clone()]);
    assert_eq!(router.ok(Api::StartVmInstance, json!({"uuid": site.vm})).await.vips, vips);
    assert!(elastic(router, &vip).await.is_some());
    assert_eq!(router.ok(Api::StopVmInstance, json!({"uuid": site.vm})).await.vips, vips);
    assert_eq!(elastic(router, &vip).await, None);
}

#[tokio::test]
async fn a_vm_that_goes_leaves_its_elastic_ips_detached() {
    let site = Site::new().await;
    let router = &site.router;
    let (vips, eips) = attached::<2>(&site).await;
    assert_eq!(router.ok(Api::DestroyVmInstance, json!({"uuid": site.vm})).await.vips, vips.clone().into());
    for (vip, eip) in vips.iter().zip(&eips) {
        assert_eq!((nic_of(router, eip).await, elastic(router, vip).await), ("-".into(), None));
        assert_eq!(use_and_provider(router, vip).await, "Eip vrouter");
    }
    let (_, nic) = router.vm(&site.guest).await;
    router.ok(ATTACH, json!({"eipUuid": eips[1], "vmNicUuid": nic})).await;
    assert_eq!(leads(router, &vips).await, [None, Some(true)]);
}

#[tokio::test]
async fn it_goes_with_its_vip() {
    let (site, vip) = site().await;
    let eip = site.router.make(CREATE, on(&vip, json!({"vmNicUuid": site.nic}))).await;
    site.router.ok(Api::DeleteVip, json!({"uuid": vip})).await;
    assert!(site.router.texts("SELECT uuid FROM resources WHERE uuid = $1", &eip).await.is_empty());
}

#[tokio::test]
async fn of_several_the_one_that_was_attached_first_leads() {
    let site = Site::new().await;
    let router = &site.router;
    let ([a, b], [of_a, of_b]) = attached::<2>(&site).await;
    let both = [a, b];
    assert_eq!(leads(router, &both).await, [Some(true), Some(false)]);
    let named = BTreeSet::from(both.clone());
    assert_eq!(router.ok(DETACH, json!({"uuid": of_a})).await.vips, named);
    assert_eq!(leads(router, &both).await, [None, Some(true)]);
    // Made first, attached last.
    let outcome = router.ok(ATTACH, json!({"eipUuid": of_a, "vmNicUuid": site.nic})).await;
    assert_eq!(outcome.vips, named);
    assert_eq!(leads(router, &both).await, [Some(false), Some(true)]);
    router.ok(Api::UpdateEip, json!({"uuid": of_b, "name": "renamed"})).await;
    assert_eq!(leads(router, &both).await, [Some(false), Some(true)]);
}

#[tokio::test]
async fn one_that_is_disabled_leads_again_when_it_is_enabled() {
    let site = Site::new().await;
    let router = &site.router;
    let (vips, [first, ..]) = attached::<3>(&site).await;
    let named = BTreeSet::from(vips.clone());
    assert_eq!(set_state(router, &first, "disable").await, named);
    assert_eq!(leads(router, &vips).await, [None, Some(true), Some(false)]);
    assert_eq!(set_state(router, &first, "enable").await, named);
    assert_eq!(leads(router, &vips).await, [Some(true), Some(false), Some(false)]);
}

#[tokio::test]
async fn when_the_one_that_leads_goes_the_next_leads() {
    for (api, of_vip) in [(Api::DeleteEip, false), (Api::DeleteVip, true)] {
        let site = Site::new().await;
        let router = &site.router;
        let ([a, b, c], [eip, ..]) = attached::<3>(&site).await;
        let outcome = router.ok(api, json!({"uuid": if of_vip { &a } else { &eip }})).await;
        assert_eq!(outcome.vips, [a, b.clone(), c.clone()].into(), "{}", api.name());
        assert_eq!(leads(router, &[b, c]).await, [Some(true), Some(false)], "{}", api.name());
    }
}

#[tokio::test]
async fn when_the_network_of_the_one_that_leads_goes_the_next_leads() {
    let site = Site::new().await;
    let router = &site.router;
    let zone = router.text("SELECT zone_uuid FROM l3_networks WHERE uuid = $1", &site.public).await;
    let beside = router.network_in(&zone, "eth0", "198.51.100.0/24").await;
    let first = router.vip(&beside).await;
    router.make(CREATE, on(&first, json!({"vmNicUuid": site.nic}))).await;
    let ([second], _) = attached::<1>(&site).await;
    // Two networks, one device.
    assert_eq!(leads(router, &[first.clone(), second.clone()]).await, [Some(true), Some(false)]);
    let outcome = router.ok(Api::DeleteL3Network, json!({"uuid": beside})).await;
    assert_eq!(outcome.vips, [first, second.clone()].into());
    assert_eq!(leads(router, &[second]).await, [Some(true)]);
}

#[tokio::test]
async fn one_leads_on_each_device_and_for_each_nic() {
    let site = Site::new().await;
    let router = &site.router;
    let ([here], _) = attached::<1>(&site).await;
    let zone = router.text("SELECT zone_uuid FROM l3_networks WHERE uuid = $1", &site.public).await;
    let other_device = router.network_in(&zone, "eth1", "203.0.113.0/24").await;
    let there = router.vip(&other_device).await;
    router.make(CREATE, on(&there, json!({"vmNicUuid": site.nic}))).await;
    let (_, other_nic) = router.vm(&site.guest).await;
    let others = router.vip(&site.public).await;
    router.make(CREATE, on(&others, json!({"vmNicUuid": other_nic}))).await;
    assert_eq!(leads(router, &[here, there, others]).await, [Some(true); 3]);
}

#[tokio::test]
async fn candidates_are_nics_that_could_be_attached() {
    let (site, vip) = site().await;
    let router = &site.router;
    let (stopped, second) = router.vm(&site.guest).await;
    router.ok(Api::StopVmInstance, json!({"uuid": stopped})).await;
    router.vm(&site.public).await;
    let both = json!({"name": "vm", "l3NetworkUuids": [site.guest, site.public]});
    router.make(Api::CreateVmInstance, both).await;
    router.vm(&router.network("eth1", "10.9.0.0/24").await).await;
    let zone = router.text("SELECT zone_uuid FROM l3_networks WHERE uuid = $1", &site.public).await;
    router.vm(&router.network_in(&zone, "eth1", "192.0.0.0/16").await).await;

    let mut expected = vec![site.nic.clone(), second.clone()];
    expected.sort();
    let eip = router.make(CREATE, on(&vip, json!({}))).await;
    for arguments in [json!({"eipUuid": eip}), json!({"vipUuid": vip}), json!({"eipUuid": eip, "vipUuid": site.vip})] {
        let mut found = candidates(router, arguments.clone()).await;
        found.sort();
        assert_eq!(found, expected, "{arguments}");
    }
    // Several may be one NIC's.
    router.ok(ATTACH, json!({"eipUuid": eip, "vmNicUuid": site.nic})).await;
    assert!(candidates(router, json!({"eipUuid": eip})).await.is_empty(), "attached");
    let other = router.make(CREATE, on(&router.vip(&site.public).await, json!({}))).await;
    assert_eq!(candidates(router, json!({"eipUuid": other})).await.len(), 2);

    let without = json!({"l3NetworkUuid": site.guest, "networkServices": {VROUTER: ["Eip"]}});
    router.ok(Api::DetachNetworkServiceFromL3Network, without).await;
    assert!(candidates(router, json!({"eipUuid": other})).await.is_empty(), "without the service");
}

#[tokio::test]
async fn candidates_are_of_an_elastic_ip_or_a_vip_that_is_there() {
    let site = Site::new().await;
    let api = Api::GetEipAttachableVmNics;
    site.router.refuses(api, json!({}), "SYS.1007", "field[eipUuid] and field[vipUuid]").await;
    site.router.refuses(api, json!({"eipUuid": UNKNOWN}), "SYS.1003", "field[eipUuid]").await;
    site.router.refuses(api, json!({"vipUuid": UNKNOWN}), "SYS.1003", "field[vipUuid]").await;
}

#[tokio::test]
async fn name_and_description_change_and_nothing_else() {
    let (site, vip) = site().await;
    let eip = site.router.make(CREATE, on(&vip, json!({"description": "old"}))).await;
    let outcome = site.router.ok(Api::UpdateEip, json!({"uuid": eip, "name": "new", "vipUuid": site.vip})).await;
    assert!(outcome.vips.is_empty());
    let sql = "SELECT name || ' ' || description || ' ' || vip_uuid FROM eips WHERE uuid = $1";
    assert_eq!(site.router.text(sql, &eip).await, format!("new old {vip}"));
}
