//! Finds the names of the resources that a packet belongs to, for the log.

use std::net::SocketAddr;

use super::{Result, Tx};

/// The names of the resources at a packet's addresses and ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketNames {
    pub vip: Option<String>,
    pub listener: Option<String>,
    pub rule: Option<String>,
    pub eip: Option<String>,
    /// The VM with one of the addresses: in `backend` if it is a backend of a listener, else in `guest`.
    pub backend: Option<String>,
    pub guest: Option<String>,
}

/// The names for a packet between these addresses. If several networks have an address, one of them is taken.
pub async fn of_packet(tx: &mut Tx, from: SocketAddr, to: SocketAddr, protocol: u8) -> Result<PacketNames> {
    let mut names = PacketNames::default();
    match vm(tx, from, to).await? {
        Some((name, true)) => names.backend = Some(name),
        Some((name, false)) => names.guest = Some(name),
        None => {}
    }
    for end in [to, from] {
        let Some((uuid, name)) = vip(tx, end).await? else { continue };
        names.vip = Some(name);
        let eip = sqlx::query_scalar("SELECT name FROM eips WHERE vip_uuid = $1");
        names.eip = eip.bind(&uuid).fetch_optional(tx.conn()).await?;
        if let Some(protocol) = transport(protocol) {
            names.listener = service(tx, LISTENER, &uuid, end.port(), protocol).await?;
            names.rule = service(tx, RULE, &uuid, end.port(), protocol).await?;
        }
        break;
    }
    Ok(names)
}

const fn transport(protocol: u8) -> Option<&'static str> {
    match protocol {
        6 => Some("tcp"),
        17 => Some("udp"),
        _ => None,
    }
}

/// Listeners of HTTP are TCP.
const LISTENER: &str = "SELECT listener.name
     FROM load_balancer_listeners listener
     JOIN load_balancers balancer ON balancer.uuid = listener.load_balancer_uuid
     WHERE balancer.vip_uuid = $1 AND listener.load_balancer_port = $2
         AND CASE listener.protocol WHEN 'udp' THEN 'udp' ELSE 'tcp' END = $3";
const RULE: &str = "SELECT name FROM port_forwarding_rules
     WHERE vip_uuid = $1 AND $2 BETWEEN vip_port_start AND vip_port_end AND lower(protocol_type) = $3";

async fn service(tx: &mut Tx, query: &'static str, vip: &str, port: u16, protocol: &str) -> Result<Option<String>> {
    let query = sqlx::query_scalar(query).bind(vip).bind(i64::from(port)).bind(protocol);
    Ok(query.fetch_optional(tx.conn()).await?)
}

/// Uuid and name.
async fn vip(tx: &mut Tx, end: SocketAddr) -> Result<Option<(String, String)>> {
    let query = sqlx::query_as("SELECT uuid, name FROM vips WHERE ip = $1 LIMIT 1");
    Ok(query.bind(end.ip().to_string()).fetch_optional(tx.conn()).await?)
}

/// Name, and whether it is a listener's backend.
async fn vm(tx: &mut Tx, from: SocketAddr, to: SocketAddr) -> Result<Option<(String, bool)>> {
    let query = sqlx::query_as(
        "SELECT instance.name,
             EXISTS (SELECT 1 FROM load_balancer_listener_vm_nic_refs WHERE vm_nic_uuid = nic.uuid)
         FROM vm_nics nic JOIN vm_instances instance ON instance.uuid = nic.vm_instance_uuid
         WHERE nic.ip IN ($1, $2) LIMIT 1",
    );
    Ok(query.bind(from.ip().to_string()).bind(to.ip().to_string()).fetch_optional(tx.conn()).await?)
}
