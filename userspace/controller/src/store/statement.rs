//! Runs statements that were built at run time, such as those of queries, and reads their rows.

use sea_query::{SelectStatement, SqliteQueryBuilder};
use sea_query_sqlx::SqlxBinder;
use sqlx::{AssertSqlSafe, Row as _, sqlite::SqliteRow};

use super::{Result, Tx};

/// A row of the result; its columns are read by position.
#[derive(Debug)]
pub struct Row(SqliteRow);

impl Row {
    pub fn text(&self, column: usize) -> Result<Option<String>> {
        Ok(self.0.try_get(column)?)
    }

    pub fn number(&self, column: usize) -> Result<Option<i64>> {
        Ok(self.0.try_get(column)?)
    }

    pub fn flag(&self, column: usize) -> Result<Option<bool>> {
        Ok(self.0.try_get(column)?)
    }
}

/// The rows that a statement finds.
pub async fn rows(tx: &mut Tx, statement: &SelectStatement) -> Result<Vec<Row>> {
    let (sql, values) = statement.build_sqlx(SqliteQueryBuilder);
    // Safe: the text is made of names from our own tables, every value is bound.
    let rows = sqlx::query_with(AssertSqlSafe(sql), values).fetch_all(tx.conn()).await?;
    Ok(rows.into_iter().map(Row).collect())
}
