//! Small numbers that index the kernel's tables: unique, and fixed while the row that has one exists.

use vipgate_state::Capacity;

use super::{Error, Result, Tx};

/// The lowest number above `$after`, and not above `$2`, that is not in use: the next one, or the one after the first run of
/// used ones. NULL if there is none.
macro_rules! free_sql {
    ($table:literal, $after:literal) => {
        concat!(
            "(SELECT c.number FROM
                (SELECT CASE WHEN NOT EXISTS (SELECT 1 FROM ",
            $table,
            " WHERE number = ",
            $after,
            " + 1) THEN ",
            $after,
            " + 1 ELSE (SELECT u.number + 1 FROM ",
            $table,
            " u WHERE u.number > ",
            $after,
            " AND NOT EXISTS (SELECT 1 FROM ",
            $table,
            " n WHERE n.number = u.number + 1) ORDER BY 1 LIMIT 1) END AS number) c
              WHERE c.number <= $2)"
        )
    };
}

macro_rules! next_sql {
    ($table:literal) => {
        concat!(
            "UPDATE numbers SET last = f.number FROM
                (SELECT COALESCE(",
            free_sql!($table, "l.last"),
            ", ",
            free_sql!($table, "0"),
            ") AS number FROM numbers l WHERE l.name = $1) f
             WHERE name = $1 AND f.number IS NOT NULL RETURNING last"
        )
    };
}

/// A set of numbers, from 1 to below the size of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Listeners, port-forwarding rules, elastic IPs and networks with source NAT.
    Service,
    /// NICs behind one of the first three, and networks with source NAT.
    Backend,
    /// Bandwidth limits.
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
    const fn last(self, capacity: Capacity) -> u32 {
        match self {
            Self::Service => capacity.services.saturating_sub(1),
            Self::Backend => capacity.backends.saturating_sub(1),
            Self::Limit => capacity.limits.saturating_sub(1),
        }
    }

    /// Takes the next free number up to `$2` after the last one taken, or the first free one.
    const fn next_sql(self) -> &'static str {
        match self {
            Self::Service => next_sql!("service_numbers"),
            Self::Backend => next_sql!("backend_numbers"),
            Self::Limit => next_sql!("vip_qos"),
        }
    }
}

/// Takes a free number. They are taken in turn, so that a freed one is reused as late as possible: the flows of a removed
/// backend drain meanwhile.
///
/// # Errors
/// [`Error::Exhausted`] when all are in use.
pub async fn next(tx: &mut Tx, numbers: Numbers) -> Result<u32> {
    let limit = numbers.last(tx.capacity());
    let number: Option<u32> =
        sqlx::query_scalar(numbers.next_sql()).bind(numbers.name()).bind(limit).fetch_optional(tx.conn()).await?;
    number.ok_or(Error::Exhausted { name: numbers.name(), limit })
}

/// The next internal id of a VM instance.
pub async fn count(tx: &mut Tx) -> Result<i64> {
    Ok(sqlx::query_scalar("UPDATE numbers SET last = last + 1 WHERE name = 'instance' RETURNING last")
        .fetch_one(tx.conn())
        .await?)
}
