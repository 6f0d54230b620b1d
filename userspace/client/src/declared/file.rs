//! The file that declares a router: reads things from its text, and writes it.
//!
//! ```yaml
//! zones:
//!   zone1:
//!     l2s:
//!       outside:
//!         physicalInterface: pub0
//!         l3s:
//!           public: {category: Public}
//! vips:
//!   web: {l3: public, ip: 10.1.0.10}
//! ```
//!
//! Each key of a section is the name of a thing. Below it are its fields and the sections of the things that it holds.
//! A key that no row of the table knows is an error with its line.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use vipgate_api::listener_tag;
use vipgate_api::nearest;
use vipgate_api::{
    Resource,
    call::{Kind as ParamKind, NAME, Param, Rule},
    calls,
    request::{self, TAGS},
};

use super::{
    super::{
        http::plain,
        options::{rate, with_unit},
    },
    kind::{Absent, Called, Change, Field, Form, Kind, Made, setting_value, without_defaults},
    kinds::KINDS,
    node::{Node, Place},
    thing::{Id, Names, Thing},
};

/// What is wrong in a file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) place: Place,
    pub(super) what: String,
}

type Result<T, E = Fault> = std::result::Result<T, E>;

fn fault<T>(place: &[usize], what: impl Into<String>) -> Result<T> {
    Err(Fault { place: place.to_vec(), what: what.into() })
}

/// Things as they are written, before references are resolved.
#[derive(Debug, Default)]
pub(super) struct Draft {
    things: Vec<Written>,
    /// The ranks of the kinds that have a section in the file.
    sections: BTreeSet<usize>,
}

#[derive(Debug)]
struct Written {
    thing: Thing,
    place: Place,
    /// The places of its fields.
    fields: BTreeMap<&'static str, Place>,
    /// The index of its parent.
    parent: Option<usize>,
}

/// A router as a file declares it.
#[derive(Debug, Default)]
pub(super) struct Declared {
    /// In the file's order.
    pub(super) things: Vec<Thing>,
    pub(super) sections: BTreeSet<usize>,
}

impl Draft {
    pub(super) fn read(document: &Node) -> Result<Self> {
        let mut draft = Self::default();
        draft.entries(document, &[], None)?;
        Ok(draft)
    }

    /// Reads the fields of the thing with the index `of`, and the sections of the things that it holds. The document
    /// itself if `of` is `None`.
    fn entries(&mut self, node: &Node, place: &[usize], of: Option<usize>) -> Result<()> {
        let kind = of.map(|of| self.things[of].thing.kind());
        let called = of.map_or_else(|| "the file".to_owned(), |of| self.things[of].thing.id().to_string());
        let entries = mapping(node, place, || format!("{called} is"))?;
        let sections: Vec<_> = Kind::within(kind.map(|kind| kind.resource)).collect();
        let mut seen = BTreeSet::new();
        for (index, (key, node)) in entries.iter().enumerate() {
            let place = [place, &[index]].concat();
            if !seen.insert(key) {
                return fault(&place, format!("{called} has `{key}` twice: once is enough"));
            }
            if let Some(section) = sections.iter().find(|section| section.section() == *key) {
                self.section(section, node, &place, of)?;
            } else if let Some((of, field)) = of.zip(kind.and_then(|kind| kind.field(key))) {
                let what = |what| Fault { place: place.clone(), what: format!("{called}: {key} {what}") };
                let value = read_value(self.things[of].thing.kind(), field, node).map_err(what)?;
                self.things[of].thing.values.extend(value.map(|value| (field.key, value)));
                self.things[of].fields.insert(field.key, place);
            } else {
                let fields = kind.into_iter().flat_map(|kind| kind.fields).map(|field| field.key.to_owned());
                let known: Vec<_> = fields.chain(sections.iter().map(|section| section.section())).collect();
                let meant = nearest(key, known.iter().map(String::as_str)).unwrap_or_default();
                return fault(&place, format!("{called} has no `{key}`; did you mean `{meant}`?"));
            }
        }
        let Some(Written { thing, .. }) = of.map(|of| &self.things[of]) else { return Ok(()) };
        let is_missing =
            |field: &&Field| matches!(field.absent, Absent::Refused) && !thing.values.contains_key(field.key);
        let missing = thing.kind().fields.iter().find(is_missing);
        missing.map_or(Ok(()), |field| fault(place, format!("{called} lacks `{}`", field.key)))
    }

