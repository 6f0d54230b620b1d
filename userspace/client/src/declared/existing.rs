//! Reads by queries what a router has: the things that the session's account owns. Other accounts can use the same
//! names, and a file never means their things. Networks that are shared with the account are read, too: a file may
//! refer to them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use vipgate_api::Resource;
use vipgate_api::listener_tag;

use super::{
    super::{ClientError, ask, http::Api, resolve},
    kind::{Absent, Called, Field, Form, Kind, Made, Values, setting_value, without_defaults},
    kinds::KINDS,
    thing::{Id, Thing},
};

/// A thing that exists on the router.
#[derive(Clone, Debug)]
pub(super) struct Existing {
    pub(super) thing: Thing,
    pub(super) uuid: String,
    /// Its tags, with their uuids.
    pub(super) tags: BTreeMap<String, String>,
    /// The things without which it cannot exist.
    pub(super) rests_on: BTreeSet<Id>,
}

/// The account whose things a file means.
#[derive(Debug)]
struct Account {
    uuid: String,
    admin: bool,
}

impl Account {
    /// The session's own account. A normal account sees no account but itself.
    fn of_session(api: &Api) -> Result<Self, ClientError> {
        let seen = inventories(api, Resource::Account, &[])?;
        let admin = seen.iter().find(|account| account["type"] == "SystemAdmin");
        let own = admin.or(seen.first()).map(|account| account["uuid"].as_str().unwrap_or_default().to_owned());
        Ok(Self { uuid: own.unwrap_or_default(), admin: admin.is_some() })
    }

    /// Whether a file means things of this kind whoever owns them.
    fn shares(&self, kind: &Kind) -> bool {
        !self.admin && is_network(kind)
    }
}

const fn is_network(kind: &Kind) -> bool {
    matches!(kind.resource, Resource::Zone | Resource::L2Network | Resource::L3Network | Resource::IpRange)
}

/// Everything on the router that a file can declare.
pub(super) fn read(api: &Api) -> Result<Vec<Existing>, ClientError> {
    let account = Account::of_session(api)?;
    let mut tags = BTreeMap::<String, BTreeMap<String, String>>::new();
    let mut user_tags = BTreeSet::new();
    for resource in [Resource::SystemTag, Resource::UserTag] {
        for tag in inventories(api, resource, &[])? {
            let text = |member: &str| tag[member].as_str().unwrap_or_default().to_owned();
            tags.entry(text("resourceUuid")).or_default().insert(text("tag"), text("uuid"));
            if resource == Resource::UserTag {
                user_tags.insert(text("uuid"));
            }
        }
    }
    let mut existing = Found { account, things: Vec::new(), by_uuid: BTreeMap::new(), ranges: Vec::new() };
    for kind in KINDS {
        let mut found = every(api, kind, &existing.account)?;
        if kind.resource == Resource::VmNic {
            found.sort_by_key(|nic| nic["deviceId"].as_i64());
        }
        for inventory in found {
            let tags = inventory["uuid"].as_str().and_then(|uuid| tags.remove(uuid)).unwrap_or_default();
            existing.add(kind, &inventory, tags, &user_tags);
        }
    }
    Ok(existing.things)
}

/// Every inventory of a kind that the account owns, or that is part of one which it owns.
fn every(api: &Api, kind: &Kind, account: &Account) -> Result<Vec<Value>, ClientError> {
    let own = format!("__owner__={}", account.uuid);
    let own = [own.as_str()];
    let (Made::OnParent { of, list, any, .. }, Some((parent, _))) = (kind.made, kind.parent) else {
        // A part belongs to the owner of the whole.
        let is_part = kind.made == Made::WithParent || kind.resource == Resource::IpRange;
        return inventories(api, kind.resource, if is_part || account.shares(kind) { &[] } else { &own });
    };
    let mut all = Vec::new();
    for parent in inventories(api, parent, &[any, own[0]])? {
        let of = Map::from_iter([(of.to_owned(), parent["uuid"].clone())]);
        if let Value::Array(found) = ask(api, list, &of)?["inventories"].take() {
            all.extend(found);
        }
    }
    Ok(all)
}

/// Every resource of a kind that meets these conditions, read page by page.
pub(super) fn inventories(api: &Api, resource: Resource, conditions: &[&str]) -> Result<Vec<Value>, ClientError> {
    const PAGE: usize = 1000;
    let Some((_, call)) = resolve::query(resource) else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    loop {
        let (start, limit) = (all.len().to_string(), PAGE.to_string());
        let page = [("start", start.as_str()), ("limit", limit.as_str())];
        let parameters: Vec<_> = conditions.iter().map(|condition| ("q", *condition)).chain(page).collect();
        let mut reply = api.query(call, &parameters)?;
        let Value::Array(page) = reply["inventories"].take() else { return Ok(all) };
        let is_last = page.len() < PAGE;
        all.extend(page);
        if is_last {
            return Ok(all);
        }
    }
}

struct Found {
    account: Account,
    things: Vec<Existing>,
    /// Uuid -> index.
    by_uuid: BTreeMap<String, usize>,
    /// The indices of the address ranges.
    ranges: Vec<usize>,
}

