//! L3 networks, their address ranges and name servers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    call::{
        Access, Answer, Api, Call, DELETE_MODE, DESCRIPTION, Kind, NAME, Param, RESOURCE_UUID, Rule, UUID, delete, get,
        in_path, post, text,
    },
    date::Date,
    network_service::NetworkServiceRefInventory,
    resource::Resource,
};

const L3: Param = in_path("l3NetworkUuid", Access::Owner);

pub(crate) const CALLS: &[Call] = &[
    Call::create(
        Api::CreateL3Network,
        &[post("/l3-networks")],
        &[
            NAME,
            DESCRIPTION,
            text("l2NetworkUuid", Access::Visible).required(),
            text("type", Access::Free),
            text("category", Access::Free).rule(Rule::OneOf(&["Public", "Private", "System"])),
            Param::new("system", Kind::Bool, Access::Free),
            text("dnsDomain", Access::Free).rule(Rule::MaxLength(255)),
            RESOURCE_UUID,
        ],
        Answer::Inventory(Resource::L3Network),
    ),
    Call::delete(Api::DeleteL3Network, &[delete("/l3-networks/{uuid}")], &[UUID, DELETE_MODE], Answer::Empty),
    Call::query(Api::QueryL3Network, Resource::L3Network, &[get("/l3-networks"), get("/l3-networks/{uuid}")]),
    Call::create(
        Api::AddDnsToL3Network,
        &[post("/l3-networks/{l3NetworkUuid}/dns")],
        &[L3, text("dns", Access::Free).required()],
        Answer::Inventory(Resource::L3Network),
    ),
    Call::delete(
        Api::RemoveDnsFromL3Network,
        &[delete("/l3-networks/{l3NetworkUuid}/dns/{dns}")],
        &[L3, in_path("dns", Access::Free)],
        Answer::Inventory(Resource::L3Network),
    ),
    Call::create(
        Api::AddIpRange,
        &[post("/l3-networks/{l3NetworkUuid}/ip-ranges")],
        &[
            L3,
            NAME,
            DESCRIPTION,
            text("startIp", Access::Free).required(),
            text("endIp", Access::Free).required(),
            text("netmask", Access::Free).required(),
            text("gateway", Access::Free).required(),
            RESOURCE_UUID,
        ],
        Answer::Inventory(Resource::IpRange),
    ),
    Call::create(
        Api::AddIpRangeByNetworkCidr,
        &[post("/l3-networks/{l3NetworkUuid}/ip-ranges/by-cidr")],
        &[L3, NAME, DESCRIPTION, text("networkCidr", Access::Free).required(), RESOURCE_UUID],
        Answer::Inventory(Resource::IpRange),
    ),
    Call::delete(Api::DeleteIpRange, &[delete("/l3-networks/ip-ranges/{uuid}")], &[UUID, DELETE_MODE], Answer::Empty),
    Call::query(
        Api::QueryIpRange,
        Resource::IpRange,
        &[get("/l3-networks/ip-ranges"), get("/l3-networks/ip-ranges/{uuid}")],
    ),
];

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateL3Network {
    pub name: String,
    pub description: Option<String>,
    pub l2_network_uuid: String,
    /// `L3BasicNetwork` when absent.
    pub r#type: Option<String>,
    /// `Public`, `Private` (when absent) or `System`.
    pub category: Option<String>,
    pub system: Option<bool>,
    pub dns_domain: Option<String>,
    pub resource_uuid: Option<String>,
    #[serde(default)]
    pub system_tags: Vec<String>,
    #[serde(default)]
    pub user_tags: Vec<String>,
}

/// Also the request of `RemoveDnsFromL3Network`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsOfL3Network {
    pub l3_network_uuid: String,
    pub dns: String,
}

/// Dotted quads; the range is inclusive.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddIpRange {
    pub l3_network_uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub start_ip: String,
    pub end_ip: String,
    pub netmask: String,
    pub gateway: String,
    pub resource_uuid: Option<String>,
    #[serde(default)]
    pub system_tags: Vec<String>,
    #[serde(default)]
    pub user_tags: Vec<String>,
}

/// The first usable address becomes the gateway, the rest the range.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddIpRangeByNetworkCidr {
    pub l3_network_uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub network_cidr: String,
    pub resource_uuid: Option<String>,
    #[serde(default)]
    pub system_tags: Vec<String>,
    #[serde(default)]
    pub user_tags: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct L3NetworkInventory {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub r#type: String,
    pub zone_uuid: String,
    pub l2_network_uuid: String,
    pub state: String,
    pub dns_domain: Option<String>,
    pub system: bool,
    pub category: String,
    pub create_date: Date,
    pub last_op_date: Date,
    pub dns: Vec<String>,
    pub ip_ranges: Vec<IpRangeInventory>,
    pub network_services: Vec<NetworkServiceRefInventory>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct IpRangeInventory {
    pub uuid: String,
    pub l3_network_uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub start_ip: String,
    pub end_ip: String,
    pub netmask: String,
    pub gateway: String,
    pub network_cidr: String,
    pub create_date: Date,
    pub last_op_date: Date,
}
