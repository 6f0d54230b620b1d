//! Who may do what: an administrator everything; a normal account what concerns its own resources alone, and it may use,
//! not change, what is shared with it. How many resources it may have is limited.

use serde_json::{Map, Value};
use vipgate_api::{
    Api, ApiError, Reply, Resource,
    calls::{self, Method, Param, Place},
};

use super::{Caller, Result};
use crate::store::{Tx, account};

/// What is about the router as a whole.
const ADMIN_ONLY: [Api; 8] = [
    Api::CreateZone,
    Api::DeleteZone,
    Api::CreateL2NoVlanNetwork,
    Api::CreateL2VlanNetwork,
    Api::DeleteL2Network,
    Api::CreateAccount,
    Api::DeleteAccount,
    Api::UpdateQuota,
];

/// How many of these a normal account may have, and the name of that limit.
pub(super) const QUOTAS: [(&str, &str); 7] = [
    ("VipVO", "vip.num"),
    ("EipVO", "eip.num"),
    ("PortForwardingRuleVO", "portForwarding.num"),
    ("LoadBalancerVO", "loadBalancer.num"),
    ("LoadBalancerListenerVO", "listener.num"),
    ("SecurityGroupVO", "securityGroup.num"),
    ("L3NetworkVO", "l3.num"),
];

/// Of each, unless the account has been given another number.
pub(super) const DEFAULT_QUOTA: i64 = 20;

/// ID.1002 unless the caller may make this call with the resources that its arguments name. Those that are not there are
/// for the call's own rules to refuse.
pub(super) async fn check(tx: &mut Tx, caller: &Caller, api: Api, arguments: &Map<String, Value>) -> Result<()> {
    if caller.admin {
        return Ok(());
    }
    if ADMIN_ONLY.contains(&api) {
        return Err(ApiError::permission_denied(format!("{} is for administrators", api.name())));
    }
    let Some(call) = calls::all().find(|call| call.api == api) else { return Ok(()) };
    let reads = call.routes.iter().all(|route| route.method == Method::Get);
    for param in call.params.iter().filter(|param| names_resources(param)) {
        let changes = !reads && (param.place == Place::Path || param.name.starts_with("resourceUuid"));
        let uuids = match arguments.get(param.name) {
            Some(Value::Array(uuids)) => uuids.as_slice(),
            Some(uuid) => std::slice::from_ref(uuid),
            None => &[],
        };
        for uuid in uuids.iter().filter_map(Value::as_str) {
            let Some(owner) = account::owner(tx, uuid).await? else { continue };
            let may =
                owner == caller.account_uuid || (!changes && account::sees(tx, &caller.account_uuid, uuid).await?);
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

fn names_resources(param: &Param) -> bool {
    param.name == "uuid" || param.name.ends_with("Uuid") || param.name.ends_with("Uuids")
}

/// Takes what the caller does not see out of a list. What nobody owns is a part of what the call named, and seen with it.
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

/// ID.1003 if the caller has as many resources of that kind as it may have.
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
