//! Executes a plan's steps as calls of the API, one after the other, each until its job has ended.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use vipgate_api::{Api as Name, Resource, calls};

use super::{
    super::{
        ClientError,
        http::{Answer, Api, plain},
    },
    existing::{self, Existing},
    kind::{Batch, Called, Change, Form, Made, value, weight_tag},
    plan::{Difference, Step},
    thing::{Id, Thing},
};

type Arguments = Map<String, Value>;

/// Executes steps, and remembers the uuids of what they make.
#[allow(missing_debug_implementations, reason = "it holds a session")]
pub(super) struct Executor<'a> {
    api: &'a Api,
    /// The uuids of all things that exist by now.
    uuids: BTreeMap<Id, String>,
    /// The tags of things that existed before, with their uuids.
    tags: BTreeMap<Id, BTreeMap<String, String>>,
}

impl<'a> Executor<'a> {
    pub(super) fn new(api: &'a Api, existing: &[Existing]) -> Self {
        let uuids = existing.iter().map(|present| (present.thing.id(), present.uuid.clone())).collect();
        let tags = existing.iter().map(|present| (present.thing.id(), present.tags.clone())).collect();
        Self { api, uuids, tags }
    }

    pub(super) fn execute(&mut self, step: &Step) -> Result<(), ClientError> {
        match step {
            Step::Delete(id) => self.delete(id),
            Step::Create(thing, _) if thing.is_own() => self.take_over(thing),
            Step::Create(thing, parts) => self.create(thing, parts),
            Step::Change(thing, change) => self.change(thing, change),
        }
    }

    /// Makes a call and waits for the end of its job.
    fn call(&self, api: Name, arguments: Value) -> Result<Value, ClientError> {
        let Value::Object(arguments) = arguments else { return Ok(Value::Null) };
        let Some(call) = calls::of(api) else { return Ok(Value::Null) };
        match self.api.send(call, &arguments)? {
            Answer::Done(reply) => Ok(reply),
            Answer::Job(location) => self.api.follow(&location),
        }
    }

    fn uuid(&self, id: &Id) -> Result<&str, ClientError> {
        self.uuids.get(id).map(String::as_str).ok_or_else(|| ClientError::Gone { what: id.to_string() })
    }

    fn uuid_of(&self, resource: Resource, path: &str) -> Result<&str, ClientError> {
        self.uuid(&Id::new(resource, path))
    }

    fn delete(&mut self, id: &Id) -> Result<(), ClientError> {
        match id.kind().made {
            Made::Calls { delete, .. } => drop(self.call(delete, json!({ "uuid": self.uuid(id)? }))?),
            Made::OnParent { delete, of, .. } => drop(self.call(delete, self.place(id, of)?.into())?),
            Made::WithParent => {}
        }
        self.uuids.remove(id);
        self.tags.remove(id);
        Ok(())
    }

    fn create(&mut self, thing: &Thing, parts: &[Thing]) -> Result<(), ClientError> {
        let kind = thing.kind();
        let (create, mut arguments) = match kind.made {
            Made::Calls { create, .. } => {
                let mut arguments = Arguments::from_iter([("name".to_owned(), thing.name().into())]);
                if let Some((parent, (_, member))) = thing.parent().zip(kind.parent) {
                    arguments.insert(member.to_owned(), self.uuid(&parent)?.into());
                }
                (create, arguments)
            }
            Made::OnParent { create, of, .. } => (create, self.place(&thing.id(), of)?),
            Made::WithParent => return Ok(()),
        };
        let mut tags = Vec::new();
        for field in kind.fields.iter().filter(|field| field.is_made_with()) {
            let Some(value) = value(field, &thing.values) else { continue };
            match field.form {
                Form::Param(name) => drop(arguments.insert(name.to_owned(), value)),
                Form::One(resource) => {
                    let uuid = self.uuid_of(resource, value.as_str().unwrap_or_default())?;
                    arguments.insert(field.member.to_owned(), uuid.into());
                }
                Form::Setting => tags.push(tag(field.key, &value)),
                Form::Rate | Form::Texts => drop(arguments.insert(field.member.to_owned(), value)),
                Form::Address | Form::Flag | Form::State | Form::Several(_) | Form::Weights(..) => {}
            }
        }
        let networks = self.networks(parts, &mut tags)?;
        for (name, items) in [("l3NetworkUuids", networks), ("systemTags", tags)] {
            if !items.is_empty() {
                arguments.insert(name.to_owned(), json!(items));
            }
        }
        let made = self.call(create, Value::Object(arguments))?["inventory"].take();
        self.made(thing.id(), &made);
        for part in parts {
            let mut nics = made["vmNics"].as_array().into_iter().flatten();
            let network = part.namesake().map(|network| self.uuid(&network)).transpose()?;
            let nic = nics.find(|nic| nic["l3NetworkUuid"].as_str() == network).cloned();
            self.made(part.id(), &nic.unwrap_or_default());
        }
        Ok(())
    }

