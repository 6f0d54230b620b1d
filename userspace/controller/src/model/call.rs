//! Finds the rules of a call by its name.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use vipgate_api::{Api, ApiError};
use vipgate_state::Devices;

use super::{
    Caller, Result, access, account, eip, ip_range, l2, l3, listener, load_balancer, network_service, port_forwarding,
    source_nat, tag, vip, vip_qos, vm, zone,
};
use crate::store::Tx;

/// Runs a call's rules in the transaction. `arguments` have passed `vipgate_api::request::check`.
///
/// # Errors
/// The error of the rules; the transaction is to be dropped then. SYS.1014 for queries and calls about sessions, which have
/// no rules here.
pub async fn call(
    tx: &mut Tx,
    caller: &Caller,
    devices: &dyn Devices,
    api: Api,
    arguments: Map<String, Value>,
) -> Result {
    access::check(tx, caller, api, &arguments).await?;
    let mut outcome = decide(tx, caller, devices, api, Arguments(arguments)).await?;
    if affects_source_nat(api) {
        outcome.vips.extend(source_nat::follow(tx, devices).await?);
    }
    access::hide(tx, caller, &mut outcome.reply).await?;
    Ok(outcome)
}

/// Whether networks may use other VIPs for source NAT after the call.
const fn affects_source_nat(api: Api) -> bool {
    matches!(
        api,
        Api::DeleteZone
            | Api::DeleteL2Network
            | Api::DeleteL3Network
            | Api::AddIpRange
            | Api::AddIpRangeByNetworkCidr
            | Api::DeleteIpRange
            | Api::DetachNetworkServiceFromL3Network
    )
}

/// The rules of accounts, networks, VMs and tags: one row a call.
async fn decide(tx: &mut Tx, caller: &Caller, devices: &dyn Devices, api: Api, arguments: Arguments) -> Result {
    match api {
        Api::CreateAccount => account::create(tx, arguments.read()?).await,
        Api::UpdateAccount => account::update(tx, caller, arguments.read()?).await,
        Api::DeleteAccount => account::delete(tx, &arguments.read()?).await,
        Api::UpdateQuota => account::set_quota(tx, arguments.read()?).await,
        Api::ShareResource => account::share(tx, arguments.read()?).await,
        Api::RevokeResourceSharing => account::unshare(tx, arguments.read()?).await,

        Api::CreateZone => zone::create(tx, caller, arguments.read()?).await,
        Api::DeleteZone => zone::delete(tx, &arguments.read()?).await,

        Api::CreateL2NoVlanNetwork => l2::create_no_vlan(tx, caller, devices, arguments.read()?).await,
        Api::CreateL2VlanNetwork => l2::create_vlan(tx, devices, arguments.read()?).await,
        Api::DeleteL2Network => l2::delete(tx, &arguments.read()?).await,

        Api::CreateL3Network => l3::create(tx, caller, arguments.read()?).await,
        Api::DeleteL3Network => l3::delete(tx, &arguments.read()?).await,
        Api::AddDnsToL3Network => l3::add_dns(tx, arguments.read()?).await,
        Api::RemoveDnsFromL3Network => l3::remove_dns(tx, arguments.read()?).await,
        Api::AddIpRange => ip_range::add(tx, caller, arguments.read()?).await,
        Api::AddIpRangeByNetworkCidr => ip_range::add_by_cidr(tx, caller, arguments.read()?).await,
        Api::DeleteIpRange => ip_range::delete(tx, &arguments.read()?).await,

        Api::GetNetworkServiceTypes => network_service::types(tx).await,
        Api::AttachNetworkServiceToL3Network => network_service::attach(tx, devices, arguments.read()?).await,
        Api::DetachNetworkServiceFromL3Network => network_service::detach(tx, arguments.read()?).await,

        Api::CreateVmInstance => vm::create(tx, caller, devices, arguments.read()?).await,
        Api::DestroyVmInstance => vm::destroy(tx, &arguments.read()?).await,
        Api::StartVmInstance => vm::start(tx, arguments.read()?).await,
        Api::StopVmInstance => vm::stop(tx, arguments.read()?).await,

        Api::CreateSystemTag => tag::create(tx, arguments.read()?).await,
        Api::CreateUserTag => tag::create_user(tx, arguments.read()?).await,
        Api::UpdateSystemTag => tag::update(tx, arguments.read()?).await,
        Api::DeleteTag => tag::delete(tx, &arguments.read()?).await,

        api => decide_on_vip(tx, caller, devices, api, arguments).await,
    }
}