    fn section(&mut self, kind: &'static Kind, node: &Node, place: &[usize], parent: Option<usize>) -> Result<()> {
        let (rank, section) = (Kind::rank(kind.resource), kind.section());
        self.sections.insert(rank);
        let mut seen = BTreeSet::new();
        for (index, (key, node)) in mapping(node, place, || format!("{section} are"))?.iter().enumerate() {
            let place = [place, &[index]].concat();
            let name = read_name(kind, key).map_err(|what| Fault {
                place: place.clone(),
                what: format!("the name `{key}` of a {} {what}", kind.noun()),
            })?;
            if !seen.insert(name.clone()) {
                return fault(
                    &place,
                    format!("two {section} are called `{name}`: a file goes by names, give one another"),
                );
            }
            let above = parent.map(|parent| self.things[parent].thing.path.clone()).unwrap_or_default();
            let thing = Thing { rank, path: [above, vec![name]].concat(), values: BTreeMap::new() };
            self.things.push(Written { thing, place: place.clone(), fields: BTreeMap::new(), parent });
            self.entries(node, &place, Some(self.things.len() - 1))?;
        }
        Ok(())
    }

    fn names(&self) -> Names {
        Names::of(self.things.iter().map(|written| &written.thing))
    }

    /// Resolves references: to declared things first, then to things that exist besides.
    pub(super) fn resolve<'a>(mut self, existing: impl IntoIterator<Item = &'a Thing>) -> Result<Declared> {
        let existing: Vec<&Thing> = existing.into_iter().collect();
        let besides = Names::of(existing.iter().copied());
        self.call_after([&self.names(), &besides])?;
        self.complete(&existing.iter().map(|thing| thing.id()).collect())?;
        let names = [&self.names(), &besides];
        for index in 0..self.things.len() {
            let Written { thing, place, fields, .. } = &self.things[index];
            let (kind, called) = (thing.kind(), thing.id());
            let at = |key: &str| fields.get(key).unwrap_or(place);
            let mut values = thing.values.clone();
            for field in kind.fields {
                let Some(value) = values.get_mut(field.key) else { continue };
                *value = resolved(field.form, value, names).map_err(|what| Fault {
                    place: at(field.key).clone(),
                    what: format!("{called}: {} {what}", field.key),
                })?;
            }
            if let Err((key, what)) = (kind.check)(&values) {
                return fault(at(key), format!("{called}: {key} {what}"));
            }
            self.things[index].thing.values = without_defaults(kind, &values);
        }
        let things = self.things.into_iter().map(|written| written.thing).collect();
        Ok(Declared { things, sections: self.sections })
    }

    /// Gives things that are named after others the whole paths of these.
    fn call_after(&mut self, names: [&Names; 2]) -> Result<()> {
        let mut seen = BTreeSet::new();
        for index in 0..self.things.len() {
            let Written { thing, place, parent, .. } = &self.things[index];
            let Called::After(resource, _) = thing.kind().called else { continue };
            let what = |what| Fault { place: place.clone(), what: format!("{}: its name {what}", thing.id()) };
            let path = look_up(names, resource, thing.name()).map_err(what)?;
            if !seen.insert((*parent, path.clone())) {
                return fault(place, format!("{} is there twice", thing.id()));
            }
            let path = [&thing.path[..thing.path.len() - 1], &[path]].concat();
            self.things[index].thing.path = path;
        }
        Ok(())
    }

    /// Checks that a thing which is made with its parent is declared with it, unless it exists already.
    fn complete(&self, existing: &BTreeSet<Id>) -> Result<()> {
        for part in KINDS.iter().filter(|kind| kind.made == Made::WithParent) {
            let rank = Kind::rank(part.resource);
            let parts = self.things.iter().filter(|written| written.thing.rank == rank);
            let whole: BTreeSet<_> = parts.filter_map(|part| part.parent).collect();
            let of = part.parent.map(|(resource, _)| Kind::rank(resource));
            let mut things = self.things.iter().enumerate().filter(|(_, written)| Some(written.thing.rank) == of);
            let lacking = things.find(|(index, one)| !whole.contains(index) && !existing.contains(&one.thing.id()));
            if let Some((_, one)) = lacking {
                return fault(
                    &one.place,
                    format!("{} lacks `{}`: it needs at least one", one.thing.id(), part.section()),
                );
            }
        }
        Ok(())
    }
}

