//! Plans the steps that turn what exists into what is declared. Pure.
//!
//! Things to be made anew or pruned are deleted first, with everything that cannot exist without them. Only the things
//! that remain are compared with the file, field by field, in the state in which the deletes leave them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use vipgate_api::Resource;

use super::{
    super::render::sanitized,
    existing::Existing,
    file::{Declared, spelt},
    kind::{Absent, Batch, Change, Field, Form, Kind, Made, Values, value},
    thing::{Id, Names, Thing},
};

/// What the caller allows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Allowed {
    /// Delete what the file does not declare, of the kinds that it has a section for.
    pub(super) prune: bool,
    /// Delete and make anew what can't be changed in place.
    pub(super) recreate: bool,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlan {
    #[error(
        "{count} of {id} are there, and a file goes by names; give them others by `vipgate` first:\n  {all}",
        count = .uuids.len(),
        all = .uuids.join("\n  ")
    )]
    Twice { id: Id, uuids: Vec<String> },
    #[error(
        "not to be changed in place; --recreate deletes and makes them anew, with all that is on them:\n  {}",
        .0.join("\n  ")
    )]
    Fixed(Vec<String>),
    #[error("{0} is the router's own address, which SNAT makes and removes: its l3 and own can't be changed")]
    Own(Id),
    #[error(
        "pruning {pruned} would take {lost} with it, of which the file has no section: add `{section}: {{}}`, or declare \
         {pruned}",
        section = .lost.kind().section()
    )]
    Drags { pruned: Id, lost: Id },
    #[error("{0} would go with what is made anew, and the file refers to it without declaring it: declare it, too")]
    Needed(Id),
}

/// The things to delete, make and change on a router.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    /// In the order of the deletes.
    pub(super) deletes: Vec<Id>,
    /// In the order of the changes.
    pub(super) items: Vec<Item>,
}

/// A thing that is made or changed.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) thing: Thing,
    pub(super) is_new: bool,
    /// The differences to the existing thing, or to the one that the creating call leaves.
    pub(super) changes: Vec<Difference>,
}

impl Item {
    /// Whether it exists and is changed by making it anew.
    fn is_remade(&self) -> bool {
        !self.is_new && self.changes.iter().any(|change| matches!(change.field.change, Change::Remade))
    }
}

/// A field that differs from its declaration. `None` if it has no value, or its default.
#[derive(Clone, Debug)]
pub(super) struct Difference {
    pub(super) field: &'static Field,
    pub(super) from: Option<Value>,
    pub(super) to: Option<Value>,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.deletes.is_empty() && self.items.is_empty()
    }

    pub(super) fn of(declared: &Declared, existing: &[Existing], allowed: Allowed) -> Result<Self, NoPlan> {
        let wanted: BTreeMap<Id, &Thing> = declared.things.iter().map(|thing| (thing.id(), thing)).collect();
        let present: BTreeMap<Id, &Existing> = existing.iter().map(|present| (present.thing.id(), present)).collect();

        let (kept, pruned) = kept_and_pruned(declared, &wanted, &present, allowed);
        let anew = anew(&wanted, &present, allowed)?;
        let doomed = with_what_rests_on(&pruned | &anew, &present);
        if !allowed.recreate {
            // A part goes with the whole. A thing that only refers to it must be of a kind that may be pruned.
            let is_part = |id: &Id| {
                let parent = present.get(id).and_then(|present| present.thing.parent());
                id.kind().made == Made::WithParent || parent.is_some_and(|parent| doomed.contains(&parent))
            };
            let may_go = |id: &Id| is_part(id) || declared.sections.contains(&id.rank);
            let lost = doomed.iter().find(|id| kept.contains(id) || !may_go(id));
            if let Some((lost, pruned)) = lost.zip(pruned.first()) {
                return Err(NoPlan::Drags { pruned: pruned.clone(), lost: lost.clone() });
            }
        }
        if let Some(needed) = doomed.iter().find(|id| kept.contains(id) && !wanted.contains_key(id)) {
            return Err(NoPlan::Needed(needed.clone()));
        }
        only_once(existing, kept.iter().chain(&doomed))?;

        let mut items: Vec<Item> = Vec::new();
        // A thing that is made with its parent is no item of its own.
        for thing in declared.things.iter().filter(|thing| thing.kind().made != Made::WithParent) {
            let id = thing.id();
            let was = present.get(&id).filter(|_| !doomed.contains(&id));
            let was = was.map(|present| without_references_to(&doomed, &present.thing));
            let changes = differences(thing, was.as_ref());
            if was.is_none() || !changes.is_empty() {
                items.push(Item { thing: thing.clone(), is_new: was.is_none(), changes });
            }
        }
        // Things of a kind stay in the file's order.
        items.sort_by_key(|item| item.thing.rank);
        let deletes = doomed.into_iter().rev().filter(|id| {
            let made_with_parent = id.kind().made == Made::WithParent;
            !made_with_parent && present.get(id).is_some_and(|present| !present.thing.is_own())
        });
        Ok(Self { deletes: deletes.collect(), items })
    }

    /// The plan as data.
    pub(super) fn data(&self) -> Value {
        let of =
            |action: &str, thing: &Id| json!({ "action": action, "kind": thing.kind().noun(), "name": thing.path });
        let deletes = self.deletes.iter().map(|id| of("delete", id));
        let items = self.items.iter().map(|item| {
            let mut data = of(if item.is_new { "create" } else { "update" }, &item.thing.id());
            if item.is_new {
                data["fields"] = json!(item.thing.values);
            } else {
                let change = |change: &Difference| {
                    (change.field.key.to_owned(), json!({ "from": change.from, "to": change.to }))
                };
                data["changes"] = item.changes.iter().map(change).collect();
            }
            data
        });
        json!({ "changes": deletes.chain(items).collect::<Vec<_>>() })
    }
}

