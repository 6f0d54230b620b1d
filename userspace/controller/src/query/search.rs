//! Where a query starts: at the few rows that a condition names, or at the first of all rows in their order.
//!
//! Few rows that meet a condition are looked up beforehand, and the query starts at their keys, whatever its order. Where
//! many meet it, that would gather and sort most of a table for one page: then the query goes through the rows in their
//! order, by an index, asks of each whether it meets the condition, and ends when its page is full. Which of both it is,
//! only the rows can tell: each condition is tried alone, until it has found [`FEW`] rows. That happens in the query's own
//! transaction, so that both see the same rows. A count, a group, and an order without an index need every row: there
//! gathering costs less than asking.

use sea_query::{Alias, Expr, ExprTrait, Func, IntoColumnRef, Order, Query as Sql, SelectStatement, SimpleExpr};
use serde_json::{Value, json};

use crate::store::{
    self, Tx,
    statement::{self, Row},
};

/// Fewer rows than this are few. For a page of 100 out of 100,000 rows both ways cost the same at some 3,000; trying must
/// cost less than either.
pub(super) const FEW: usize = 1000;

/// SQLite's own number of a row: what has rows has this.
const ROW: &str = "rowid";

/// A condition on the rows of a table, in both forms.
#[derive(Clone, Debug)]
pub(super) struct Met {
    /// For a statement that ends early: asks of one row after the other, by no index.
    pub(super) asking: SimpleExpr,
    /// For one that needs all rows: gathers those that meet it, as SQLite likes.
    pub(super) gathering: SimpleExpr,
    /// Many rows meet it.
    pub(super) many: bool,
}

impl Met {
    /// A condition that nobody has tried yet.
    pub(super) fn untried(condition: SimpleExpr) -> Self {
        Self { asking: condition.clone(), gathering: condition, many: false }
    }

    /// The same of the rows that one sees.
    pub(super) fn seen(self, sight: &Self) -> Self {
        Self {
            asking: sight.asking.clone().and(self.asking),
            gathering: sight.gathering.clone().and(self.gathering),
            many: self.many,
        }
    }
}

/// Rows that others are asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    /// Table or view.
    pub(super) name: &'static str,
    /// What statements call it.
    pub(super) alias: &'a str,
    /// Whose value is asked for.
    pub(super) column: &'a str,
    /// They are tried in the order in which they lie, not by an index: its order may have those that meet the condition last.
    pub(super) as_they_lie: bool,
}

/// Tries conditions in the transaction of a query.
#[derive(Debug)]
pub(super) struct Search<'t> {
    pub(super) tx: &'t mut Tx,
    /// Fewer rows than this are few: [`FEW`], but for tests.
    pub(super) few: usize,
}

impl Search<'_> {
    /// `near` is the value of one of the rows that meet the condition.
    pub(super) async fn is_among(&mut self, near: SimpleExpr, rows: Rows<'_>, met: Met) -> store::Result<Met> {
        let keys = self.keys(rows, &met).await?;
        Ok(is_among(near, rows, met, keys.as_deref()))
    }

    /// The values of the rows that meet the condition, if those are few.
    pub(super) async fn keys(&mut self, rows: Rows<'_>, met: &Met) -> store::Result<Option<Vec<String>>> {
        if met.many {
            return Ok(None);
        }
        let mut select = found(rows, met.asking.clone());
        if rows.as_they_lie {
            select.order_by(ROW, Order::Asc);
        }
        let Some(rows) = self.few(select).await? else { return Ok(None) };
        rows.iter().filter_map(|row| row.text(0).transpose()).collect::<store::Result<_>>().map(Some)
    }

    /// The condition on the table's rows as their query is to have it.
    pub(super) async fn lead(&mut self, name: &'static str, alias: &str, met: Met) -> store::Result<Met> {
        if met.many {
            return Ok(met);
        }
        let rows = Rows { name, alias, column: ROW, as_they_lie: true };
        let mut select = found(rows, met.asking.clone());
        select.order_by(ROW, Order::Asc);
        Ok(match self.few(select).await? {
            Some(rows) => {
                let numbers = rows.iter().map(|row| row.number(0)).collect::<store::Result<Vec<_>>>()?;
                Met::untried(Expr::col(in_table(alias, ROW)).in_subquery(elements(&json!(numbers))))
            }
            None => Met { asking: asking(met.asking), gathering: met.gathering, many: true },
        })
    }

    /// What a statement finds, if that is few.
    async fn few(&mut self, mut select: SelectStatement) -> store::Result<Option<Vec<Row>>> {
        select.limit(self.few as u64);
        let found = statement::rows(self.tx, &select).await?;
        Ok((found.len() < self.few).then_some(found))
    }
}

/// `near` is the value of one of the rows that meet the condition, whose `keys` are known where they are few.
pub(super) fn is_among(near: SimpleExpr, rows: Rows<'_>, met: Met, keys: Option<&[String]>) -> Met {
    match keys {
        Some(keys) => Met::untried(near.in_subquery(elements(&json!(keys)))),
        None => Met {
            asking: has_row(near.clone(), rows, met.asking),
            gathering: near.in_subquery(found(rows, met.gathering)),
            many: true,
        },
    }
}

/// `near` is the value of no row that meets the condition: true of many, since most things have none of something.
pub(super) fn is_not_among(near: SimpleExpr, rows: Rows<'_>, condition: SimpleExpr) -> Met {
    Met {
        asking: has_row(near.clone(), rows, condition.clone()).not(),
        gathering: near.not_in_subquery(found(rows, condition)),
        many: true,
    }
}

fn has_row(near: SimpleExpr, rows: Rows<'_>, condition: SimpleExpr) -> SimpleExpr {
    let mut row = found(rows, asking(condition));
    row.and_where(Expr::col(in_table(rows.alias, rows.column)).eq(near));
    // Without a limit SQLite 3.51 makes a join of it, which gives a row that OFFSET skips as often as it has partners.
    Expr::exists(row.limit(1).take())
}

/// A column of what a statement calls `alias`.
pub(super) fn in_table(alias: &str, column: &str) -> impl IntoColumnRef + use<> {
    (Alias::new(alias), Alias::new(column))
}

/// The values of the rows that meet the condition.
fn found(rows: Rows<'_>, condition: SimpleExpr) -> SelectStatement {
    let value = in_table(rows.alias, rows.column);
    Sql::select().column(value).from_as(rows.name, Alias::new(rows.alias)).and_where(condition).take()
}

/// The condition in a form for which SQLite uses no index.
fn asking(condition: SimpleExpr) -> SimpleExpr {
    Expr::cust_with_expr("+(?)", condition)
}

/// The elements of an array as rows: one bound value, however many they are.
fn elements(array: &Value) -> SelectStatement {
    let each = Func::cust("json_each").arg(array.to_string());
    Sql::select().column("value").from_function(each, "elements").take()
}
