//! What a router has, read by queries: of it what the session's account owns. A name is another account's to choose as well:
//! what that has made under it is not what a file means. Networks may be shared with an account, which the file refers to.

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

/// A thing that is there.
#[derive(Clone, Debug)]
pub(super) struct Existing {
    pub(super) thing: Thing,
    pub(super) uuid: String,
    /// Its tags, with their uuids.
    pub(super) tags: BTreeMap<String, String>,
    /// What it can't be without.
    pub(super) rests_on: BTreeSet<Id>,
}

/// Whose things are meant.
#[derive(Debug)]
struct Account {
    uuid: String,
    admin: bool,
}

impl Account {
    /// The session's own. A normal account sees no other than itself.
    fn of_session(api: &Api) -> Result<Self, ClientError> {
        let seen = inventories(api, Resource::Account, &[])?;
        let admin = seen.iter().find(|account| account["type"] == "SystemAdmin");
        let own = admin.or(seen.first()).map(|account| account["uuid"].as_str().unwrap_or_default().to_owned());
        Ok(Self { uuid: own.unwrap_or_default(), admin: admin.is_some() })
    }

    /// Things of this kind are meant whoever owns them.
    fn shares(&self, kind: &Kind) -> bool {
        !self.admin && is_network(kind)
    }
}

const fn is_network(kind: &Kind) -> bool {
    matches!(kind.resource, Resource::Zone | Resource::L2Network | Resource::L3Network | Resource::IpRange)
}

/// All that a file can declare.
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
    let mut existing = There { account, things: Vec::new(), by_uuid: BTreeMap::new(), ranges: Vec::new() };
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

/// Every inventory of a kind that the account owns, or what is part of it.
fn every(api: &Api, kind: &Kind, account: &Account) -> Result<Vec<Value>, ClientError> {
    let own = format!("__owner__={}", account.uuid);
    let own = [own.as_str()];
    let (Made::OnParent { of, list, any, .. }, Some((parent, _))) = (kind.made, kind.parent) else {
        // Parts are its whose the whole is.
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

/// Every resource of a kind for which these conditions hold, page by page.
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

struct There {
    account: Account,
    things: Vec<Existing>,
    /// Uuid -> index.
    by_uuid: BTreeMap<String, usize>,
    /// Indices of the ranges of addresses.
    ranges: Vec<usize>,
}

impl There {
    /// The names of a resource that was read before.
    fn path(&self, uuid: &Value) -> Option<&[String]> {
        Some(&self.things[*self.by_uuid.get(uuid.as_str()?)?].thing.path)
    }

    fn joined(&self, uuid: &Value) -> Option<String> {
        Some(self.path(uuid)?.join("/"))
    }

    /// Above what the session does not see, as a tenant the zone of a shared network, there is nothing. What can't be told
    /// without that is passed over, as is what is on another account's.
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
            // Another router has another.
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
                // A VIP says by its uses that it is the router's own address.
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

    /// What it needs, and the range that its address is of.
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
