//! Things of a router, declared or existing, and the names that refer to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde_json::Value;
use vipgate_api::Resource;

use super::{
    super::render::sanitized,
    kind::{Called, Field, Form, Kind, Values},
    kinds::KINDS,
};

/// Identifies a thing by its kind and its names, the outermost first. Sorts in the order of dependencies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    pub(super) rank: usize,
    /// The names, joined. References hold this.
    pub(super) path: String,
}

impl Id {
    pub(super) fn new(resource: Resource, path: &str) -> Self {
        Self { rank: Kind::rank(resource), path: path.to_owned() }
    }

    pub(super) fn kind(&self) -> &'static Kind {
        &KINDS[self.rank]
    }

    /// Its parent and its name there, for a kind without slashes in its names.
    pub(super) fn on_parent(&self) -> Option<(Self, &str)> {
        let (resource, _) = self.kind().parent?;
        let (above, name) = self.path.rsplit_once('/')?;
        Some((Self::new(resource, above), name))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.kind().noun(), sanitized(&self.path))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Thing {
    pub(super) rank: usize,
    /// Its parents' names from the outermost on, and its own.
    pub(super) path: Vec<String>,
    /// References are paths; defaults are left out.
    pub(super) values: Values,
}

impl Thing {
    pub(super) fn kind(&self) -> &'static Kind {
        &KINDS[self.rank]
    }

    pub(super) fn id(&self) -> Id {
        Id { rank: self.rank, path: self.path.join("/") }
    }

    pub(super) fn name(&self) -> &str {
        self.path.last().map_or("", String::as_str)
    }

    /// Its parent; `None` if it has none, or the session does not see it.
    pub(super) fn parent(&self) -> Option<Id> {
        let (resource, _) = self.kind().parent?;
        let (_, above) = self.path.split_last()?;
        (!above.is_empty()).then(|| Id::new(resource, &above.join("/")))
    }

    /// The thing that it is named after.
    pub(super) fn namesake(&self) -> Option<Id> {
        match self.kind().called {
            Called::Name | Called::Number { .. } => None,
            Called::After(resource, _) => Some(Id::new(resource, self.name())),
        }
    }

    /// The things that its fields refer to, by key.
    pub(super) fn references(&self) -> impl Iterator<Item = (&'static str, Id)> {
        self.kind().fields.iter().flat_map(|field| {
            let value = self.values.get(field.key);
            let (resource, paths): (_, Vec<&str>) = match field.form {
                Form::One(resource) => (resource, value.and_then(Value::as_str).into_iter().collect()),
                Form::Several(resource) => (
                    resource,
                    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect(),
                ),
                Form::Weights(resource, _) => (
                    resource,
                    value.and_then(Value::as_object).into_iter().flatten().map(|(path, _)| path.as_str()).collect(),
                ),
                Form::Param(_)
                | Form::Rate
                | Form::Address
                | Form::Flag
                | Form::State
                | Form::Setting
                | Form::Texts => return Vec::new(),
            };
            paths.into_iter().map(|path| (field.key, Id::new(resource, path))).collect()
        })
    }

    /// The things that it cannot exist without: its parent, the thing that it is named after, and references of its
    /// creating call.
    pub(super) fn needs(&self) -> impl Iterator<Item = Id> {
        let fixed = |key: &str| self.kind().field(key).is_some_and(Field::is_made_with);
        let references = self.references().filter(move |(key, _)| fixed(key)).map(|(_, id)| id);
        references.chain(self.parent()).chain(self.namesake())
    }

    /// Whether it is the router's own address, which no call makes or deletes.
    pub(super) fn is_own(&self) -> bool {
        self.values.get("own") == Some(&Value::Bool(true))
    }
}

/// The names of things in references: the shortest end of a path that is unique. A NIC has the name of its VM, followed
/// by its network if the VM has several NICs.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Kind and spelling -> paths.
    meaning: BTreeMap<(usize, String), BTreeSet<String>>,
    spellings: BTreeMap<Id, Vec<String>>,
}

impl Names {
    pub(super) fn of<'a>(things: impl IntoIterator<Item = &'a Thing>) -> Self {
        let mut names = Self::default();
        for thing in things {
            let id = thing.id();
            let spellings = spellings(thing);
            for spelling in &spellings {
                names.meaning.entry((id.rank, spelling.clone())).or_default().insert(id.path.clone());
            }
            names.spellings.insert(id, spellings);
        }
        names
    }

    /// The paths that a name can mean.
    pub(super) fn meant(&self, resource: Resource, text: &str) -> Vec<&str> {
        let found = self.meaning.get(&(Kind::rank(resource), text.to_owned()));
        let found: Vec<&str> = found.into_iter().flatten().map(String::as_str).collect();
        // A whole path can be the end of another path.
        if found.contains(&text) { found.into_iter().filter(|path| *path == text).collect() } else { found }
    }

    pub(super) fn of_kind(&self, resource: Resource) -> impl Iterator<Item = &str> {
        let rank = Kind::rank(resource);
        self.meaning.keys().filter(move |(of, _)| *of == rank).map(|(_, spelling)| spelling.as_str())
    }

    /// The shortest name that only this thing has.
    pub(super) fn shortest(&self, id: &Id) -> String {
        let alone = |spelling: &&String| {
            let meant = self.meaning.get(&(id.rank, (*spelling).clone()));
            meant.is_some_and(|paths| paths.len() == 1 && paths.contains(&id.path))
        };
        let spellings = self.spellings.get(id).into_iter().flatten();
        spellings.filter(alone).min_by_key(|spelling| spelling.len()).unwrap_or(&id.path).clone()
    }
}

fn spellings(thing: &Thing) -> Vec<String> {
    let ends = |path: &[&str]| (0..path.len()).map(|first| path[first..].join("/")).collect::<Vec<_>>();
    match thing.kind().called {
        Called::Name | Called::Number { .. } => ends(&thing.path.iter().map(String::as_str).collect::<Vec<_>>()),
        Called::After(..) => {
            let owner = thing.path[..thing.path.len() - 1].join("/");
            let ends = ends(&thing.name().split('/').collect::<Vec<_>>());
            ends.into_iter().map(|end| format!("{owner}/{end}")).chain([owner.clone()]).collect()
        }
    }
}
