//! The table of the kinds of things that a router's file declares: one row for each kind, in the order of dependencies.
//!
//! A row names the kind of the parents, the calls that make and delete a thing, and its fields: their keys, the meaning
//! of one that is left out, and how each is changed in place. Everything else (reading the file, comparing, ordering,
//! calling, writing the file) follows the table, so that a new kind is one more row. A section has the name of the
//! query that finds its things, if there is one. The bounds of values are those of the creating call's parameters in
//! the API's table.

use serde_json::{Value, json};
use vipgate_api::{Api, Resource};

use super::kind::{Absent, Batch, Called, Change, Field, Form, Kind, Made, Values, value};

const fn field(key: &'static str, form: Form, absent: Absent, change: Change) -> Field {
    Field { key, member: key, form, absent, change }
}

/// A parameter of the creating call with the field's name, which cannot be changed.
const fn fixed(key: &'static str, absent: Absent) -> Field {
    field(key, Form::Param(key), absent, Change::Never)
}

const fn description(change: Change) -> Field {
    field("description", Form::Param("description"), Absent::Nothing, change)
}

/// The NIC that a thing is attached to.
const fn nic(attach: Api, of: &'static str, detach: Api) -> Field {
    Field {
        key: "nic",
        member: "vmNicUuid",
        form: Form::One(Resource::VmNic),
        absent: Absent::Nothing,
        change: Change::Attach { attach, of, detach },
    }
}

const fn enabled(api: Api) -> Field {
    let turns = [("Enabled", api, Some("enable")), ("Disabled", api, Some("disable"))];
    field("state", Form::State, Absent::Is("Enabled"), Change::State(turns))
}

const fn rate(key: &'static str) -> Field {
    field(key, Form::Rate, Absent::Nothing, Change::Remade)
}

const fn setting(key: &'static str) -> Field {
    field(key, Form::Setting, Absent::Setting, Change::Setting)
}

const USER_TAGS: Field = field("userTags", Form::Texts, Absent::Nothing, Change::UserTags);

fn anything(_: &Values) -> Result<(), (&'static str, String)> {
    Ok(())
}

fn first_port(values: &Values) -> Value {
    values.get("vipPortStart").cloned().unwrap_or_default()
}

fn port(values: &Values, key: &str) -> i64 {
    let field = Kind::of(Resource::PortForwardingRule).and_then(|kind| kind.field(key));
    field.and_then(|field| value(field, values)).and_then(|port| port.as_i64()).unwrap_or_default()
}

fn last_private_port(values: &Values) -> Value {
    json!(port(values, "privatePortStart") + port(values, "vipPortEnd") - port(values, "vipPortStart"))
}

/// The API would swap the two, and the router would always differ from the file.
fn ports_in_order(values: &Values) -> Result<(), (&'static str, String)> {
    for (first, last) in [("vipPortStart", "vipPortEnd"), ("privatePortStart", "privatePortEnd")] {
        let (from, to) = (port(values, first), port(values, last));
        if from > to {
            return Err((last, format!("{to} is below {first} {from}: exchange them")));
        }
    }
    Ok(())
}

fn limited(values: &Values) -> Result<(), (&'static str, String)> {
    let (inbound, outbound) = ("inboundBandwidth", "outboundBandwidth");
    let is_limited = values.contains_key(inbound) || values.contains_key(outbound);
    if is_limited { Ok(()) } else { Err((inbound, format!("and {outbound} are both missing: give one or both"))) }
}

fn weights_of_backends(values: &Values) -> Result<(), (&'static str, String)> {
    let backends = values.get("backends").and_then(Value::as_array);
    let weights = values.get("weights").and_then(Value::as_object);
    let stray = weights.into_iter().flatten().find(|(nic, _)| !backends.is_some_and(|all| all.contains(&json!(nic))));
    stray.map_or(Ok(()), |(nic, _)| Err(("weights", format!("`{nic}` is no backend: add it to backends"))))
}

