//! The query API: a parsed query becomes a statement, which the store runs, and its rows become inventories. It changes
//! nothing.
//!
//! One declarative table (`table`) of resources and fields, and one of the relations between them (`relation`), drive
//! the conditions, the order, the selection and the printing: every field that is printed can be queried. Replies of calls
//! that changed something are printed by the same code (`render`), so that an inventory always looks the same.

mod condition;
mod relation;
mod render;
mod search;
mod select;
mod table;

#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};
use vipgate_api::{ApiError, Resource, query::Query};

use crate::store::{Tx, statement};
pub use render::{render, render_all};
use search::{FEW, Search};
use table::Table;

/// The names that the parameters of a query accept.
#[derive(Clone, Debug)]
pub struct Names {
    /// The fields for `sort` and `groupBy`.
    pub fields: Vec<&'static str>,
    /// The members of the inventory, for `fields`.
    pub members: Vec<&'static str>,
    /// The last names of conditions ...
    pub conditions: Vec<&'static str>,
    /// ... and the related resources whose names, with a dot, may precede those of that resource.
    pub related: Vec<&'static str>,
}

/// The names for queries of a resource; `None` if it can't be queried.
pub fn names(resource: Resource) -> Option<Names> {
    let table = Table::of(resource)?;
    Some(Names {
        fields: table.fields.iter().map(|field| field.name).collect(),
        members: table.members().collect(),
        conditions: condition::last_names(table).collect(),
        related: table.steps().filter_map(|step| step.names.first().copied()).collect(),
    })
}

/// Runs a query of `viewer`, an account that sees its own resources and those shared with it, or of an administrator
/// (`None`). Returns `{"inventories": [...]}`, with `total` if requested, or `{"total": n}` for a count.
///
/// # Errors
/// Names a field that does not exist or a value that does not fit its field; or the database fails.
pub async fn run(
    tx: &mut Tx,
    viewer: Option<&str>,
    resource: Resource,
    query: &Query,
) -> Result<Map<String, Value>, ApiError> {
    run_with(tx, viewer, resource, query, FEW).await
}

/// [`run`] with another threshold than [`FEW`].
async fn run_with(
    tx: &mut Tx,
    viewer: Option<&str>,
    resource: Resource,
    query: &Query,
    few: usize,
) -> Result<Map<String, Value>, ApiError> {
    let table = Table::of(resource)
        .ok_or_else(|| ApiError::internal(format!("{} has no table of fields to query", resource.kind())))?;
    let chosen = render::Chosen::new(table, &query.fields)?;
    let mut reply = Map::new();
    let search = Search { tx: &mut *tx, few };
    let conditions = condition::all(search, table, &query.conditions, viewer).await?;
    // Built for a count, too, so that every wrong parameter is an error.
    let page = select::page(table, query, &conditions)?;
    if !query.count {
        let inventories = render::inventories(tx, table, &page, &chosen).await.map_err(ApiError::from)?;
        reply.insert("inventories".to_owned(), inventories.into());
    }
    if query.count || query.reply_with_count {
        let rows = statement::rows(tx, &select::total(table, query, &conditions)?).await?;
        let total = rows.first().map(|row| row.number(0)).transpose()?;
        reply.insert("total".to_owned(), json!(total.flatten()));
    }
    Ok(reply)
}
