//! What a row of the table of kinds says, and what follows from it for values.

use std::collections::BTreeMap;

use serde_json::Value;
use vipgate_api::Protocol;
use vipgate_api::listener_tag::{self, WEIGHT};
use vipgate_api::{Api, Resource};

use super::{super::names, kinds::KINDS};

/// A thing's fields by their keys. What a field is by default is not in it.
pub(super) type Values = BTreeMap<&'static str, Value>;

#[derive(Debug)]
pub(super) struct Kind {
    pub(super) resource: Resource,
    /// What holds it, and the member of its inventory that says which; that is a parameter of its creation, too.
    pub(super) parent: Option<(Resource, &'static str)>,
    pub(super) called: Called,
    pub(super) made: Made,
    pub(super) fields: &'static [Field],
    /// What values must be together: the key to look at and what is wrong with it.
    pub(super) check: fn(&Values) -> Result<(), (&'static str, String)>,
}

/// What a thing's key in the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Called {
    /// Its own name.
    Name,
    /// That of another thing, by the member of its inventory that holds the other's uuid.
    After(Resource, &'static str),
    /// A number, which is this parameter of its calls and this member of its inventory; `none` is the one without it.
    Number { param: &'static str, none: &'static str },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    Calls {
        create: Api,
        delete: Api,
    },
    /// By calls that name it by what holds it, as the parameter `of`, and by its number.
    OnParent {
        /// What one of it is called, and its section: no query finds it.
        noun: &'static str,
        of: &'static str,
        create: Api,
        delete: Api,
        /// Those on one parent.
        list: Api,
        /// The condition of a query for the parents that have any.
        any: &'static str,
    },
    /// It comes and goes with what holds it.
    WithParent,
}

#[derive(Debug)]
pub(super) struct Field {
    pub(super) key: &'static str,
    /// Of the inventory.
    pub(super) member: &'static str,
    pub(super) form: Form,
    pub(super) absent: Absent,
    pub(super) change: Change,
}

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As this parameter of the creating call.
    Param(&'static str),
    /// As the parameter of its key, in bits per second, also with a unit.
    Rate,
    /// An address, of whatever layer.
    Address,
    Flag,
    /// One of the values that its change knows.
    State,
    /// The value of the system tag that is called as the field is.
    Setting,
    /// Texts without an order.
    Texts,
    /// What something else is called.
    One(Resource),
    Several(Resource),
    /// Name -> number, for some of the elements of the field of this key.
    Weights(Resource, &'static str),
}

/// What leaving a field out means.
#[derive(Clone, Copy, Debug)]
pub(super) enum Absent {
    Refused,
    /// What the router has or chooses.
    Whatever,
    Nothing,
    Is(&'static str),
    Follows(fn(&Values) -> Value),
    /// What the API gives a listener without such a tag.
    Setting,
}

/// How a field is changed in place.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// Not at all.
    Never,
    /// By deleting the thing and making it anew, which nobody is asked for: nothing rests on it, and no traffic ends.
    Remade,
    /// By a call that takes it by its key.
    Update(Api),
    /// Each value by a call: value, call, event. A new one has the first.
    State([(&'static str, Api, Option<&'static str>); 2]),
    /// Detached and attached by calls; `of` is the parameter that names what is attached.
    Attach {
        attach: Api,
        of: &'static str,
        detach: Api,
    },
    /// Added and removed by calls; `of` is the parameter that names whose elements they are.
    Elements {
        add: Api,
        remove: Api,
        of: &'static str,
        batch: Batch,
    },
    /// By changing the tag.
    Setting,
    /// By a system tag for each.
    Weights,
    UserTags,
}

/// How elements are given to their calls.
#[derive(Clone, Copy, Debug)]
pub(super) enum Batch {
    /// One by one as this parameter.
    One(&'static str),
    /// All as this list of uuids.
    Uuids(&'static str),
    /// All in this map, by the uuid of the provider that offers them.
    ByProvider(&'static str),
}

impl Kind {
    pub(super) fn of(resource: Resource) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.resource == resource)
    }

    /// Its place in the order of dependence.
    pub(super) fn rank(resource: Resource) -> usize {
        KINDS.iter().position(|kind| kind.resource == resource).unwrap_or(KINDS.len())
    }

    /// What one of it is called.
    pub(super) fn noun(&self) -> &'static str {
        match self.made {
            Made::OnParent { noun, .. } => noun,
            Made::Calls { .. } | Made::WithParent => {
                names::of_resource(self.resource).map_or(self.resource.kind(), |noun| noun.short)
            }
        }
    }

    /// The key that its things stand under: what the query for them is called, if there is one.
    pub(super) fn section(&self) -> String {
        let plural = if matches!(self.made, Made::OnParent { .. }) { "" } else { "s" };
        format!("{}{plural}", self.noun())
    }

    /// The call that makes one of it.
    pub(super) const fn create(&self) -> Option<Api> {
        match self.made {
            Made::Calls { create, .. } | Made::OnParent { create, .. } => Some(create),
            Made::WithParent => None,
        }
    }

    pub(super) fn within(resource: Option<Resource>) -> impl Iterator<Item = &'static Self> {
        KINDS.iter().filter(move |kind| kind.parent.map(|(parent, _)| parent) == resource)
    }

    pub(super) fn field(&self, key: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.key == key)
    }
}

impl Field {
    /// Whether the creating call takes it.
    pub(super) const fn is_made_with(&self) -> bool {
        matches!(self.change, Change::Never | Change::Remade | Change::Update(_) | Change::Setting | Change::UserTags)
    }

    /// What it is where nothing is said; `None`: nothing.
    pub(super) fn default(&self, values: &Values) -> Option<Value> {
        match self.absent {
            Absent::Is(text) => Some(text.into()),
            Absent::Follows(from) => Some(from(values)),
            Absent::Setting => setting_default(self.key, values),
            Absent::Nothing if self.form == Form::Flag => Some(false.into()),
            Absent::Refused | Absent::Whatever | Absent::Nothing => None,
        }
    }
}

/// What a field comes to: what it is set to, or what it is by default.
pub(super) fn value(field: &Field, values: &Values) -> Option<Value> {
    values.get(field.key).cloned().or_else(|| field.default(values))
}

/// Takes out what is as by default, and what is nothing.
pub(super) fn without_defaults(kind: &Kind, values: &Values) -> Values {
    let says = |field: &&Field, value: &Value| {
        let nothing = match value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(members) => members.is_empty(),
            Value::Bool(_) | Value::Number(_) => false,
        };
        !nothing && field.default(values).as_ref() != Some(value)
    };
    let fields = kind.fields.iter().filter_map(|field| Some((field, values.get(field.key)?)));
    fields.filter(|(field, value)| says(field, value)).map(|(field, value)| (field.key, value.clone())).collect()
}

/// The value of a setting's tag, as a number where it is one.
pub(super) fn setting_value(text: &str) -> Value {
    text.parse::<u64>().map_or_else(|_| text.into(), Value::from)
}

fn setting_default(name: &str, values: &Values) -> Option<Value> {
    let udp = values.get("protocol").is_some_and(|protocol| protocol == "udp");
    let tags = listener_tag::complete(&[], if udp { Protocol::Udp } else { Protocol::Tcp }).ok()?;
    tags.iter().find_map(|tag| tag.strip_prefix(name)?.strip_prefix("::").map(setting_value))
}

/// The tag that gives a NIC its weight, without the weight.
pub(super) fn weight_tag(nic: &str) -> String {
    format!("{WEIGHT}::{nic}::")
}