pub(super) const KINDS: &[Kind] = &[
    Kind {
        resource: Resource::Zone,
        parent: None,
        called: Called::Name,
        made: Made::Calls { create: Api::CreateZone, delete: Api::DeleteZone },
        fields: &[description(Change::Never), USER_TAGS],
        check: anything,
    },
    Kind {
        resource: Resource::L2Network,
        parent: Some((Resource::Zone, "zoneUuid")),
        called: Called::Name,
        made: Made::Calls { create: Api::CreateL2NoVlanNetwork, delete: Api::DeleteL2Network },
        fields: &[description(Change::Never), fixed("physicalInterface", Absent::Refused), USER_TAGS],
        check: anything,
    },
    Kind {
        resource: Resource::L3Network,
        parent: Some((Resource::L2Network, "l2NetworkUuid")),
        called: Called::Name,
        made: Made::Calls { create: Api::CreateL3Network, delete: Api::DeleteL3Network },
        fields: &[
            description(Change::Never),
            fixed("category", Absent::Is("Private")),
            fixed("dnsDomain", Absent::Nothing),
            field(
                "dns",
                Form::Texts,
                Absent::Nothing,
                Change::Elements {
                    add: Api::AddDnsToL3Network,
                    remove: Api::RemoveDnsFromL3Network,
                    of: "l3NetworkUuid",
                    batch: Batch::One("dns"),
                },
            ),
            Field {
                key: "services",
                member: "networkServices",
                form: Form::Texts,
                absent: Absent::Nothing,
                change: Change::Elements {
                    add: Api::AttachNetworkServiceToL3Network,
                    remove: Api::DetachNetworkServiceFromL3Network,
                    of: "l3NetworkUuid",
                    batch: Batch::ByProvider("networkServices"),
                },
            },
            USER_TAGS,
        ],
        check: anything,
    },
    Kind {
        resource: Resource::IpRange,
        parent: Some((Resource::L3Network, "l3NetworkUuid")),
        called: Called::Name,
        made: Made::Calls { create: Api::AddIpRange, delete: Api::DeleteIpRange },
        fields: &[
            description(Change::Never),
            fixed("startIp", Absent::Refused),
            fixed("endIp", Absent::Refused),
            fixed("netmask", Absent::Refused),
            fixed("gateway", Absent::Refused),
            USER_TAGS,
        ],
        check: anything,
    },
    Kind {
        resource: Resource::VmInstance,
        parent: None,
        called: Called::Name,
        made: Made::Calls { create: Api::CreateVmInstance, delete: Api::DestroyVmInstance },
        fields: &[
            description(Change::Never),
            fixed("instanceOfferingUuid", Absent::Nothing),
            fixed("imageUuid", Absent::Nothing),
            fixed("clusterUuid", Absent::Nothing),
            fixed("hostUuid", Absent::Nothing),
            field(
                "state",
                Form::State,
                Absent::Is("Running"),
                Change::State([("Running", Api::StartVmInstance, None), ("Stopped", Api::StopVmInstance, None)]),
            ),
            USER_TAGS,
        ],
        check: anything,
    },
    Kind {
        resource: Resource::VmNic,
        parent: Some((Resource::VmInstance, "vmInstanceUuid")),
        called: Called::After(Resource::L3Network, "l3NetworkUuid"),
        made: Made::WithParent,
        fields: &[
            field("ip", Form::Address, Absent::Whatever, Change::Never),
            field("mac", Form::Address, Absent::Whatever, Change::Never),
        ],
        check: anything,
    },
    Kind {
        resource: Resource::Vip,
        parent: None,
        called: Called::Name,
        made: Made::Calls { create: Api::CreateVip, delete: Api::DeleteVip },
        fields: &[
            description(Change::Update(Api::UpdateVip)),
            Field {
                key: "l3",
                member: "l3NetworkUuid",
                form: Form::One(Resource::L3Network),
                absent: Absent::Refused,
                change: Change::Never,
            },
            field("ip", Form::Param("requiredIp"), Absent::Whatever, Change::Never),
            // Whether it is the router's own address, which the service SNAT makes a VIP.
            field("own", Form::Flag, Absent::Nothing, Change::Never),
            enabled(Api::ChangeVipState),
            USER_TAGS,
        ],
        check: anything,
    },
    // Before the services of its VIP, so that these never carry traffic without the limit.
    Kind {
        resource: Resource::VipQos,
        parent: Some((Resource::Vip, "vipUuid")),
        called: Called::Number { param: "port", none: "all" },
        made: Made::OnParent {
            noun: "qos",
            of: "uuid",
            create: Api::SetVipQos,
            delete: Api::DeleteVipQos,
            list: Api::GetVipQos,
            any: "vipQos.uuid!=null",
        },
        fields: &[rate("inboundBandwidth"), rate("outboundBandwidth")],
        check: limited,
    },
    Kind {
        resource: Resource::Eip,
        parent: Some((Resource::Vip, "vipUuid")),
        called: Called::Name,
        made: Made::Calls { create: Api::CreateEip, delete: Api::DeleteEip },
        fields: &[
            description(Change::Update(Api::UpdateEip)),
            enabled(Api::ChangeEipState),
            nic(Api::AttachEip, "eipUuid", Api::DetachEip),
            USER_TAGS,
        ],
        check: anything,
    },
    Kind {
        resource: Resource::PortForwardingRule,
        parent: Some((Resource::Vip, "vipUuid")),
        called: Called::Name,
        made: Made::Calls { create: Api::CreatePortForwardingRule, delete: Api::DeletePortForwardingRule },
        fields: &[
            description(Change::Update(Api::UpdatePortForwardingRule)),
            fixed("protocolType", Absent::Refused),
            fixed("vipPortStart", Absent::Refused),
            fixed("vipPortEnd", Absent::Follows(first_port)),
            fixed("privatePortStart", Absent::Follows(first_port)),
            fixed("privatePortEnd", Absent::Follows(last_private_port)),
            fixed("allowedCidr", Absent::Is("0.0.0.0/0")),
            enabled(Api::ChangePortForwardingRuleState),
            nic(Api::AttachPortForwardingRule, "ruleUuid", Api::DetachPortForwardingRule),
            USER_TAGS,
        ],
        check: ports_in_order,
    },
    Kind {
        resource: Resource::LoadBalancer,
        parent: Some((Resource::Vip, "vipUuid")),
        called: Called::Name,
        made: Made::Calls { create: Api::CreateLoadBalancer, delete: Api::DeleteLoadBalancer },
        fields: &[description(Change::Update(Api::UpdateLoadBalancer)), USER_TAGS],
        check: anything,
    },
    Kind {
        resource: Resource::Listener,
        parent: Some((Resource::LoadBalancer, "loadBalancerUuid")),
        called: Called::Name,
        made: Made::Calls { create: Api::CreateLoadBalancerListener, delete: Api::DeleteLoadBalancerListener },
        fields: &[
            description(Change::Update(Api::UpdateLoadBalancerListener)),
            fixed("protocol", Absent::Is("tcp")),
            fixed("loadBalancerPort", Absent::Refused),
            fixed(
                "instancePort",
                Absent::Follows(|values| values.get("loadBalancerPort").cloned().unwrap_or_default()),
            ),
            setting("balancerAlgorithm"),
            setting("maxConnection"),
            setting("connectionIdleTimeout"),
            setting("healthCheckTarget"),
            setting("healthCheckInterval"),
            setting("healthCheckTimeout"),
            setting("healthyThreshold"),
            setting("unhealthyThreshold"),
            Field {
                key: "backends",
                member: "vmNicRefs",
                form: Form::Several(Resource::VmNic),
                absent: Absent::Nothing,
                change: Change::Elements {
                    add: Api::AddVmNicToLoadBalancer,
                    remove: Api::RemoveVmNicFromLoadBalancer,
                    of: "listenerUuid",
                    batch: Batch::Uuids("vmNicUuids"),
                },
            },
            field("weights", Form::Weights(Resource::VmNic, "backends"), Absent::Nothing, Change::Weights),
            USER_TAGS,
        ],
        check: weights_of_backends,
    },
];