/// The things to keep (declared things, the things that they refer to, and the parents of both), and the things to
/// prune.
fn kept_and_pruned(
    declared: &Declared,
    wanted: &BTreeMap<Id, &Thing>,
    present: &BTreeMap<Id, &Existing>,
    allowed: Allowed,
) -> (BTreeSet<Id>, BTreeSet<Id>) {
    let mut kept = BTreeSet::new();
    let mut open: Vec<Id> = wanted.keys().cloned().collect();
    while let Some(id) = open.pop() {
        if !kept.insert(id.clone()) {
            continue;
        }
        let existing = || present.get(&id).map(|present| &present.thing);
        if let Some(thing) = wanted.get(&id).copied().or_else(existing) {
            open.extend(thing.references().map(|(_, id)| id).chain(thing.parent()).chain(thing.namesake()));
        }
    }
    // A thing that is made with its parent is deleted with it only.
    let stays = |present: &Existing| present.thing.is_own() || present.thing.kind().made == Made::WithParent;
    let pruned = present.iter().filter(|(id, present)| {
        allowed.prune && declared.sections.contains(&id.rank) && !kept.contains(id) && !stays(present)
    });
    let pruned = pruned.map(|(id, _)| id.clone()).collect();
    (kept, pruned)
}

/// The things that cannot be changed in place to what is declared.
fn anew(
    wanted: &BTreeMap<Id, &Thing>,
    present: &BTreeMap<Id, &Existing>,
    allowed: Allowed,
) -> Result<BTreeSet<Id>, NoPlan> {
    let mut reasons = BTreeMap::<Id, Vec<String>>::new();
    for (id, thing) in wanted {
        let whole = thing.parent().filter(|_| thing.kind().made == Made::WithParent);
        let Some(existing) = present.get(id) else {
            // It can only be made with its parent.
            if let Some(whole) = whole.filter(|whole| present.contains_key(whole)) {
                reasons.entry(whole).or_default().push(format!("it has no {id}"));
            }
            continue;
        };
        for change in differences(thing, Some(&existing.thing)) {
            if matches!(change.field.change, Change::Never) {
                let of = if whole.is_some() { format!("{id}: ") } else { String::new() };
                let reason = format!("{of}{} is {}, not {}", change.field.key, shown(&change.from), shown(&change.to));
                reasons.entry(whole.clone().unwrap_or_else(|| id.clone())).or_default().push(reason);
            }
        }
    }
    if let Some(own) = reasons.keys().find(|id| present.get(id).is_some_and(|existing| existing.thing.is_own())) {
        return Err(NoPlan::Own(own.clone()));
    }
    if !reasons.is_empty() && !allowed.recreate {
        return Err(NoPlan::Fixed(reasons.iter().map(|(id, why)| format!("{id}: {}", why.join(", "))).collect()));
    }
    Ok(reasons.into_keys().collect())
}

