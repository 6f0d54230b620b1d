//! Port-forwarding rules.

use serde_json::{Value, json};
use vipgate_api::{Api, Reply, Resource};
use vipgate_state::{Protocol, Source, VipState};

use super::{Router, Site, UNKNOWN, VROUTER, with};

const CREATE: Api = Api::CreatePortForwardingRule;
const ATTACH: Api = Api::AttachPortForwardingRule;
const DETACH: Api = Api::DetachPortForwardingRule;

/// TCP ports 2000 to 2009 of the site's VIP, unless the test replaces them.
fn rule(site: &Site, more: Value) -> Value {
    let ten = json!({
        "name": "rule", "vipUuid": site.vip, "vipPortStart": 2000, "vipPortEnd": 2009, "protocolType": "TCP",
    });
    with(ten, more)
}

fn single(site: &Site, more: Value) -> Value {
    let one = json!({"name": "rule", "vipUuid": site.vip, "vipPortStart": 22, "protocolType": "TCP"});
    with(one, more)
}

async fn ports(router: &Router, rule: &str) -> String {
    let sql = "SELECT vip_port_start || '-' || vip_port_end || ' ' || private_port_start || '-' || private_port_end
               FROM port_forwarding_rules WHERE uuid = $1";
    router.text(sql, rule).await
}

async fn vip(site: &Site) -> VipState {
    site.router.store.vip(&site.vip).await.unwrap().unwrap()
}

async fn use_for(site: &Site) -> Option<String> {
    site.router.texts("SELECT use_for FROM vips WHERE uuid = $1 AND use_for IS NOT NULL", &site.vip).await.pop()
}

async fn set_state(site: &Site, rule: &str, event: &str) {
    let arguments = json!({"uuid": rule, "stateEvent": event});
    let outcome = site.router.ok(Api::ChangePortForwardingRuleState, arguments).await;
    assert_eq!(outcome.vips, site.vips());
}

#[tokio::test]
async fn ports_that_are_left_out_follow_from_the_others() {
    let site = Site::new().await;
    for (more, expected) in [
        (json!({"vipPortStart": 1}), "1-1 1-1"),
        (json!({"vipPortStart": 2, "privatePortStart": 22}), "2-2 22-22"),
        (json!({"vipPortStart": 10, "vipPortEnd": 12}), "10-12 10-12"),
        (json!({"vipPortStart": 20, "vipPortEnd": 22, "privatePortStart": 80, "privatePortEnd": 82}), "20-22 80-82"),
        // One port to a range is no error: it leads to the first.
        (json!({"vipPortStart": 30, "privatePortStart": 40, "privatePortEnd": 50}), "30-30 40-50"),
    ] {
        let uuid = site.router.make(CREATE, single(&site, more)).await;
        assert_eq!(ports(&site.router, &uuid).await, expected);
    }
}

#[tokio::test]
async fn reversed_ranges_are_put_in_order() {
    let site = Site::new().await;
    let reversed = json!({"vipPortStart": 12, "vipPortEnd": 10, "privatePortStart": 82, "privatePortEnd": 80});
    let uuid = site.router.make(CREATE, single(&site, reversed)).await;
    assert_eq!(ports(&site.router, &uuid).await, "10-12 80-82");
}

#[tokio::test]
async fn unequal_ranges_and_ports_that_are_none_are_refused() {
    let site = Site::new().await;
    for more in [
        json!({"privatePortStart": 3000, "privatePortEnd": 3010}),
        json!({"privatePortStart": 3000, "privatePortEnd": 3000}),
        // The last private port is the VIP's last one.
        json!({"privatePortStart": 1999}),
    ] {
        site.router.refuses(CREATE, rule(&site, more), "SYS.1007", "they must be as many").await;
    }
    for name in ["vipPortStart", "vipPortEnd", "privatePortStart", "privatePortEnd"] {
        for port in [0, -1, 65536] {
            site.router.refuses(CREATE, rule(&site, json!({name: port})), "SYS.1007", name).await;
        }
    }
    let all = json!({"vipPortStart": 1, "vipPortEnd": 65535, "protocolType": "UDP"});
    let uuid = site.router.make(CREATE, single(&site, all)).await;
    assert_eq!(ports(&site.router, &uuid).await, "1-65535 1-65535");
}

#[tokio::test]
async fn protocols_are_tcp_and_udp_in_any_case() {
    let site = Site::new().await;
    site.router.refuses(CREATE, rule(&site, json!({"protocolType": "ICMP"})), "SYS.1007", "protocolType").await;
    let uuid = site.router.make(CREATE, rule(&site, json!({"protocolType": "udp"}))).await;
    let sql = "SELECT protocol_type FROM port_forwarding_rules WHERE uuid = $1";
    assert_eq!(site.router.text(sql, &uuid).await, "UDP");
}

