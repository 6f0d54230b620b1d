//! Elastic IPs: each maps a VIP to one NIC, for every protocol and port.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    call::{
        Access, Answer, Api, Call, DELETE_MODE, DESCRIPTION, NAME, NEW_NAME, RESOURCE_UUID, STATE_EVENT, UUID, delete,
        get, in_path, post, put, text,
    },
    date::Date,
    resource::Resource,
};

const EIP: Answer = Answer::Inventory(Resource::Eip);

pub(crate) const CALLS: &[Call] = &[
    Call::create(
        Api::CreateEip,
        &[post("/eips")],
        &[
            NAME,
            DESCRIPTION,
            text("vipUuid", Access::Visible).required(),
            text("vmNicUuid", Access::Visible),
            RESOURCE_UUID,
        ],
        EIP,
    ),
    Call::delete(Api::DeleteEip, &[delete("/eips/{uuid}")], &[UUID, DELETE_MODE], Answer::Empty),
    Call::query(Api::QueryEip, Resource::Eip, &[get("/eips"), get("/eips/{uuid}")]),
    Call::action(Api::UpdateEip, &[put("/eips/{uuid}/actions")], &["updateEip"], &[UUID, NEW_NAME, DESCRIPTION], EIP),
    Call::action(Api::ChangeEipState, &[put("/eips/{uuid}/actions")], &["changeEipState"], &[UUID, STATE_EVENT], EIP),
    // The shorter path is not in the document: it asks by VIP, before there is an elastic IP.
    Call::read(
        Api::GetEipAttachableVmNics,
        &[get("/eips/{eipUuid}/vm-instances/candidate-nics"), get("/eips/vm-instances/candidate-nics")],
        &[text("eipUuid", Access::Visible), text("vipUuid", Access::Visible)],
        Answer::Inventories(Resource::VmNic),
    ),
    // According to the document the reply is empty; the real system's holds the inventory, which its clients read.
    Call::attach(
        Api::AttachEip,
        &[post("/eips/{eipUuid}/vm-instances/nics/{vmNicUuid}")],
        &[in_path("eipUuid", Access::Owner), in_path("vmNicUuid", Access::Owner)],
        EIP,
    ),
    Call::delete(Api::DetachEip, &[delete("/eips/{uuid}/vm-instances/nics")], &[UUID], EIP),
];

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateEip {
    pub name: String,
    pub description: Option<String>,
    pub vip_uuid: String,
    pub vm_nic_uuid: Option<String>,
    pub resource_uuid: Option<String>,
    #[serde(default)]
    pub system_tags: Vec<String>,
    #[serde(default)]
    pub user_tags: Vec<String>,
}

/// One of the two must be given; the elastic IP takes precedence.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetEipAttachableVmNics {
    pub eip_uuid: Option<String>,
    /// The VIP of the elastic IP to be created.
    pub vip_uuid: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachEip {
    pub eip_uuid: String,
    pub vm_nic_uuid: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EipInventory {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    /// Absent: attached to no NIC.
    pub vm_nic_uuid: Option<String>,
    pub vip_uuid: String,
    pub create_date: Date,
    pub last_op_date: Date,
    /// `Enabled` or `Disabled`.
    pub state: String,
    pub vip_ip: String,
    pub guest_ip: Option<String>,
}
