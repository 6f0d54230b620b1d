//! Chooses how a query finds its rows: from the few rows that a condition selects, or by a scan in the query's order.
//!
//! If few rows meet a condition, they are looked up first, and the query starts from their keys. If many rows meet it, that
//! would collect and sort most of a table for one page. Then the query scans the rows in its order by an index, tests
//! each, and ends when its page is full. Only the rows show which case it is: each condition is tried alone until it has
//! found [`FEW`] rows, in the query's own transaction, so that both see the same rows. A count, a group, and an order
//! without an index need all rows: there collecting costs less than testing.

use sea_query::{Alias, Expr, ExprTrait, Func, IntoColumnRef, Order, Query as Sql, SelectStatement, SimpleExpr};
use serde_json::{Value, json};

use crate::store::{
    self, Tx,
    statement::{self, Row},
};

/// Fewer rows than this are few. For a page of 100 out of 100,000 rows both ways cost the same at about 3,000 rows; trying
/// must cost less than either.
pub(super) const FEW: usize = 1000;

/// SQLite's own number of a row, which every table has.
const ROW: &str = "rowid";

/// A condition on the rows of a table, in both forms.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    /// For a statement that ends early: tests one row after the other, without an index.
    pub(super) testing: SimpleExpr,
    /// For a statement that needs all rows: SQLite chooses how to collect those that meet it.
    pub(super) collecting: SimpleExpr,
    /// Many rows meet it.
    pub(super) many: bool,
}

impl Filter {
    /// A condition that has not been tried.
    pub(super) fn untried(condition: SimpleExpr) -> Self {
        Self { testing: condition.clone(), collecting: condition, many: false }
    }

    /// The same condition, limited to the rows that are visible.
    pub(super) fn limited_to(self, visible: &Self) -> Self {
        Self {
            testing: visible.testing.clone().and(self.testing),
            collecting: visible.collecting.clone().and(self.collecting),
            many: self.many,
        }
    }
}

/// The rows of a table that a condition is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    /// Table or view.
    pub(super) name: &'static str,
    /// Its alias in statements.
    pub(super) alias: &'a str,
    /// The column whose values are wanted.
    pub(super) column: &'a str,
    /// Try them in the order of the table, not of an index, which may have the rows that meet the condition last.
    pub(super) in_table_order: bool,
}

/// Tries conditions in the transaction of a query.
#[derive(Debug)]
pub(super) struct Search<'t> {
    pub(super) tx: &'t mut Tx,
    /// Fewer rows than this are few: [`FEW`], but for tests.
    pub(super) few: usize,
}

impl Search<'_> {
    /// True if `near` is the value of a row that meets the condition.
    pub(super) async fn is_among(&mut self, near: SimpleExpr, rows: Rows<'_>, filter: Filter) -> store::Result<Filter> {
        let keys = self.keys(rows, &filter).await?;
        Ok(is_among(near, rows, filter, keys.as_deref()))
    }

    /// The values of the rows that meet the condition, if they are few.
    pub(super) async fn keys(&mut self, rows: Rows<'_>, filter: &Filter) -> store::Result<Option<Vec<String>>> {
        if filter.many {
            return Ok(None);
        }
        let mut select = found(rows, filter.testing.clone());
        if rows.in_table_order {
            select.order_by(ROW, Order::Asc);
        }
        let Some(rows) = self.few(select).await? else { return Ok(None) };
        rows.iter().filter_map(|row| row.text(0).transpose()).collect::<store::Result<_>>().map(Some)
    }

    /// The condition on the rows of the queried table, in the form for that query.
    pub(super) async fn choose(&mut self, name: &'static str, alias: &str, filter: Filter) -> store::Result<Filter> {
        if filter.many {
            return Ok(filter);
        }
        let rows = Rows { name, alias, column: ROW, in_table_order: true };
        let mut select = found(rows, filter.testing.clone());
        select.order_by(ROW, Order::Asc);
        Ok(match self.few(select).await? {
            Some(rows) => {
                let numbers = rows.iter().map(|row| row.number(0)).collect::<store::Result<Vec<_>>>()?;
                Filter::untried(Expr::col(in_table(alias, ROW)).in_subquery(elements(&json!(numbers))))
            }
            None => Filter { testing: testing(filter.testing), collecting: filter.collecting, many: true },
        })
    }

    /// The rows that a statement finds, if they are few.
    async fn few(&mut self, mut select: SelectStatement) -> store::Result<Option<Vec<Row>>> {
        select.limit(self.few as u64);
        let found = statement::rows(self.tx, &select).await?;
        Ok((found.len() < self.few).then_some(found))
    }
}

/// True if `near` is the value of a row that meets the condition; `keys` are the values of those rows, if they are few.
pub(super) fn is_among(near: SimpleExpr, rows: Rows<'_>, filter: Filter, keys: Option<&[String]>) -> Filter {
    match keys {
        Some(keys) => Filter::untried(near.in_subquery(elements(&json!(keys)))),
        None => Filter {
            testing: has_row(near.clone(), rows, filter.testing),
            collecting: near.in_subquery(found(rows, filter.collecting)),
            many: true,
        },
    }
}

/// True if `near` is the value of no row that meets the condition, which holds for most rows.
pub(super) fn is_not_among(near: SimpleExpr, rows: Rows<'_>, condition: SimpleExpr) -> Filter {
    Filter {
        testing: has_row(near.clone(), rows, condition.clone()).not(),
        collecting: near.not_in_subquery(found(rows, condition)),
        many: true,
    }
}

fn has_row(near: SimpleExpr, rows: Rows<'_>, condition: SimpleExpr) -> SimpleExpr {
    let mut row = found(rows, testing(condition));
    row.and_where(Expr::col(in_table(rows.alias, rows.column)).eq(near));
    // Without the limit SQLite 3.51 turns it into a join, where OFFSET counts a row once per match.
    Expr::exists(row.limit(1).take())
}

/// A column of the table with that alias.
pub(super) fn in_table(alias: &str, column: &str) -> impl IntoColumnRef + use<> {
    (Alias::new(alias), Alias::new(column))
}

/// The values of the rows that meet the condition.
fn found(rows: Rows<'_>, condition: SimpleExpr) -> SelectStatement {
    let value = in_table(rows.alias, rows.column);
    Sql::select().column(value).from_as(rows.name, Alias::new(rows.alias)).and_where(condition).take()
}

/// The condition in a form for which SQLite uses no index.
fn testing(condition: SimpleExpr) -> SimpleExpr {
    Expr::cust_with_expr("+(?)", condition)
}

/// The elements of an array as rows: one bound value, however many they are.
fn elements(array: &Value) -> SelectStatement {
    let each = Func::cust("json_each").arg(array.to_string());
    Sql::select().column("value").from_function(each, "elements").take()
}
