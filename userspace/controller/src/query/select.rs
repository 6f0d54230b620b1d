//! Builds the statements for pages, totals, and the lists of inventories.

use sea_query::{
    Alias, Asterisk, Cond, Expr, ExprTrait, Func, Order, OverStatement, Query as Sql, SelectStatement, WindowStatement,
};
use vipgate_api::{ApiError, query::Query};

use super::{
    condition::{Conditions, alias, compared, ident, no_such},
    table::{Field, Kind, Table},
};

/// The column with the number of a row in its group.
const TURN: &str = "turn";

/// The rows of `table` that meet the conditions, in the order of `query`, a page of them.
pub(super) fn page(table: &'static Table, query: &Query, conditions: &Conditions) -> Result<SelectStatement, ApiError> {
    let ends_early = query.group_by.is_none() && table.has_order(query.sort.as_ref().map(|sort| sort.field.as_str()));
    let conditions = if ends_early { conditions.testing() } else { conditions.collecting() };
    let mut select = chosen(table, query, conditions)?;
    match &query.sort {
        None => in_order(table, &mut select),
        Some(sort) => {
            let field = known(table, &sort.field)?;
            // The whole order is reversed, so that one index serves both directions.
            let order = if sort.descending { Order::Desc } else { Order::Asc };
            let column = Expr::col(ident(field.name));
            // Dates sort by the stored millisecond.
            let by = if field.kind == Kind::Date { column } else { compared(field.kind, column) };
            select.order_by_expr(by, order.clone());
            for rest in table.order.iter().filter(|rest| **rest != field.name) {
                select.order_by(ident(rest), order.clone());
            }
        }
    }
    select.limit(query.limit).offset(query.start);
    Ok(select)
}

/// Counts the rows without paging.
pub(super) fn total(
    table: &'static Table,
    query: &Query,
    conditions: &Conditions,
) -> Result<SelectStatement, ApiError> {
    let all = chosen(table, query, conditions.collecting())?;
    Ok(Sql::select().expr(Func::count(Expr::col(Asterisk))).from_subquery(all, "chosen").take())
}

/// The rows that meet the conditions; with `groupBy`, the first one of each group.
fn chosen(table: &'static Table, query: &Query, conditions: Cond) -> Result<SelectStatement, ApiError> {
    let named = Alias::new(alias(0));
    let Some(name) = &query.group_by else {
        return Ok(all(table).from_as(table.name, named).cond_where(conditions).take());
    };
    let field = known(table, name)?;
    let mut turns = WindowStatement::new();
    turns.add_partition_by(compared(field.kind, Expr::col(ident(field.name))));
    for field in table.order {
        turns.order_by(ident(field), Order::Asc);
    }
    let rows = Sql::select()
        .column(Asterisk)
        .expr_window_as(Func::cust("row_number"), turns, TURN)
        .from_as(table.name, named)
        .cond_where(conditions)
        .take();
    Ok(all(table).from_subquery(rows, table.name).and_where(Expr::col(TURN).eq(1)).take())
}

/// The rows whose `field` is one of `keys`, in their order.
pub(super) fn of_keys<'a>(table: &Table, field: &str, keys: impl IntoIterator<Item = &'a str>) -> SelectStatement {
    let mut select = all(table);
    select.from(table.name).and_where(Expr::col(ident(field)).is_in(keys));
    in_order(table, &mut select);
    select
}

/// Pairs of owner and text.
pub(super) fn texts<'a>(
    name: &'static str,
    owner: &'static str,
    text: &'static str,
    owners: impl IntoIterator<Item = &'a str>,
) -> SelectStatement {
    let mut select = Sql::select();
    select.columns([owner, text]).from(name).and_where(Expr::col(owner).is_in(owners)).order_by(text, Order::Asc);
    select
}

/// Selects the fields in the order of the table, so that rows can be read by position.
fn all(table: &Table) -> SelectStatement {
    Sql::select().columns(table.fields.iter().map(|field| ident(field.name))).take()
}

fn in_order(table: &Table, select: &mut SelectStatement) {
    for field in table.order {
        select.order_by(ident(field), Order::Asc);
    }
}

/// The field of that name, or the error that names it and the one that was probably meant.
fn known(table: &'static Table, name: &str) -> Result<&'static Field, ApiError> {
    let names = table.fields.iter().map(|field| field.name);
    table.field(name).ok_or_else(|| no_such(table, "field", name, names.clone()).elaborate(listed(names)))
}

/// The elaboration of an error: lists the known names.
pub(super) fn listed(names: impl Iterator<Item = &'static str>) -> String {
    format!("its fields are {}", names.collect::<Vec<_>>().join(", "))
}
