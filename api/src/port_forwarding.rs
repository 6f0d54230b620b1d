//! Port-forwarding rules: each maps a range of a VIP's ports to a range of a NIC's ports.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    call::{
        Access, Answer, Api, Call, DELETE_MODE, DESCRIPTION, Kind, NAME, NEW_NAME, Param, RESOURCE_UUID, Rule,
        STATE_EVENT, UUID, delete, get, in_path, post, put, text,
    },
    date::Date,
    resource::Resource,
};

const RULE: Answer = Answer::Inventory(Resource::PortForwardingRule);

const fn port(name: &'static str) -> Param {
    Param::new(name, Kind::Int, Access::Free).rule(Rule::Range(1, 65535))
}

pub(crate) const CALLS: &[Call] = &[
    Call::create(
        Api::CreatePortForwardingRule,
        &[post("/port-forwarding")],
        &[
            NAME,
            DESCRIPTION,
            text("vipUuid", Access::Visible).required(),
            port("vipPortStart").required(),
            port("vipPortEnd"),
            port("privatePortStart"),
            port("privatePortEnd"),
            text("protocolType", Access::Free).required().rule(Rule::OneOfAnyCase(&["TCP", "UDP"])),
            text("vmNicUuid", Access::Visible),
            text("allowedCidr", Access::Free),
            RESOURCE_UUID,
        ],
        RULE,
    ),
    Call::delete(
        Api::DeletePortForwardingRule,
        &[delete("/port-forwarding/{uuid}")],
        &[UUID, DELETE_MODE],
        Answer::Empty,
    ),
    Call::query(
        Api::QueryPortForwardingRule,
        Resource::PortForwardingRule,
        &[get("/port-forwarding"), get("/port-forwarding/{uuid}")],
    ),
    Call::action(
        Api::UpdatePortForwardingRule,
        &[put("/port-forwarding/{uuid}/actions")],
        &["updatePortForwardingRule"],
        &[UUID, NEW_NAME, DESCRIPTION],
        RULE,
    ),
    Call::action(
        Api::ChangePortForwardingRuleState,
        &[put("/port-forwarding/{uuid}/actions")],
        &["changePortForwardingRuleState"],
        &[UUID, STATE_EVENT],
        RULE,
    ),
    Call::read(
        Api::GetPortForwardingAttachableVmNics,
        &[get("/port-forwarding/{ruleUuid}/vm-instances/candidate-nics")],
        &[in_path("ruleUuid", Access::Visible)],
        Answer::Inventories(Resource::VmNic),
    ),
    Call::attach(
        Api::AttachPortForwardingRule,
        &[post("/port-forwarding/{ruleUuid}/vm-instances/nics/{vmNicUuid}")],
        &[in_path("ruleUuid", Access::Owner), in_path("vmNicUuid", Access::Owner)],
        RULE,
    ),
    Call::delete(Api::DetachPortForwardingRule, &[delete("/port-forwarding/{uuid}/vm-instances/nics")], &[UUID], RULE),
];

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreatePortForwardingRule {
    pub name: String,
    pub description: Option<String>,
    pub vip_uuid: String,
    pub vip_port_start: u16,
    /// `vip_port_start` when absent.
    pub vip_port_end: Option<u16>,
    /// `vip_port_start` when absent.
    pub private_port_start: Option<u16>,
    /// `vip_port_end` when absent.
    pub private_port_end: Option<u16>,
    /// `TCP` or `UDP`.
    pub protocol_type: String,
    pub vm_nic_uuid: Option<String>,
    /// `0.0.0.0/0` when absent.
    pub allowed_cidr: Option<String>,
    pub resource_uuid: Option<String>,
    #[serde(default)]
    pub system_tags: Vec<String>,
    #[serde(default)]
    pub user_tags: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetPortForwardingAttachableVmNics {
    pub rule_uuid: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachPortForwardingRule {
    pub rule_uuid: String,
    pub vm_nic_uuid: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortForwardingRuleInventory {
    pub uuid: String,
    pub name: String,
    pub description: Option<String>,
    pub vip_ip: String,
    /// Absent: attached to no NIC.
    pub guest_ip: Option<String>,
    pub vip_uuid: String,
    pub vip_port_start: u16,
    pub vip_port_end: u16,
    pub private_port_start: u16,
    pub private_port_end: u16,
    pub vm_nic_uuid: Option<String>,
    pub protocol_type: String,
    /// `Enabled` or `Disabled`.
    pub state: String,
    pub allowed_cidr: String,
    pub create_date: Date,
    pub last_op_date: Date,
}
