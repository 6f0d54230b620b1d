//! The table of what can be queried: each resource with its SQL table, its fields and its lists.
//!
//! A column is its API field in snake_case, so a row here is just the names and kinds of the inventory's members. Every
//! field here can be compared, sorted by, selected and printed.

use vipgate_api::Resource;

/// A resource and the SQL table of its rows.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) resource: Resource,
    /// Name of its SQL table.
    pub(super) name: &'static str,
    /// Column and value: only the rows with that value belong to the resource.
    pub(super) only: Option<(&'static str, &'static str)>,
    /// Which rows an account sees.
    pub(super) access: Access,
    /// The field that identifies an inventory: lists refer to their owner by it.
    pub(super) key: &'static str,
    /// The columns that define a total order, which paging needs; spelt like fields, but not all are in the inventory.
    pub(super) order: &'static [&'static str],
    pub(super) fields: &'static [Field],
    pub(super) lists: &'static [List],
}

/// Which rows a normal account sees; an administrator sees all.
#[derive(Clone, Copy, Debug)]
pub(super) enum Access {
    Everybody,
    /// Rows whose column is the uuid of a resource that the account owns or that is shared with it.
    Resource(&'static str),
    /// Rows whose column is the uuid of the account.
    Account(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    /// Its name in the API.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
}

/// How a field is stored, printed and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// 32 lower-case hexadecimal digits.
    Uuid,
    /// Compared without regard to case ([`crate::store::collation`]).
    Text,
    Number,
    /// 0 or 1.
    Flag,
    /// Milliseconds since 1970; compared by whole seconds, which is what is printed.
    Date,
}

/// A member of an inventory that is a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    pub(super) name: &'static str,
    pub(super) of: Items,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Items {
    /// Inventories of another resource whose `field` is our key.
    Inventories { resource: Resource, field: &'static str },
    /// A text column of the rows of another table whose `owner` column is our key, sorted.
    Texts { table: &'static str, owner: &'static str, column: &'static str },
    /// Always empty: clients expect the member, but this router has no such resources.
    Nothing,
}

impl Table {
    pub(super) fn of(resource: Resource) -> Option<&'static Self> {
        TABLES.iter().find(|table| table.resource == resource)
    }

    /// Resources with a uuid have tags.
    pub(super) fn has_tags(&self) -> bool {
        self.key == "uuid"
    }

    /// The names of the members of the inventory.
    pub(super) fn members(&self) -> impl Iterator<Item = &'static str> + Clone + use<> {
        let (fields, lists) = (self.fields.iter(), self.lists.iter());
        fields.map(|field| field.name).chain(lists.map(|list| list.name))
    }

    /// Whether an index has the rows in the order of that field, or in the default order (`None`).
    pub(super) fn has_order(&self, field: Option<&str>) -> bool {
        let orders = ORDERS.iter().find(|(resource, _)| *resource == self.resource);
        orders.is_some_and(|(_, orders)| field.is_none_or(|field| orders.contains(&field)))
    }

    pub(super) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

const fn uuid(name: &'static str) -> Field {
    Field { name, kind: Kind::Uuid }
}

const fn text(name: &'static str) -> Field {
    Field { name, kind: Kind::Text }
}

const fn number(name: &'static str) -> Field {
    Field { name, kind: Kind::Number }
}

const fn flag(name: &'static str) -> Field {
    Field { name, kind: Kind::Flag }
}

const fn date(name: &'static str) -> Field {
    Field { name, kind: Kind::Date }
}

const fn inventories(name: &'static str, resource: Resource, field: &'static str) -> List {
    List { name, of: Items::Inventories { resource, field } }
}

const fn texts(name: &'static str, table: &'static str, owner: &'static str, column: &'static str) -> List {
    List { name, of: Items::Texts { table, owner, column } }
}

const fn nothing(name: &'static str) -> List {
    List { name, of: Items::Nothing }
}

/// A resource with a uuid, in the order of creation by default.
const fn table(resource: Resource, name: &'static str, fields: &'static [Field], lists: &'static [List]) -> Table {
    let access = Access::Resource("uuid");
    Table { resource, name, only: None, access, key: "uuid", order: &["createDate", "uuid"], fields, lists }
}

const CREATED: Field = date("createDate");
const CHANGED: Field = date("lastOpDate");
const NAME: Field = text("name");
const DESCRIPTION: Field = text("description");

const L2_FIELDS: &[Field] = &[
    uuid("uuid"),
    NAME,
    DESCRIPTION,
    uuid("zoneUuid"),
    text("physicalInterface"),
    text("type"),
    number("vlan"),
    CREATED,
    CHANGED,
];
const L2_LISTS: &[List] = &[nothing("attachedClusterUuids")];

pub(super) const TABLES: &[Table] = &[
    table(
        Resource::Zone,
        "zones",
        &[uuid("uuid"), NAME, DESCRIPTION, text("state"), text("type"), CREATED, CHANGED],
        &[],
    ),
    table(Resource::L2Network, "l2_networks", L2_FIELDS, L2_LISTS),
    Table {
        only: Some(("type", "L2VlanNetwork")),
        ..table(Resource::L2VlanNetwork, "l2_networks", L2_FIELDS, L2_LISTS)
    },
    table(
        Resource::L3Network,
        "l3_networks",
        &[
            uuid("uuid"),
            NAME,
            DESCRIPTION,
            text("type"),
            uuid("zoneUuid"),
            uuid("l2NetworkUuid"),
            text("state"),
            text("dnsDomain"),
            flag("system"),
            text("category"),
            CREATED,
            CHANGED,
        ],
        &[
            texts("dns", "l3_network_dns", "l3_network_uuid", "dns"),
            inventories("ipRanges", Resource::IpRange, "l3NetworkUuid"),
            inventories("networkServices", Resource::NetworkServiceRef, "l3NetworkUuid"),
        ],
    ),
    table(
        Resource::IpRange,
        "ip_ranges",
        &[
            uuid("uuid"),
            uuid("l3NetworkUuid"),
            NAME,
            DESCRIPTION,
            text("startIp"),
            text("endIp"),
            text("netmask"),
            text("gateway"),
            text("networkCidr"),
            CREATED,
            CHANGED,
        ],
        &[],
    ),
    table(
        Resource::VmInstance,
        "vm_instances",
        &[
            uuid("uuid"),
            NAME,
            DESCRIPTION,
            uuid("zoneUuid"),
            // They refer to another system, and are stored as given.
            text("clusterUuid"),
            text("imageUuid"),
            text("hostUuid"),
            text("lastHostUuid"),
            text("instanceOfferingUuid"),
            text("rootVolumeUuid"),
            text("platform"),
            uuid("defaultL3NetworkUuid"),
            text("type"),
            text("hypervisorType"),
            number("memorySize"),
            number("cpuNum"),
            number("cpuSpeed"),
            text("allocatorStrategy"),
            CREATED,
            CHANGED,
            text("state"),
            number("internalId"),
        ],
        &[inventories("vmNics", Resource::VmNic, "vmInstanceUuid"), nothing("allVolumes")],
    ),
    table(
        Resource::VmNic,
        "vm_nics",
        &[
            uuid("uuid"),
            uuid("vmInstanceUuid"),
            uuid("usedIpUuid"),
            uuid("l3NetworkUuid"),
            text("ip"),
            text("mac"),
            text("netmask"),
            text("gateway"),
            text("metaData"),
            text("internalName"),
            number("deviceId"),
            CREATED,
            CHANGED,
        ],
        &[],
    ),
    Table {
        access: Access::Everybody,
        ..table(
            Resource::NetworkServiceProvider,
            "network_service_providers",
            &[uuid("uuid"), NAME, DESCRIPTION, text("type"), CREATED, CHANGED],
            &[
                texts(
                    "networkServiceTypes",
                    "network_service_types",
                    "network_service_provider_uuid",
                    "network_service_type",
                ),
                texts(
                    "attachedL2NetworkUuids",
                    "network_service_provider_l2_network_refs",
                    "network_service_provider_uuid",
                    "l2_network_uuid",
                ),
            ],
        )
    },
    Table {
        resource: Resource::NetworkServiceRef,
        name: "network_service_l3_network_refs",
        only: None,
        access: Access::Resource("l3_network_uuid"),
        key: "l3NetworkUuid",
        order: &["l3NetworkUuid", "networkServiceType"],
        fields: &[uuid("l3NetworkUuid"), uuid("networkServiceProviderUuid"), text("networkServiceType")],
        lists: &[],
    },
    table(
        Resource::Vip,
        "vips",
        &[
            uuid("uuid"),
            NAME,
            DESCRIPTION,
            uuid("l3NetworkUuid"),
            text("ip"),
            text("state"),
            text("gateway"),
            text("netmask"),
            text("serviceProvider"),
            text("useFor"),
            uuid("ipRangeUuid"),
            uuid("usedIpUuid"),
            CREATED,
            CHANGED,
        ],
        &[
            texts("peerL3NetworkUuid", "vip_peer_l3_networks", "vip_uuid", "l3_network_uuid"),
            texts("peerL3NetworkUuids", "vip_peer_l3_networks", "vip_uuid", "l3_network_uuid"),
        ],
    ),
    Table {
        access: Access::Resource("vip_uuid"),
        ..table(
            Resource::VipQos,
            "vip_qos",
            &[
                uuid("uuid"),
                uuid("vipUuid"),
                number("port"),
                number("inboundBandwidth"),
                number("outboundBandwidth"),
                text("type"),
                CREATED,
                CHANGED,
            ],
            &[],
        )
    },
    table(
        Resource::LoadBalancer,
        "load_balancers",
        &[NAME, uuid("uuid"), DESCRIPTION, text("state"), uuid("vipUuid")],
        &[inventories("listeners", Resource::Listener, "loadBalancerUuid")],
    ),
    table(
        Resource::Listener,
        "load_balancer_listeners",
        &[
            uuid("uuid"),
            NAME,
            DESCRIPTION,
            uuid("loadBalancerUuid"),
            number("instancePort"),
            number("loadBalancerPort"),
            text("protocol"),
            CREATED,
            CHANGED,
        ],
        &[inventories("vmNicRefs", Resource::ListenerNicRef, "listenerUuid"), nothing("certificateRefs")],
    ),
    Table {
        resource: Resource::ListenerNicRef,
        name: "load_balancer_listener_vm_nic_refs",
        only: None,
        access: Access::Resource("listener_uuid"),
        key: "id",
        order: &["id"],
        fields: &[number("id"), uuid("listenerUuid"), uuid("vmNicUuid"), text("status"), CREATED, CHANGED],
        lists: &[],
    },
    table(
        Resource::PortForwardingRule,
        "port_forwarding_rules",
        &[
            uuid("uuid"),
            NAME,
            DESCRIPTION,
            text("vipIp"),
            text("guestIp"),
            uuid("vipUuid"),
            number("vipPortStart"),
            number("vipPortEnd"),
            number("privatePortStart"),
            number("privatePortEnd"),
            uuid("vmNicUuid"),
            text("protocolType"),
            text("state"),
            text("allowedCidr"),
            CREATED,
            CHANGED,
        ],
        &[],
    ),
    table(
        Resource::Eip,
        "eips",
        &[
            uuid("uuid"),
            NAME,
            DESCRIPTION,
            uuid("vmNicUuid"),
            uuid("vipUuid"),
            CREATED,
            CHANGED,
            text("state"),
            text("vipIp"),
            text("guestIp"),
        ],
        &[],
    ),
    Table {
        access: Access::Resource("resource_uuid"),
        ..table(
            Resource::SystemTag,
            "system_tags",
            &[
                uuid("uuid"),
                uuid("resourceUuid"),
                text("resourceType"),
                text("tag"),
                text("type"),
                flag("inherent"),
                CREATED,
                CHANGED,
            ],
            &[],
        )
    },
    Table {
        access: Access::Resource("resource_uuid"),
        ..table(
            Resource::UserTag,
            "user_tags",
            &[uuid("uuid"), uuid("resourceUuid"), text("resourceType"), text("tag"), text("type"), CREATED, CHANGED],
            &[],
        )
    },
    Table {
        access: Access::Account("uuid"),
        ..table(Resource::Account, "accounts", &[uuid("uuid"), NAME, DESCRIPTION, text("type"), CREATED, CHANGED], &[])
    },
    Table {
        resource: Resource::Quota,
        name: "quotas",
        only: None,
        access: Access::Account("identity_uuid"),
        key: "identityUuid",
        order: &["identityUuid", "name"],
        fields: &[NAME, uuid("identityUuid"), text("identityType"), number("value"), CREATED, CHANGED],
        lists: &[],
    },
];

/// The tables that grow with the cloud, and the fields by which an index orders their rows, besides the default order.
pub(super) const ORDERS: [(Resource, &[&str]); 11] = [
    (Resource::VmInstance, &["createDate", "name"]),
    (Resource::VmNic, &["createDate", "ip"]),
    (Resource::Vip, &["createDate", "name", "ip"]),
    (Resource::VipQos, &["createDate"]),
    (Resource::LoadBalancer, &["name"]),
    (Resource::Listener, &["createDate", "name", "loadBalancerPort"]),
    (Resource::ListenerNicRef, &["id"]),
    (Resource::PortForwardingRule, &["createDate", "name", "vipIp", "guestIp", "vipPortStart"]),
    (Resource::Eip, &["createDate", "name", "vipIp", "guestIp"]),
    (Resource::SystemTag, &["createDate"]),
    (Resource::UserTag, &["createDate"]),
];

/// The column of a field: `l3NetworkUuid` -> `l3_network_uuid`.
pub(super) fn column(field: &str) -> String {
    let mut column = String::with_capacity(field.len() + 4);
    for letter in field.chars() {
        if letter.is_ascii_uppercase() {
            column.push('_');
        }
        column.push(letter.to_ascii_lowercase());
    }
    column
}
