//! Random calls in random order: the store stays consistent, and each call returns every VIP that it changed.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use vipgate_api::Api;
use vipgate_state::{Source, VipState};

use super::{Router, Site, VROUTER};

/// A call, with seeds that choose among what there is.
#[derive(Clone, Copy, Debug)]
struct Step {
    api: Api,
    seeds: [usize; 3],
}

/// The more often an API is named, the more often it is called.
const APIS: [Api; 41] = [
    Api::CreateZone,
    Api::CreateL2NoVlanNetwork,
    Api::CreateL3Network,
    Api::AddIpRangeByNetworkCidr,
    Api::AddIpRangeByNetworkCidr,
    Api::AttachNetworkServiceToL3Network,
    Api::AttachNetworkServiceToL3Network,
    Api::AttachNetworkServiceToL3Network,
    Api::AttachNetworkServiceToL3Network,
    Api::DetachNetworkServiceFromL3Network,
    Api::DeleteL3Network,
    Api::DeleteIpRange,
    Api::CreateVmInstance,
    Api::CreateVmInstance,
    Api::CreateVmInstance,
    Api::StopVmInstance,
    Api::StartVmInstance,
    Api::DestroyVmInstance,
    Api::CreateVip,
    Api::CreateVip,
    Api::ChangeVipState,
    Api::SetVipQos,
    Api::SetVipQos,
    Api::DeleteVipQos,
    Api::DeleteVip,
    Api::CreateLoadBalancer,
    Api::CreateLoadBalancerListener,
    Api::CreateLoadBalancerListener,
    Api::AddVmNicToLoadBalancer,
    Api::RemoveVmNicFromLoadBalancer,
    Api::UpdateSystemTag,
    Api::CreatePortForwardingRule,
    Api::CreatePortForwardingRule,
    Api::AttachPortForwardingRule,
    Api::DetachPortForwardingRule,
    Api::ChangePortForwardingRuleState,
    Api::CreateEip,
    Api::CreateEip,
    Api::AttachEip,
    Api::DetachEip,
    Api::ChangeEipState,
];
/// Calls that undo a lot come seldom.
const RARE: [Api; 6] = [
    Api::DeleteZone,
    Api::DeleteL2Network,
    Api::DeleteLoadBalancer,
    Api::DeleteLoadBalancerListener,
    Api::DeletePortForwardingRule,
    Api::DeleteEip,
];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let api = prop_oneof![15 => prop::sample::select(&APIS[..]), 1 => prop::sample::select(&RARE[..])];
    let step = (api, any::<[usize; 3]>()).prop_map(|(api, seeds)| Step { api, seeds });
    prop::collection::vec(step, 40..120)
}

/// One of those, or nothing in particular.
async fn one(router: &Router, sql: &'static str, seed: usize) -> String {
    let all = router.texts(sql, "").await;
    if all.is_empty() { super::UNKNOWN.to_owned() } else { all[seed % all.len()].clone() }
}

