//! Port-forwarding rules, and the NICs that they are attached to.

use ipnet::Ipv4Net;
use vipgate_api::{
    ApiError, Reply, Resource,
    common::{ChangeState, Delete, OfUuid, Update},
    port_forwarding::{AttachPortForwardingRule, CreatePortForwardingRule, GetPortForwardingAttachableVmNics},
};
use vipgate_state::Devices;
use vipgate_state::Protocol;

use super::{
    Caller, ENABLED, Outcome, Result, attachment,
    resource::{self, New, found},
    source_nat, state_after, vip, vip_use, vm,
};
use crate::store::{
    Tx, lb,
    number::{self, Numbers},
    port_forwarding::{self, Rule},
    vip::Vip,
    vm::VmNic,
};

/// The default of allowedCidr.
const ANYBODY: &str = "0.0.0.0/0";

/// First and last port.
type Ports = (u16, u16);

/// As in the real system, a rule that is created with the NIC of a stopped VM stays unattached.
pub(super) async fn create(
    tx: &mut Tx,
    caller: &Caller,
    devices: &dyn Devices,
    request: CreatePortForwardingRule,
) -> Result {
    let vip = vip::get(tx, "vipUuid", &request.vip_uuid).await?;
    let (ports, private) = ports(&request)?;
    let allowed = request.allowed_cidr.unwrap_or_else(|| ANYBODY.to_owned());
    if allowed.parse::<Ipv4Net>().is_err() {
        return Err(refuse("allowedCidr", &format!("`{allowed}` is no CIDR of IPv4, such as 192.0.2.0/24")));
    }
    check_ports(tx, &vip, &request.protocol_type, ports).await?;
    let protocol = if request.protocol_type == "UDP" { Protocol::Udp } else { Protocol::Tcp };
    source_nat::check_ports(devices, &vip, "vipPortStart", protocol, ports)?;
    let nic = match &request.vm_nic_uuid {
        Some(uuid) => Some(vm::nic(tx, "vmNicUuid", uuid).await?),
        None => None,
    };
    vip::use_for(tx, &vip, vip_use::PORT_FORWARDING, "a port-forwarding rule").await?;
    let new = New {
        resource: Resource::PortForwardingRule,
        uuid: request.resource_uuid.as_deref(),
        user_tags: &request.user_tags,
    };
    let uuid = resource::register_untagged(tx, caller, new, &request.system_tags).await?;
    let mut row = Rule {
        uuid,
        name: request.name,
        description: request.description,
        vip_uuid: vip.uuid.clone(),
        vip_port_start: ports.0,
        vip_port_end: ports.1,
        private_port_start: private.0,
        private_port_end: private.1,
        vm_nic_uuid: None,
        protocol_type: request.protocol_type,
        state: ENABLED.to_owned(),
        allowed_cidr: allowed,
        service_number: number::next(tx, Numbers::Service).await?,
        backend_number: number::next(tx, Numbers::Backend).await?,
    };
    port_forwarding::insert(tx, &row).await?;
    if let Some(nic) = nic {
        let provider = provider_to(tx, &vip, &nic).await?;
        if vm::is_running(tx, &nic).await? {
            attach_to(tx, &mut row, &nic, &provider).await?;
        }
    }
    Ok(changed(row))
}

/// The VIP's ports and the NIC's. Missing ports follow from the others, and reversed ranges are put in order.
///
/// For a single port the default of the last private port is the first one. The documented default, the VIP's port, would
/// make a range of the private ports, to which one port can't be forwarded.
fn ports(request: &CreatePortForwardingRule) -> Result<(Ports, Ports)> {
    let ordered = |one: u16, other: u16| (one.min(other), one.max(other));
    let first = request.vip_port_start;
    let last = request.vip_port_end.unwrap_or(first);
    let private_first = request.private_port_start.unwrap_or(first);
    let follows = if first == last { private_first } else { last };
    let private = ordered(private_first, request.private_port_end.unwrap_or(follows));
    let ports = ordered(first, last);
    let size = |(first, last): Ports| u32::from(last - first) + 1;
    if size(ports) > 1 && size(ports) != size(private) {
        return Err(refuse(
            "privatePortEnd",
            &format!(
                "the VIP's ports [{},{}] are {}, the private ports [{},{}] are {}; they must be as many",
                ports.0,
                ports.1,
                size(ports),
                private.0,
                private.1,
                size(private)
            ),
        ));
    }
    Ok((ports, private))
}

