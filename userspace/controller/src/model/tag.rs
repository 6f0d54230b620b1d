//! Tags. System tags hold settings that have no field, such as those of a listener, or the addresses that a VM was created
//! with. User tags are free text to find resources by.

use vipgate_api::listener_tag::{self, ListenerTag, WEIGHT};
use vipgate_api::{
    ApiError, Resource,
    common::Delete,
    tag::{CreateTag, UpdateSystemTag},
};

use super::{Outcome, Result, resource::found};
use crate::store::{
    self, Tx, lb,
    tag::{self, SystemTag},
};

/// Creates the weight of a NIC. All other settings of a listener exist since its creation, and are updated instead.
pub(super) async fn create(tx: &mut Tx, request: CreateTag) -> Result {
    let CreateTag { resource_type, resource_uuid, tag } = tagged(tx, request).await?;
    if resource_type == Resource::Listener.kind() {
        let (name, _) = parse(&tag)?.subject();
        if name != WEIGHT {
            return Err(has_already(&resource_uuid, name));
        }
        let uuid = set_weight(tx, &resource_uuid, &tag).await?;
        let vips = store::vip::touched_by(tx, &resource_uuid).await?;
        return Ok(Outcome::inventory(Resource::SystemTag, uuid).touching(vips));
    }
    Err(no_match(&tag, &resource_type))
}

/// Creates a user tag; returns the existing one if the resource has it already.
pub(super) async fn create_user(tx: &mut Tx, request: CreateTag) -> Result {
    let CreateTag { resource_type, resource_uuid, tag } = tagged(tx, request).await?;
    let uuid = tag::insert_user(tx, &resource_uuid, &resource_type, &tag).await?;
    Ok(Outcome::inventory(Resource::UserTag, uuid))
}

/// Checks that there is such a resource of that type, and returns the request.
async fn tagged(tx: &mut Tx, request: CreateTag) -> Result<CreateTag> {
    match store::resource::kind_of(tx, &request.resource_uuid).await? {
        Some(kind) if kind == request.resource_type => Ok(request),
        Some(kind) => Err(ApiError::invalid_argument(format!(
            "field[resourceType]: resource[uuid:{}] is a {kind}, not a {}",
            request.resource_uuid, request.resource_type
        ))),
        None => Err(ApiError::not_found("resourceUuid", &request.resource_uuid, &request.resource_type)),
    }
}

/// Sets the weight of a backend of a listener; returns the uuid of the tag.
pub(super) async fn set_weight(tx: &mut Tx, listener_uuid: &str, text: &str) -> Result<String> {
    let ListenerTag::Weight { nic, .. } = parse(text)? else {
        return Err(ApiError::invalid_argument(format!("invalid tag[{text}]: only {WEIGHT} can be given here")));
    };
    if !lb::has_nic(tx, listener_uuid, nic).await? {
        return Err(ApiError::invalid_argument(format!(
            "invalid tag[{text}]: VM NIC[uuid:{nic}] is not on listener[uuid:{listener_uuid}]"
        )));
    }
    let prefix = format!("{WEIGHT}::{nic}::");
    if tag::system_with_prefix(tx, listener_uuid, &prefix).await?.is_some() {
        return Err(has_already(listener_uuid, &prefix));
    }
    insert(tx, Resource::Listener, listener_uuid, text).await
}

fn has_already(listener_uuid: &str, name: &str) -> ApiError {
    ApiError::operation(format!("listener[uuid:{listener_uuid}] has a tag {name} already; update that one"))
}

/// Changes the value of a setting, which is applied at once.
pub(super) async fn update(tx: &mut Tx, request: UpdateSystemTag) -> Result {
    let row = tag::system(tx, &request.uuid).await?;
    let row = found(row, "uuid", &request.uuid, Resource::SystemTag)?;
    if row.resource_type != Resource::Listener.kind() {
        return Err(ApiError::operation(format!(
            "tag[uuid:{}, tag:{}] of a {} can't be changed",
            row.uuid, row.tag, row.resource_type
        )));
    }
    if parse(&row.tag)?.subject() != parse(&request.tag)?.subject() {
        return Err(ApiError::invalid_argument(format!(
            "field[tag]: tag[uuid:{}] is {}, it can't become {}: its value alone can change",
            row.uuid, row.tag, request.tag
        )));
    }
    tag::update_system(tx, &row.uuid, &request.tag).await?;
    let vips = store::vip::touched_by(tx, &row.resource_uuid).await?;
    Ok(Outcome::inventory(Resource::SystemTag, row.uuid).touching(vips))
}

/// Deletes a user tag, or the weight of a NIC, which is the default one then. Other system tags can't be deleted.
pub(super) async fn delete(tx: &mut Tx, request: &Delete) -> Result {
    if let Some(row) = tag::system(tx, &request.uuid).await? {
        if row.resource_type == Resource::Listener.kind() && listener_tag::weight(&row.tag).is_some() {
            tag::delete_system(tx, &row.uuid).await?;
            let vips = store::vip::touched_by(tx, &row.resource_uuid).await?;
            return Ok(Outcome::empty().touching(vips));
        }
        return Err(ApiError::operation(format!(
            "tag[uuid:{}, tag:{}] can't be deleted, a {} needs it",
            row.uuid, row.tag, row.resource_type
        )));
    }
    if tag::delete_user(tx, &request.uuid).await? {
        return Ok(Outcome::empty());
    }
    Err(ApiError::not_found("uuid", &request.uuid, Resource::SystemTag.kind()))
}

/// Enters a checked system tag; returns its uuid.
pub(super) async fn insert(tx: &mut Tx, resource: Resource, resource_uuid: &str, text: &str) -> Result<String> {
    let row = SystemTag {
        uuid: store::new_uuid(),
        resource_uuid: resource_uuid.to_owned(),
        resource_type: resource.kind().to_owned(),
        tag: text.to_owned(),
        inherent: false,
    };
    tag::insert_system(tx, &row).await?;
    Ok(row.uuid)
}

/// Refuses system tags on a resource without system tags.
pub(super) fn refuse(tags: &[String], resource: Resource) -> Result<()> {
    tags.first().map_or(Ok(()), |tag| Err(no_match(tag, resource.kind())))
}

fn no_match(tag: &str, kind: &str) -> ApiError {
    ApiError::invalid_argument(format!("no system tag matches [{tag}] for resourceType[{kind}]"))
}

fn parse(tag: &str) -> Result<ListenerTag<'_>> {
    listener_tag::parse(tag).map_err(|error| ApiError::invalid_argument(error.to_string()))
}