async fn arguments(router: &Router, Step { api, seeds: [a, b, c] }: Step) -> Value {
    let l3 = one(router, "SELECT uuid FROM l3_networks WHERE $1 = '' ORDER BY rowid", a).await;
    let vm = one(router, "SELECT uuid FROM vm_instances WHERE $1 = '' ORDER BY rowid", a).await;
    let vip = one(router, "SELECT uuid FROM vips WHERE $1 = '' ORDER BY rowid", a).await;
    let balancer = one(router, "SELECT uuid FROM load_balancers WHERE $1 = '' ORDER BY rowid", a).await;
    let listener = one(router, "SELECT uuid FROM load_balancer_listeners WHERE $1 = '' ORDER BY rowid", a).await;
    let nic = one(router, "SELECT uuid FROM vm_nics WHERE $1 = '' ORDER BY rowid", b).await;
    let rule = one(router, "SELECT uuid FROM port_forwarding_rules WHERE $1 = '' ORDER BY rowid", a).await;
    let eip = one(router, "SELECT uuid FROM eips WHERE $1 = '' ORDER BY rowid", a).await;
    let zone = one(router, "SELECT uuid FROM zones WHERE $1 = '' ORDER BY rowid", a).await;
    let l2 = one(router, "SELECT uuid FROM l2_networks WHERE $1 = '' ORDER BY rowid", a).await;
    match api {
        Api::CreateL2NoVlanNetwork => {
            json!({"name": "x", "zoneUuid": zone, "physicalInterface": (["eth0", "eth1"][b % 2])})
        }
        Api::CreateL3Network => {
            json!({"name": "x", "l2NetworkUuid": l2, "category": (["Private", "Public"][b % 2])})
        }
        Api::AddIpRangeByNetworkCidr => {
            json!({"name": "x", "l3NetworkUuid": l3, "networkCidr": format!("10.0.{}.0/29", b % 3)})
        }
        Api::AttachNetworkServiceToL3Network | Api::DetachNetworkServiceFromL3Network => {
            let service = ["LoadBalancer", "PortForwarding", "Eip", "SNAT", "SNAT"][b % 5];
            json!({"l3NetworkUuid": l3, "networkServices": {VROUTER: [service]}})
        }
        Api::CreateVmInstance => {
            json!({"name": "x", "l3NetworkUuids": [l3], "strategy": (["InstantStart", "JustCreate"][b % 2])})
        }
        Api::CreateVip => json!({"name": "x", "l3NetworkUuid": l3}),
        Api::ChangeVipState => json!({"uuid": vip, "stateEvent": (["enable", "disable"][b % 2])}),
        Api::CreateLoadBalancer => json!({"name": "x", "vipUuid": vip}),
        Api::CreateLoadBalancerListener => json!({
            "name": "x", "loadBalancerUuid": balancer, "loadBalancerPort": 1 + b % 5, "protocol": (["tcp", "udp"][c % 2]),
        }),
        Api::AddVmNicToLoadBalancer | Api::RemoveVmNicFromLoadBalancer => {
            json!({"listenerUuid": listener, "vmNicUuids": [nic]})
        }
        Api::UpdateSystemTag => {
            let sql = "SELECT uuid FROM system_tags WHERE $1 = '' AND tag LIKE 'maxConnection%' ORDER BY rowid";
            json!({"uuid": one(router, sql, a).await, "tag": format!("maxConnection::{}", b % 9)})
        }
        Api::CreatePortForwardingRule => {
            let mut rule = json!({
                "name": "x", "vipUuid": vip, "vipPortStart": 1 + b % 7, "vipPortEnd": 1 + c % 7,
                "protocolType": (["TCP", "UDP"][c % 2]),
            });
            if c % 3 > 0 {
                rule["vmNicUuid"] = nic.into();
            }
            rule
        }
        Api::AttachPortForwardingRule => json!({"ruleUuid": rule, "vmNicUuid": nic}),
        Api::ChangePortForwardingRuleState => {
            json!({"uuid": rule, "stateEvent": (["enable", "disable"][b % 2])})
        }
        Api::DetachPortForwardingRule | Api::DeletePortForwardingRule => json!({"uuid": rule}),
        Api::CreateEip if c % 3 == 0 => json!({"name": "x", "vipUuid": vip}),
        Api::CreateEip => json!({"name": "x", "vipUuid": vip, "vmNicUuid": nic}),
        Api::AttachEip => json!({"eipUuid": eip, "vmNicUuid": nic}),
        Api::ChangeEipState => json!({"uuid": eip, "stateEvent": (["enable", "disable"][b % 2])}),
        Api::DetachEip | Api::DeleteEip => json!({"uuid": eip}),
        Api::StartVmInstance | Api::StopVmInstance | Api::DestroyVmInstance => json!({"uuid": vm}),
        Api::SetVipQos | Api::DeleteVipQos if c % 3 == 0 => json!({"uuid": vip, "inboundBandwidth": 1 << 20}),
        Api::SetVipQos | Api::DeleteVipQos => {
            json!({"uuid": vip, "port": 1 + b % 5, "outboundBandwidth": 1 << 20})
        }
        Api::DeleteVip => json!({"uuid": vip}),
        Api::DeleteZone => json!({"uuid": zone}),
        Api::DeleteL2Network => json!({"uuid": l2}),
        Api::DeleteL3Network => json!({"uuid": l3}),
        Api::DeleteLoadBalancer => json!({"uuid": balancer}),
        Api::DeleteLoadBalancerListener => json!({"uuid": listener}),
        Api::DeleteIpRange => {
            json!({"uuid": one(router, "SELECT uuid FROM ip_ranges WHERE $1 = '' ORDER BY rowid", a).await})
        }
        _ => json!({"name": "x"}),
    }
}

