//! The names of calls, resources and parameters on the command line, derived from the API's own names.
//!
//! `CreateVip` is `vip create`, `ChangeEipState` is `eip change-state`, `AddVmNicToLoadBalancer` is `lb add-vm-nic`,
//! and `QueryLoadBalancer` is `query lbs`. One table holds what cannot be derived: the nouns, and their short names.

use std::collections::BTreeMap;

use vipgate_api::{
    Api, Call, Resource,
    call::{Kind, Mode, Param, Rule},
    calls,
};

/// A noun of the API that commands are grouped by.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Noun {
    /// Its name on the command line.
    pub(super) short: &'static str,
    pub(super) about: &'static str,
    /// Its spellings in names of calls and parameters, split into words; queries use the first.
    spellings: &'static [&'static [&'static str]],
}

const fn noun(short: &'static str, about: &'static str, spellings: &'static [&'static [&'static str]]) -> Noun {
    Noun { short, about, spellings }
}

const NOUNS: &[Noun] = &[
    noun("zone", "Zones: what the networks of one site belong to", &[&["zone"]]),
    noun("l2", "L2 networks: each names a device of the router", &[&["l2", "network"]]),
    noun("l3", "L3 networks: their name servers and services", &[&["l3", "network"]]),
    noun("range", "Address ranges of L3 networks", &[&["ip", "range"]]),
    noun("vm", "VM instances, as records", &[&["vm", "instance"]]),
    noun("nic", "NICs of VM instances", &[&["vm", "nic"]]),
    noun("provider", "Providers of network services", &[&["network", "service", "provider"]]),
    noun("service", "Network services", &[&["network", "service"]]),
    noun("vip", "Virtual IPs", &[&["vip"]]),
    noun("lb", "Load balancers, and the NICs that their listeners balance to", &[&["load", "balancer"]]),
    noun("listener", "Listeners of load balancers", &[&["load", "balancer", "listener"]]),
    noun(
        "pf",
        "Port-forwarding rules: ports of a VIP that lead to as many of a NIC",
        &[&["port", "forwarding", "rule"], &["port", "forwarding"]],
    ),
    noun("eip", "Elastic IPs: a VIP that is one NIC's", &[&["eip"]]),
    noun("tag", "System tags (settings that are not fields) and user tags", &[&["tag"]]),
    noun("account", "Accounts: who owns resources", &[&["account"], &["identity"]]),
    noun("quota", "Quotas: how much an account may have", &[&["quota"]]),
    noun("resource", "What accounts share with others", &[&["resource"]]),
    noun("session", "The session that vipgate login began", &[&["session"]]),
];

impl Noun {
    /// Its whole name, if that differs from the short one.
    pub(super) fn long(&self) -> Option<String> {
        Some(self.spellings[0].join("-")).filter(|long| long != self.short)
    }

    /// The resource that a query for it finds, if there is such a query.
    pub(super) fn resource(&self) -> Option<Resource> {
        calls::all().find_map(|call| match call.mode {
            Mode::Query(resource) if words(call.api.name())[1..] == *self.spellings[0] => Some(resource),
            _ => None,
        })
    }
}

/// The command of a call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A command of its own.
    Login,
    Logout,
    /// `query <name>`
    Query(String),
    /// `<noun> <verb>`
    Verb(&'static str, String),
}

/// `vmNicUuids` and `VmNicUuids` -> `vm`, `nic`, `uuids`.
pub(super) fn words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for character in name.chars() {
        match words.last_mut() {
            Some(word) if !character.is_ascii_uppercase() => word.push(character),
            _ => words.push(character.to_ascii_lowercase().into()),
        }
    }
    words
}

/// The spelling of an option: `vip-port-start`.
pub(super) fn kebab(name: &str) -> String {
    words(name).join("-")
}

/// The words of `from` without those of `spelling`, which must occur in this order, though not next to each other.
fn without(from: &[String], spelling: &[&str]) -> Option<Vec<String>> {
    let mut missing = spelling.iter().peekable();
    let rest = from.iter().filter(|word| missing.next_if(|next| *next == word).is_none()).cloned().collect();
    missing.peek().is_none().then_some(rest)
}