/// The entries of a mapping. An empty value is an empty mapping.
fn mapping<'a>(node: &'a Node, place: &[usize], what: impl Fn() -> String) -> Result<&'a [(String, Node)]> {
    match node {
        Node::Mapping(entries) => Ok(entries),
        Node::Scalar(Value::Null) => Ok(&[]),
        Node::Scalar(_) | Node::List(_) => fault(place, format!("{} a mapping: write `name: ...` lines below", what())),
    }
}

/// The path of the thing with this name, in the first of these that knows the name.
fn look_up(names: [&Names; 2], resource: Resource, text: &str) -> Result<String, String> {
    let kind = Kind::of(resource).map_or(resource.kind(), Kind::noun);
    let meant = names.map(|names| names.meant(resource, text)).into_iter().find(|meant| !meant.is_empty());
    match meant.unwrap_or_default().as_slice() {
        [path] => Ok((*path).to_owned()),
        [] => match nearest(text, names.into_iter().flat_map(|names| names.of_kind(resource))) {
            Some(meant) => Err(format!("`{text}` is no {kind}; did you mean `{meant}`?")),
            None => Err(format!("`{text}` is no {kind}: there is none")),
        },
        several => Err(format!("`{text}` can be several: write one of {}", several.join(", "))),
    }
}

fn resolved(form: Form, value: &Value, names: [&Names; 2]) -> Result<Value, String> {
    let path = |resource, value: &Value| look_up(names, resource, value.as_str().unwrap_or_default());
    match (form, value) {
        (Form::One(resource), value) => path(resource, value).map(Value::from),
        (Form::Several(resource), Value::Array(items)) => {
            let paths = items.iter().map(|item| path(resource, item)).collect::<Result<Vec<_>, _>>()?;
            sorted(paths)
        }
        (Form::Weights(resource, _), Value::Object(weights)) => {
            let resolved = weights.iter().map(|(name, weight)| Ok((look_up(names, resource, name)?, weight.clone())));
            let resolved: BTreeMap<_, _> = resolved.collect::<Result<_, String>>()?;
            if resolved.len() < weights.len() {
                return Err("names one of them twice".to_owned());
            }
            // The default weight need not be written.
            let other = |weight: &Value| *weight != json!(listener_tag::DEFAULT_WEIGHT);
            Ok(resolved.into_iter().filter(|(_, weight)| other(weight)).collect())
        }
        (_, value) => Ok(value.clone()),
    }
}

/// Lists are sets: they are compared and written in sorted order.
fn sorted(mut texts: Vec<String>) -> Result<Value, String> {
    texts.sort();
    match texts.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("names `{}` twice", pair[0])),
        None => Ok(json!(texts)),
    }
}