/// Adds everything that is deleted with these. A thing that is made with its parent takes the parent along.
fn with_what_rests_on(mut doomed: BTreeSet<Id>, present: &BTreeMap<Id, &Existing>) -> BTreeSet<Id> {
    loop {
        let mut more = BTreeSet::new();
        for (id, existing) in present {
            if existing.rests_on.iter().any(|other| doomed.contains(other)) {
                more.insert(id.clone());
            }
            if doomed.contains(id) && existing.thing.kind().made == Made::WithParent {
                more.extend(existing.thing.parent());
            }
        }
        if more.is_subset(&doomed) {
            return doomed;
        }
        doomed.append(&mut more);
    }
}

fn only_once<'a>(existing: &[Existing], ids: impl Iterator<Item = &'a Id>) -> Result<(), NoPlan> {
    let mut uuids = BTreeMap::<Id, Vec<String>>::new();
    for present in existing {
        uuids.entry(present.thing.id()).or_default().push(present.uuid.clone());
    }
    for id in ids {
        if let Some(uuids) = uuids.get(id).filter(|uuids| uuids.len() > 1) {
            return Err(NoPlan::Twice { id: id.clone(), uuids: uuids.clone() });
        }
    }
    Ok(())
}

/// Checks that no two things have the same name.
pub(super) fn all_once(existing: &[Existing]) -> Result<(), NoPlan> {
    let ids: Vec<Id> = existing.iter().map(|present| present.thing.id()).collect();
    only_once(existing, ids.iter())
}

/// The thing as the deletes leave it: without references to deleted things.
pub(super) fn without_references_to(doomed: &BTreeSet<Id>, thing: &Thing) -> Thing {
    let mut left = thing.clone();
    for (key, id) in thing.references().filter(|(_, id)| doomed.contains(id)) {
        match left.values.get_mut(key) {
            Some(Value::Array(paths)) => paths.retain(|path| *path != json!(id.path)),
            Some(Value::Object(weights)) => drop(weights.shift_remove(&id.path)),
            _ => drop(left.values.remove(key)),
        }
    }
    left.values.retain(|_, value| *value != json!([]) && *value != json!({}));
    left
}

/// The fields that differ from their declaration; if nothing exists, those that the creating call does not set.
fn differences(wanted: &Thing, was: Option<&Thing>) -> Vec<Difference> {
    let mut changes = Vec::new();
    for field in wanted.kind().fields {
        if was.is_none() && field.is_made_with() {
            continue;
        }
        let to = wanted.values.get(field.key);
        let from = was.and_then(|thing| thing.values.get(field.key));
        let unsaid = matches!(field.absent, Absent::Whatever) && (to.is_none() || from.is_none());
        if to != from && !unsaid {
            changes.push(Difference { field, from: from.cloned(), to: to.cloned() });
        }
    }
    changes
}

/// A step that the executor takes as a whole.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Delete(Id),
    /// The thing, and the things that are made with it.
    Create(Thing, Vec<Thing>),
    Change(Thing, Difference),
}

impl Step {
    /// As the plan shows it.
    pub(super) fn label(&self, names: &Names) -> String {
        match self {
            Self::Delete(id) => format!("- {id}"),
            Self::Create(thing, _) => format!("+ {}", thing.id()),
            Self::Change(thing, change) => format!("~ {}: {}", thing.id(), described(change, names)),
        }
    }
}