#[tokio::test]
async fn everybody_is_allowed_unless_told_and_what_is_no_cidr_is_refused() {
    let site = Site::new().await;
    for wrong in ["10.0.0.0", "10.0.0.0/33", "10.0.0/8", "fe80::/10", "any", ""] {
        let arguments = rule(&site, json!({"allowedCidr": wrong}));
        site.router.refuses(CREATE, arguments, "SYS.1007", "allowedCidr").await;
    }
    let sql = "SELECT allowed_cidr FROM port_forwarding_rules WHERE uuid = $1";
    let open = site.router.make(CREATE, single(&site, json!({}))).await;
    assert_eq!(site.router.text(sql, &open).await, "0.0.0.0/0");
    let narrow =
        site.router.make(CREATE, rule(&site, json!({"allowedCidr": "10.0.0.0/8", "vmNicUuid": site.nic}))).await;
    assert_eq!(site.router.text(sql, &narrow).await, "10.0.0.0/8");
    assert_eq!(vip(&site).await.forwards[0].allowed.to_string(), "10.0.0.0/8");
}

#[tokio::test]
async fn a_port_is_taken_once_per_protocol_on_a_vip() {
    let site = Site::new().await;
    site.router.make(CREATE, rule(&site, json!({}))).await;
    for (start, end) in [(2000, 2000), (2009, 2100), (1990, 2000), (2004, 2005), (1, 65535)] {
        let other = rule(&site, json!({"vipPortStart": start, "vipPortEnd": end}));
        site.router.refuses(CREATE, other, "SYS.1007", "overlap [2000,2009]").await;
    }
    site.router.make(CREATE, rule(&site, json!({"protocolType": "UDP"}))).await;
    site.router.make(CREATE, rule(&site, json!({"vipPortStart": 2010, "vipPortEnd": 2010}))).await;
    let other = site.router.vip(&site.public).await;
    site.router.make(CREATE, rule(&site, json!({"vipUuid": other}))).await;
}

#[tokio::test]
async fn a_listeners_port_and_a_rules_exclude_each_other() {
    let site = Site::new().await;
    let words = "Current port range [70,90] is conflicted with the used port range [80,80]";
    let around = json!({"vipPortStart": 70, "vipPortEnd": 90});
    site.router.refuses(CREATE, single(&site, around.clone()), "SYS.1006", words).await;
    site.router.make(CREATE, single(&site, with(around, json!({"protocolType": "UDP"})))).await;

    site.router.make(CREATE, rule(&site, json!({}))).await;
    let listener = |port: u16, protocol: &str| json!({"name": "l", "loadBalancerUuid": site.balancer, "loadBalancerPort": port, "protocol": protocol});
    let words = "Current port range [2005,2005] is conflicted with the used port range [2000,2009]";
    site.router.refuses(Api::CreateLoadBalancerListener, listener(2005, "tcp"), "SYS.1006", words).await;
    site.router.make(Api::CreateLoadBalancerListener, listener(2005, "udp")).await;
}

