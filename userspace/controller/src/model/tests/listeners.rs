//! Load balancers and listeners.

use serde_json::{Value, json};
use vipgate_api::{Api, Reply, Resource};
use vipgate_state::{Algorithm, Capacity, Protocol, Source};

use super::{Site, UNKNOWN, VROUTER, with};
use crate::model::applied;

const CREATE: Api = Api::CreateLoadBalancerListener;
const ADD: Api = Api::AddVmNicToLoadBalancer;

fn listener(balancer: &str, more: Value) -> Value {
    with(json!({"name": "listener", "loadBalancerUuid": balancer, "loadBalancerPort": 443}), more)
}

#[tokio::test]
async fn protocol_is_tcp_and_the_instance_port_the_same_unless_told() {
    let site = Site::new().await;
    let sql = "SELECT protocol || ' ' || load_balancer_port || ' ' || instance_port
               FROM load_balancer_listeners WHERE uuid = $1";
    assert_eq!(site.router.text(sql, &site.listener).await, "tcp 80 80");
    let other = listener(&site.balancer, json!({"instancePort": 8443, "protocol": "UDP"}));
    let other = site.router.make(CREATE, other).await;
    assert_eq!(site.router.text(sql, &other).await, "udp 443 8443");
}

#[tokio::test]
async fn ports_are_from_1_to_65535() {
    let site = Site::new().await;
    for more in [json!({"loadBalancerPort": 0}), json!({"loadBalancerPort": 65536}), json!({"loadBalancerPort": -1})] {
        site.router.refuses(CREATE, listener(&site.balancer, more), "SYS.1007", "loadBalancerPort").await;
    }
    for more in [json!({"instancePort": 0}), json!({"instancePort": 65536})] {
        site.router.refuses(CREATE, listener(&site.balancer, more), "SYS.1007", "instancePort").await;
    }
    let without = json!({"name": "listener", "loadBalancerUuid": site.balancer});
    site.router.refuses(CREATE, without, "SYS.1007", "loadBalancerPort").await;
}

#[tokio::test]
async fn a_listener_needs_its_load_balancer() {
    let site = Site::new().await;
    let words = "field[loadBalancerUuid]";
    site.router.refuses(CREATE, listener(UNKNOWN, json!({})), "SYS.1003", words).await;
}

#[tokio::test]
async fn protocols_and_certificates_that_are_not_served_are_not_stored() {
    let site = Site::new().await;
    for protocol in ["http", "https"] {
        let arguments = listener(&site.balancer, json!({"protocol": protocol}));
        site.router.refuses(CREATE, arguments, "SYS.1014", "not served yet").await;
    }
    site.router.refuses(CREATE, listener(&site.balancer, json!({"protocol": "sctp"})), "SYS.1007", "protocol").await;
    let certificate = listener(&site.balancer, json!({"certificateUuid": UNKNOWN}));
    site.router.refuses(CREATE, certificate, "SYS.1014", "certificates are not served yet").await;
}

#[tokio::test]
async fn udp_port_53_is_the_routers_own() {
    let site = Site::new().await;
    let udp = |port: u16| listener(&site.balancer, json!({"loadBalancerPort": port, "protocol": "udp"}));
    site.router.refuses(CREATE, udp(53), "SYS.1007", "udp port 53").await;
    site.router.make(CREATE, udp(54)).await;
    site.router.make(CREATE, listener(&site.balancer, json!({"loadBalancerPort": 53}))).await;
}

#[tokio::test]
async fn a_port_is_taken_once_per_protocol_on_a_vip() {
    let site = Site::new().await;
    let other = site.router.balancer(&site.vip).await;
    let on = |balancer: &str, protocol: &str| listener(balancer, json!({"loadBalancerPort": 80, "protocol": protocol}));
    site.router.refuses(CREATE, on(&site.balancer, "tcp"), "SYS.1007", "has tcp port 80 already").await;
    let words = "Current port range [80,80] is conflicted";
    site.router.refuses(CREATE, on(&other, "tcp"), "SYS.1006", words).await;
    site.router.make(CREATE, on(&other, "udp")).await;
    site.router.refuses(CREATE, on(&site.balancer, "udp"), "SYS.1006", words).await;

    let elsewhere = site.router.vip(&site.public).await;
    let elsewhere = site.router.balancer(&elsewhere).await;
    site.router.make(CREATE, on(&elsewhere, "tcp")).await;
}

