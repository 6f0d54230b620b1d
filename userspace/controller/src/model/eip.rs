//! Elastic IPs, and the NICs that they are attached to.
//!
//! A NIC can have several elastic IPs: the one that was attached first, of those in force, is the source of the guest's own
//! connections. So a change of one may change the others of its NIC, and every call returns the VIPs of all of them.

use vipgate_api::{
    ApiError, Reply, Resource,
    common::{ChangeState, Delete, OfUuid, Update},
    eip::{AttachEip, CreateEip, GetEipAttachableVmNics},
};

use super::{
    Caller, ENABLED, Outcome, Result, attachment,
    resource::{self, New, found},
    state_after, vip, vip_use, vm,
};
use crate::store::{
    self, Tx,
    eip::{self, Eip},
    number::{self, Numbers},
    vip::Vip,
    vm::VmNic,
};

pub(super) async fn create(tx: &mut Tx, caller: &Caller, request: CreateEip) -> Result {
    let vip = vip::get(tx, "vipUuid", &request.vip_uuid).await?;
    let nic = match &request.vm_nic_uuid {
        Some(uuid) => Some(vm::nic(tx, "vmNicUuid", uuid).await?),
        None => None,
    };
    check_vip(&vip)?;
    vip::use_for(tx, &vip, vip_use::EIP, "an elastic IP").await?;
    let new = New { resource: Resource::Eip, uuid: request.resource_uuid.as_deref(), user_tags: &request.user_tags };
    let uuid = resource::register_untagged(tx, caller, new, &request.system_tags).await?;
    let mut row = Eip {
        uuid,
        name: request.name,
        description: request.description,
        vip_uuid: vip.uuid,
        vm_nic_uuid: None,
        attach_order: 0,
        state: ENABLED.to_owned(),
        service_number: number::next(tx, Numbers::Service).await?,
        backend_number: number::next(tx, Numbers::Backend).await?,
    };
    eip::insert(tx, &row).await?;
    if let Some(nic) = nic {
        attach_to(tx, &mut row, &nic).await?;
    }
    outcome(tx, row).await
}

/// An elastic IP needs a VIP that is enabled and unused.
fn check_vip(vip: &Vip) -> Result<()> {
    if let Some(uses) = &vip.use_for {
        return Err(ApiError::operation(format!(
            "VIP[uuid:{}, ip:{}] is used for {uses}; an elastic IP needs one for itself",
            vip.uuid, vip.ip
        )));
    }
    if vip.state != ENABLED {
        return Err(ApiError::operation(format!(
            "VIP[uuid:{}, ip:{}] is {}; enable it before it becomes an elastic IP",
            vip.uuid, vip.ip, vip.state
        )));
    }
    Ok(())
}

/// Attaches an elastic IP to a NIC, if its VIP can reach the NIC.
async fn attach_to(tx: &mut Tx, row: &mut Eip, nic: &VmNic) -> Result<()> {
    let vip = vip::get(tx, "vipUuid", &row.vip_uuid).await?;
    let provider = attachment::provider_between(tx, &vip, nic, vip_use::EIP).await?;
    if let Some(other) = store::vm::nic_on(tx, &nic.vm_instance_uuid, &vip.l3_network_uuid).await? {
        return Err(ApiError::invalid_argument(format!(
            "field[vmNicUuid]: VM instance[uuid:{}] is on the L3 network of VIP[uuid:{}] itself by NIC[uuid:{other}]",
            nic.vm_instance_uuid, vip.uuid
        )));
    }
    if nic.subnet_holds(&vip.ip)? {
        return Err(ApiError::operation(format!(
            "VIP[uuid:{}, ip:{}] is an address of the subnet of VM NIC[uuid:{}], {} with netmask {}",
            vip.uuid, vip.ip, nic.uuid, nic.ip, nic.netmask
        )));
    }
    vip::bind(tx, &vip.uuid, &provider, [nic.l3_network_uuid.as_str()]).await?;
    row.attach_order = eip::next_order(tx, &nic.uuid).await?;
    row.vm_nic_uuid = Some(nic.uuid.clone());
    Ok(eip::update(tx, row).await?)
}

