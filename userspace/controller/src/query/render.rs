//! Prints rows as inventories: the fields by their kinds, then the lists, with one statement per list for all rows.

use std::collections::{BTreeMap, HashMap};

use sea_query::SelectStatement;
use serde_json::{Map, Value};
use vipgate_api::{ApiError, Date, Reply, Resource};

use super::{
    condition::no_such,
    select,
    table::{Items, Kind, List, Table},
};
use crate::store::{
    self, Error, Tx,
    statement::{self, Row},
};

/// Keys in one statement: far below the number of values that can be bound.
const MAX_KEYS: usize = 500;

/// Prints the reply of a call from the current rows. It is empty if the resource has been deleted meanwhile.
///
/// # Errors
/// The database fails.
pub async fn render(tx: &mut Tx, reply: &Reply) -> store::Result<Map<String, Value>> {
    Ok(render_all(tx, &[reply]).await?.pop().unwrap_or_default())
}

/// [`render`] for many replies, with one read per kind of resource.
///
/// # Errors
/// The database fails.
pub async fn render_all(tx: &mut Tx, replies: &[&Reply]) -> store::Result<Vec<Map<String, Value>>> {
    let mut asked: BTreeMap<Resource, Vec<String>> = BTreeMap::new();
    for reply in replies {
        match reply {
            Reply::Empty | Reply::Members(_) => {}
            Reply::Inventory(resource, uuid) => asked.entry(*resource).or_default().push(uuid.clone()),
            Reply::Inventories(resource, uuids) => asked.entry(*resource).or_default().extend(uuids.iter().cloned()),
        }
    }
    let mut found = HashMap::new();
    for (resource, keys) in asked {
        if let Some(table) = Table::of(resource) {
            found.insert(resource, by_key(tx, table, &keys).await?);
        }
    }
    let printed = |resource: &Resource, uuid: &String| found.get(resource)?.get(uuid).cloned();
    let print = |reply: &&Reply| match reply {
        Reply::Empty => Map::new(),
        Reply::Members(known) => known.clone(),
        Reply::Inventory(resource, uuid) => {
            printed(resource, uuid).map(|inventory| ("inventory".to_owned(), inventory)).into_iter().collect()
        }
        Reply::Inventories(resource, uuids) => {
            let inventories: Vec<Value> = uuids.iter().filter_map(|uuid| printed(resource, uuid)).collect();
            Map::from_iter([("inventories".to_owned(), inventories.into())])
        }
    };
    Ok(replies.iter().map(print).collect())
}

/// The inventories of these keys, by key.
async fn by_key(tx: &mut Tx, table: &'static Table, keys: &[String]) -> store::Result<HashMap<String, Value>> {
    let mut found = HashMap::new();
    for keys in keys.chunks(MAX_KEYS) {
        let statement = select::of_keys(table, table.key, keys.iter().map(String::as_str));
        for inventory in inventories(tx, table, &statement, &Chosen::ALL).await? {
            if let Some(key) = inventory.get(table.key).and_then(Value::as_str) {
                found.insert(key.to_owned(), inventory);
            }
        }
    }
    Ok(found)
}

/// Which members of an inventory are printed.
pub(super) struct Chosen(Option<Vec<String>>);

impl Chosen {
    const ALL: Self = Self(None);

    /// The members in `fields`, or all if it is empty; an unknown one is an error.
    pub(super) fn new(table: &Table, fields: &[String]) -> Result<Self, ApiError> {
        let names = table.members();
        if let Some(wrong) = fields.iter().find(|field| !names.clone().any(|name| name == **field)) {
            return Err(no_such(table, "field", wrong, names.clone()).elaborate(select::listed(names)));
        }
        Ok(Self((!fields.is_empty()).then(|| fields.to_vec())))
    }

    fn has(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|names| names.iter().any(|chosen| chosen == name))
    }
}

/// Runs a statement of [`select`] and prints its rows.
pub(super) async fn inventories(
    tx: &mut Tx,
    table: &'static Table,
    statement: &SelectStatement,
    chosen: &Chosen,
) -> store::Result<Vec<Value>> {
    let rows = statement::rows(tx, statement).await?;
    let mut keys = Vec::with_capacity(rows.len());
    let mut printed = Vec::with_capacity(rows.len());
    for row in &rows {
        let mut members = Map::new();
        for (position, field) in table.fields.iter().enumerate() {
            let value = member(row, position, field.kind, table.name)?;
            if field.name == table.key {
                keys.push(value.as_str().unwrap_or_default().to_owned());
            }
            if chosen.has(field.name) && !value.is_null() {
                members.insert(field.name.to_owned(), value);
            }
        }
        printed.push(members);
    }
    for list in table.lists.iter().filter(|list| chosen.has(list.name)) {
        let mut items = items(tx, list, &keys).await?;
        for (key, members) in keys.iter().zip(&mut printed) {
            members.insert(list.name.to_owned(), items.remove(key).unwrap_or_default().into());
        }
    }
    Ok(printed.into_iter().map(Value::Object).collect())
}

fn member(row: &Row, position: usize, kind: Kind, table: &'static str) -> store::Result<Value> {
    Ok(match kind {
        Kind::Uuid | Kind::Text => row.text(position)?.into(),
        Kind::Number => row.number(position)?.into(),
        Kind::Flag => row.flag(position)?.into(),
        Kind::Date => match row.number(position)? {
            None => Value::Null,
            Some(millis) => Date::from_millis(millis)
                .ok_or_else(|| Error::corrupt("date", &millis.to_string(), table))?
                .to_string()
                .into(),
        },
    })
}

/// The items of one list, by the key of their owner.
async fn items(tx: &mut Tx, list: &List, owners: &[String]) -> store::Result<HashMap<String, Vec<Value>>> {
    let mut items = HashMap::<_, Vec<_>>::new();
    for owners in owners.chunks(MAX_KEYS) {
        let owners = owners.iter().map(String::as_str);
        match list.of {
            Items::Nothing => {}
            Items::Texts { table, owner, column } => {
                for row in statement::rows(tx, &select::texts(table, owner, column, owners)).await? {
                    items.entry(row.text(0)?.unwrap_or_default()).or_default().push(row.text(1)?.into());
                }
            }
            Items::Inventories { resource, field } => {
                let Some(table) = Table::of(resource) else { continue };
                let statement = select::of_keys(table, field, owners);
                for inventory in Box::pin(inventories(tx, table, &statement, &Chosen::ALL)).await? {
                    let owner = inventory.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
                    items.entry(owner).or_default().push(inventory);
                }
            }
        }
    }
    Ok(items)
}