    /// The arguments that name a thing by its parent and number, if calls do not name it by its uuid.
    fn place(&self, id: &Id, of: &str) -> Result<Arguments, ClientError> {
        let mut place = Arguments::new();
        if let (Some((parent, name)), Called::Number { param, .. }) = (id.on_parent(), id.kind().called) {
            place.insert(of.to_owned(), self.uuid(&parent)?.into());
            place.extend(name.parse::<i64>().ok().map(|number| (param.to_owned(), number.into())));
        }
        Ok(place)
    }

    fn made(&mut self, id: Id, inventory: &Value) {
        self.tags.remove(&id);
        if let Some(uuid) = inventory["uuid"].as_str() {
            self.uuids.insert(id, uuid.to_owned());
        }
    }

    /// The networks of a VM's NICs, and the tags with the NICs' addresses.
    fn networks(&self, nics: &[Thing], tags: &mut Vec<String>) -> Result<Vec<String>, ClientError> {
        let mut networks = Vec::new();
        for nic in nics {
            let Some(network) = nic.namesake() else { continue };
            let network = self.uuid(&network)?;
            for (key, name) in [("ip", "staticIp"), ("mac", "customMac")] {
                let address = nic.values.get(key).and_then(Value::as_str);
                tags.extend(address.map(|address| format!("{name}::{network}::{address}")));
            }
            networks.push(network.to_owned());
        }
        Ok(networks)
    }

    /// The router itself makes the VIP of its own address: looks it up and gives it the declared name.
    fn take_over(&mut self, thing: &Thing) -> Result<(), ClientError> {
        let network = thing.values.get("l3").and_then(Value::as_str).unwrap_or_default();
        let on_network = format!("l3NetworkUuid={}", self.uuid_of(Resource::L3Network, network)?);
        let found = existing::inventories(self.api, Resource::Vip, &[&on_network, "useFor~=%SNAT%"])?;
        let Some(found) = found.first() else {
            return Err(ClientError::NoOwnVip { name: thing.name().to_owned(), network: network.to_owned() });
        };
        let description = thing.values.get("description").cloned().unwrap_or_else(|| "".into());
        self.call(Name::UpdateVip, json!({ "uuid": found["uuid"], "name": thing.name(), "description": description }))?;
        self.made(thing.id(), found);
        Ok(())
    }