impl Found {
    /// The path of a resource that was read before.
    fn path(&self, uuid: &Value) -> Option<&[String]> {
        Some(&self.things[*self.by_uuid.get(uuid.as_str()?)?].thing.path)
    }

    fn joined(&self, uuid: &Value) -> Option<String> {
        Some(self.path(uuid)?.join("/"))
    }

    /// A thing whose parent the session does not see has no parent: for a tenant, that is the zone of a shared network.
    /// A thing that cannot be named without its parent is left out, and so is one on another account's thing.
    fn add(
        &mut self,
        kind: &'static Kind,
        inventory: &Value,
        tags: BTreeMap<String, String>,
        user_tags: &BTreeSet<String>,
    ) -> Option<()> {
        let uuid = inventory["uuid"].as_str()?.to_owned();
        let above = match kind.parent.map(|(_, member)| self.path(&inventory[member])) {
            Some(None) if !self.account.shares(kind) => return None,
            Some(Some(path)) => path.to_vec(),
            Some(None) | None => Vec::new(),
        };
        let name = match kind.called {
            Called::Name => inventory["name"].as_str()?.to_owned(),
            Called::After(_, member) => self.joined(&inventory[member])?,
            Called::Number { param, none } => {
                inventory[param].as_i64().map_or(none.to_owned(), |number| number.to_string())
            }
        };
        let mut values: Values = kind
            .fields
            .iter()
            .filter_map(|field| Some((field.key, self.value(field, inventory, &tags, user_tags)?)))
            .collect();
        let is_told = |field: &Field| !matches!(field.absent, Absent::Refused) || values.contains_key(field.key);
        if !kind.fields.iter().all(is_told) {
            return None;
        }
        if values.get("own") == Some(&json!(true)) {
            // Its address differs between routers.
            values.remove("ip");
        }
        let values = without_defaults(kind, &values);
        let thing = Thing { rank: Kind::rank(kind.resource), path: [above, vec![name]].concat(), values };
        let rests_on = self.rests_on(&thing, inventory);
        self.by_uuid.insert(uuid.clone(), self.things.len());
        if kind.resource == Resource::IpRange {
            self.ranges.push(self.things.len());
        }
        self.things.push(Existing { thing, uuid, tags, rests_on });
        Some(())
    }

    fn value(
        &self,
        field: &Field,
        inventory: &Value,
        tags: &BTreeMap<String, String>,
        user_tags: &BTreeSet<String>,
    ) -> Option<Value> {
        let member = &inventory[field.member];
        match field.form {
            Form::Param(_) | Form::Rate | Form::Address | Form::State => Some(member.clone()),
            Form::Flag => {
                // The uses of a VIP show whether it is the router's own address.
                let uses = inventory["useFor"].as_str().unwrap_or_default();
                Some(uses.split(',').any(|service| service == "SNAT").into())
            }
            Form::Setting => {
                tags.keys().find_map(|tag| tag.strip_prefix(field.key)?.strip_prefix("::")).map(setting_value)
            }
            Form::Texts if field.member == "userTags" => {
                let own = tags.iter().filter(|(_, uuid)| user_tags.contains(*uuid));
                Some(own.map(|(tag, _)| tag.as_str()).collect())
            }
            Form::Texts => {
                let items = member.as_array()?.iter();
                let texts: BTreeSet<&str> =
                    items.filter_map(|item| item.as_str().or_else(|| item["networkServiceType"].as_str())).collect();
                Some(json!(texts))
            }
            Form::One(_) => self.joined(member).map(Value::from),
            Form::Several(_) => {
                let refs = member.as_array()?.iter();
                let paths: BTreeSet<_> = refs.filter_map(|one| self.joined(&one["vmNicUuid"])).collect();
                Some(json!(paths))
            }
            Form::Weights(..) => {
                let weights = tags.keys().filter_map(|tag| listener_tag::weight(tag));
                let weights = weights.filter(|(_, weight)| *weight != listener_tag::DEFAULT_WEIGHT);
                let named: BTreeMap<_, _> =
                    weights.filter_map(|(nic, weight)| Some((self.joined(&json!(nic))?, json!(weight)))).collect();
                Some(named.into_iter().collect::<Map<_, _>>().into())
            }
        }
    }

    /// The things that it needs, and the range of its address.
    fn rests_on(&self, thing: &Thing, inventory: &Value) -> BTreeSet<Id> {
        let mut found: BTreeSet<Id> = thing.needs().collect();
        let number = |value: &Value| value.as_str()?.parse::<std::net::Ipv4Addr>().ok();
        if let Some(address) = number(&inventory["ip"]) {
            let network = self.joined(&inventory["l3NetworkUuid"]);
            let holds = |range: &&Existing| {
                let bound = |key| range.thing.values.get(key).and_then(number);
                range.thing.parent().map(|parent| parent.path) == network
                    && bound("startIp").is_some_and(|first| first <= address)
                    && bound("endIp").is_some_and(|last| address <= last)
            };
            found
                .extend(self.ranges.iter().map(|range| &self.things[*range]).find(holds).map(|range| range.thing.id()));
        }
        found
    }
}