/// The name of the thing with this key. The error completes a sentence that begins with the key.
fn read_name(kind: &Kind, key: &str) -> Result<String, String> {
    let (mut name, rules) = match kind.called {
        Called::Name | Called::After(..) => (json!(key), Some(&NAME)),
        Called::Number { none, .. } if key.trim() == none => return Ok(none.to_owned()),
        Called::Number { param, none } => match key.trim().parse::<i64>() {
            Ok(number) => (json!(number), parameter(kind, param)),
            Err(_) => return Err(format!("is no {param}: write a number, or `{none}`")),
        },
    };
    rules.map_or(Ok(()), |rules| request::check_value(rules, &mut name))?;
    Ok(plain(&name))
}

/// The value of a field; `None` if it counts as left out. The error completes a sentence that begins with the key.
fn read_value(kind: &Kind, field: &Field, node: &Node) -> Result<Option<Value>, String> {
    let value = match node {
        Node::Scalar(Value::Null) => return Ok(None),
        Node::Scalar(value) => value.clone(),
        Node::List(items) => {
            let text = |item: &Node| match item {
                Node::Scalar(Value::String(text)) => Ok(json!(text)),
                _ => Err("holds something else than texts: quote what looks like a number".to_owned()),
            };
            Value::Array(items.iter().map(text).collect::<Result<_, _>>()?)
        }
        Node::Mapping(entries) => {
            let pair = |(key, node): &(String, Node)| match node {
                Node::Scalar(value @ Value::Number(_)) => Ok((key.clone(), value.clone())),
                _ => Err(format!("has something else than a number for `{key}`")),
            };
            let pairs = entries.iter().map(pair).collect::<Result<Map<_, _>, _>>()?;
            if pairs.len() < entries.len() {
                return Err("has a key twice".to_owned());
            }
            Value::Object(pairs)
        }
    };
    match (field.form, value) {
        (Form::Param(name), value) => {
            let param = parameter(kind, name).ok_or("is no parameter of the API")?;
            checked(param, value).map(Some)
        }
        (Form::Rate, value @ (Value::String(_) | Value::Number(_))) => {
            let rule = parameter(kind, field.key).and_then(|param| param.rule);
            let Some(Rule::Range(low, high)) = rule else { return Err("is no parameter with bounds".to_owned()) };
            let text = plain(&value);
            let rate = rate(text.trim(), low..=high).map_err(|what| format!("is `{text}`: {what}"))?;
            Ok(Some(rate.into()))
        }
        (Form::Address, Value::String(text)) => Ok(Some(text.trim().to_ascii_lowercase().into())),
        (Form::Flag, value @ Value::Bool(_)) => Ok(Some(value)),
        (Form::State, Value::String(text)) => {
            let Change::State(turns) = field.change else { return Ok(Some(text.into())) };
            match turns.iter().any(|(state, ..)| *state == text) {
                true => Ok(Some(text.into())),
                false => Err(format!("is `{text}`: write {} or {}", turns[0].0, turns[1].0)),
            }
        }
        (Form::Setting, value @ (Value::String(_) | Value::Number(_))) => {
            let text = plain(&value);
            let tag = format!("{}::{}", field.key, text.trim());
            listener_tag::parse(&tag).map_err(|error| format!("is `{text}`: {error}"))?;
            Ok(Some(setting_value(text.trim())))
        }
        (Form::Texts, value @ Value::Array(_)) => {
            let Value::Array(items) = checked(&TAGS[1], value)? else { return Ok(None) };
            sorted(items.iter().filter_map(Value::as_str).map(str::to_owned).collect()).map(Some)
        }
        (Form::One(_), value @ Value::String(_)) => Ok(Some(value)),
        (Form::Several(_), value @ Value::Array(_)) => Ok(Some(value)),
        (Form::Weights(..), Value::Object(weights)) => {
            for weight in weights.values() {
                let tag = format!("{}{weight}", super::kind::weight_tag("nic"));
                listener_tag::parse(&tag).map_err(|_| format!("has the weight {weight}: give one from 0 to 100"))?;
            }
            Ok(Some(Value::Object(weights)))
        }
        (form, value) => Err(format!("is {value}: write {}", wanted(form))),
    }
}

