//! The rules on a real store: each test is one rule or one error of the API. Calls go through the table of calls, as from
//! the REST layer, and SQL reads what they stored.

mod accounts;
mod dispatch;
mod eips;
mod invariants;
mod lifecycle;
mod listeners;
mod names;
mod networks;
mod port_forwarding;
mod source_nat;
mod tags;
mod vip_qos;
mod vips;
mod vms;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use vipgate_api::{Api, ApiError, Reply, calls, request};
use vipgate_state::Devices;

use super::{Caller, Outcome, call};
use crate::store::{Store, Tx};

/// A valid uuid of no resource.
const UNKNOWN: &str = "0123456789ab4def8123456789abcdef";
const VROUTER: &str = "9f1c5d0e7a3b4c68a2d4e5f60718293a";

/// A router with two devices and some addresses on each.
struct TwoDevices;

impl Devices for TwoDevices {
    fn api(&self) -> Option<SocketAddr> {
        Some(SocketAddr::from(([0, 0, 0, 0], 8443)))
    }

    fn list(&self) -> Vec<String> {
        ["eth0", "eth1"].map(str::to_owned).into()
    }

    fn addresses_by_device(&self) -> Vec<(String, IpAddr)> {
        let eth0 = [[10, 7, 0, 3], [192, 0, 2, 1], [10, 0, 2, 1]].map(|address| ("eth0".to_owned(), address.into()));
        eth0.into_iter().chain([("eth1".to_owned(), [10, 0, 1, 1].into())]).collect()
    }
}

/// A router with its store.
struct Router {
    store: Store,
    _dir: TempDir,
}

