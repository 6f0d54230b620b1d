//! What an account may do. An administrator may do everything. A normal account may change its own resources, and read and
//! use, but not change, what is shared with it. Quotas limit how many resources it may own.

use serde_json::{Map, Value};
use vipgate_api::{Api, ApiError, Reply, Resource, call::Access, calls};

use super::{Caller, Result};
use crate::store::{Tx, account};

/// Calls that concern the router as a whole.
pub(super) const ADMIN_ONLY: [Api; 8] = [
    Api::CreateZone,
    Api::DeleteZone,
    Api::CreateL2NoVlanNetwork,
    Api::CreateL2VlanNetwork,
    Api::DeleteL2Network,
    Api::CreateAccount,
    Api::DeleteAccount,
    Api::UpdateQuota,
];

/// The types of resources that a normal account may own a limited number of, and the name of each limit.
pub(super) const QUOTAS: [(&str, &str); 7] = [
    ("VipVO", "vip.num"),
    ("EipVO", "eip.num"),
    ("PortForwardingRuleVO", "portForwarding.num"),
    ("LoadBalancerVO", "loadBalancer.num"),
    ("LoadBalancerListenerVO", "listener.num"),
    ("SecurityGroupVO", "securityGroup.num"),
    ("L3NetworkVO", "l3.num"),
];

/// The limit of each type, unless the account has been given another one.
pub(super) const DEFAULT_QUOTA: i64 = 20;

/// Refuses with ID.1002 unless the caller may make this call with the resources that its arguments name: the rows of the
/// parameters say what it needs. Resources that do not exist are left to the call's own rules, which refuse them.
pub(super) async fn check(tx: &mut Tx, caller: &Caller, api: Api, arguments: &Map<String, Value>) -> Result<()> {
    if caller.admin {
        return Ok(());
    }
    if ADMIN_ONLY.contains(&api) {
        return Err(ApiError::permission_denied(format!("{} is for administrators", api.name())));
    }
    let Some(call) = calls::of(api) else { return Ok(()) };
    for param in call.params {
        let may_be_shared = match param.access {
            Access::Owner => false,
            Access::Visible => true,
            Access::Free => continue,
        };
        for uuid in uuids(arguments.get(param.name)) {
            let Some(owner) = account::owner(tx, uuid).await? else { continue };
            let may = owner == caller.account_uuid
                || (may_be_shared && account::sees(tx, &caller.account_uuid, uuid).await?);
            if !may {
                return Err(ApiError::permission_denied(format!(
                    "field[{}]: account[uuid:{}] has no access to resource[uuid:{uuid}]",
                    param.name, caller.account_uuid
                )));
            }
        }
    }
    Ok(())
}

fn uuids(argument: Option<&Value>) -> impl Iterator<Item = &str> {
    let values = match argument {
        Some(Value::Array(uuids)) => uuids.as_slice(),
        Some(uuid) => std::slice::from_ref(uuid),
        None => &[],
    };
    values.iter().filter_map(Value::as_str)
}

/// Removes the resources from a list that the caller may not see. A resource without an owner is part of one that the call
/// names, and is visible with it.
pub(super) async fn hide(tx: &mut Tx, caller: &Caller, reply: &mut Reply) -> Result<()> {
    if let Reply::Inventories(_, uuids) = reply
        && !caller.admin
    {
        let mut seen = Vec::new();
        for uuid in uuids.drain(..) {
            if account::owner(tx, &uuid).await?.is_none() || account::sees(tx, &caller.account_uuid, &uuid).await? {
                seen.push(uuid);
            }
        }
        *uuids = seen;
    }
    Ok(())
}

/// Refuses with ID.1003 if the caller owns as many resources of that type as its quota allows.
pub(super) async fn room(tx: &mut Tx, caller: &Caller, resource: Resource) -> Result<()> {
    let kind = resource.kind();
    let Some((_, name)) = QUOTAS.iter().find(|(limited, _)| *limited == kind && !caller.admin) else { return Ok(()) };
    let most = account::quota(tx, &caller.account_uuid, name).await?.unwrap_or(DEFAULT_QUOTA);
    let has = account::count(tx, &caller.account_uuid, kind).await?;
    if has >= most {
        return Err(ApiError::quota(format!(
            "account[uuid:{}] has {has} {kind}, quota[{name}] is {most}: delete some or have it raised",
            caller.account_uuid
        )));
    }
    Ok(())
}
