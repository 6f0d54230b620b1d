//! Virtual IPs.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::json;
use vipgate_api::{
    ApiError, Reply, Resource,
    common::{ChangeState, Delete, Update},
    vip::{CreateVip, GetVipUsedPorts, VipUsedPortsInventory},
};
use vipgate_state::Devices;

use super::{
    Caller, ENABLED, Outcome, Result,
    allocate::{Strategy, allocate, ipv4},
    resource::{self, New, found, require},
    state_after, vip_use,
};
use crate::store::{
    self, Tx, eip, lb, network, port_forwarding, source_nat,
    vip::{self, Vip},
};

pub(super) async fn create(tx: &mut Tx, caller: &Caller, devices: &dyn Devices, request: CreateVip) -> Result {
    let strategy = Strategy::of_name(request.allocator_strategy.as_deref())?;
    let required: Option<IpAddr> = match request.required_ip.as_deref() {
        Some(text) => Some(
            ipv4(text)
                .ok_or_else(|| ApiError::invalid_argument(format!("field[requiredIp]: `{text}` is no IPv4 address")))?,
        ),
        None => None,
    };
    let ranges = network::ranges_of(tx, &request.l3_network_uuid).await?;
    if ranges.is_empty() {
        require(tx, "l3NetworkUuid", &request.l3_network_uuid, Resource::L3Network).await?;
    }
    if let Some(ip) = required
        && let Some(other) = vip::by_address(tx, &request.l3_network_uuid, &ip.to_string()).await?
    {
        return Err(ApiError::operation(format!(
            "there is a VIP[uuid:{other}] with ip[{ip}] on L3 network[uuid:{}] already",
            request.l3_network_uuid
        )));
    }
    let new = New { resource: Resource::Vip, uuid: request.resource_uuid.as_deref(), user_tags: &request.user_tags };
    let uuid = resource::register_untagged(tx, caller, new, &request.system_tags).await?;
    let allocated = allocate(tx, &request.l3_network_uuid, ranges, strategy, required, &devices.addresses()).await?;
    let row = Vip {
        uuid,
        name: request.name,
        description: request.description,
        l3_network_uuid: request.l3_network_uuid,
        ip_range_uuid: allocated.range.uuid,
        used_ip_uuid: allocated.used_ip_uuid,
        ip: allocated.ip.to_string(),
        state: ENABLED.to_owned(),
        gateway: allocated.range.gateway,
        netmask: allocated.range.netmask,
        service_provider: None,
        use_for: None,
        own: false,
    };
    vip::insert(tx, &row).await?;
    Ok(Outcome::inventory(Resource::Vip, &row.uuid).touching([row.uuid]))
}

/// Deletes everything on the VIP, too. A VIP that guest networks use for source NAT is not deleted, in either delete mode.
pub(super) async fn delete(tx: &mut Tx, request: &Delete) -> Result {
    if let Some(row) = vip::get(tx, &request.uuid).await?
        && let guests @ [_, ..] = source_nat::guests_of(tx, &row.uuid).await?.as_slice()
    {
        return Err(ApiError::operation(format!(
            "VIP[uuid:{}, ip:{}] is the router's own address and can't be deleted while L3 networks leave by it: detach SNAT \
             from them first [uuids:{}]",
            row.uuid,
            row.ip,
            guests.join(", ")
        )));
    }
    resource::delete(tx, Resource::Vip, request).await
}

pub(super) async fn update(tx: &mut Tx, request: Update) -> Result {
    let mut row = get(tx, "uuid", &request.uuid).await?;
    row.name = request.name.unwrap_or(row.name);
    row.description = request.description.or(row.description);
    vip::update(tx, &row).await?;
    Ok(Outcome::inventory(Resource::Vip, row.uuid))
}

/// A disabled VIP carries nothing.
pub(super) async fn change_state(tx: &mut Tx, request: ChangeState) -> Result {
    let mut row = get(tx, "uuid", &request.uuid).await?;
    row.state = state_after(request.state_event).to_owned();
    vip::update(tx, &row).await?;
    Ok(Outcome::inventory(Resource::Vip, &row.uuid).touching([row.uuid]))
}

