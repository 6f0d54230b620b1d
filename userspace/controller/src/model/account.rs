//! Accounts, their quotas, and sharing.

use serde_json::{Map, json};
use vipgate_api::{
    ApiError, Date, Reply, Resource,
    account::{CreateAccount, QuotaInventory, Sharing, UpdateAccount, UpdateQuota},
    common::Delete,
};

use super::{
    Caller, Outcome, Result,
    access::{DEFAULT_QUOTA, QUOTAS},
    resource::found,
};
use crate::store::{
    self, Tx,
    account::{self, ADMIN, Account},
};

const NORMAL: &str = "Normal";

/// The password in the request is its hash already.
pub(super) async fn create(tx: &mut Tx, request: CreateAccount) -> Result {
    let row = Account {
        uuid: store::new_uuid(),
        name: request.name,
        description: request.description,
        kind: request.r#type.unwrap_or_else(|| NORMAL.to_owned()),
    };
    if !account::insert(tx, &row, &request.password).await? {
        return Err(taken(&row.name));
    }
    if row.kind == NORMAL {
        for (_, quota) in QUOTAS {
            account::set_quota(tx, &row.uuid, quota, DEFAULT_QUOTA).await?;
        }
    }
    Ok(Outcome::inventory(Resource::Account, row.uuid))
}

/// A normal account can change only itself.
pub(super) async fn update(tx: &mut Tx, caller: &Caller, request: UpdateAccount) -> Result {
    if !caller.admin && caller.account_uuid != request.uuid {
        return Err(ApiError::permission_denied(format!("account[uuid:{}] is another account", request.uuid)));
    }
    let mut row = get(tx, "uuid", &request.uuid).await?;
    row.name = request.name.unwrap_or(row.name);
    row.description = request.description.or(row.description);
    if !account::update(tx, &row, request.password.as_deref()).await? {
        return Err(taken(&row.name));
    }
    Ok(Outcome::inventory(Resource::Account, row.uuid))
}

fn taken(name: &str) -> ApiError {
    ApiError::operation(format!("there is an account `{name}` already; choose another name"))
}

/// The administrator becomes the owner of its resources, whose traffic goes on.
pub(super) async fn delete(tx: &mut Tx, request: &Delete) -> Result {
    let row = get(tx, "uuid", &request.uuid).await?;
    if row.uuid == ADMIN {
        let reason = ApiError::operation("it owns what has no other owner");
        return Err(ApiError::delete(format!("account[uuid:{ADMIN}] can't be deleted"), reason));
    }
    account::delete(tx, &row.uuid).await?;
    Ok(Outcome::empty())
}

pub(super) async fn set_quota(tx: &mut Tx, request: UpdateQuota) -> Result {
    let row = get(tx, "identityUuid", &request.identity_uuid).await?;
    if !QUOTAS.iter().any(|(_, name)| *name == request.name) {
        let names = QUOTAS.map(|(_, name)| name).join(", ");
        return Err(ApiError::invalid_argument(format!(
            "field[name]: no quota `{}`; there are: {names}",
            request.name
        )));
    }
    account::set_quota(tx, &row.uuid, &request.name, request.value).await?;
    let now = Date::from_millis(tx.now()).ok_or_else(|| ApiError::internal("the clock is out of range"))?;
    let inventory = QuotaInventory {
        name: request.name,
        identity_uuid: row.uuid,
        identity_type: "AccountVO".to_owned(),
        value: request.value,
        create_date: now,
        last_op_date: now,
    };
    Ok(Outcome::new(Reply::Members(Map::from_iter([("inventory".to_owned(), json!(inventory))]))))
}

pub(super) async fn share(tx: &mut Tx, request: Sharing) -> Result {
    if request.account_uuids.is_empty() && !request.to_public {
        return Err(ApiError::invalid_argument("field[accountUuids] is empty: name accounts, or set toPublic"));
    }
    check(tx, &request).await?;
    for resource in &request.resource_uuids {
        for account in &request.account_uuids {
            account::share(tx, resource, Some(account)).await?;
        }
        if request.to_public {
            account::share(tx, resource, None).await?;
        }
    }
    Ok(Outcome::empty())
}

/// Resources that use the shared ones stay.
pub(super) async fn unshare(tx: &mut Tx, request: Sharing) -> Result {
    check(tx, &request).await?;
    for resource in &request.resource_uuids {
        for account in &request.account_uuids {
            account::unshare(tx, resource, Some(account)).await?;
        }
        if request.to_public {
            account::unshare(tx, resource, None).await?;
        }
        if request.all {
            account::unshare_all(tx, resource).await?;
        }
    }
    Ok(Outcome::empty())
}

async fn check(tx: &mut Tx, request: &Sharing) -> Result<()> {
    for uuid in &request.resource_uuids {
        if store::resource::kind_of(tx, uuid).await?.is_none() {
            return Err(ApiError::not_found("resourceUuids", uuid, "ResourceVO"));
        }
    }
    for uuid in &request.account_uuids {
        get(tx, "accountUuids", uuid).await?;
    }
    Ok(())
}

async fn get(tx: &mut Tx, field: &str, uuid: &str) -> Result<Account> {
    found(account::get(tx, uuid).await?, field, uuid, Resource::Account)
}