#[cfg(test)]
mod tests {
    use vipgate_api::Protocol;
    use vipgate_api::listener_tag;

    use vipgate_api::calls;

    use super::{
        super::kind::{setting_value, without_defaults},
        *,
    };

    /// The names of a call's parameters.
    fn parameters(api: Api) -> Vec<&'static str> {
        let call = calls::of(api).unwrap();
        call.params.iter().map(|param| param.name).collect()
    }

    /// The kinds that it cannot exist without.
    fn needs(kind: &Kind) -> Vec<Resource> {
        let referred = kind.fields.iter().filter_map(|field| match field.form {
            Form::One(other) | Form::Several(other) | Form::Weights(other, _) => Some(other),
            _ => None,
        });
        referred.chain(kind.parent.map(|(parent, _)| parent)).collect()
    }

    #[test]
    fn rows_name_calls_parameters_and_members_that_there_are_and_stand_behind_what_they_need() {
        for (rank, kind) in KINDS.iter().enumerate() {
            let create = kind.create().map(parameters).unwrap_or_default();
            for other in needs(kind) {
                assert!(Kind::rank(other) < rank, "{} stands before {other:?}", kind.noun());
            }
            let members = kind.resource.fields();
            for field in kind.fields {
                let has = |name: &str| create.contains(&name);
                assert!(
                    match field.form {
                        Form::Param(name) => has(name) && members.contains(&field.member),
                        Form::One(_) | Form::Rate => has(field.member) && members.contains(&field.member),
                        _ => true,
                    },
                    "{}.{}",
                    kind.noun(),
                    field.key
                );
                match field.change {
                    Change::Update(api) => assert!(parameters(api).contains(&field.key)),
                    Change::Attach { attach, of, .. } => assert!(parameters(attach).contains(&of)),
                    Change::Elements { add, remove, of, batch } => {
                        let (Batch::One(name) | Batch::Uuids(name) | Batch::ByProvider(name)) = batch;
                        for api in [add, remove] {
                            assert!(parameters(api).contains(&of) && parameters(api).contains(&name), "{}", field.key);
                        }
                    }
                    Change::Remade => {
                        let rests = |other: &Kind| needs(other).contains(&kind.resource);
                        assert!(!KINDS.iter().any(rests), "{} is not all that would go", kind.noun());
                    }
                    Change::Never | Change::State(_) | Change::Setting | Change::Weights | Change::UserTags => {}
                }
            }
            assert!(kind.parent.is_none_or(|(_, member)| members.contains(&member)), "{}", kind.noun());
            match (kind.made, kind.called) {
                (Made::OnParent { of, create, delete, list, .. }, Called::Number { param, .. }) => {
                    assert!([create, delete].iter().all(|api| parameters(*api).contains(&param)), "{}", kind.noun());
                    assert!([create, delete, list].iter().all(|api| parameters(*api).contains(&of)), "{}", kind.noun());
                    assert!(members.contains(&param), "{}", kind.noun());
                }
                (Made::OnParent { .. }, _) | (_, Called::Number { .. }) => {
                    panic!("{}: one without the other", kind.noun())
                }
                _ => {}
            }
        }
    }

    #[test]
    fn every_setting_of_a_listener_is_a_field() {
        let listener = Kind::of(Resource::Listener).unwrap();
        for tag in listener_tag::complete(&[], Protocol::Tcp).unwrap() {
            let (name, value) = tag.split_once("::").unwrap();
            let field = listener.field(name).unwrap_or_else(|| panic!("{name} can't be declared"));
            assert_eq!(field.default(&Values::new()), Some(setting_value(value)));
        }
    }

    #[test]
    fn defaults_follow_from_what_is_given() {
        let rule = Kind::of(Resource::PortForwardingRule).unwrap();
        let mut values = Values::from([("vipPortStart", json!(8080)), ("vipPortEnd", json!(8089))]);
        values.insert("privatePortStart", json!(80));
        let last = rule.field("privatePortEnd").unwrap();
        assert_eq!(value(last, &values), Some(json!(89)));
        values.insert("privatePortEnd", json!(89));
        assert!(!without_defaults(rule, &values).contains_key("privatePortEnd"));
        values.insert("vipPortEnd", json!(79));
        assert_eq!(ports_in_order(&values).unwrap_err().0, "vipPortEnd");
    }
}
