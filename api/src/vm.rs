//! VM instances, which are only records here, and their NICs: the backends of listeners, rules and elastic IPs.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    call::{
        Access, Answer, Api, Call, DELETE_MODE, DESCRIPTION, Kind, NAME, Param, RESOURCE_UUID, Rule, UUID, delete, get,
        post, put, text,
    },
    date::Date,
    resource::Resource,
};

pub(crate) const CALLS: &[Call] = &[
    Call::create(
        Api::CreateVmInstance,
        &[post("/vm-instances")],
        &[
            NAME,
            DESCRIPTION,
            text("instanceOfferingUuid", Access::Visible),
            text("imageUuid", Access::Visible),
            Param::new("l3NetworkUuids", Kind::TextList, Access::Visible).required().rule(Rule::NotEmpty),
            text("defaultL3NetworkUuid", Access::Visible),
            text("type", Access::Free),
            text("zoneUuid", Access::Visible),
            text("clusterUuid", Access::Visible),
            text("hostUuid", Access::Visible),
            text("strategy", Access::Free).rule(Rule::OneOf(&["InstantStart", "JustCreate", "CreateStopped"])),
            RESOURCE_UUID,
        ],
        Answer::Inventory(Resource::VmInstance),
    ),
    Call::delete(Api::DestroyVmInstance, &[delete("/vm-instances/{uuid}")], &[UUID, DELETE_MODE], Answer::Empty),
    Call::action(
        Api::StartVmInstance,
        &[put("/vm-instances/{uuid}/actions")],
        &["startVmInstance"],
        &[UUID],
        Answer::Inventory(Resource::VmInstance),
    ),
    Call::action(
        Api::StopVmInstance,
        &[put("/vm-instances/{uuid}/actions")],
        &["stopVmInstance"],
        &[UUID],
        Answer::Inventory(Resource::VmInstance),
    ),
    Call::query(Api::QueryVmInstance, Resource::VmInstance, &[get("/vm-instances"), get("/vm-instances/{uuid}")]),
    Call::query(Api::QueryVmNic, Resource::VmNic, &[get("/vm-instances/nics"), get("/vm-instances/nics/{uuid}")]),
];

/// `staticIp::<l3 uuid>::<address>` and `customMac::<l3 uuid>::<mac>` come as system tags.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateVmInstance {
    pub name: String,
    pub description: Option<String>,
    pub instance_offering_uuid: Option<String>,
    pub image_uuid: Option<String>,
    /// One NIC each.
    pub l3_network_uuids: Vec<String>,
    pub default_l3_network_uuid: Option<String>,
    pub r#type: Option<String>,
    pub zone_uuid: Option<String>,
    pub cluster_uuid: Option<String>,
    pub host_uuid: Option<String>,
    /// `InstantStart` when absent; the other two leave the VM stopped.
    pub strategy: Option<String>,
    pub resource_uuid: Option<String>,
    #[serde(default)]
    pub system_tags: Vec<String>,
    #[serde(default)]
    pub user_tags: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmInstanceInventory {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub zone_uuid: Option<String>,
    pub cluster_uuid: Option<String>,
    pub image_uuid: Option<String>,
    pub host_uuid: Option<String>,
    pub last_host_uuid: Option<String>,
    pub instance_offering_uuid: Option<String>,
    pub root_volume_uuid: Option<String>,
    pub platform: String,
    pub default_l3_network_uuid: Option<String>,
    pub r#type: String,
    pub hypervisor_type: String,
    /// Bytes.
    pub memory_size: i64,
    pub cpu_num: i64,
    pub cpu_speed: i64,
    pub allocator_strategy: Option<String>,
    pub create_date: Date,
    pub last_op_date: Date,
    /// `Running` or `Stopped`.
    pub state: String,
    /// Counts all instances ever made.
    pub internal_id: i64,
    pub vm_nics: Vec<VmNicInventory>,
    /// Volumes, of which this router keeps none.
    pub all_volumes: Vec<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmNicInventory {
    pub uuid: String,
    pub vm_instance_uuid: String,
    pub used_ip_uuid: Option<String>,
    pub l3_network_uuid: String,
    pub ip: String,
    pub mac: String,
    pub netmask: String,
    pub gateway: String,
    pub meta_data: Option<String>,
    pub internal_name: Option<String>,
    pub device_id: i64,
    pub create_date: Date,
    pub last_op_date: Date,
}