#[tokio::test]
async fn used_ports_are_those_of_listeners_and_rules() {
    let site = Site::new().await;
    site.router.make(CREATE, rule(&site, json!({"vipPortStart": 78, "vipPortEnd": 79}))).await;
    site.router.make(CREATE, rule(&site, json!({"vipPortStart": 9, "vipPortEnd": 10, "protocolType": "UDP"}))).await;
    for (protocol, expected) in [("tcp", json!(["78", "79", "80"])), ("UDP", json!(["9", "10"]))] {
        let arguments = json!({"uuid": site.vip, "protocol": protocol});
        match site.router.ok(Api::GetVipUsedPorts, arguments).await.reply {
            Reply::Members(members) => {
                assert_eq!(members["inventories"][0]["usedPorts"], expected);
                assert_eq!(members["inventories"][0]["protocol"], protocol.to_uppercase());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_vip_is_used_for_port_forwarding_while_it_has_a_rule() {
    let site = Site::new().await;
    assert_eq!(use_for(&site).await.as_deref(), Some("LoadBalancer"));
    let first = site.router.make(CREATE, rule(&site, json!({}))).await;
    let second = site.router.make(CREATE, single(&site, json!({"vmNicUuid": site.nic}))).await;
    assert_eq!(use_for(&site).await.as_deref(), Some("LoadBalancer,PortForwarding"));
    site.router.ok(Api::DeleteLoadBalancer, json!({"uuid": site.balancer})).await;
    assert_eq!(use_for(&site).await.as_deref(), Some("PortForwarding"));
    let outcome = site.router.ok(Api::DeletePortForwardingRule, json!({"uuid": first})).await;
    assert_eq!(outcome.vips, site.vips());
    assert_eq!(use_for(&site).await.as_deref(), Some("PortForwarding"));
    let peers = "SELECT l3_network_uuid FROM vip_peer_l3_networks WHERE vip_uuid = $1";
    assert_eq!(site.router.texts(peers, &site.vip).await, std::slice::from_ref(&site.guest));
    site.router.ok(Api::DeletePortForwardingRule, json!({"uuid": second})).await;
    assert_eq!(use_for(&site).await, None);
    assert!(site.router.texts(peers, &site.vip).await.is_empty());
    // It is no error to delete a rule that does not exist.
    site.router.ok(Api::DeletePortForwardingRule, json!({"uuid": second})).await;
}

#[tokio::test]
async fn a_vip_of_an_elastic_ip_takes_no_rules() {
    let site = Site::new().await;
    let vip = site.router.vip(&site.public).await;
    site.router.make(Api::CreateEip, json!({"name": "eip", "vipUuid": vip})).await;
    site.router.refuses(CREATE, single(&site, json!({"vipUuid": vip})), "SYS.1007", "used for Eip").await;
}

#[tokio::test]
async fn a_rule_needs_its_vip_and_a_nic_that_is_there() {
    let site = Site::new().await;
    site.router.refuses(CREATE, single(&site, json!({"vipUuid": UNKNOWN})), "SYS.1003", "field[vipUuid]").await;
    site.router.refuses(CREATE, single(&site, json!({"vmNicUuid": UNKNOWN})), "SYS.1003", "field[vmNicUuid]").await;
    let rule = site.router.make(CREATE, single(&site, json!({}))).await;
    let nobody = json!({"ruleUuid": rule, "vmNicUuid": UNKNOWN});
    site.router.refuses(ATTACH, nobody, "SYS.1003", "field[vmNicUuid]").await;
    site.router.refuses(ATTACH, json!({"ruleUuid": UNKNOWN, "vmNicUuid": site.nic}), "SYS.1003", "ruleUuid").await;
    for api in [DETACH, Api::UpdatePortForwardingRule] {
        site.router.refuses(api, json!({"uuid": UNKNOWN}), "SYS.1003", "PortForwardingRuleVO] not found").await;
    }
}

#[tokio::test]
async fn what_a_rule_leads_to_is_what_the_kernel_shall_forward() {
    let site = Site::new().await;
    let more = json!({"privatePortStart": 3000, "privatePortEnd": 3009, "vmNicUuid": site.nic, "protocolType": "UDP"});
    let uuid = site.router.make(CREATE, rule(&site, more)).await;
    let state = vip(&site).await;
    let [forward] = &state.forwards[..] else { panic!("{state:?}") };
    assert_eq!((&forward.uuid, forward.protocol), (&uuid, Protocol::Udp));
    assert_eq!((forward.ports, forward.guest_port), ((2000, 2009), 3000));
    let ip = site.router.text("SELECT ip FROM vm_nics WHERE uuid = $1", &site.nic).await;
    assert_eq!(forward.guest.to_string(), ip);
    let shown = "SELECT vip_ip || ' ' || guest_ip FROM port_forwarding_rules WHERE uuid = $1";
    assert_eq!(site.router.text(shown, &uuid).await, format!("{} {ip}", state.address));
    assert_eq!(site.router.store.vips().await.unwrap(), [state]);
}

#[tokio::test]
async fn a_rule_is_attached_once_and_detached_once() {
    let site = Site::new().await;
    let uuid = site.router.make(CREATE, rule(&site, json!({}))).await;
    assert!(vip(&site).await.forwards.is_empty());
    site.router.refuses(DETACH, json!({"uuid": uuid}), "SYS.1006", "attached to no VM NIC").await;
    let to = json!({"ruleUuid": uuid, "vmNicUuid": site.nic});
    let outcome = site.router.ok(ATTACH, to.clone()).await;
    assert_eq!(outcome.vips, site.vips());
    assert_eq!(outcome.reply, Reply::Inventory(Resource::PortForwardingRule, uuid.clone()));
    assert_eq!(vip(&site).await.forwards.len(), 1);
    let provider = "SELECT service_provider FROM vips WHERE uuid = $1";
    assert_eq!(site.router.text(provider, &site.vip).await, "vrouter");
    site.router.refuses(ATTACH, to.clone(), "SYS.1006", "already").await;
    assert_eq!(site.router.ok(DETACH, json!({"uuid": uuid})).await.vips, site.vips());
    assert!(vip(&site).await.forwards.is_empty());
    site.router.refuses(DETACH, json!({"uuid": uuid}), "SYS.1006", "attached to no VM NIC").await;
    site.router.ok(ATTACH, to).await;
}

#[tokio::test]
async fn a_disabled_rule_forwards_nothing_and_is_not_attached() {
    let site = Site::new().await;
    let attached = site.router.make(CREATE, single(&site, json!({"vmNicUuid": site.nic}))).await;
    let free = site.router.make(CREATE, rule(&site, json!({}))).await;
    for uuid in [&attached, &free] {
        set_state(&site, uuid, "disable").await;
        set_state(&site, uuid, "disable").await;
    }
    assert!(vip(&site).await.forwards.is_empty());
    let to = json!({"ruleUuid": free, "vmNicUuid": site.nic});
    site.router.refuses(ATTACH, to, "SYS.1006", "Disabled").await;
    let candidates = Api::GetPortForwardingAttachableVmNics;
    site.router.refuses(candidates, json!({"ruleUuid": free}), "SYS.1006", "Disabled").await;
    set_state(&site, &attached, "enable").await;
    assert_eq!(vip(&site).await.forwards.len(), 1);
    let wrong = json!({"uuid": free, "stateEvent": "off"});
    site.router.refuses(Api::ChangePortForwardingRuleState, wrong, "SYS.1007", "stateEvent").await;
}

#[tokio::test]
async fn a_stopped_vm_gets_nothing_until_it_runs() {
    let site = Site::new().await;
    site.router.ok(Api::StopVmInstance, json!({"uuid": site.vm})).await;
    let uuid = site.router.make(CREATE, single(&site, json!({}))).await;
    site.router.ok(ATTACH, json!({"ruleUuid": uuid, "vmNicUuid": site.nic})).await;
    let bound = "SELECT IFNULL(vm_nic_uuid, '') FROM port_forwarding_rules WHERE uuid = $1";
    assert_eq!(site.router.text(bound, &uuid).await, site.nic);
    assert!(vip(&site).await.forwards.is_empty());
    assert_eq!(site.router.ok(Api::StartVmInstance, json!({"uuid": site.vm})).await.vips, site.vips());
    assert_eq!(vip(&site).await.forwards.len(), 1);
    assert_eq!(site.router.ok(Api::StopVmInstance, json!({"uuid": site.vm})).await.vips, site.vips());
    assert!(vip(&site).await.forwards.is_empty());
}

/// The real system forgets the NIC then, and its clients know that from the reply.
#[tokio::test]
async fn a_rule_made_with_the_nic_of_a_stopped_vm_is_unattached() {
    let site = Site::new().await;
    site.router.ok(Api::StopVmInstance, json!({"uuid": site.vm})).await;
    let uuid = site.router.make(CREATE, single(&site, json!({"vmNicUuid": site.nic}))).await;
    site.router.refuses(DETACH, json!({"uuid": uuid}), "SYS.1006", "attached to no VM NIC").await;
    site.router.ok(Api::StartVmInstance, json!({"uuid": site.vm})).await;
    assert!(vip(&site).await.forwards.is_empty());
    let own = site.router.vm(&site.public).await;
    site.router.ok(Api::StopVmInstance, json!({"uuid": own.0})).await;
    site.router.refuses(CREATE, rule(&site, json!({"vmNicUuid": own.1})), "SYS.1007", "of VIP").await;
}

#[tokio::test]
async fn a_vm_that_goes_leaves_its_rules_detached() {
    let site = Site::new().await;
    let uuid = site.router.make(CREATE, single(&site, json!({"vmNicUuid": site.nic}))).await;
    assert_eq!(site.router.ok(Api::DestroyVmInstance, json!({"uuid": site.vm})).await.vips, site.vips());
    assert!(vip(&site).await.forwards.is_empty());
    assert_eq!(use_for(&site).await.as_deref(), Some("LoadBalancer,PortForwarding"));
    let (_, nic) = site.router.vm(&site.guest).await;
    site.router.ok(ATTACH, json!({"ruleUuid": uuid, "vmNicUuid": nic})).await;
    assert_eq!(vip(&site).await.forwards.len(), 1);
}

#[tokio::test]
async fn a_rule_goes_with_its_vip() {
    let site = Site::new().await;
    let uuid = site.router.make(CREATE, single(&site, json!({"vmNicUuid": site.nic}))).await;
    site.router.ok(Api::DeleteVip, json!({"uuid": site.vip})).await;
    assert!(site.router.texts("SELECT uuid FROM resources WHERE uuid = $1", &uuid).await.is_empty());
}

#[tokio::test]
async fn a_nic_that_the_vip_cannot_serve_is_refused() {
    let site = Site::new().await;
    let own = site.router.vm(&site.public).await.1;
    site.router.refuses(CREATE, single(&site, json!({"vmNicUuid": own})), "SYS.1007", "of VIP").await;
    let elsewhere = site.router.network("eth1", "10.9.0.0/24").await;
    let elsewhere = site.router.vm(&elsewhere).await.1;
    site.router.refuses(CREATE, single(&site, json!({"vmNicUuid": elsewhere})), "SYS.1006", "another zone").await;
    let without = json!({"l3NetworkUuid": site.guest, "networkServices": {VROUTER: ["PortForwarding"]}});
    site.router.ok(Api::DetachNetworkServiceFromL3Network, without).await;
    let words = "has no PortForwarding service";
    site.router.refuses(CREATE, single(&site, json!({"vmNicUuid": site.nic})), "SYS.1006", words).await;
}

#[tokio::test]
async fn a_vm_takes_rules_of_one_vip() {
    let site = Site::new().await;
    site.router.make(CREATE, single(&site, json!({"vmNicUuid": site.nic}))).await;
    site.router.make(CREATE, rule(&site, json!({"vmNicUuid": site.nic}))).await;
    let other = site.router.vip(&site.public).await;
    let more = json!({"vipUuid": other, "vmNicUuid": site.nic});
    site.router.refuses(CREATE, single(&site, more), "SYS.1006", "of another VIP").await;
    let free = site.router.make(CREATE, single(&site, json!({"vipUuid": other}))).await;
    let to = json!({"ruleUuid": free, "vmNicUuid": site.nic});
    site.router.refuses(ATTACH, to, "SYS.1006", "of another VIP").await;
}

#[tokio::test]
async fn candidates_are_nics_that_could_be_attached() {
    let site = Site::new().await;
    let candidates = async |rule: &str| {
        let outcome = site.router.ok(Api::GetPortForwardingAttachableVmNics, json!({"ruleUuid": rule})).await;
        match outcome.reply {
            Reply::Inventories(Resource::VmNic, nics) => nics,
            other => panic!("{other:?}"),
        }
    };
    let (stopped, second) = site.router.vm(&site.guest).await;
    site.router.ok(Api::StopVmInstance, json!({"uuid": stopped})).await;
    site.router.vm(&site.public).await;
    let elsewhere = site.router.network("eth1", "10.9.0.0/24").await;
    site.router.vm(&elsewhere).await;
    let uuid = site.router.make(CREATE, rule(&site, json!({}))).await;
    let mut both = vec![site.nic.clone(), second.clone()];
    both.sort();
    let mut found = candidates(&uuid).await;
    found.sort();
    assert_eq!(found, both);

    // Private ports that one has already.
    let taken = json!({"vipPortStart": 5, "privatePortStart": 2005, "vmNicUuid": site.nic});
    let taken = site.router.make(CREATE, single(&site, taken)).await;
    assert_eq!(candidates(&uuid).await, std::slice::from_ref(&second));
    assert!(candidates(&taken).await.is_empty(), "attached");
    let udp = site.router.make(CREATE, rule(&site, json!({"protocolType": "UDP"}))).await;
    assert_eq!(candidates(&udp).await.len(), 2);

    // A VM with rules of another VIP.
    let other = site.router.vip(&site.public).await;
    let other = site.router.make(CREATE, rule(&site, json!({"vipUuid": other}))).await;
    assert_eq!(candidates(&other).await, std::slice::from_ref(&second));
    let to = json!({"ruleUuid": other, "vmNicUuid": second});
    site.router.ok(ATTACH, to).await;
    assert!(candidates(&uuid).await.is_empty());
}

#[tokio::test]
async fn name_and_description_change_and_nothing_else() {
    let site = Site::new().await;
    let uuid = site.router.make(CREATE, rule(&site, json!({"description": "old"}))).await;
    site.router.ok(Api::UpdatePortForwardingRule, json!({"uuid": uuid, "name": "new", "vipPortStart": 1})).await;
    let sql = "SELECT name || ' ' || description FROM port_forwarding_rules WHERE uuid = $1";
    assert_eq!(site.router.text(sql, &uuid).await, "new old");
    assert_eq!(ports(&site.router, &uuid).await, "2000-2009 2000-2009");
}
