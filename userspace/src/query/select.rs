//! From a parsed query to SQL: every name comes from the table of resources, every value is bound.

use sea_query::{
    Alias, Asterisk, Cond, Expr, ExprTrait, Func, IntoColumnRef, IntoIden, LikeExpr, Order, Query as Sql,
    SelectStatement, SimpleExpr,
};
use vipgate_api::{
    ApiError, Code, Date, number,
    query::{Condition, Query, Test},
};

use super::table::{Field, Kind, Table, column};

/// MySQL reads `\%` in a pattern as a percent sign; so do we.
const ESCAPE: char = '\\';

/// The rows of `table` that meet every condition of `query`, in their order, a page of them.
pub(super) fn page(table: &Table, query: &Query) -> Result<SelectStatement, ApiError> {
    let mut select = all(table);
    select.cond_where(conditions(table, query)?);
    if let Some(sort) = &query.sort {
        let field = known(table, &sort.field)?;
        let order = if sort.descending { Order::Desc } else { Order::Asc };
        select.order_by(ident(field.name), order);
    }
    in_order(table, &mut select);
    select.limit(query.limit).offset(query.start);
    Ok(select)
}

/// How many rows meet every condition.
pub(super) fn total(table: &Table, query: &Query) -> Result<SelectStatement, ApiError> {
    let mut select = Sql::select();
    select.expr(Func::count(Expr::col(Asterisk))).from(table.name).cond_where(conditions(table, query)?);
    Ok(select)
}

/// The rows whose `field` is one of `keys`, in their order.
pub(super) fn of_keys<'a>(table: &Table, field: &str, keys: impl IntoIterator<Item = &'a str>) -> SelectStatement {
    let mut select = all(table);
    select.and_where(Expr::col(ident(field)).is_in(keys));
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

/// Its fields in the order of the table, so that rows are read by position.
fn all(table: &Table) -> SelectStatement {
    let mut select = Sql::select();
    select.columns(table.fields.iter().map(|field| ident(field.name))).from(table.name);
    select
}

fn in_order(table: &Table, select: &mut SelectStatement) {
    for field in table.order {
        select.order_by(ident(field), Order::Asc);
    }
}

fn ident(field: &str) -> impl IntoIden + IntoColumnRef + use<> {
    Alias::new(column(field))
}

fn conditions(table: &Table, query: &Query) -> Result<Cond, ApiError> {
    let mut all = Cond::all();
    if let Some((column, value)) = table.only {
        all = all.add(Expr::col(column).eq(value));
    }
    for condition in &query.conditions {
        all = all.add(one(known(table, &condition.name)?, condition)?);
    }
    Ok(all)
}

/// The field of that name, or the error that names it and the one that was probably meant.
pub(super) fn known(table: &Table, name: &str) -> Result<&'static Field, ApiError> {
    table.field(name).ok_or_else(|| {
        if name.contains('.') || name.starts_with("__") {
            return ApiError::unimplemented(format!(
                "`{name}` asks for another resource than {}: conditions across resources are not served yet",
                table.resource.kind()
            ));
        }
        unknown(table, name, table.fields.iter().map(|field| field.name))
    })
}

pub(super) fn unknown(table: &Table, name: &str, names: impl Iterator<Item = &'static str> + Clone) -> ApiError {
    let all: Vec<_> = names.clone().collect();
    let nearest = names.min_by_key(|known| distance(known, name)).unwrap_or(table.key);
    let kind = table.resource.kind();
    ApiError::new(
        Code::Internal,
        format!("{kind} has no field `{name}` that can be queried; did you mean `{nearest}`?"),
    )
    .elaborate(format!("its fields are {}", all.join(", ")))
}

/// Levenshtein's distance, in characters, without regard to case.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (above, x) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], above + 1);
        for (left, y) in b.iter().enumerate() {
            let best = (diagonal + usize::from(x != *y)).min(row[left] + 1).min(row[left + 1] + 1);
            diagonal = std::mem::replace(&mut row[left + 1], best);
        }
    }
    row[b.len()]
}

fn one(field: &Field, condition: &Condition) -> Result<SimpleExpr, ApiError> {
    let compared = compared(field);
    let value = |text: &String| value(field, text);
    let values = |texts: &Vec<String>| texts.iter().map(|text| self::value(field, text)).collect::<Result<Vec<_>, _>>();
    Ok(match &condition.test {
        Test::Equal(text) => compared.eq(value(text)?),
        Test::NotEqual(text) => compared.ne(value(text)?),
        Test::Greater(text) => compared.gt(value(text)?),
        Test::GreaterOrEqual(text) => compared.gte(value(text)?),
        Test::Less(text) => compared.lt(value(text)?),
        Test::LessOrEqual(text) => compared.lte(value(text)?),
        Test::In(texts) => compared.is_in(values(texts)?),
        Test::NotIn(texts) => compared.is_not_in(values(texts)?),
        Test::Like(pattern) => printed(field)?.like(like(pattern)),
        Test::NotLike(pattern) => printed(field)?.not_like(like(pattern)),
        Test::IsNull => Expr::col(ident(field.name)).is_null(),
        Test::NotNull => Expr::col(ident(field.name)).is_not_null(),
    })
}

/// What of a field is compared with [`value`].
fn compared(field: &Field) -> SimpleExpr {
    let column = Expr::col(ident(field.name));
    match field.kind {
        Kind::Uuid | Kind::Number | Kind::Flag => column,
        Kind::Text => Func::lower(column).into(),
        Kind::Date => column.div(1000),
    }
}

/// The value of a condition in the field's type.
fn value(field: &Field, text: &str) -> Result<SimpleExpr, ApiError> {
    let wrong = |what: &str| {
        ApiError::invalid_argument(format!("field `{}` is compared with {what}, not with `{text}`", field.name))
    };
    Ok(match field.kind {
        Kind::Uuid | Kind::Text => Expr::val(text.to_ascii_lowercase()),
        Kind::Number => Expr::val(number::parse(text).ok_or_else(|| wrong("a whole number"))?),
        Kind::Flag => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" => Expr::val(1),
            "false" | "0" => Expr::val(0),
            _ => return Err(wrong("true or false")),
        },
        Kind::Date => {
            let date: Date = text.trim().parse().map_err(|_| wrong("a date such as `Jun 7, 2017 9:20:10 PM`"))?;
            Expr::val(date.millis() / 1000)
        }
    })
}

/// What a pattern is matched with.
fn printed(field: &Field) -> Result<SimpleExpr, ApiError> {
    let column = Expr::col(ident(field.name));
    match field.kind {
        Kind::Uuid => Ok(column),
        Kind::Text => Ok(Func::lower(column).into()),
        Kind::Number => Ok(column.cast_as("text")),
        Kind::Flag | Kind::Date => {
            Err(ApiError::invalid_argument(format!("field `{}` is no text: it has no patterns", field.name)))
        }
    }
}

fn like(pattern: &str) -> LikeExpr {
    LikeExpr::new(pattern.to_ascii_lowercase()).escape(ESCAPE)
}