/// The noun with the longest spelling in `words`, and the other words.
fn noun_in(words: &[String]) -> Option<(&'static Noun, Vec<String>)> {
    let spelt = NOUNS.iter().flat_map(|noun| noun.spellings.iter().map(move |spelling| (noun, *spelling)));
    let found = spelt.filter_map(|(noun, spelling)| Some((noun, spelling, without(words, spelling)?)));
    found.max_by_key(|(_, spelling, _)| spelling.len()).map(|(noun, _, rest)| (noun, rest))
}

pub(super) fn place(call: &Call) -> Option<Place> {
    let name = words(call.api.name());
    let (verb, rest) = name.split_first()?;
    match (call.api, call.mode) {
        (Api::LogInByAccount, _) => return Some(Place::Login),
        (Api::LogOut, _) => return Some(Place::Logout),
        (_, Mode::Query(_)) => {
            let short = NOUNS.iter().find(|noun| *rest == *noun.spellings[0]).map(|noun| noun.short.to_owned());
            return Some(Place::Query(short.unwrap_or_else(|| rest.join("-")) + "s"));
        }
        (_, Mode::Sync | Mode::Async) => {}
    }
    // "<verb> <object> to <noun>": the command acts on the noun.
    let preposition = rest.iter().position(|word| ["to", "from", "for"].contains(&word.as_str()));
    let (noun, object) = match preposition {
        Some(at) => (noun_in(&rest[at + 1..])?.0, rest[..at].to_vec()),
        None => noun_in(rest)?,
    };
    let verb = std::iter::once(verb.clone()).chain(object).collect::<Vec<_>>().join("-");
    Some(Place::Verb(noun.short, verb))
}

/// The nouns that have verbs, with their verbs and calls.
pub(super) fn verbs() -> BTreeMap<&'static str, Vec<(String, &'static Call)>> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for call in calls::all() {
        if let Some(Place::Verb(noun, verb)) = place(call) {
            found.entry(noun).or_default().push((verb, call));
        }
    }
    found
}

pub(super) fn by_short(short: &str) -> Option<&'static Noun> {
    NOUNS.iter().find(|noun| noun.short == short)
}

/// The noun of the resource that a query finds.
pub(super) fn of_resource(resource: Resource) -> Option<&'static Noun> {
    NOUNS.iter().find(|noun| noun.resource() == Some(resource))
}

/// Every query: its name, its whole name if that differs, its call, and the resource that it finds.
pub(super) fn queries() -> impl Iterator<Item = (String, Option<String>, &'static Call, Resource)> {
    calls::all().filter_map(|call| match (call.mode, place(call)?) {
        (Mode::Query(resource), Place::Query(name)) => {
            let long = words(call.api.name())[1..].join("-") + "s";
            Some((name.clone(), Some(long).filter(|long| *long != name), call, resource))
        }
        _ => None,
    })
}

/// The resource that the value of a parameter names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reference {
    /// A resource of this kind.
    One(Resource),
    /// A resource of any kind.
    Any,
}

/// How the value of a parameter is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// Not at all: it is the caller's own session.
    Session,
    /// At a prompt or in a file: it is a secret.
    Password,
    /// As the one argument without an option: the resource that the command acts on.
    Subject(Option<Reference>),
    Option {
        name: String,
        alias: Option<String>,
        reference: Option<Reference>,
    },
}

