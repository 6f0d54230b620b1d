//! The types of the rows in the table of kinds, and what they mean for values.

use std::collections::BTreeMap;

use serde_json::Value;
use vipgate_api::Protocol;
use vipgate_api::listener_tag::{self, WEIGHT};
use vipgate_api::{Api, Resource};

use super::{super::names, kinds::KINDS};

/// A thing's fields by their keys, without those that have their default.
pub(super) type Values = BTreeMap<&'static str, Value>;

#[derive(Debug)]
pub(super) struct Kind {
    pub(super) resource: Resource,
    /// The kind of its parent, and the member of its inventory that holds the parent's uuid, which is a parameter of
    /// the creating call, too.
    pub(super) parent: Option<(Resource, &'static str)>,
    pub(super) called: Called,
    pub(super) made: Made,
    pub(super) fields: &'static [Field],
    /// Checks values that depend on each other. Returns the key of a wrong one, and what is wrong.
    pub(super) check: fn(&Values) -> Result<(), (&'static str, String)>,
}

/// What the key of a thing in the file stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Called {
    /// Its own name.
    Name,
    /// The name of another thing, whose uuid is in this member of its inventory.
    After(Resource, &'static str),
    /// A number: this parameter of its calls and this member of its inventory. `none` is the key of the thing without
    /// one.
    Number { param: &'static str, none: &'static str },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    Calls {
        create: Api,
        delete: Api,
    },
    /// By calls that name its parent, in the parameter `of`, and its number.
    OnParent {
        /// The name of the kind and of its section: it has no query that would name it.
        noun: &'static str,
        of: &'static str,
        create: Api,
        delete: Api,
        /// Lists those of one parent.
        list: Api,
        /// The condition of a query for the parents that have at least one.
        any: &'static str,
    },
    /// With its parent: it is made and deleted with it.
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

/// The form of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// This parameter of the creating call.
    Param(&'static str),
    /// The parameter of its key in bits per second, with or without a unit.
    Rate,
    /// An address of any layer.
    Address,
    Flag,
    /// One of the values that the field's change lists.
    State,
    /// The value of the system tag with the field's name.
    Setting,
    /// A set of texts.
    Texts,
    /// The name of another thing.
    One(Resource),
    Several(Resource),
    /// Name -> number, for some elements of the field with this key.
    Weights(Resource, &'static str),
}

/// The meaning of a field that is left out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Absent {
    Refused,
    /// Whatever value the router has or chooses.
    Whatever,
    Nothing,
    Is(&'static str),
    Follows(fn(&Values) -> Value),
    /// The API's default for a listener without such a tag.
    Setting,
}

/// How a field is changed in place.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// Not at all.
    Never,
    /// By deleting the thing and making it anew, without --recreate: nothing depends on it, and no traffic ends.
    Remade,
    /// By a call with a parameter of its key.
    Update(Api),
    /// By one call for each value: value, call, event. A new thing has the first value.
    State([(&'static str, Api, Option<&'static str>); 2]),
    /// By a call that detaches and one that attaches; `of` is the parameter that names the attached thing.
    Attach {
        attach: Api,
        of: &'static str,
        detach: Api,
    },
    /// By a call that adds elements and one that removes them; `of` is the parameter that names the thing.
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

/// How elements are passed to their calls.
#[derive(Clone, Copy, Debug)]
pub(super) enum Batch {
    /// One by one as this parameter.
    One(&'static str),
    /// All as this list of uuids.
    Uuids(&'static str),
    /// All in this map, by the uuid of their provider.
    ByProvider(&'static str),
}

impl Kind {
    pub(super) fn of(resource: Resource) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.resource == resource)
    }

    /// Its place in the order of dependencies.
    pub(super) fn rank(resource: Resource) -> usize {
        KINDS.iter().position(|kind| kind.resource == resource).unwrap_or(KINDS.len())
    }

    /// The name of one thing of this kind.
    pub(super) fn noun(&self) -> &'static str {
        match self.made {
            Made::OnParent { noun, .. } => noun,
            Made::Calls { .. } | Made::WithParent => {
                names::of_resource(self.resource).map_or(self.resource.kind(), |noun| noun.short)
            }
        }
    }

    /// The key of its section in the file: the name of the query for its things, if there is one.
    pub(super) fn section(&self) -> String {
        let plural = if matches!(self.made, Made::OnParent { .. }) { "" } else { "s" };
        format!("{}{plural}", self.noun())
    }

    /// The call that makes a thing of this kind.
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
    /// Whether the creating call sets it.
    pub(super) const fn is_made_with(&self) -> bool {
        matches!(self.change, Change::Never | Change::Remade | Change::Update(_) | Change::Setting | Change::UserTags)
    }

    /// Its value if it is left out; `None` if that is no value.
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

/// The effective value of a field: the one that is set, or the default.
pub(super) fn value(field: &Field, values: &Values) -> Option<Value> {
    values.get(field.key).cloned().or_else(|| field.default(values))
}

/// Removes values that equal their default, and those that are nothing.
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