pub(super) async fn used_ports(tx: &mut Tx, request: GetVipUsedPorts) -> Result {
    require(tx, "uuid", &request.uuid, Resource::Vip).await?;
    let mut ports: BTreeSet<u16> =
        lb::ports_on_vip(tx, &request.uuid, request.protocol == "UDP").await?.into_iter().collect();
    for (first, last) in port_forwarding::ports_on_vip(tx, &request.uuid, &request.protocol).await? {
        ports.extend(first..=last);
    }
    let inventory = VipUsedPortsInventory {
        uuid: request.uuid,
        protocol: request.protocol,
        used_ports: ports.iter().map(ToString::to_string).collect(),
    };
    let members = [("inventories".to_owned(), json!([inventory]))];
    Ok(Outcome::new(Reply::Members(members.into_iter().collect())))
}

pub(super) async fn get(tx: &mut Tx, field: &str, uuid: &str) -> Result<Vip> {
    found(vip::get(tx, uuid).await?, field, uuid, Resource::Vip)
}

/// Adds a service to the use of the VIP; `what` names the resource that needs it.
pub(super) async fn use_for(tx: &mut Tx, row: &Vip, service: &str, what: &str) -> Result<()> {
    let uses = vip_use::add(row.use_for.as_deref(), service).map_err(|conflict| {
        ApiError::invalid_argument(format!(
            "field[vipUuid]: VIP[uuid:{}, ip:{}] is used for {}, which can't share it with {what}",
            row.uuid, row.ip, conflict.with
        ))
    })?;
    Ok(vip::update(tx, &Vip { use_for: Some(uses), ..row.clone() }).await?)
}

/// Sets the provider of the VIP, and adds the guest networks that it reaches.
pub(super) async fn bind(tx: &mut Tx, uuid: &str, provider: &str, peers: impl IntoIterator<Item = &str>) -> Result<()> {
    let mut row = get(tx, "vipUuid", uuid).await?;
    match &row.service_provider {
        Some(other) if other != provider => {
            return Err(ApiError::operation(format!(
                "VIP[uuid:{uuid}] is served by provider {other} and can't be by {provider} too"
            )));
        }
        Some(_) => {}
        None => {
            row.service_provider = Some(provider.to_owned());
            vip::update(tx, &row).await?;
        }
    }
    for peer in peers {
        vip::add_peer(tx, uuid, peer).await?;
    }
    Ok(())
}

/// Updates the use of the VIP after a delete: without load balancers it is no longer used for load balancing, without
/// rules no longer for port forwarding, without its elastic IP no longer for that. An unused VIP has neither provider nor
/// guest networks, and is deleted if its address is the router's own.
pub(super) async fn update_use(tx: &mut Tx, uuid: &str) -> store::Result<()> {
    let Some(mut row) = vip::get(tx, uuid).await? else { return Ok(()) };
    let before = row.use_for.clone();
    if lb::count_on_vip(tx, uuid).await? == 0 {
        row.use_for = vip_use::remove(row.use_for.as_deref(), vip_use::LOAD_BALANCER);
    }
    if port_forwarding::count_on_vip(tx, uuid).await? == 0 {
        row.use_for = vip_use::remove(row.use_for.as_deref(), vip_use::PORT_FORWARDING);
    }
    if !eip::is_on_vip(tx, uuid).await? {
        row.use_for = vip_use::remove(row.use_for.as_deref(), vip_use::EIP);
    }
    let guests = source_nat::guests_of(tx, uuid).await?;
    row.use_for = match guests.is_empty() {
        true => vip_use::remove(row.use_for.as_deref(), vip_use::SNAT),
        // This never conflicts: there is no elastic IP on the router's own address.
        false => vip_use::add(row.use_for.as_deref(), vip_use::SNAT).ok().or(row.use_for),
    };
    if row.own && row.use_for.is_none() {
        return store::resource::delete(tx, uuid).await;
    }
    if row.use_for.as_deref() == Some(vip_use::SNAT) {
        vip::clear_peers(tx, uuid).await?;
        for network in &guests {
            vip::add_peer(tx, uuid, network).await?;
        }
    }
    if row.use_for == before {
        return Ok(());
    }
    if row.use_for.is_none() {
        row.service_provider = None;
        vip::clear_peers(tx, uuid).await?;
    }
    vip::update(tx, &row).await
}
