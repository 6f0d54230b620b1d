//! Plans alone, against a model of a router: every step finds what it needs, and after the last nothing is to be done.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    super::{
        super::yaml,
        existing::Existing,
        file::{Declared, Draft},
        kind::{Field, Made},
        plan::{Plan, Step, without_references_to},
        thing::{Id, Thing},
    },
    ANYTHING, PRUNING,
    random::{bytes, router},
};

/// Things that are there.
#[derive(Debug, Default)]
struct Model(BTreeMap<Id, Thing>);

impl Model {
    fn declared(&self, text: &str) -> Declared {
        let document = yaml::read(text).unwrap();
        Draft::read(&document).unwrap().resolve(self.0.values()).unwrap()
    }

    fn existing(&self) -> Vec<Existing> {
        let present = |thing: &Thing| Existing {
            uuid: thing.id().to_string(),
            tags: BTreeMap::new(),
            rests_on: thing.needs().collect(),
            thing: thing.clone(),
        };
        self.0.values().map(present).collect()
    }

    fn becomes(&mut self, declared: &Declared) {
        let existing = self.existing();
        let plan = Plan::of(declared, &existing, ANYTHING).unwrap();
        for step in plan.steps(declared, &existing) {
            self.take(&step);
        }
    }

    fn assert_has(&self, ids: impl IntoIterator<Item = Id>, step: &Step) {
        for id in ids {
            assert!(self.0.contains_key(&id), "{step:?} needs {id}");
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Delete(id) => {
                assert!(self.0.remove(id).is_some(), "{step:?}");
                let part =
                    |thing: &&Thing| thing.kind().made == Made::WithParent && thing.parent().as_ref() == Some(id);
                let gone: BTreeSet<Id> = self.0.values().filter(part).map(Thing::id).chain([id.clone()]).collect();
                self.0.retain(|id, _| !gone.contains(id));
                for thing in self.0.values_mut() {
                    *thing = without_references_to(&gone, thing);
                }
                for thing in self.0.values() {
                    assert!(!thing.needs().any(|need| need == *id), "{step:?} leaves {thing:?}");
                }
            }
            Step::Create(thing, parts) => {
                self.assert_has(thing.needs(), step);
                let mut made = thing.clone();
                made.values.retain(|key, _| thing.kind().field(key).is_some_and(Field::is_made_with));
                assert!(self.0.insert(made.id(), made).is_none(), "{step:?} is there already");
                for part in parts {
                    self.assert_has(part.needs(), step);
                    self.0.insert(part.id(), part.clone());
                }
            }
            Step::Change(thing, change) => {
                // What is taken off first may get what is yet to be made.
                let gets = |key: &str| change.to.is_some() && key == change.field.key;
                let to = thing.references().filter(|(key, _)| gets(key)).map(|(_, id)| id);
                self.assert_has(to, step);
                let values = &mut self.0.get_mut(&thing.id()).unwrap_or_else(|| panic!("{step:?}")).values;
                match &change.to {
                    Some(value) => values.insert(change.field.key, value.clone()),
                    None => values.remove(change.field.key),
                };
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_step_finds_what_it_needs_and_the_last_leaves_nothing_to_do(from in bytes(), to in bytes()) {
        let mut model = Model::default();
        for text in [router(&from), router(&to)] {
            let declared = model.declared(&text);
            model.becomes(&declared);
            let left = Plan::of(&declared, &model.existing(), PRUNING).unwrap();
            prop_assert!(left.is_empty(), "{left:?}");
        }
    }
}