impl Router {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite://{}/vipgate.db", dir.path().display())).await.unwrap();
        Self { store, _dir: dir }
    }

    /// One call as the REST layer makes it: checked by its row, run in one transaction, committed if it succeeds.
    async fn call(&self, api: Api, arguments: Value) -> Result<Outcome, ApiError> {
        let caller = Caller { account_uuid: "36c27e8ff05c4780bf6d2fa65700f22e".into(), admin: true };
        self.call_as(&caller, api, arguments).await
    }

    async fn call_as(&self, caller: &Caller, api: Api, arguments: Value) -> Result<Outcome, ApiError> {
        let Value::Object(mut arguments) = arguments else { panic!("arguments are an object") };
        let row = calls::of(api).unwrap();
        request::check(row, &mut arguments)?;
        let mut tx = self.store.begin().await.unwrap();
        let outcome = call(&mut tx, caller, &TwoDevices, api, arguments).await?;
        tx.commit().await.unwrap();
        Ok(outcome)
    }

    /// A call that succeeds.
    async fn ok(&self, api: Api, arguments: Value) -> Outcome {
        self.call(api, arguments).await.unwrap_or_else(|error| panic!("{}: {error}", api.name()))
    }

    /// A call that succeeds and answers with one inventory: its uuid.
    async fn make(&self, api: Api, arguments: Value) -> String {
        match self.ok(api, arguments).await.reply {
            Reply::Inventory(_, uuid) => uuid,
            other => panic!("{} answers {other:?}", api.name()),
        }
    }

    /// A call that fails with that code, with these words in its details, and leaves nothing behind.
    async fn refuses(&self, api: Api, arguments: Value, code: &str, words: &str) {
        let before = self.everything().await;
        let error = self.call(api, arguments).await.expect_err(api.name());
        assert_eq!(error.code.as_str(), code, "{error}");
        assert!(error.details.contains(words), "`{words}` is not in: {error}");
        assert_eq!(self.everything().await, before, "{} left something behind", api.name());
    }

    async fn read(&self) -> Tx {
        self.store.read().await.unwrap()
    }

    /// The texts that a statement returns.
    async fn texts(&self, sql: &'static str, value: &str) -> Vec<String> {
        sqlx::query_scalar(sql).bind(value).fetch_all(self.read().await.conn()).await.unwrap()
    }

    async fn text(&self, sql: &'static str, value: &str) -> String {
        self.texts(sql, value).await.pop().expect(sql)
    }

    /// How many rows the big tables have, and all that calls can change in place.
    async fn everything(&self) -> Vec<String> {
        self.texts(
            "SELECT 'resource ' || uuid FROM resources WHERE $1 = ''
             UNION ALL SELECT 'address ' || ip FROM used_ips
             UNION ALL SELECT 'tag ' || uuid || tag FROM system_tags
             UNION ALL SELECT 'vip ' || uuid || state || IFNULL(use_for, '') || name FROM vips
             UNION ALL SELECT 'peer ' || vip_uuid || l3_network_uuid FROM vip_peer_l3_networks
             UNION ALL SELECT 'balancer ' || uuid || IFNULL(provider_type, '') FROM load_balancers
             UNION ALL SELECT 'ref ' || listener_uuid || vm_nic_uuid || status FROM load_balancer_listener_vm_nic_refs
             UNION ALL SELECT 'rule ' || uuid || name || state || IFNULL(vm_nic_uuid, '') FROM port_forwarding_rules
             UNION ALL SELECT 'eip ' || uuid || name || state || IFNULL(vm_nic_uuid, '') FROM eips
             UNION ALL SELECT 'way out ' || l3_network_uuid || vip_uuid FROM source_nats
             UNION ALL SELECT 'limit ' || uuid FROM vip_qos
             UNION ALL SELECT 'dns ' || dns FROM l3_network_dns
             UNION ALL SELECT 'service ' || network_service_type FROM network_service_l3_network_refs",
            "",
        )
        .await
    }

    async fn zone(&self) -> String {
        self.make(Api::CreateZone, json!({"name": "zone"})).await
    }

    async fn l2(&self, zone: &str, device: &str) -> String {
        let arguments = json!({"name": "wire", "zoneUuid": zone, "physicalInterface": device});
        self.make(Api::CreateL2NoVlanNetwork, arguments).await
    }

    async fn l3(&self, l2: &str) -> String {
        self.make(Api::CreateL3Network, json!({"name": "net", "l2NetworkUuid": l2})).await
    }

    /// A network with addresses `cidr` and every service that is offered, on a device, in a zone of its own.
    async fn network(&self, device: &str, cidr: &str) -> String {
        let zone = self.zone().await;
        self.network_in(&zone, device, cidr).await
    }

    async fn network_in(&self, zone: &str, device: &str, cidr: &str) -> String {
        let l2 = self.l2(zone, device).await;
        let l3 = self.l3(&l2).await;
        let range = json!({"l3NetworkUuid": l3, "name": "range", "networkCidr": cidr});
        self.make(Api::AddIpRangeByNetworkCidr, range).await;
        let services =
            json!({"l3NetworkUuid": l3, "networkServices": {VROUTER: ["LoadBalancer", "PortForwarding", "Eip"]}});
        self.make(Api::AttachNetworkServiceToL3Network, services).await;
        l3
    }

    async fn vip(&self, l3: &str) -> String {
        self.make(Api::CreateVip, json!({"name": "vip", "l3NetworkUuid": l3})).await
    }

    async fn balancer(&self, vip: &str) -> String {
        self.make(Api::CreateLoadBalancer, json!({"name": "lb", "vipUuid": vip})).await
    }

    async fn listener(&self, balancer: &str, port: u16) -> String {
        let arguments = json!({"name": "listener", "loadBalancerUuid": balancer, "loadBalancerPort": port});
        self.make(Api::CreateLoadBalancerListener, arguments).await
    }

    /// A running VM with one NIC: the uuids of both.
    async fn vm(&self, l3: &str) -> (String, String) {
        let vm = self.make(Api::CreateVmInstance, json!({"name": "vm", "l3NetworkUuids": [l3]})).await;
        let nic = self.text("SELECT uuid FROM vm_nics WHERE vm_instance_uuid = $1", &vm).await;
        (vm, nic)
    }

    async fn add_nic(&self, listener: &str, nic: &str) -> Outcome {
        self.ok(Api::AddVmNicToLoadBalancer, json!({"listenerUuid": listener, "vmNicUuids": [nic]})).await
    }

    async fn status(&self, nic: &str) -> String {
        self.text("SELECT status FROM load_balancer_listener_vm_nic_refs WHERE vm_nic_uuid = $1", nic).await
    }
}

/// What most tests need: a public network with a VIP, its load balancer and a listener on tcp port 80, a guest network
/// with a running VM.
struct Site {
    router: Router,
    public: String,
    guest: String,
    vip: String,
    balancer: String,
    listener: String,
    vm: String,
    nic: String,
}

impl Site {
    async fn new() -> Self {
        let router = Router::new().await;
        let zone = router.zone().await;
        let public = router.network_in(&zone, "eth0", "192.0.2.0/24").await;
        let guest = router.network_in(&zone, "eth1", "10.0.0.0/24").await;
        let vip = router.vip(&public).await;
        let balancer = router.balancer(&vip).await;
        let listener = router.listener(&balancer, 80).await;
        let (vm, nic) = router.vm(&guest).await;
        Self { router, public, guest, vip, balancer, listener, vm, nic }
    }

    fn vips(&self) -> BTreeSet<String> {
        [self.vip.clone()].into()
    }
}

fn with(arguments: Value, more: Value) -> Value {
    let (Value::Object(mut all), Value::Object(more)) = (arguments, more) else { panic!("both are objects") };
    all.extend::<Map<_, _>>(more);
    Value::Object(all)
}