pub(super) fn given(call: &Call, param: &Param) -> Given {
    let plain = || Given::Option { name: kebab(param.name), alias: None, reference: None };
    let mut parts = words(param.name);
    match param.name {
        "sessionUuid" => return Given::Session,
        "password" => return Given::Password,
        "uuid" => {
            let noun = match place(call) {
                Some(Place::Verb(short, _)) => by_short(short),
                _ => None,
            };
            return Given::Subject(noun.and_then(Noun::resource).map(Reference::One));
        }
        _ if param.kind == Kind::ListMap || param.rule == Some(Rule::Uuid) => return plain(),
        _ => {}
    }
    if !matches!(parts.pop().as_deref(), Some("uuid" | "uuids")) {
        return plain();
    }
    // The parameter is the noun, ends in it (`defaultL3Network`), or is the end of it (`listener`).
    let spelt = NOUNS.iter().flat_map(|noun| noun.spellings.iter().map(move |spelling| (noun, *spelling)));
    let found = spelt
        .filter(|(_, spelling)| {
            let shorter = spelling.len().min(parts.len());
            parts[parts.len() - shorter..] == spelling[spelling.len() - shorter..]
        })
        .max_by_key(|(_, spelling)| (parts == *spelling, spelling.len().min(parts.len())));
    let Some((noun, spelling)) = found else {
        return plain();
    };
    let long = parts.join("-");
    let name = if parts == spelling { noun.short.to_owned() } else { long.clone() };
    let reference = noun.resource().map_or(Reference::Any, Reference::One);
    Given::Option { alias: Some(long).filter(|long| *long != name), name, reference: Some(reference) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use vipgate_api::call::UUID;

    use super::*;

    fn call(api: Api) -> &'static Call {
        calls::of(api).unwrap()
    }

    #[test]
    fn every_call_has_a_command_of_its_own() {
        let places: BTreeSet<_> =
            calls::all().map(|call| place(call).unwrap_or_else(|| panic!("{} has none", call.api.name()))).collect();
        assert_eq!(places.len(), calls::all().count(), "{places:?}");
    }

    #[test]
    fn commands_are_named_after_what_they_act_on() {
        for (api, noun, verb) in [
            (Api::CreateVip, "vip", "create"),
            (Api::ChangeEipState, "eip", "change-state"),
            (Api::AddVmNicToLoadBalancer, "lb", "add-vm-nic"),
            (Api::SetVipQos, "vip", "set-qos"),
            (Api::DeleteVipQos, "vip", "delete-qos"),
            (Api::CreateLoadBalancerListener, "listener", "create"),
            (Api::CreateL2NoVlanNetwork, "l2", "create-no-vlan"),
            (Api::AddIpRangeByNetworkCidr, "range", "add-by-network-cidr"),
            (Api::AttachNetworkServiceToL3Network, "l3", "attach-network-service"),
            (Api::GetPortForwardingAttachableVmNics, "pf", "get-attachable-vm-nics"),
            (Api::ChangePortForwardingRuleState, "pf", "change-state"),
            (Api::CreateSystemTag, "tag", "create-system"),
            (Api::RevokeResourceSharing, "resource", "revoke-sharing"),
            (Api::RenewSession, "session", "renew"),
        ] {
            assert_eq!(place(call(api)), Some(Place::Verb(noun, verb.to_owned())));
        }
        assert_eq!(place(call(Api::QueryLoadBalancer)), Some(Place::Query("lbs".to_owned())));
        assert_eq!(place(call(Api::QueryL2VlanNetwork)), Some(Place::Query("l2-vlan-networks".to_owned())));
    }

    #[test]
    fn parameters_that_name_resources_are_called_after_them() {
        let given_as = |api, name: &str| {
            let param = call(api).params.iter().find(|param| param.name == name).unwrap();
            match given(call(api), param) {
                Given::Option { name, alias, reference } => (name, alias.unwrap_or_default(), reference),
                other => panic!("{other:?}"),
            }
        };
        let one = |resource| Some(Reference::One(resource));
        for (api, param, name, alias, reference) in [
            (Api::CreateVip, "l3NetworkUuid", "l3", "l3-network", one(Resource::L3Network)),
            (Api::CreateVip, "resourceUuid", "resource-uuid", "", None),
            (Api::CreateLoadBalancerListener, "loadBalancerUuid", "lb", "load-balancer", one(Resource::LoadBalancer)),
            (Api::AddVmNicToLoadBalancer, "listenerUuid", "listener", "", one(Resource::Listener)),
            (Api::AddVmNicToLoadBalancer, "vmNicUuids", "nic", "vm-nic", one(Resource::VmNic)),
            (Api::AttachPortForwardingRule, "ruleUuid", "rule", "", one(Resource::PortForwardingRule)),
            (Api::CreateVmInstance, "defaultL3NetworkUuid", "default-l3-network", "", one(Resource::L3Network)),
            (Api::CreateVmInstance, "imageUuid", "image-uuid", "", None),
            (Api::UpdateQuota, "identityUuid", "account", "identity", one(Resource::Account)),
            (Api::CreateUserTag, "resourceUuid", "resource", "", Some(Reference::Any)),
        ] {
            assert_eq!(given_as(api, param), (name.to_owned(), alias.to_owned(), reference), "{param}");
        }
        let uuid = |api| given(call(api), &UUID);
        assert_eq!(uuid(Api::DeleteVip), Given::Subject(one(Resource::Vip)));
        assert_eq!(uuid(Api::DeleteTag), Given::Subject(None));
    }
}