pub(super) async fn update(tx: &mut Tx, request: Update) -> Result {
    let mut row = get(tx, "uuid", &request.uuid).await?;
    row.name = request.name.unwrap_or(row.name);
    row.description = request.description.or(row.description);
    eip::update(tx, &row).await?;
    Ok(Outcome::inventory(Resource::Eip, row.uuid))
}

/// The VIP of a deleted elastic IP is unused again.
pub(super) async fn delete(tx: &mut Tx, request: &Delete) -> Result {
    resource::delete(tx, Resource::Eip, request).await
}

/// The VIP of a disabled elastic IP carries nothing; the next one of its NIC is the source of the guest's own connections.
pub(super) async fn change_state(tx: &mut Tx, request: ChangeState) -> Result {
    let mut row = get(tx, "uuid", &request.uuid).await?;
    row.state = state_after(request.state_event).to_owned();
    eip::update(tx, &row).await?;
    outcome(tx, row).await
}

pub(super) async fn candidates(tx: &mut Tx, request: GetEipAttachableVmNics) -> Result {
    let vip = match (&request.eip_uuid, &request.vip_uuid) {
        (Some(uuid), _) => {
            let row = get(tx, "eipUuid", uuid).await?;
            attachment::require_enabled(&label(&row), &row.state)?;
            if row.vm_nic_uuid.is_some() {
                return Ok(Outcome::new(Reply::Inventories(Resource::VmNic, Vec::new())));
            }
            vip::get(tx, "vipUuid", &row.vip_uuid).await?
        }
        (None, Some(uuid)) => vip::get(tx, "vipUuid", uuid).await?,
        (None, None) => {
            return Err(ApiError::invalid_argument("field[eipUuid] and field[vipUuid] are both missing: give one"));
        }
    };
    let mut nics = Vec::new();
    for nic in eip::candidates(tx, &vip.uuid).await? {
        if !nic.subnet_holds(&vip.ip)? {
            nics.push(nic.uuid);
        }
    }
    Ok(Outcome::new(Reply::Inventories(Resource::VmNic, nics)))
}

/// The VM may be stopped: the elastic IP is in force once the VM runs.
pub(super) async fn attach(tx: &mut Tx, request: AttachEip) -> Result {
    let mut row = get(tx, "eipUuid", &request.eip_uuid).await?;
    let nic = vm::nic(tx, "vmNicUuid", &request.vm_nic_uuid).await?;
    attachment::require_attachable(&label(&row), row.vm_nic_uuid.as_deref(), &row.state)?;
    attach_to(tx, &mut row, &nic).await?;
    outcome(tx, row).await
}

pub(super) async fn detach(tx: &mut Tx, request: OfUuid) -> Result {
    let mut row = get(tx, "uuid", &request.uuid).await?;
    attachment::require_attached(&label(&row), row.vm_nic_uuid.as_deref())?;
    let vips = store::vip::touched_by(tx, &row.uuid).await?;
    row.vm_nic_uuid = None;
    eip::update(tx, &row).await?;
    Ok(Outcome::inventory(Resource::Eip, row.uuid).touching(vips))
}

/// The outcome with the elastic IP as reply, its VIP, and the VIPs that share its NIC.
async fn outcome(tx: &mut Tx, row: Eip) -> Result {
    let vips = store::vip::touched_by(tx, &row.uuid).await?;
    Ok(Outcome::inventory(Resource::Eip, row.uuid).touching(vips))
}

/// Its name in errors.
fn label(row: &Eip) -> String {
    format!("elastic IP[uuid:{}]", row.uuid)
}

async fn get(tx: &mut Tx, field: &str, uuid: &str) -> Result<Eip> {
    found(eip::get(tx, uuid).await?, field, uuid, Resource::Eip)
}
