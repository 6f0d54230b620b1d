//! Small numbers that index the kernel's tables: unique among what is stored, and stable for life.

use super::{Error, Result, Tx};
use crate::state::Limits;

macro_rules! next_sql {
    ($table:literal) => {
        concat!(
            "SELECT CASE WHEN NOT EXISTS (SELECT 1 FROM ",
            $table,
            " WHERE number = $1 + 1) THEN $1 + 1 ELSE (SELECT u.number + 1 FROM ",
            $table,
            " u WHERE u.number > $1 AND NOT EXISTS (SELECT 1 FROM ",
            $table,
            " n WHERE n.number = u.number + 1) ORDER BY 1 LIMIT 1) END"
        )
    };
}

/// A set of numbers, from 1 to below the size of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Of listeners, port-forwarding rules, elastic IPs and networks with source NAT.
    Service,
    /// Of NICs behind one of the first three, and of networks with source NAT.
    Backend,
    /// Of bandwidth limits.
    Limit,
}

impl Numbers {
    const fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Backend => "backend",
            Self::Limit => "limit",
        }
    }

    /// The highest number: 0 stays unused.
    const fn last(self, limits: Limits) -> u32 {
        match self {
            Self::Service => limits.services.saturating_sub(1),
            Self::Backend => limits.backends.saturating_sub(1),
            Self::Limit => limits.limits.saturating_sub(1),
        }
    }

    /// The lowest number above `$1` that is not in use: `$1 + 1`, or what follows the first run of used ones.
    const fn next_sql(self) -> &'static str {
        match self {
            Self::Service => next_sql!("service_numbers"),
            Self::Backend => next_sql!("backend_numbers"),
            Self::Limit => next_sql!("vip_qos"),
        }
    }
}

/// Gives out a number that nothing has: in turn, so that one given back rests as long as possible before it means
/// something else (a removed backend's flows drain meanwhile).
///
/// # Errors
/// [`Error::Exhausted`] when all are in use.
pub async fn next(tx: &mut Tx, numbers: Numbers) -> Result<u32> {
    let last: i64 = sqlx::query_scalar("SELECT last FROM numbers WHERE name = $1")
        .bind(numbers.name())
        .fetch_one(tx.conn())
        .await?;
    let limit = numbers.last(tx.limits());
    for after in [last, 0] {
        let free: i64 = sqlx::query_scalar(numbers.next_sql()).bind(after).fetch_one(tx.conn()).await?;
        if let Some(number) = u32::try_from(free).ok().filter(|number| *number <= limit) {
            set_last(tx, numbers.name(), i64::from(number)).await?;
            return Ok(number);
        }
    }
    Err(Error::Exhausted { name: numbers.name(), limit })
}

/// The next number of an endless count, such as the internal id of VM instances.
pub async fn count(tx: &mut Tx) -> Result<i64> {
    let last: i64 = sqlx::query_scalar("SELECT last FROM numbers WHERE name = 'instance'").fetch_one(tx.conn()).await?;
    set_last(tx, "instance", last + 1).await?;
    Ok(last + 1)
}

async fn set_last(tx: &mut Tx, name: &str, last: i64) -> Result<()> {
    sqlx::query("UPDATE numbers SET last = $2 WHERE name = $1").bind(name).bind(last).execute(tx.conn()).await?;
    Ok(())
}