impl Plan {
    /// The steps in their order: deletes; changes that release something; creations and changes, each after the things
    /// that it needs; and disabling last, since nothing can be attached to a disabled thing.
    pub(super) fn steps(&self, declared: &Declared, existing: &[Existing]) -> Vec<Step> {
        let existing: BTreeMap<Id, &Values> =
            existing.iter().map(|present| (present.thing.id(), &present.thing.values)).collect();
        let mut parts = BTreeMap::<Id, Vec<Thing>>::new();
        for thing in declared.things.iter().filter(|thing| thing.kind().made == Made::WithParent) {
            parts.entry(thing.parent().unwrap_or_else(|| thing.id())).or_default().push(thing.clone());
        }
        let mut steps: Vec<(Turn, Step)> = Vec::new();
        steps.extend(self.deletes.iter().map(|id| ((0, 0, 0), Step::Delete(id.clone()))));
        for item in &self.items {
            let (thing, rank) = (&item.thing, item.thing.rank);
            let remade = item.is_remade();
            if remade {
                // One by one, so that each is missing only for a moment.
                steps.push(((2, rank, 0), Step::Delete(thing.id())));
            }
            if item.is_new || remade {
                let parts = parts.remove(&thing.id()).unwrap_or_default();
                steps.push(((2, rank, 0), Step::Create(thing.clone(), parts)));
            }
            let was = existing.get(&thing.id()).copied().filter(|_| !item.is_new);
            let changes = if remade { differences(thing, None) } else { with_state_between(item, was) };
            for change in changes {
                for (at, change) in parted(rank, change) {
                    steps.push((at, Step::Change(thing.clone(), change)));
                }
            }
        }
        steps.sort_by_key(|(at, _)| *at);
        steps.into_iter().map(|(_, step)| step).collect()
    }
}

/// A disabled thing cannot be attached to anything: it is enabled first, and disabled again if that is declared.
fn with_state_between(item: &Item, was: Option<&Values>) -> Vec<Difference> {
    let mut changes = item.changes.clone();
    let attaches =
        changes.iter().any(|change| matches!(change.field.change, Change::Attach { .. }) && change.to.is_some());
    let is_off = |values: &Values| values.contains_key("state");
    if let Some(field) = item.thing.kind().field("state")
        && attaches
        && was.is_some_and(is_off)
        && is_off(&item.thing.values)
    {
        let off = item.thing.values.get("state").cloned();
        changes.insert(0, Difference { field, from: off.clone(), to: None });
        changes.push(Difference { field, from: None, to: off });
    }
    changes
}

/// The order of a step: its phase, the rank of its kind, and whether it comes after all others of that rank.
type Turn = (u8, usize, u8);

/// The phase of a change. One that releases something before it takes another is two changes.
fn parted(rank: usize, change: Difference) -> Vec<(Turn, Difference)> {
    match change.field.change {
        Change::Attach { .. } => {
            let Difference { field, from, to } = change;
            let released = from.is_some().then(|| ((1, rank, 0), Difference { field, from, to: None }));
            let attached = to.is_some().then(|| ((2, rank, 0), Difference { field, from: None, to }));
            released.into_iter().chain(attached).collect()
        }
        Change::State(_) if change.to.is_some() => vec![((3, rank, 0), change)],
        // A service may need addresses of several networks, and so the ranges of all.
        Change::Elements { batch: Batch::ByProvider(_), .. } => vec![((2, Kind::rank(Resource::IpRange), 1), change)],
        _ => vec![((2, rank, 0), change)],
    }
}

/// `maxConnection 5000 -> 100`, `backends +web3 -web1`
pub(super) fn described(change: &Difference, names: &Names) -> String {
    let field = change.field;
    let spelt = |value: &Option<Value>| value.as_ref().map(|value| spelt(field.form, value, names));
    let (from, to) = (&spelt(&change.from), &spelt(&change.to));
    let elements = |value: &Option<Value>| match value {
        Some(Value::Array(items)) => items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect(),
        Some(Value::Object(weights)) => weights.iter().map(|(name, weight)| format!("{name}={weight}")).collect(),
        _ => BTreeSet::new(),
    };
    match field.form {
        Form::Texts | Form::Several(_) | Form::Weights(..) => {
            let (from, to) = (elements(from), elements(to));
            let added = to.difference(&from).map(|one| format!(" +{one}"));
            let removed = from.difference(&to).map(|one| format!(" -{one}"));
            format!("{}{}", field.key, added.chain(removed).collect::<String>())
        }
        _ => {
            let or_default = |value: &Option<Value>| value.clone().or_else(|| value_of_default(field));
            format!("{} {} -> {}", field.key, shown(&or_default(from)), shown(&or_default(to)))
        }
    }
}

fn value_of_default(field: &Field) -> Option<Value> {
    value(field, &Values::new()).filter(|value| !value.is_null())
}

fn shown(value: &Option<Value>) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(Value::String(text)) => sanitized(text),
        Some(other) => other.to_string(),
    }
}