/// SYS.1006 or SYS.1007 if a rule or a listener has one of these ports.
async fn check_ports(tx: &mut Tx, vip: &Vip, protocol: &str, ports: Ports) -> Result<()> {
    let (start, end) = ports;
    if let Some(other) = port_forwarding::overlapping(tx, &vip.uuid, protocol, ports).await? {
        return Err(refuse(
            "vipPortStart",
            &format!(
                "{protocol} ports [{start},{end}] of VIP[uuid:{}] overlap [{},{}] of port-forwarding rule[uuid:{}]",
                vip.uuid, other.vip_port_start, other.vip_port_end, other.uuid
            ),
        ));
    }
    let listeners = lb::ports_on_vip(tx, &vip.uuid, protocol == "UDP").await?;
    if let Some(port) = listeners.into_iter().find(|port| (start..=end).contains(port)) {
        return Err(ApiError::operation(format!(
            "Current port range [{start},{end}] is conflicted with the used port range [{port},{port}] of a listener on \
             VIP[uuid:{}]",
            vip.uuid
        )));
    }
    Ok(())
}

/// The type of the provider by which a rule of the VIP can be attached to the NIC.
async fn provider_to(tx: &mut Tx, vip: &Vip, nic: &VmNic) -> Result<String> {
    let provider = attachment::provider_between(tx, vip, nic, vip_use::PORT_FORWARDING).await?;
    if let Some(other) = port_forwarding::of_other_vip(tx, &nic.vm_instance_uuid, &vip.uuid).await? {
        return Err(ApiError::operation(format!(
            "VM instance[uuid:{}] has port-forwarding rule[uuid:{}] of another VIP[uuid:{}]; a VM takes those of one VIP",
            nic.vm_instance_uuid, other.uuid, other.vip_uuid
        )));
    }
    Ok(provider)
}

async fn attach_to(tx: &mut Tx, row: &mut Rule, nic: &VmNic, provider: &str) -> Result<()> {
    vip::bind(tx, &row.vip_uuid, provider, [nic.l3_network_uuid.as_str()]).await?;
    row.vm_nic_uuid = Some(nic.uuid.clone());
    Ok(port_forwarding::update(tx, row).await?)
}

pub(super) async fn update(tx: &mut Tx, request: Update) -> Result {
    let mut row = get(tx, "uuid", &request.uuid).await?;
    row.name = request.name.unwrap_or(row.name);
    row.description = request.description.or(row.description);
    port_forwarding::update(tx, &row).await?;
    Ok(Outcome::inventory(Resource::PortForwardingRule, row.uuid))
}

/// A VIP without another rule is no longer used for port forwarding.
pub(super) async fn delete(tx: &mut Tx, request: &Delete) -> Result {
    resource::delete(tx, Resource::PortForwardingRule, request).await
}

/// A disabled rule forwards nothing.
pub(super) async fn change_state(tx: &mut Tx, request: ChangeState) -> Result {
    let mut row = get(tx, "uuid", &request.uuid).await?;
    row.state = state_after(request.state_event).to_owned();
    port_forwarding::update(tx, &row).await?;
    Ok(changed(row))
}

pub(super) async fn candidates(tx: &mut Tx, request: GetPortForwardingAttachableVmNics) -> Result {
    let row = get(tx, "ruleUuid", &request.rule_uuid).await?;
    let nics = if row.vm_nic_uuid.is_some() {
        Vec::new()
    } else {
        attachment::require_enabled(&label(&row), &row.state)?;
        port_forwarding::candidates(tx, &row).await?
    };
    Ok(Outcome::new(Reply::Inventories(Resource::VmNic, nics)))
}

pub(super) async fn attach(tx: &mut Tx, request: AttachPortForwardingRule) -> Result {
    let mut row = get(tx, "ruleUuid", &request.rule_uuid).await?;
    let nic = vm::nic(tx, "vmNicUuid", &request.vm_nic_uuid).await?;
    attachment::require_attachable(&label(&row), row.vm_nic_uuid.as_deref(), &row.state)?;
    let vip = vip::get(tx, "vipUuid", &row.vip_uuid).await?;
    let provider = provider_to(tx, &vip, &nic).await?;
    attach_to(tx, &mut row, &nic, &provider).await?;
    Ok(changed(row))
}

pub(super) async fn detach(tx: &mut Tx, request: OfUuid) -> Result {
    let mut row = get(tx, "uuid", &request.uuid).await?;
    attachment::require_attached(&label(&row), row.vm_nic_uuid.take().as_deref())?;
    port_forwarding::update(tx, &row).await?;
    Ok(changed(row))
}

/// Its name in errors.
fn label(row: &Rule) -> String {
    format!("port-forwarding rule[uuid:{}]", row.uuid)
}

fn changed(row: Rule) -> Outcome {
    Outcome::inventory(Resource::PortForwardingRule, row.uuid).touching([row.vip_uuid])
}

fn refuse(field: &str, why: &str) -> ApiError {
    ApiError::invalid_argument(format!("field[{field}]: {why}"))
}

async fn get(tx: &mut Tx, field: &str, uuid: &str) -> Result<Rule> {
    found(port_forwarding::get(tx, uuid).await?, field, uuid, Resource::PortForwardingRule)
}