#[tokio::test]
async fn settings_come_as_tags_and_the_missing_ones_by_default() {
    let site = Site::new().await;
    let tags = json!({"systemTags": ["balancerAlgorithm::source", "connectionIdleTimeout::7"]});
    let uuid = site.router.make(CREATE, listener(&site.balancer, tags)).await;
    let mut stored = site.router.texts("SELECT tag FROM system_tags WHERE resource_uuid = $1", &uuid).await;
    stored.sort();
    assert_eq!(
        stored,
        [
            "balancerAlgorithm::source",
            "connectionIdleTimeout::7",
            "healthCheckInterval::5",
            "healthCheckTarget::tcp:default",
            "healthCheckTimeout::2",
            "healthyThreshold::2",
            "maxConnection::5000",
            "unhealthyThreshold::2",
        ]
    );
    let vip = site.router.store.vip(&site.vip).await.unwrap().unwrap();
    let state = vip.listeners.iter().find(|state| state.uuid == uuid).unwrap();
    assert_eq!((state.algorithm, state.idle_timeout, state.max_connections), (Algorithm::Source, 7, 5000));
}

#[tokio::test]
async fn bad_settings_are_refused() {
    let site = Site::new().await;
    for tag in [
        "balancerAlgorithm::random",
        "maxConnection::x",
        "healthCheckTarget::icmp:1",
        "healthCheckTimeout::61",
        "stickiness::on",
    ] {
        let arguments = listener(&site.balancer, json!({"systemTags": [tag]}));
        site.router.refuses(CREATE, arguments, "SYS.1007", tag).await;
    }
}

#[tokio::test]
async fn a_timeout_that_an_earlier_version_took_is_the_longest_there_is() {
    let site = Site::new().await;
    for (before, after) in [("3600", "60"), ("61", "60"), ("60", "60"), ("9", "9")] {
        let mut tx = site.router.store.begin().await.unwrap();
        sqlx::query("UPDATE system_tags SET tag = 'healthCheckTimeout::' || $1 WHERE tag LIKE 'healthCheckTimeout::%'")
            .bind(before)
            .execute(tx.conn())
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let vip = site.router.store.vip(&site.vip).await.unwrap().unwrap();
        assert_eq!(vip.listeners[0].check.timeout.to_string(), after, "{before}");
    }
}

#[tokio::test]
async fn what_is_checked_is_whose_listener_it_is_by_its_nics_device() {
    let site = Site::new().await;
    site.router.add_nic(&site.listener, &site.nic).await;
    let vip = site.router.store.vip(&site.vip).await.unwrap().unwrap();
    let (listener, backend) = (&vip.listeners[0], &vip.listeners[0].backends[0]);
    let owner = "SELECT account_uuid FROM resources WHERE uuid = $1";
    assert_eq!(listener.account, site.router.text(owner, &site.listener).await);
    let device = "SELECT d.physical_interface FROM vm_nics n JOIN l3_networks l ON l.uuid = n.l3_network_uuid
                  JOIN l2_networks d ON d.uuid = l.l2_network_uuid WHERE n.uuid = $1";
    assert_eq!(backend.device, site.router.text(device, &site.nic).await);
    assert_ne!(backend.device, vip.device, "they are behind another device than the VIP");
}

#[tokio::test]
async fn an_added_nic_is_pending_until_the_kernel_holds_it() {
    let site = Site::new().await;
    let outcome = site.router.add_nic(&site.listener, &site.nic).await;
    assert_eq!(outcome.reply, Reply::Inventory(Resource::Listener, site.listener.clone()));
    assert_eq!(outcome.vips, site.vips());
    assert_eq!(site.router.status(&site.nic).await, "Pending");

    let mut tx = site.router.store.begin().await.unwrap();
    applied(&mut tx, &outcome.vips).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(site.router.status(&site.nic).await, "Active");
}

#[tokio::test]
async fn a_nic_of_a_stopped_vm_is_inactive_at_once() {
    let site = Site::new().await;
    site.router.ok(Api::StopVmInstance, json!({"uuid": site.vm})).await;
    site.router.add_nic(&site.listener, &site.nic).await;
    assert_eq!(site.router.status(&site.nic).await, "Inactive");
}

#[tokio::test]
async fn nics_that_can_not_be_added_are_refused_together_with_the_others() {
    let site = Site::new().await;
    let nics = |nics: &[&str]| json!({"listenerUuid": site.listener, "vmNicUuids": nics});
    site.router.refuses(ADD, nics(&[]), "SYS.1007", "vmNicUuids").await;
    site.router.refuses(ADD, nics(&[&site.nic, UNKNOWN]), "SYS.1003", "field[vmNicUuids]").await;
    site.router.refuses(ADD, nics(&[&site.nic, &site.nic]), "SYS.1006", "already").await;
    let elsewhere = json!({"listenerUuid": UNKNOWN, "vmNicUuids": [site.nic]});
    site.router.refuses(ADD, elsewhere, "SYS.1003", "field[listenerUuid]").await;
    site.router.add_nic(&site.listener, &site.nic).await;
    site.router.refuses(ADD, nics(&[&site.nic]), "SYS.1006", "is on listener").await;
}