async fn state(router: &Router) -> BTreeMap<String, VipState> {
    router.store.vips().await.unwrap().into_iter().map(|vip| (vip.uuid.clone(), vip)).collect()
}

/// Statements that find what must never be.
const NEVER: [(&str, &str); 13] = [
    ("an address without a user", "SELECT ip FROM used_ips WHERE $1 = '' AND uuid NOT IN
        (SELECT used_ip_uuid FROM vips UNION SELECT used_ip_uuid FROM vm_nics)"),
    ("a register row without a resource", "SELECT uuid FROM resources WHERE $1 = '' AND uuid NOT IN
        (SELECT uuid FROM zones UNION SELECT uuid FROM l2_networks UNION SELECT uuid FROM l3_networks
         UNION SELECT uuid FROM ip_ranges UNION SELECT uuid FROM vm_instances UNION SELECT uuid FROM vm_nics
         UNION SELECT uuid FROM vips UNION SELECT uuid FROM load_balancers UNION SELECT uuid FROM load_balancer_listeners
         UNION SELECT uuid FROM port_forwarding_rules UNION SELECT uuid FROM eips)"),
    ("a use that does not tell of the load balancers", "SELECT uuid FROM vips WHERE $1 = '' AND
        (IFNULL(use_for, '') LIKE '%LoadBalancer%') <> EXISTS (SELECT 1 FROM load_balancers b WHERE b.vip_uuid = vips.uuid)"),
    ("a use that does not tell of the rules", "SELECT uuid FROM vips WHERE $1 = '' AND (IFNULL(use_for, '') LIKE '%PortForwarding%')
        <> EXISTS (SELECT 1 FROM port_forwarding_rules r WHERE r.vip_uuid = vips.uuid)"),
    ("a use that does not tell of the elastic IP, or tells of more", "SELECT uuid FROM vips WHERE $1 = '' AND
        (IFNULL(use_for, '') LIKE '%Eip%' OR EXISTS (SELECT 1 FROM eips e WHERE e.vip_uuid = vips.uuid))
        AND (use_for IS NOT 'Eip' OR NOT EXISTS (SELECT 1 FROM eips e WHERE e.vip_uuid = vips.uuid))"),
    ("a use that does not tell of the networks that leave", "SELECT uuid FROM vips WHERE $1 = '' AND (IFNULL(use_for, '') LIKE '%SNAT%')
        <> EXISTS (SELECT 1 FROM source_nats s WHERE s.vip_uuid = vips.uuid)"),
    ("an address of the router that nobody uses as a VIP", "SELECT uuid FROM vips WHERE $1 = '' AND own = 1 AND use_for IS NULL"),
    ("a network that leaves without the service", "SELECT l3_network_uuid FROM source_nats WHERE $1 = '' AND l3_network_uuid NOT IN
        (SELECT l3_network_uuid FROM network_service_l3_network_refs WHERE network_service_type = 'SNAT')"),
    ("a network that does not leave by a way out of its zone", "SELECT l.uuid FROM network_service_l3_network_refs f
        JOIN l3_networks l ON l.uuid = f.l3_network_uuid JOIN vips v ON v.own = 1 JOIN l3_networks p ON p.uuid = v.l3_network_uuid
        WHERE $1 = '' AND f.network_service_type = 'SNAT' AND p.zone_uuid = l.zone_uuid AND NOT EXISTS
        (SELECT 1 FROM source_nats s WHERE s.l3_network_uuid = l.uuid AND s.vip_uuid = v.uuid)"),
    ("two services on one port", "SELECT r.uuid FROM port_forwarding_rules r WHERE $1 = '' AND (
        EXISTS (SELECT 1 FROM port_forwarding_rules o WHERE o.uuid <> r.uuid AND o.vip_uuid = r.vip_uuid
                AND o.protocol_type = r.protocol_type AND o.vip_port_start <= r.vip_port_end AND o.vip_port_end >= r.vip_port_start)
        OR EXISTS (SELECT 1 FROM load_balancer_listeners s JOIN load_balancers b ON b.uuid = s.load_balancer_uuid
                   WHERE b.vip_uuid = r.vip_uuid AND upper(s.protocol) = r.protocol_type
                   AND s.load_balancer_port BETWEEN r.vip_port_start AND r.vip_port_end))"),
    ("a number that two have", "SELECT number || '' FROM service_numbers WHERE $1 = '' GROUP BY number HAVING COUNT(*) > 1
        UNION ALL SELECT number || '' FROM backend_numbers GROUP BY number HAVING COUNT(*) > 1"),
    ("an unused VIP with a provider", "SELECT uuid FROM vips WHERE $1 = '' AND use_for IS NULL AND service_provider IS NOT NULL"),
    ("a running VM behind a listener as inactive, or the reverse", "SELECT r.id || '' FROM load_balancer_listener_vm_nic_refs r
        JOIN vm_nics n ON n.uuid = r.vm_nic_uuid JOIN vm_instances i ON i.uuid = n.vm_instance_uuid
        WHERE $1 = '' AND (r.status = 'Inactive') <> (i.state = 'Stopped')"),
];

/// Of the elastic IPs that are one guest's by one device, one leads.
fn assert_led(vips: &BTreeMap<String, VipState>) {
    let mut leaders = BTreeMap::new();
    for vip in vips.values() {
        if let Some(eip) = &vip.elastic {
            *leaders.entry((&vip.device, eip.guest)).or_insert(0) += u32::from(eip.leads);
        }
    }
    assert!(leaders.values().all(|leaders| *leaders == 1), "{leaders:?} of {vips:?}");
}

async fn run(steps: Vec<Step>) {
    let site = Site::new().await;
    site.router.add_nic(&site.listener, &site.nic).await;
    let router = site.router;
    for step in steps {
        let arguments = arguments(&router, step).await;
        let (before, devices) = (state(&router).await, router.store.devices().await.unwrap());
        let outcome = router.call(step.api, arguments.clone()).await;
        let after = state(&router).await;
        let (named, devices_named) = match &outcome {
            Ok(outcome) => (outcome.vips.clone(), outcome.devices),
            Err(error) => {
                assert_ne!(error.code.as_str(), "SYS.1000", "{} {arguments}: {error}", step.api.name());
                Default::default()
            }
        };
        for uuid in before.keys().chain(after.keys()) {
            let changed = before.get(uuid) != after.get(uuid);
            assert!(!changed || named.contains(uuid), "{} {arguments} changed VIP {uuid} silently", step.api.name());
        }
        assert_led(&after);
        let changed = devices != router.store.devices().await.unwrap();
        assert!(!changed || devices_named, "{} {arguments} changed the devices silently", step.api.name());
        for (what, sql) in NEVER {
            let found = router.texts(sql, "").await;
            assert!(found.is_empty(), "{} {arguments} made {what}: {found:?}", step.api.name());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_calls_keeps_the_store_sound_and_names_what_it_changed(steps in steps()) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(steps));
    }
}
