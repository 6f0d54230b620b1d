//! A store for tests: what is desired is what the test says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex},
};

use vipgate_state::{
    Algorithm, BackendState, ElasticState, HealthCheck, ListenerState, MasqueradeState, Protocol, Source, VipState,
};

#[derive(Clone, Debug, Default)]
pub(crate) struct Desired {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    vips: BTreeMap<String, VipState>,
    devices: BTreeSet<String>,
    broken: bool,
    /// A VIP that cannot be read.
    spoilt: Option<String>,
}

/// A store that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the disk is on fire")]
pub(crate) struct Broken;

impl Desired {
    /// Nothing but these devices.
    pub(crate) fn with_devices(devices: &[&str]) -> Self {
        let desired = Self::default();
        desired.set_devices(devices);
        desired
    }

    pub(crate) fn set_devices(&self, devices: &[&str]) {
        self.inner.lock().expect("whole").devices = devices.iter().map(ToString::to_string).collect();
    }

    pub(crate) fn put(&self, vip: VipState) {
        self.inner.lock().expect("whole").vips.insert(vip.uuid.clone(), vip);
    }

    /// Makes every read fail, or work again.
    pub(crate) fn set_broken(&self, broken: bool) {
        self.inner.lock().expect("whole").broken = broken;
    }

    /// Makes every read of this VIP fail, or of none.
    pub(crate) fn spoil(&self, uuid: Option<&str>) {
        self.inner.lock().expect("whole").spoilt = uuid.map(str::to_owned);
    }

    fn read<T>(&self, of: impl FnOnce(&Inner) -> T) -> Result<T, Broken> {
        let inner = self.inner.lock().expect("whole");
        if inner.broken { Err(Broken) } else { Ok(of(&inner)) }
    }

    pub(crate) fn remove(&self, uuid: &str) {
        self.inner.lock().expect("whole").vips.remove(uuid);
    }
}

impl Source for Desired {
    type Error = Broken;

    async fn vips_of(&self, uuids: &[String]) -> Result<Vec<VipState>, Broken> {
        self.read(|inner| {
            let is_spoilt = inner.spoilt.as_ref().is_some_and(|spoilt| uuids.contains(spoilt));
            let found = uuids.iter().filter_map(|uuid| inner.vips.get(uuid).cloned()).collect();
            if is_spoilt { Err(Broken) } else { Ok(found) }
        })?
    }

    async fn vips(&self) -> Result<Vec<VipState>, Broken> {
        self.read(|inner| inner.vips.values().cloned().collect())
    }

    async fn devices(&self) -> Result<BTreeSet<String>, Broken> {
        self.read(|inner| inner.devices.clone())
    }
}

/// A VIP 10.0.0.`host` on `device` with one TCP listener on port 80, number `host`, whose backends are
/// 10.0.1.`n`:8080 with the number `host * 10 + n`.
pub(crate) fn vip(host: u8, device: &str, backends: impl IntoIterator<Item = u8>) -> VipState {
    let backend = |n: u8| BackendState {
        number: u32::from(host) * 10 + u32::from(n),
        address: IpAddr::from([10, 0, 1, n]),
        port: 8080,
        device: "r1".to_owned(),
        active: true,
        weight: 100,
        healthy: true,
    };
    VipState {
        uuid: format!("vip-{host}"),
        address: IpAddr::from([10, 0, 0, host]),
        prefix_len: 24,
        device: device.to_owned(),
        enabled: true,
        listeners: vec![ListenerState {
            uuid: format!("listener-{host}"),
            account: "account".into(),
            number: u32::from(host),
            protocol: Protocol::Tcp,
            port: 80,
            algorithm: Algorithm::RoundRobin,
            max_connections: 0,
            idle_timeout: 60,
            check: HealthCheck::default(),
            backends: backends.into_iter().map(backend).collect(),
        }],
        forwards: vec![],
        own: false,
        elastic: None,
        masquerades: vec![],
        limits: vec![],
    }
}

/// A VIP 10.0.0.`host` on `device` that is the guest's 10.0.1.`guest`, number and backend `host`.
pub(crate) fn elastic(host: u8, device: &str, guest: u8) -> VipState {
    let number = u32::from(host);
    let guest = IpAddr::from([10, 0, 1, guest]);
    let elastic = ElasticState {
        uuid: format!("eip-{host}"),
        number,
        backend: number,
        guest,
        device: "r1".to_owned(),
        leads: true,
    };
    VipState { listeners: vec![], elastic: Some(elastic), ..vip(host, device, []) }
}

/// The router's own address 10.0.0.1 on `device`, by which a network goes out, number and backend 200.
pub(crate) fn own(device: &str, network: &str) -> VipState {
    let network = network.parse().expect("a network");
    let masquerade =
        MasqueradeState { uuid: "l3".to_owned(), number: 200, backend: 200, network, device: "r1".to_owned() };
    VipState { own: true, listeners: vec![], masquerades: vec![masquerade], ..vip(1, device, []) }
}