#[tokio::test]
async fn a_nic_needs_the_load_balancer_service_on_its_network() {
    let site = Site::new().await;
    let services = json!({"l3NetworkUuid": site.guest, "networkServices": {VROUTER: ["LoadBalancer"]}});
    site.router.ok(Api::DetachNetworkServiceFromL3Network, services).await;
    let arguments = json!({"listenerUuid": site.listener, "vmNicUuids": [site.nic]});
    site.router.refuses(ADD, arguments, "SYS.1006", "has no LoadBalancer service").await;
}

#[tokio::test]
async fn the_first_nic_fixes_the_provider_of_the_load_balancer() {
    let site = Site::new().await;
    site.router.add_nic(&site.listener, &site.nic).await;
    let (_, other) = site.router.vm(&site.guest).await;
    let mut tx = site.router.store.begin().await.unwrap();
    sqlx::query("UPDATE load_balancers SET provider_type = 'Flat'").execute(tx.conn()).await.unwrap();
    tx.commit().await.unwrap();
    let arguments = json!({"listenerUuid": site.listener, "vmNicUuids": [other]});
    site.router.refuses(ADD, arguments, "SYS.1006", "is served by provider Flat").await;
}

#[tokio::test]
async fn removing_nics_passes_over_those_that_are_not_there() {
    let site = Site::new().await;
    site.router.add_nic(&site.listener, &site.nic).await;
    let (_, other) = site.router.vm(&site.guest).await;
    let arguments = json!({"listenerUuid": site.listener, "vmNicUuids": [site.nic, other]});
    for _ in 0..2 {
        let outcome = site.router.ok(Api::RemoveVmNicFromLoadBalancer, arguments.clone()).await;
        assert_eq!(outcome.reply, Reply::Inventory(Resource::LoadBalancer, site.balancer.clone()));
        assert_eq!(outcome.vips, site.vips());
    }
    let vip = site.router.store.vip(&site.vip).await.unwrap().unwrap();
    assert!(vip.listeners[0].backends.is_empty());
    let unknown = json!({"listenerUuid": site.listener, "vmNicUuids": [UNKNOWN]});
    site.router.refuses(Api::RemoveVmNicFromLoadBalancer, unknown, "SYS.1003", "field[vmNicUuids]").await;
}

#[tokio::test]
async fn candidates_are_nics_on_networks_with_the_service_that_are_not_on_the_listener() {
    let site = Site::new().await;
    let (_, other) = site.router.vm(&site.guest).await;
    let stopped = json!({"name": "vm", "l3NetworkUuids": [site.guest], "strategy": "CreateStopped"});
    site.router.make(Api::CreateVmInstance, stopped).await;
    site.router.add_nic(&site.listener, &site.nic).await;
    let candidates = async || {
        let api = Api::GetCandidateVmNicsForLoadBalancer;
        match site.router.ok(api, json!({"listenerUuid": site.listener})).await.reply {
            Reply::Inventories(Resource::VmNic, nics) => nics,
            other => panic!("{other:?}"),
        }
    };
    let found = candidates().await;
    assert!(found.len() == 2 && found.contains(&other) && !found.contains(&site.nic), "{found:?}");
    let services = json!({"l3NetworkUuid": site.guest, "networkServices": {VROUTER: ["LoadBalancer"]}});
    site.router.ok(Api::DetachNetworkServiceFromL3Network, services).await;
    assert!(candidates().await.is_empty());
}

#[tokio::test]
async fn deleting_a_listener_answers_with_its_load_balancer_and_fails_where_there_is_none() {
    let site = Site::new().await;
    let outcome = site.router.ok(Api::DeleteLoadBalancerListener, json!({"uuid": site.listener})).await;
    assert_eq!(outcome.reply, Reply::Inventory(Resource::LoadBalancer, site.balancer.clone()));
    assert_eq!(outcome.vips, site.vips());
    let again = json!({"uuid": site.listener});
    let words = "LoadBalancerListenerVO] not found";
    site.router.refuses(Api::DeleteLoadBalancerListener, again, "SYS.1003", words).await;
}

