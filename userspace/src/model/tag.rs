//! System tags: settings that are no fields. A listener keeps its settings so, a VM the addresses it was asked to have.

use vipgate_api::{
    ApiError, Resource,
    common::Delete,
    tag::{CreateTag, UpdateSystemTag},
};

use super::{Outcome, Result, resource::found};
use crate::store::{
    self, Tx, listener_tags,
    tag::{self, SystemTag},
};

/// Tags of listeners are all there from the listener's creation: another one is one too many.
pub(super) async fn create(tx: &mut Tx, request: CreateTag) -> Result {
    let CreateTag { resource_type, resource_uuid, tag } = request;
    let kind = store::resource::kind_of(tx, &resource_uuid).await?;
    if kind.as_deref() != Some(&resource_type) {
        return Err(ApiError::not_found("resourceUuid", &resource_uuid, &resource_type));
    }
    if resource_type == Resource::Listener.kind() {
        let (name, _) = parse(&tag)?;
        return Err(ApiError::operation(format!(
            "listener[uuid:{resource_uuid}] has a tag {name} already; update that one"
        )));
    }
    Err(no_match(&tag, &resource_type))
}

/// Takes effect at once.
pub(super) async fn update(tx: &mut Tx, request: UpdateSystemTag) -> Result {
    let row = tag::system(tx, &request.uuid).await?;
    let row = found(row, "uuid", &request.uuid, Resource::SystemTag)?;
    if row.resource_type != Resource::Listener.kind() {
        return Err(ApiError::operation(format!(
            "tag[uuid:{}, tag:{}] of a {} can't be changed",
            row.uuid, row.tag, row.resource_type
        )));
    }
    let (old, _) = parse(&row.tag)?;
    let (new, _) = parse(&request.tag)?;
    if old != new {
        return Err(ApiError::invalid_argument(format!(
            "field[tag]: tag[uuid:{}] is {old}::..., it can't become {new}::...",
            row.uuid
        )));
    }
    tag::update_system(tx, &row.uuid, &request.tag).await?;
    let vips = store::vip::touched_by(tx, &row.resource_uuid).await?;
    Ok(Outcome::inventory(Resource::SystemTag, row.uuid).touching(vips))
}

/// System tags can't be deleted by a call, user tags can.
pub(super) async fn delete(tx: &mut Tx, request: &Delete) -> Result {
    if let Some(row) = tag::system(tx, &request.uuid).await? {
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

/// Enters a checked system tag.
pub(super) async fn insert(tx: &mut Tx, resource: Resource, resource_uuid: &str, text: &str) -> Result<()> {
    let row = SystemTag {
        uuid: store::new_uuid(),
        resource_uuid: resource_uuid.to_owned(),
        resource_type: resource.kind().to_owned(),
        tag: text.to_owned(),
        inherent: false,
    };
    Ok(tag::insert_system(tx, &row).await?)
}

/// Refuses system tags on a resource that knows none.
pub(super) fn refuse(tags: &[String], resource: Resource) -> Result<()> {
    tags.first().map_or(Ok(()), |tag| Err(no_match(tag, resource.kind())))
}

fn no_match(tag: &str, kind: &str) -> ApiError {
    ApiError::invalid_argument(format!("no system tag matches [{tag}] for resourceType[{kind}]"))
}

fn parse(tag: &str) -> Result<(&'static str, &str)> {
    listener_tags::parse(tag).map_err(|error| ApiError::invalid_argument(error.to_string()))
}
