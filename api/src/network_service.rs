//! Network services: which provider offers which service on which L3 network.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    call::{Access, Answer, Api, Call, Kind, Param, Rule, delete, get, in_path, post},
    date::Date,
    resource::Resource,
};

const PARAMS: &[Param] = &[
    in_path("l3NetworkUuid", Access::Owner),
    Param::new("networkServices", Kind::ListMap, Access::Free).required().rule(Rule::NotEmpty),
];

pub(crate) const CALLS: &[Call] = &[
    Call::read(
        Api::GetNetworkServiceTypes,
        &[get("/network-services/types")],
        &[],
        // Service type -> uuids of its providers.
        Answer::Members(&[Param::new("types", Kind::ListMap, Access::Free).required()]),
    ),
    Call::query(
        Api::QueryNetworkServiceProvider,
        Resource::NetworkServiceProvider,
        &[get("/network-services/providers")],
    ),
    Call::query(
        Api::QueryNetworkServiceL3NetworkRef,
        Resource::NetworkServiceRef,
        &[get("/l3-networks/network-services/refs")],
    ),
    Call::create(
        Api::AttachNetworkServiceToL3Network,
        &[post("/l3-networks/{l3NetworkUuid}/network-services")],
        PARAMS,
        Answer::Inventory(Resource::L3Network),
    ),
    Call::delete(
        Api::DetachNetworkServiceFromL3Network,
        &[delete("/l3-networks/{l3NetworkUuid}/network-services")],
        PARAMS,
        Answer::Inventory(Resource::L3Network),
    ),
];

/// The request to attach services and the one to detach them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkServices {
    pub l3_network_uuid: String,
    /// Provider uuid -> service types.
    pub network_services: BTreeMap<String, Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkServiceProviderInventory {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub r#type: String,
    pub create_date: Date,
    pub last_op_date: Date,
    pub network_service_types: Vec<String>,
    pub attached_l2_network_uuids: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkServiceRefInventory {
    pub l3_network_uuid: String,
    pub network_service_provider_uuid: String,
    pub network_service_type: String,
}
