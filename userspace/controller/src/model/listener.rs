//! Listeners, and the NICs that are their backends.

use std::collections::BTreeSet;

use vipgate_api::listener_tag;
use vipgate_api::{
    ApiError, Reply, Resource,
    common::{Delete, Update},
    load_balancer::{CreateLoadBalancerListener, GetCandidateVmNics, ListenerNics},
};
use vipgate_state::Devices;
use vipgate_state::Protocol;

use super::{
    Caller, Outcome, Result, load_balancer, network_service,
    resource::{self, New, found, require},
    source_nat, tag, vip, vip_use, vm,
};
use crate::store::{
    Tx,
    lb::{self, Listener, LoadBalancer},
    number::{self, Numbers},
    port_forwarding,
};

pub(super) async fn create(
    tx: &mut Tx,
    caller: &Caller,
    devices: &dyn Devices,
    request: CreateLoadBalancerListener,
) -> Result {
    let balancer = load_balancer::get(tx, "loadBalancerUuid", &request.load_balancer_uuid).await?;
    let protocol = protocol(request.protocol.as_deref())?;
    if let Some(certificate) = &request.certificate_uuid {
        return Err(ApiError::unimplemented(format!(
            "field[certificateUuid] {certificate}: certificates are not served yet; leave it out"
        )));
    }
    let port = request.load_balancer_port;
    if protocol == Protocol::Udp && port == 53 {
        return Err(ApiError::invalid_argument(
            "field[loadBalancerPort]: udp port 53 is the router's own DNS and can't be balanced",
        ));
    }
    let vip = vip::get(tx, "vipUuid", &balancer.vip_uuid).await?;
    source_nat::check_ports(devices, &vip, "loadBalancerPort", protocol, (port, port))?;
    let tags = listener_tag::complete(&request.system_tags, protocol)
        .map_err(|error| ApiError::invalid_argument(error.to_string()))?;
    check_free(tx, &balancer, protocol, port).await?;

    let new =
        New { resource: Resource::Listener, uuid: request.resource_uuid.as_deref(), user_tags: &request.user_tags };
    let uuid = resource::register(tx, caller, new).await?;
    let row = Listener {
        uuid,
        name: request.name,
        description: request.description,
        load_balancer_uuid: balancer.uuid,
        instance_port: request.instance_port.unwrap_or(port),
        load_balancer_port: port,
        protocol: match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
        .to_owned(),
        number: number::next(tx, Numbers::Service).await?,
    };
    lb::insert_listener(tx, &row).await?;
    for text in tags {
        tag::insert(tx, Resource::Listener, &row.uuid, &text).await?;
    }
    Ok(Outcome::inventory(Resource::Listener, row.uuid).touching([balancer.vip_uuid]))
}

/// SYS.1006 or SYS.1007 if another listener or a port-forwarding rule has the port of the load balancer's VIP.
async fn check_free(tx: &mut Tx, balancer: &LoadBalancer, protocol: Protocol, port: u16) -> Result<()> {
    if let Some(other) = lb::listener_at(tx, &balancer.vip_uuid, port, protocol == Protocol::Udp).await? {
        return Err(if other.load_balancer_uuid == balancer.uuid {
            ApiError::invalid_argument(format!(
                "field[loadBalancerPort]: listener[uuid:{}] of load balancer[uuid:{}] has {} port {port} already",
                other.uuid, balancer.uuid, other.protocol
            ))
        } else {
            ApiError::operation(format!(
                "Current port range [{port},{port}] is conflicted with the used port range [{port},{port}] of \
                 listener[uuid:{}] on VIP[uuid:{}]",
                other.uuid, balancer.vip_uuid
            ))
        });
    }
    let name = if protocol == Protocol::Udp { "UDP" } else { "TCP" };
    if let Some(rule) = port_forwarding::overlapping(tx, &balancer.vip_uuid, name, (port, port)).await? {
        return Err(ApiError::operation(format!(
            "Current port range [{port},{port}] is conflicted with the used port range [{},{}] of port-forwarding \
             rule[uuid:{}] on VIP[uuid:{}]",
            rule.vip_port_start, rule.vip_port_end, rule.uuid, balancer.vip_uuid
        )));
    }
    Ok(())
}

fn protocol(name: Option<&str>) -> Result<Protocol> {
    match name {
        None | Some("tcp") => Ok(Protocol::Tcp),
        Some("udp") => Ok(Protocol::Udp),
        Some(other @ ("http" | "https")) => Err(ApiError::unimplemented(format!(
            "field[protocol]: listeners of protocol {other} are not served yet; tcp and udp are"
        ))),
        Some(other) => Err(ApiError::invalid_argument(format!(
            "field[protocol]: no protocol `{other}`; there are: tcp, udp, http, https"
        ))),
    }
}