#[tokio::test]
async fn what_the_kernels_tables_can_not_hold_is_refused() {
    let mut site = Site::new().await;
    let capacity = Capacity { services: 3, backends: 3, backends_per_listener: 1, ..Capacity::default() };
    site.router.store = site.router.store.with_capacity(capacity);
    let other = site.router.listener(&site.balancer, 81).await;
    let third = listener(&site.balancer, json!({}));
    site.router.refuses(CREATE, third, "SYS.1006", "all 2 service numbers are in use").await;

    let (_, nic) = site.router.vm(&site.guest).await;
    let both = json!({"listenerUuid": site.listener, "vmNicUuids": [site.nic, nic]});
    site.router.refuses(ADD, both, "SYS.1006", "would have 2 VM NICs, at most 1").await;
    site.router.add_nic(&site.listener, &site.nic).await;
    site.router.add_nic(&other, &site.nic).await;
    let balancer = site.router.balancer(&site.vip).await;
    site.router.ok(Api::DeleteLoadBalancerListener, json!({"uuid": other})).await;
    // After the highest number, freed ones are taken again.
    let other = site.router.listener(&balancer, 81).await;
    site.router.add_nic(&other, &nic).await;
}

#[tokio::test]
async fn deleting_an_unknown_load_balancer_succeeds() {
    let site = Site::new().await;
    assert_eq!(site.router.ok(Api::DeleteLoadBalancer, json!({"uuid": UNKNOWN})).await.reply, Reply::Empty);
}

#[tokio::test]
async fn refreshing_applies_the_vip_again() {
    let site = Site::new().await;
    let outcome = site.router.ok(Api::RefreshLoadBalancer, json!({"uuid": site.balancer})).await;
    assert_eq!(outcome.reply, Reply::Inventory(Resource::LoadBalancer, site.balancer.clone()));
    assert_eq!(outcome.vips, site.vips());
    site.router.refuses(Api::RefreshLoadBalancer, json!({"uuid": UNKNOWN}), "SYS.1003", "LoadBalancerVO").await;
}

#[tokio::test]
async fn names_and_descriptions_can_be_changed() {
    let site = Site::new().await;
    let to = |uuid: &str| json!({"uuid": uuid, "name": "new", "description": "words"});
    site.router.ok(Api::UpdateLoadBalancer, to(&site.balancer)).await;
    site.router.ok(Api::UpdateLoadBalancerListener, to(&site.listener)).await;
    for (sql, uuid) in [
        ("SELECT name || description FROM load_balancers WHERE uuid = $1", &site.balancer),
        ("SELECT name || description FROM load_balancer_listeners WHERE uuid = $1", &site.listener),
    ] {
        assert_eq!(site.router.text(sql, uuid).await, "newwords");
    }
    let api = Api::UpdateLoadBalancerListener;
    site.router.refuses(api, to(UNKNOWN), "SYS.1003", "LoadBalancerListenerVO] not found").await;
}

#[tokio::test]
async fn a_router_of_ones_own_is_refused() {
    let site = Site::new().await;
    let arguments = json!({"name": "lb", "vipUuid": site.vip, "systemTags": ["separateVirtualRouterVm"]});
    site.router.refuses(Api::CreateLoadBalancer, arguments, "SYS.1014", "separateVirtualRouterVm").await;
    let arguments = json!({"name": "lb", "vipUuid": site.vip, "systemTags": ["other"]});
    site.router.refuses(Api::CreateLoadBalancer, arguments, "SYS.1007", "no system tag matches [other]").await;
}

#[tokio::test]
async fn the_state_of_a_vip_is_what_its_calls_made() {
    let site = Site::new().await;
    site.router.add_nic(&site.listener, &site.nic).await;
    let vip_ip = site.router.text("SELECT ip FROM vips WHERE uuid = $1", &site.vip).await;
    let nic_ip = site.router.text("SELECT ip FROM vm_nics WHERE uuid = $1", &site.nic).await;
    let state = site.router.store.vip(&site.vip).await.unwrap().unwrap();
    assert_eq!(site.router.store.vips().await.unwrap(), std::slice::from_ref(&state));
    assert_eq!((state.address.to_string(), state.prefix_len, state.device.as_str()), (vip_ip, 24, "eth0"));
    assert!(state.enabled);
    let [listener] = state.listeners.as_slice() else { panic!("one listener") };
    assert_eq!((listener.protocol, listener.port, listener.algorithm), (Protocol::Tcp, 80, Algorithm::RoundRobin));
    let [backend] = listener.backends.as_slice() else { panic!("one backend") };
    assert_eq!((backend.address.to_string(), backend.port, backend.active), (nic_ip, 80, true));
    assert!(listener.number > 0 && backend.number > 0);

    site.router.ok(Api::StopVmInstance, json!({"uuid": site.vm})).await;
    site.router.ok(Api::ChangeVipState, json!({"uuid": site.vip, "stateEvent": "disable"})).await;
    let state = site.router.store.vip(&site.vip).await.unwrap().unwrap();
    assert!(!state.enabled && !state.listeners[0].backends[0].active);
}