const fn wanted(form: Form) -> &'static str {
    match form {
        Form::Param(_) | Form::Address | Form::State | Form::Setting => "a text",
        Form::Rate => "bits per second, such as 10485760 or 10M",
        Form::Flag => "true or false",
        Form::Texts => "a list of texts, such as [one, two]",
        Form::One(_) => "a name",
        Form::Several(_) => "a list of names, such as [web1, web2]",
        Form::Weights(..) => "names with numbers, such as {web1: 50}",
    }
}

/// The API's parameter whose rules apply to a field's values.
fn parameter(kind: &Kind, name: &str) -> Option<&'static Param> {
    let create = kind.create()?;
    calls::of(create)?.params.iter().find(|param| param.name == name)
}

fn checked(param: &Param, mut value: Value) -> Result<Value, String> {
    let fits = match param.kind {
        ParamKind::Text => value.is_string(),
        ParamKind::Int | ParamKind::Long => value.is_i64(),
        ParamKind::Bool => value.is_boolean(),
        ParamKind::TextList => value.is_array(),
        ParamKind::ListMap => value.is_object(),
    };
    if !fits {
        let wanted = match param.kind {
            ParamKind::Text => "a text; quote what looks like a number",
            ParamKind::Int | ParamKind::Long => "a whole number",
            ParamKind::Bool => "true or false",
            ParamKind::TextList | ParamKind::ListMap => "a list",
        };
        return Err(format!("is {value}: write {wanted}"));
    }
    request::check_value(param, &mut value)?;
    Ok(value)
}

/// The file of these things. They are sorted by name; those without a name of their own keep their order.
pub(super) fn write(things: &[Thing]) -> Value {
    let mut held = BTreeMap::<Option<Id>, Vec<&Thing>>::new();
    for thing in things {
        held.entry(thing.parent()).or_default().push(thing);
    }
    Value::Object(sections(&held, &Names::of(things), None))
}

fn sections(held: &BTreeMap<Option<Id>, Vec<&Thing>>, names: &Names, of: Option<&Thing>) -> Map<String, Value> {
    let within = held.get(&of.map(Thing::id)).map(Vec::as_slice).unwrap_or_default();
    let mut found = Map::new();
    for kind in Kind::within(of.map(|thing| thing.kind().resource)) {
        let mut things: Vec<&Thing> =
            within.iter().copied().filter(|thing| thing.kind().resource == kind.resource).collect();
        if kind.called == Called::Name {
            things.sort_by_key(|thing| thing.name());
        }
        let entry = |thing: &Thing| {
            let name = thing.namesake().map_or_else(|| thing.name().to_owned(), |other| names.shortest(&other));
            let fields = kind.fields.iter().filter_map(|field| Some((field, thing.values.get(field.key)?)));
            let mut entry: Map<_, _> =
                fields.map(|(field, value)| (field.key.to_owned(), spelt(field.form, value, names))).collect();
            entry.extend(sections(held, names, Some(thing)));
            (name, Value::Object(entry))
        };
        let entries: Map<_, _> = things.into_iter().map(entry).collect();
        if !entries.is_empty() {
            found.insert(kind.section(), Value::Object(entries));
        }
    }
    found
}

/// A value with names in place of paths.
pub(super) fn spelt(form: Form, value: &Value, names: &Names) -> Value {
    let name = |resource, path: &str| names.shortest(&Id::new(resource, path));
    match (form, value) {
        (Form::One(resource), Value::String(path)) => name(resource, path).into(),
        (Form::Several(resource), Value::Array(paths)) => {
            paths.iter().filter_map(Value::as_str).map(|path| name(resource, path)).collect()
        }
        (Form::Weights(resource, _), Value::Object(weights)) => {
            weights.iter().map(|(path, weight)| (name(resource, path), weight.clone())).collect()
        }
        (Form::Rate, Value::Number(rate)) => {
            rate.as_i64().and_then(with_unit).map_or_else(|| value.clone(), Value::from)
        }
        (_, value) => value.clone(),
    }
}