pub(super) async fn update(tx: &mut Tx, request: Update) -> Result {
    let mut row = get(tx, "uuid", &request.uuid).await?;
    row.name = request.name.unwrap_or(row.name);
    row.description = request.description.or(row.description);
    lb::update_listener(tx, &row).await?;
    Ok(Outcome::inventory(Resource::Listener, row.uuid))
}

/// Unlike the other deletes, this one fails if there is no such listener. The reply is the load balancer.
pub(super) async fn delete(tx: &mut Tx, request: &Delete) -> Result {
    let row = get(tx, "uuid", &request.uuid).await?;
    let mut outcome = resource::remove(tx, &row.uuid).await?;
    outcome.reply = Reply::Inventory(Resource::LoadBalancer, row.load_balancer_uuid);
    Ok(outcome)
}

pub(super) async fn candidates(tx: &mut Tx, request: GetCandidateVmNics) -> Result {
    require(tx, "listenerUuid", &request.listener_uuid, Resource::Listener).await?;
    let nics = lb::candidates(tx, &request.listener_uuid).await?;
    Ok(Outcome::new(Reply::Inventories(Resource::VmNic, nics)))
}

pub(super) async fn add_nics(tx: &mut Tx, request: ListenerNics) -> Result {
    let row = get(tx, "listenerUuid", &request.listener_uuid).await?;
    let mut balancer = load_balancer::get(tx, "loadBalancerUuid", &row.load_balancer_uuid).await?;
    let mut peers = BTreeSet::new();
    for uuid in &request.vm_nic_uuids {
        let nic = vm::nic(tx, "vmNicUuids", uuid).await?;
        let provider = network_service::provider_of(tx, &nic.l3_network_uuid, uuid, vip_use::LOAD_BALANCER).await?;
        match &balancer.provider_type {
            Some(first) if *first != provider => {
                return Err(ApiError::operation(format!(
                    "load balancer[uuid:{}] is served by provider {first}, L3 network[uuid:{}] of VM NIC[uuid:{uuid}] \
                     takes load balancing from {provider}",
                    balancer.uuid, nic.l3_network_uuid
                )));
            }
            Some(_) => {}
            None => {
                balancer.provider_type = Some(provider);
                lb::update(tx, &balancer).await?;
            }
        }
        let status = if vm::is_running(tx, &nic).await? { "Pending" } else { "Inactive" };
        if !lb::add_nic(tx, &row.uuid, uuid, status).await? {
            return Err(ApiError::operation(format!("VM NIC[uuid:{uuid}] is on listener[uuid:{}] already", row.uuid)));
        }
        peers.insert(nic.l3_network_uuid);
    }
    for text in &request.system_tags {
        tag::set_weight(tx, &row.uuid, text).await?;
    }
    if let Some(provider) = &balancer.provider_type {
        vip::bind(tx, &balancer.vip_uuid, provider, peers.iter().map(String::as_str)).await?;
    }
    let (count, most) = (lb::count_nics(tx, &row.uuid).await?, tx.capacity().backends_per_listener);
    if count > most {
        return Err(ApiError::operation(format!(
            "listener[uuid:{}] would have {count} VM NICs, at most {most} are possible; add a listener",
            row.uuid
        )));
    }
    Ok(Outcome::inventory(Resource::Listener, row.uuid).touching([balancer.vip_uuid]))
}

/// NICs that are no backends of the listener are ignored. The reply is the load balancer.
pub(super) async fn remove_nics(tx: &mut Tx, request: ListenerNics) -> Result {
    let row = get(tx, "listenerUuid", &request.listener_uuid).await?;
    let balancer = load_balancer::get(tx, "loadBalancerUuid", &row.load_balancer_uuid).await?;
    for uuid in &request.vm_nic_uuids {
        require(tx, "vmNicUuids", uuid, Resource::VmNic).await?;
        lb::remove_nic(tx, &row.uuid, uuid).await?;
    }
    Ok(Outcome::inventory(Resource::LoadBalancer, balancer.uuid).touching([balancer.vip_uuid]))
}

async fn get(tx: &mut Tx, field: &str, uuid: &str) -> Result<Listener> {
    found(lb::listener(tx, uuid).await?, field, uuid, Resource::Listener)
}
