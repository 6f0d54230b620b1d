//! What all resources share: registration with tags, look-up, and deletion with all dependents.

use vipgate_api::{ApiError, Resource, common::Delete};

use super::{Caller, Outcome, Result, access, tag, vip};
use crate::store::{self, Tx, resource};

/// The parameters that all create calls have.
pub(super) struct New<'a> {
    pub(super) resource: Resource,
    /// The uuid that the caller wants; `None` for a random one.
    pub(super) uuid: Option<&'a str>,
    pub(super) user_tags: &'a [String],
}

/// Registers a new resource with its user tags and returns its uuid.
pub(super) async fn register(tx: &mut Tx, caller: &Caller, new: New<'_>) -> Result<String> {
    let uuid = match new.uuid {
        Some(uuid) => {
            if let Some(kind) = resource::kind_of(tx, uuid).await? {
                return Err(ApiError::invalid_argument(format!(
                    "field[resourceUuid]: uuid {uuid} is in use by a {kind}; choose another or leave it out"
                )));
            }
            uuid.to_owned()
        }
        None => store::new_uuid(),
    };
    access::room(tx, caller, new.resource).await?;
    resource::register(tx, new.resource.kind(), &uuid, &caller.account_uuid).await?;
    for text in new.user_tags {
        store::tag::insert_user(tx, &uuid, new.resource.kind(), text).await?;
    }
    Ok(uuid)
}

/// Registers a new resource of a type without system tags.
pub(super) async fn register_untagged(
    tx: &mut Tx,
    caller: &Caller,
    new: New<'_>,
    system_tags: &[String],
) -> Result<String> {
    tag::refuse(system_tags, new.resource)?;
    register(tx, caller, new).await
}

/// SYS.1003 unless there is a resource of that type; `field` is the parameter that names it.
pub(super) async fn require(tx: &mut Tx, field: &str, uuid: &str, kind: Resource) -> Result<()> {
    match resource::kind_of(tx, uuid).await? {
        Some(found) if found == kind.kind() => Ok(()),
        _ => Err(ApiError::not_found(field, uuid, kind.kind())),
    }
}

/// The row that was looked up, or SYS.1003.
pub(super) fn found<T>(row: Option<T>, field: &str, uuid: &str, kind: Resource) -> Result<T> {
    row.ok_or_else(|| ApiError::not_found(field, uuid, kind.kind()))
}

/// Deletes a resource; for these types it is no error if the resource does not exist. Nothing here vetoes a delete, so both
/// delete modes do the same.
pub(super) async fn delete(tx: &mut Tx, kind: Resource, request: &Delete) -> Result {
    match resource::kind_of(tx, &request.uuid).await? {
        Some(found) if found == kind.kind() => remove(tx, &request.uuid).await,
        // The real system requires an unknown uuid to have the form of its uuids.
        None if is_rfc4122(&request.uuid) => Ok(Outcome::empty()),
        _ => Err(ApiError::not_found("uuid", &request.uuid, kind.kind())),
    }
}

/// Deletes a resource with all dependents, and updates the use of the VIPs that remain.
pub(super) async fn remove(tx: &mut Tx, uuid: &str) -> Result {
    let touched = store::vip::touched_by(tx, uuid).await?;
    resource::delete(tx, uuid).await?;
    for vip in &touched {
        vip::update_use(tx, vip).await?;
    }
    Ok(Outcome::empty().touching(touched))
}

/// Whether it has the form of an RFC 4122 UUID without dashes: version 1 to 5, variant 10x.
fn is_rfc4122(uuid: &str) -> bool {
    let digits = uuid.as_bytes();
    digits.len() == 32
        && digits.iter().all(u8::is_ascii_hexdigit)
        && (b'1'..=b'5').contains(&digits[12])
        && matches!(digits[16], b'8' | b'9' | b'a' | b'b' | b'A' | b'B')
}

#[cfg(test)]
mod tests {
    use super::is_rfc4122;

    #[test]
    fn only_rfc_4122_uuids_may_be_unknown() {
        assert!(is_rfc4122("36c27e8ff05c4780bf6d2fa65700f22e"));
        for other in ["36c27e8ff05c0780bf6d2fa65700f22e", "36c27e8ff05c47807f6d2fa65700f22e", "vip", ""] {
            assert!(!is_rfc4122(other), "{other}");
        }
    }
}