    fn change(&mut self, thing: &Thing, change: &Difference) -> Result<(), ClientError> {
        let Difference { field, from, to } = change;
        let id = thing.id();
        let uuid = self.uuid(&id)?;
        match field.change {
            // A thing that is made anew has no changes.
            Change::Never | Change::Remade => {}
            Change::Update(api) => {
                let text = to.clone().unwrap_or_else(|| "".into());
                self.call(api, json!({ "uuid": uuid, field.key: text }))?;
            }
            Change::State(turns) => {
                let state = to.as_ref().and_then(Value::as_str).unwrap_or(turns[0].0);
                for (_, api, event) in turns.into_iter().filter(|(value, ..)| *value == state) {
                    let mut arguments = json!({ "uuid": uuid });
                    if let Some(event) = event {
                        arguments["stateEvent"] = event.into();
                    }
                    self.call(api, arguments)?;
                }
            }
            Change::Attach { attach, of, detach } => {
                if from.is_some() {
                    self.call(detach, json!({ "uuid": uuid }))?;
                }
                if let (Some(Value::String(path)), Form::One(resource)) = (to, field.form) {
                    self.call(attach, json!({ of: uuid, field.member: self.uuid_of(resource, path)? }))?;
                }
            }
            Change::Elements { add, remove, of, batch } => {
                let (old, new) = (texts(from), texts(to));
                // Additions first: the removed elements might be the last ones.
                for (api, these, others) in [(add, &new, &old), (remove, &old, &new)] {
                    let these: Vec<&str> = these.iter().copied().filter(|text| !others.contains(text)).collect();
                    for (name, value) in self.batches(batch, field.form, &these)? {
                        self.call(api, json!({ of: uuid, name: value }))?;
                    }
                }
            }
            Change::Setting => {
                let value = to.clone().or_else(|| field.default(&thing.values)).unwrap_or_default();
                if let Some(known) = self.tag(&id, &tag(field.key, &json!(""))) {
                    self.call(Name::UpdateSystemTag, json!({ "uuid": known, "tag": tag(field.key, &value) }))?;
                }
            }
            Change::Weights => self.weigh(thing, uuid, from.as_ref(), to.as_ref())?,
            Change::UserTags => {
                let kind = thing.kind().resource.kind();
                let (old, new) = (texts(from), texts(to));
                for text in new.iter().filter(|text| !old.contains(text)) {
                    self.call(Name::CreateUserTag, json!({ "resourceType": kind, "resourceUuid": uuid, "tag": text }))?;
                }
                for text in old.iter().filter(|text| !new.contains(text)) {
                    if let Some(known) = self.tags.get(&id).and_then(|tags| tags.get(*text)) {
                        self.call(Name::DeleteTag, json!({ "uuid": known }))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The parameters for these elements, one set for each call.
    fn batches(&self, batch: Batch, form: Form, texts: &[&str]) -> Result<Vec<(&'static str, Value)>, ClientError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        match (batch, form) {
            (Batch::Uuids(name), Form::Several(resource)) => {
                let uuids: Vec<&str> =
                    texts.iter().map(|path| self.uuid_of(resource, path)).collect::<Result<_, _>>()?;
                Ok(vec![(name, json!(uuids))])
            }
            (Batch::ByProvider(name), _) => {
                let providers = existing::inventories(self.api, Resource::NetworkServiceProvider, &[])?;
                let mut by_provider = BTreeMap::<&str, Vec<&str>>::new();
                for text in texts {
                    let offers = |provider: &&Value| {
                        provider["networkServiceTypes"].as_array().is_some_and(|types| types.contains(&json!(text)))
                    };
                    let provider = providers.iter().find(offers).and_then(|provider| provider["uuid"].as_str());
                    let provider = provider.ok_or_else(|| ClientError::NoProvider { service: (*text).to_owned() })?;
                    by_provider.entry(provider).or_default().push(text);
                }
                Ok(vec![(name, json!(by_provider))])
            }
            (Batch::One(name) | Batch::Uuids(name), _) => Ok(texts.iter().map(|text| (name, json!(text))).collect()),
        }
    }

    /// Sets the weights that differ. Those of removed backends are removed with them.
    fn weigh(&self, thing: &Thing, uuid: &str, from: Option<&Value>, to: Option<&Value>) -> Result<(), ClientError> {
        let weights = |value: Option<&Value>| value.and_then(Value::as_object).cloned().unwrap_or_default();
        let (old, new) = (weights(from), weights(to));
        for (path, weight) in &new {
            let prefix = weight_tag(self.uuid_of(Resource::VmNic, path)?);
            let tag = format!("{prefix}{weight}");
            match self.tag(&thing.id(), &prefix) {
                Some(_) if old.get(path) == Some(weight) => {}
                Some(known) => drop(self.call(Name::UpdateSystemTag, json!({ "uuid": known, "tag": tag }))?),
                None => {
                    let kind = Resource::Listener.kind();
                    self.call(
                        Name::CreateSystemTag,
                        json!({ "resourceType": kind, "resourceUuid": uuid, "tag": tag }),
                    )?;
                }
            }
        }
        let backends = thing.values.get("backends").and_then(Value::as_array);
        let stays = |path: &String| backends.is_some_and(|backends| backends.contains(&json!(path)));
        for path in old.keys().filter(|path| !new.contains_key(*path) && stays(path)) {
            if let Some(known) = self.tag(&thing.id(), &weight_tag(self.uuid_of(Resource::VmNic, path)?)) {
                self.call(Name::DeleteTag, json!({ "uuid": known }))?;
            }
        }
        Ok(())
    }

    /// The uuid of the tag with this prefix.
    fn tag(&self, id: &Id, prefix: &str) -> Option<&str> {
        let mut tags = self.tags.get(id)?.iter();
        tags.find(|(text, _)| text.starts_with(prefix)).map(|(_, uuid)| uuid.as_str())
    }
}

fn tag(name: &str, value: &Value) -> String {
    format!("{name}::{}", plain(value))
}

fn texts(value: &Option<Value>) -> Vec<&str> {
    value.as_ref().and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}
