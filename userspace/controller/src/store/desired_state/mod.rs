//! The desired state of the router, read from SQL: [`Source`] for the reconciler. Reading some or all VIPs takes eight
//! statements, whose cost is that of the rows found.

mod statements;

use std::collections::{BTreeSet, HashMap};

use ipnet::ip_mask_to_prefix;
use serde_json::json;
use sqlx::{FromRow, sqlite::SqliteRow};
use vipgate_api::listener_tag::{self, DEFAULT_WEIGHT};
use vipgate_state::{
    BackendState, ElasticState, ForwardState, LimitState, ListenerState, MasqueradeState, Protocol, Source, VipState,
};

use self::statements::{ALL, LISTED, Statements};
use super::{Error, Result, Store, Tx, balancing::Balancing, error::parse};

impl Source for Store {
    type Error = Error;

    async fn vips_of(&self, uuids: &[String]) -> Result<Vec<VipState>> {
        Rows::read(self, &LISTED, Some(json!(uuids).to_string())).await?.join()
    }

    async fn vips(&self) -> Result<Vec<VipState>> {
        Rows::read(self, &ALL, None).await?.join()
    }

    async fn devices(&self) -> Result<BTreeSet<String>> {
        let mut tx = self.look().await?;
        let devices: Vec<String> = sqlx::query_scalar(
            "SELECT DISTINCT n.physical_interface FROM l2_networks n
             WHERE EXISTS (SELECT 1 FROM l3_networks l WHERE l.l2_network_uuid = n.uuid)",
        )
        .fetch_all(tx.conn())
        .await?;
        Ok(devices.into_iter().collect())
    }
}