/// The rules of VIPs and of the services on them: one row a call.
async fn decide_on_vip(tx: &mut Tx, caller: &Caller, devices: &dyn Devices, api: Api, arguments: Arguments) -> Result {
    match api {
        Api::CreateVip => vip::create(tx, caller, devices, arguments.read()?).await,
        Api::DeleteVip => vip::delete(tx, &arguments.read()?).await,
        Api::UpdateVip => vip::update(tx, arguments.read()?).await,
        Api::ChangeVipState => vip::change_state(tx, arguments.read()?).await,
        Api::GetVipUsedPorts => vip::used_ports(tx, arguments.read()?).await,
        Api::SetVipQos => vip_qos::set(tx, arguments.read()?).await,
        Api::GetVipQos => vip_qos::get(tx, arguments.read()?).await,
        Api::DeleteVipQos => vip_qos::delete(tx, arguments.read()?).await,

        Api::CreateLoadBalancer => load_balancer::create(tx, caller, arguments.read()?).await,
        Api::DeleteLoadBalancer => load_balancer::delete(tx, &arguments.read()?).await,
        Api::UpdateLoadBalancer => load_balancer::update(tx, arguments.read()?).await,
        Api::RefreshLoadBalancer => load_balancer::refresh(tx, arguments.read()?).await,
        Api::CreateLoadBalancerListener => listener::create(tx, caller, devices, arguments.read()?).await,
        Api::DeleteLoadBalancerListener => listener::delete(tx, &arguments.read()?).await,
        Api::UpdateLoadBalancerListener => listener::update(tx, arguments.read()?).await,
        Api::GetCandidateVmNicsForLoadBalancer => listener::candidates(tx, arguments.read()?).await,
        Api::AddVmNicToLoadBalancer => listener::add_nics(tx, arguments.read()?).await,
        Api::RemoveVmNicFromLoadBalancer => listener::remove_nics(tx, arguments.read()?).await,

        Api::CreatePortForwardingRule => port_forwarding::create(tx, caller, devices, arguments.read()?).await,
        Api::DeletePortForwardingRule => port_forwarding::delete(tx, &arguments.read()?).await,
        Api::UpdatePortForwardingRule => port_forwarding::update(tx, arguments.read()?).await,
        Api::ChangePortForwardingRuleState => port_forwarding::change_state(tx, arguments.read()?).await,
        Api::GetPortForwardingAttachableVmNics => port_forwarding::candidates(tx, arguments.read()?).await,
        Api::AttachPortForwardingRule => port_forwarding::attach(tx, arguments.read()?).await,
        Api::DetachPortForwardingRule => port_forwarding::detach(tx, arguments.read()?).await,

        Api::CreateEip => eip::create(tx, caller, arguments.read()?).await,
        Api::DeleteEip => eip::delete(tx, &arguments.read()?).await,
        Api::UpdateEip => eip::update(tx, arguments.read()?).await,
        Api::ChangeEipState => eip::change_state(tx, arguments.read()?).await,
        Api::GetEipAttachableVmNics => eip::candidates(tx, arguments.read()?).await,
        Api::AttachEip => eip::attach(tx, arguments.read()?).await,
        Api::DetachEip => eip::detach(tx, arguments.read()?).await,

        api => Err(ApiError::unimplemented(format!("{} is no call of the model: it changes no resource", api.name()))),
    }
}

struct Arguments(Map<String, Value>);

impl Arguments {
    /// The arguments as the request type of the call. Presence and kinds have been checked, so an error means that the table
    /// of calls contradicts the type, or that only the type bounds the value.
    fn read<T: DeserializeOwned>(self) -> Result<T> {
        serde_json::from_value(Value::Object(self.0)).map_err(|error| ApiError::invalid_argument(error.to_string()))
    }
}