async fn fetch<T>(tx: &mut Tx, statement: &'static str, listed: Option<&str>) -> Result<Vec<T>>
where
    T: for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
{
    let query = sqlx::query_as(statement);
    let query = match listed {
        Some(listed) => query.bind(listed),
        None => query,
    };
    Ok(query.fetch_all(tx.conn()).await?)
}

#[derive(FromRow)]
struct VipRow {
    uuid: String,
    ip: String,
    netmask: String,
    state: String,
    own: bool,
    physical_interface: String,
}

#[derive(FromRow)]
struct ListenerRow {
    vip_uuid: String,
    uuid: String,
    account_uuid: String,
    number: u32,
    protocol: String,
    load_balancer_port: u16,
    instance_port: u16,
}

#[derive(FromRow)]
struct TagRow {
    resource_uuid: String,
    tag: String,
}

#[derive(FromRow)]
struct BackendRow {
    listener_uuid: String,
    vm_nic_uuid: String,
    number: u32,
    ip: String,
    physical_interface: String,
    running: bool,
    healthy: bool,
}

#[derive(FromRow)]
struct ForwardRow {
    vip_uuid: String,
    uuid: String,
    service_number: u32,
    backend_number: u32,
    protocol_type: String,
    vip_port_start: u16,
    vip_port_end: u16,
    private_port_start: u16,
    allowed_cidr: String,
    ip: String,
    physical_interface: String,
}

#[derive(FromRow)]
struct ElasticRow {
    vip_uuid: String,
    uuid: String,
    service_number: u32,
    backend_number: u32,
    ip: String,
    physical_interface: String,
    leads: bool,
}

#[derive(FromRow)]
struct MasqueradeRow {
    vip_uuid: String,
    l3_network_uuid: String,
    service_number: u32,
    backend_number: u32,
    network_cidr: String,
    physical_interface: String,
}

#[derive(FromRow)]
struct LimitRow {
    vip_uuid: String,
    uuid: String,
    number: u32,
    port: Option<u16>,
    inbound_bandwidth: Option<u64>,
    outbound_bandwidth: Option<u64>,
}

struct Rows {
    vips: Vec<VipRow>,
    listeners: Vec<ListenerRow>,
    tags: Vec<TagRow>,
    backends: Vec<BackendRow>,
    forwards: Vec<ForwardRow>,
    elastic: Vec<ElasticRow>,
    masquerades: Vec<MasqueradeRow>,
    limits: Vec<LimitRow>,
}

impl Rows {
    async fn read(store: &Store, statements: &Statements, listed: Option<String>) -> Result<Self> {
        let (mut tx, listed) = (store.read().await?, listed.as_deref());
        let rows = Self {
            vips: fetch(&mut tx, statements.vips, listed).await?,
            listeners: fetch(&mut tx, statements.listeners, listed).await?,
            tags: fetch(&mut tx, statements.tags, listed).await?,
            backends: fetch(&mut tx, statements.backends, listed).await?,
            forwards: fetch(&mut tx, statements.forwards, listed).await?,
            elastic: fetch(&mut tx, statements.elastic, listed).await?,
            masquerades: fetch(&mut tx, statements.masquerades, listed).await?,
            limits: fetch(&mut tx, statements.limits, listed).await?,
        };
        // There is nothing to commit.
        tx.rollback().await?;
        Ok(rows)
    }

    fn join(self) -> Result<Vec<VipState>> {
        let mut backends = group(self.backends, |row| row.listener_uuid.clone());
        let mut tags = group(self.tags, |row| row.resource_uuid.clone());
        let mut listeners = group(self.listeners, |row| row.vip_uuid.clone());
        let mut forwards = group(self.forwards, |row| row.vip_uuid.clone());
        let mut elastic: HashMap<_, _> = self.elastic.into_iter().map(|row| (row.vip_uuid.clone(), row)).collect();
        let mut masquerades = group(self.masquerades, |row| row.vip_uuid.clone());
        let mut limits = group(self.limits, |row| row.vip_uuid.clone());
        self.vips
            .into_iter()
            .map(|vip| {
                let listeners = listeners
                    .remove(&vip.uuid)
                    .unwrap_or_default()
                    .into_iter()
                    .map(|row| {
                        let tags = tags.remove(&row.uuid).unwrap_or_default();
                        let backends = backends.remove(&row.uuid).unwrap_or_default();
                        listener(row, &tags, &backends)
                    })
                    .collect::<Result<_>>()?;
                let forwards = forwards.remove(&vip.uuid).unwrap_or_default();
                let masquerades = masquerades.remove(&vip.uuid).unwrap_or_default();
                let limits = limits.remove(&vip.uuid).unwrap_or_default();
                let netmask = parse("netmask", &vip.netmask, &vip.uuid)?;
                let prefix_len =
                    ip_mask_to_prefix(netmask).map_err(|_| Error::corrupt("netmask", &vip.netmask, &vip.uuid))?;
                Ok(VipState {
                    address: parse("address", &vip.ip, &vip.uuid)?,
                    prefix_len,
                    device: vip.physical_interface,
                    own: vip.own,
                    enabled: vip.state == "Enabled",
                    listeners,
                    forwards: forwards.into_iter().map(forward).collect::<Result<_>>()?,
                    elastic: elastic.remove(&vip.uuid).map(elastic_ip).transpose()?,
                    masquerades: masquerades.into_iter().map(masquerade).collect::<Result<_>>()?,
                    limits: limits.into_iter().map(limit).collect(),
                    uuid: vip.uuid,
                })
            })
            .collect()
    }
}

fn listener(row: ListenerRow, tags: &[TagRow], backends: &[BackendRow]) -> Result<ListenerState> {
    let mut balancing = Balancing::default();
    let weights: HashMap<&str, u8> = tags.iter().filter_map(|row| listener_tag::weight(&row.tag)).collect();
    for TagRow { tag, .. } in tags {
        balancing.set(tag).map_err(|_| Error::corrupt("tag", tag, &row.uuid))?;
    }
    let backends = backends
        .iter()
        .map(|backend| {
            Ok(BackendState {
                number: backend.number,
                address: parse("address", &backend.ip, &row.uuid)?,
                port: row.instance_port,
                device: backend.physical_interface.clone(),
                active: backend.running,
                weight: weights.get(backend.vm_nic_uuid.as_str()).copied().unwrap_or(DEFAULT_WEIGHT),
                healthy: backend.healthy,
            })
        })
        .collect::<Result<_>>()?;
    Ok(ListenerState {
        number: row.number,
        protocol: protocol(&row.protocol, &row.uuid)?,
        port: row.load_balancer_port,
        algorithm: balancing.algorithm,
        max_connections: balancing.max_connections,
        idle_timeout: balancing.idle_timeout,
        check: balancing.check,
        backends,
        account: row.account_uuid,
        uuid: row.uuid,
    })
}

fn forward(row: ForwardRow) -> Result<ForwardState> {
    Ok(ForwardState {
        number: row.service_number,
        backend: row.backend_number,
        protocol: protocol(&row.protocol_type, &row.uuid)?,
        ports: (row.vip_port_start, row.vip_port_end),
        guest: parse("address", &row.ip, &row.uuid)?,
        device: row.physical_interface,
        guest_port: row.private_port_start,
        allowed: parse("allowed CIDR", &row.allowed_cidr, &row.uuid)?,
        uuid: row.uuid,
    })
}

fn elastic_ip(row: ElasticRow) -> Result<ElasticState> {
    Ok(ElasticState {
        number: row.service_number,
        backend: row.backend_number,
        guest: parse("address", &row.ip, &row.uuid)?,
        device: row.physical_interface,
        leads: row.leads,
        uuid: row.uuid,
    })
}

fn masquerade(row: MasqueradeRow) -> Result<MasqueradeState> {
    Ok(MasqueradeState {
        number: row.service_number,
        backend: row.backend_number,
        network: parse("network CIDR", &row.network_cidr, &row.l3_network_uuid)?,
        device: row.physical_interface,
        uuid: row.l3_network_uuid,
    })
}

fn limit(row: LimitRow) -> LimitState {
    LimitState {
        uuid: row.uuid,
        number: row.number,
        port: row.port,
        inbound: row.inbound_bandwidth,
        outbound: row.outbound_bandwidth,
    }
}

/// Listeners spell the protocol in lower case, port-forwarding rules in upper case.
fn protocol(name: &str, uuid: &str) -> Result<Protocol> {
    match name {
        "tcp" | "TCP" => Ok(Protocol::Tcp),
        "udp" | "UDP" => Ok(Protocol::Udp),
        other => Err(Error::corrupt("protocol", other, uuid)),
    }
}

fn group<T>(rows: Vec<T>, key: impl Fn(&T) -> String) -> HashMap<String, Vec<T>> {
    let mut groups = HashMap::<_, Vec<T>>::new();
    for row in rows {
        groups.entry(key(&row)).or_default().push(row);
    }
    groups
}
