//! Translates conditions to SQL: every name comes from the tables of resources and relations, every value is bound.
//!
//! A condition on related resources is true if one of them passes the test. A condition on a list of texts or on tags is
//! about the whole list: `__userTag__!=a` is true if there is no tag `a`, `__userTag__ is null` if there is no tag.

use sea_query::{
    Alias, BinOper, Cond, Expr, ExprTrait, IntoColumnRef, IntoIden, SimpleExpr, extension::sqlite::SqliteExpr,
};
use vipgate_api::{
    ApiError, Code, Date, Resource, number,
    query::{Condition, Test},
};

use super::{
    relation::Step,
    search::{self, Filter, Rows, Search, in_table},
    table::{Access, Field, Items, Kind, Table, column},
};
use crate::store::{
    self,
    collation::{self, MAX_PATTERN, glob},
};

/// The most relations that a condition can follow; sensible conditions follow fewer.
pub(super) const MAX_STEPS: usize = 16;

/// Conditions that every resource has: on its tags, and on the account that owns it. Name, table, the column of the
/// resource's uuid there, and the column that is tested.
const COMMON: [(&str, &str, &str, &str); 3] = [
    ("__systemTag__", "system_tags", "resource_uuid", "tag"),
    ("__userTag__", "user_tags", "resource_uuid", "tag"),
    ("__owner__", "resources", "uuid", "account_uuid"),
];

/// Names in the examples of the API document that no inventory has: resource, the name, the field that it means.
const SYNONYMS: [(Resource, &str, &str); 1] = [(Resource::Eip, "ip", "vipIp")];

/// The column of a field.
pub(super) fn ident(field: &str) -> impl IntoIden + IntoColumnRef + use<> {
    Alias::new(column(field))
}

/// The conditions of the query and those of the viewer's access. The statement must call the table by [`alias`].
pub(super) async fn all(
    search: Search<'_>,
    table: &'static Table,
    conditions: &[Condition],
    viewer: Viewer<'_>,
) -> Result<Conditions, ApiError> {
    let mut reader = Reader::new(search, viewer).await?;
    let mut all = reader.of_table(table, &alias(0));
    for condition in conditions {
        let filter = reader.follow(table, condition).await?;
        all.push(reader.search.choose(table.name, &alias(0), filter).await?);
    }
    Ok(Conditions(all))
}

/// All conditions of a query.
#[derive(Clone, Debug)]
pub(super) struct Conditions(Vec<Filter>);

impl Conditions {
    /// The form for a statement that needs all rows.
    pub(super) fn collecting(&self) -> Cond {
        self.0.iter().fold(Cond::all(), |all, filter| all.add(filter.collecting.clone()))
    }

    /// The form for a statement that ends early.
    pub(super) fn testing(&self) -> Cond {
        self.0.iter().fold(Cond::all(), |all, filter| all.add(filter.testing.clone()))
    }
}

/// The alias of the table that a condition reaches after that many steps.
pub(super) fn alias(steps: usize) -> String {
    format!("t{steps}")
}

/// The account that queries; `None` for an administrator.
pub(super) type Viewer<'a> = Option<&'a str>;

/// The aliases of a table of pairs, and of one of tags or texts.
const PAIR: &str = "pair";
const ITEM: &str = "item";

/// The resources that accounts see.
const VISIBLE: Rows<'_> =
    Rows { name: "visible_resources", alias: "visible", column: "resource_uuid", in_table_order: false };

/// Translates the conditions of a viewer.
struct Reader<'a> {
    search: Search<'a>,
    viewer: Viewer<'a>,
    /// The uuids of the resources that the viewer sees, if they are few.
    visible: Option<Vec<String>>,
}

impl<'a> Reader<'a> {
    async fn new(mut search: Search<'a>, viewer: Viewer<'a>) -> store::Result<Self> {
        let visible = match viewer {
            Some(account) => search.keys(VISIBLE, &is_of(account)).await?,
            None => None,
        };
        Ok(Self { search, viewer, visible })
    }

    /// The conditions of the rows of the table that the viewer sees.
    fn of_table(&self, table: &Table, alias: &str) -> Vec<Filter> {
        let mut all = Vec::new();
        if let Some((column, value)) = table.only {
            all.push(Filter::untried(Expr::col(in_table(alias, column)).eq(value)));
        }
        match (self.viewer, table.access) {
            (None, _) | (_, Access::Everybody) => {}
            (Some(account), Access::Account(column)) => {
                all.push(Filter::untried(Expr::col(in_table(alias, column)).eq(account)));
            }
            (Some(account), Access::Resource(column)) => {
                let uuid = Expr::col(in_table(alias, column));
                all.push(search::is_among(uuid, VISIBLE, is_of(account), self.visible.as_deref()));
            }
        }
        all
    }

    /// The condition as one on the rows of `table`: follows its steps to the far table, and builds it from there back.
    async fn follow(&mut self, table: &'static Table, condition: &Condition) -> Result<Filter, ApiError> {
        let names: Vec<_> = condition.name.split('.').collect();
        if names.len() > MAX_STEPS {
            return Err(ApiError::invalid_argument(format!(
                "condition `{}` takes {} steps, at most {MAX_STEPS} are possible",
                condition.name,
                names.len()
            )));
        }
        let Some((last, ways)) = names.split_last() else { return Err(no_field(table, "", condition)) };
        let (mut far, mut steps) = (table, Vec::new());
        for way in ways {
            let step = far.step(way).ok_or_else(|| no_step(far, way, condition))?;
            far = step.table;
            steps.push(step);
        }
        let mut filter = self.one(far, &alias(steps.len()), last, condition).await?;
        for (near, step) in steps.iter().enumerate().rev() {
            filter = self.across(near, step, filter).await?;
        }
        Ok(filter)
    }

    /// True if one of the resources at the far end of the step, visible to the viewer, meets the condition.
    async fn across(&mut self, near: usize, step: &Step, filter: Filter) -> store::Result<Filter> {
        let (near, far) = (alias(near), alias(near + 1));
        let filter = self.of_table(step.table, &far).iter().fold(filter, Filter::limited_to);
        let rows = Rows { name: step.table.name, alias: &far, column: &column(step.far), in_table_order: true };
        let near = Expr::col(in_table(&near, &column(step.near)));
        match step.via {
            None => self.search.is_among(near, rows, filter).await,
            Some((pairs, owner, key)) => {
                let filter = self.search.is_among(Expr::col(in_table(PAIR, key)), rows, filter).await?;
                let pairs = Rows { name: pairs, alias: PAIR, column: owner, in_table_order: false };
                self.search.is_among(near, pairs, filter).await
            }
        }
    }

    async fn one(
        &mut self,
        table: &'static Table,
        alias: &str,
        name: &str,
        condition: &Condition,
    ) -> Result<Filter, ApiError> {
        let test = &condition.test;
        let synonym = SYNONYMS.iter().find(|(resource, known, _)| *resource == table.resource && *known == name);
        if let Some(field) = table.field(synonym.map_or(name, |(.., field)| field)) {
            return Ok(Filter::untried(tested(field, ident(field.name), test)?));
        }
        let key = Expr::col(in_table(alias, &column(table.key)));
        let items = |name, column| Rows { name, alias: ITEM, column, in_table_order: false };
        let common = COMMON.iter().find(|(known, ..)| *known == name).filter(|_| table.has_tags());
        if let Some((_, rows, column, text)) = common {
            return self.listed(key, items(rows, column), text, test).await;
        }
        let texts = table.lists.iter().filter(|list| list.name == name).find_map(|list| match list.of {
            Items::Texts { table, owner, column } => Some((items(table, owner), column)),
            Items::Inventories { .. } | Items::Nothing => None,
        });
        match texts {
            Some((texts, column)) => self.listed(key, texts, column, test).await,
            None => Err(no_field(table, name, condition)),
        }
    }

    /// A test of a list of texts: the rows of `items` that belong to `key`.
    async fn listed(
        &mut self,
        key: SimpleExpr,
        items: Rows<'_>,
        text: &'static str,
        test: &Test,
    ) -> Result<Filter, ApiError> {
        let having = |test: &Test| tested(&Field { name: text, kind: Kind::Text }, text, test);
        let without = |test: Test| Ok(search::is_not_among(key.clone(), items, having(&test)?));
        match test {
            Test::IsNull => without(Test::NotNull),
            Test::NotEqual(text) => without(Test::Equal(text.clone())),
            Test::NotIn(texts) => without(Test::In(texts.clone())),
            Test::NotLike(pattern) => without(Test::Like(pattern.clone())),
            Test::NotNull
            | Test::Equal(_)
            | Test::Greater(_)
            | Test::GreaterOrEqual(_)
            | Test::Less(_)
            | Test::LessOrEqual(_)
            | Test::In(_)
            | Test::Like(_) => Ok(self.search.is_among(key, items, Filter::untried(having(test)?)).await?),
        }
    }
}

fn is_of(account: &str) -> Filter {
    Filter::untried(Expr::col("account_uuid").eq(account))
}

/// True if the value of `column` passes the test.
fn tested(field: &Field, column: impl IntoColumnRef, test: &Test) -> Result<SimpleExpr, ApiError> {
    let column = Expr::col(column);
    let value = |text: &String| value(field, text);
    let values = |texts: &Vec<String>| texts.iter().map(|text| self::value(field, text)).collect::<Result<Vec<_>, _>>();
    Ok(match test {
        Test::Equal(text) => compared(field.kind, column).eq(value(text)?),
        Test::NotEqual(text) => compared(field.kind, column).ne(value(text)?),
        Test::Greater(text) => compared(field.kind, column).gt(value(text)?),
        Test::GreaterOrEqual(text) => compared(field.kind, column).gte(value(text)?),
        Test::Less(text) => compared(field.kind, column).lt(value(text)?),
        Test::LessOrEqual(text) => compared(field.kind, column).lte(value(text)?),
        Test::In(texts) => compared(field.kind, column).is_in(values(texts)?),
        Test::NotIn(texts) => compared(field.kind, column).is_not_in(values(texts)?),
        Test::Like(pattern) => printed(field, column)?.glob(like(field, pattern)?),
        Test::NotLike(pattern) => printed(field, column)?.glob(like(field, pattern)?).not(),
        Test::IsNull => column.is_null(),
        Test::NotNull => column.is_not_null(),
    })
}

/// The column in the form that is compared with a [`value`].
pub(super) fn compared(kind: Kind, column: SimpleExpr) -> SimpleExpr {
    match kind {
        Kind::Uuid | Kind::Number | Kind::Flag => column,
        Kind::Text => column.binary(BinOper::Custom("COLLATE"), Expr::col(collation::NAME)),
        Kind::Date => column.div(1000),
    }
}

/// The value of a condition as the type of the field.
fn value(field: &Field, text: &str) -> Result<SimpleExpr, ApiError> {
    let wrong = |what: &str| {
        ApiError::invalid_argument(format!("field `{}` is compared with {what}, not with `{text}`", field.name))
    };
    Ok(match field.kind {
        Kind::Uuid => Expr::val(text.to_ascii_lowercase()),
        Kind::Text => Expr::val(text),
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

/// The column in the form that patterns match.
fn printed(field: &Field, column: SimpleExpr) -> Result<SimpleExpr, ApiError> {
    match field.kind {
        Kind::Uuid | Kind::Text => Ok(column),
        Kind::Number => Ok(column.cast_as("text")),
        Kind::Flag | Kind::Date => {
            Err(ApiError::invalid_argument(format!("field `{}` is no text: it has no patterns", field.name)))
        }
    }
}

fn like(field: &Field, pattern: &str) -> Result<SimpleExpr, ApiError> {
    glob(pattern).map(Expr::val).ok_or_else(|| {
        ApiError::invalid_argument(format!(
            "the pattern for field `{}` is longer than {MAX_PATTERN} characters, or has a NUL in it",
            field.name
        ))
    })
}

/// The possible last names of a condition.
pub(super) fn last_names(table: &'static Table) -> impl Iterator<Item = &'static str> + Clone {
    let lists = table.lists.iter().filter(|list| matches!(list.of, Items::Texts { .. })).map(|list| list.name);
    let common = COMMON.iter().filter(|_| table.has_tags()).map(|(name, ..)| *name);
    let synonyms = SYNONYMS.iter().filter(|(resource, ..)| *resource == table.resource).map(|(_, name, _)| *name);
    table.fields.iter().map(|field| field.name).chain(synonyms).chain(lists).chain(common)
}

/// The error of a condition whose last name is no field.
fn no_field(table: &'static Table, name: &str, condition: &Condition) -> ApiError {
    let fields = last_names(table);
    let error = if table.step(name).is_some() {
        let kind = table.resource.kind();
        let details = format!("`{name}` of {kind} is a resource: ask for a field of it, such as `{name}.uuid`");
        ApiError::new(Code::Internal, details)
    } else {
        no_such(table, "field", name, fields.clone())
    };
    error.elaborate(format!("condition `{}`: {}", condition.name, listing(table, fields)))
}

/// The error of a condition with a name before a dot that is no related resource.
fn no_step(table: &'static Table, name: &str, condition: &Condition) -> ApiError {
    let steps = table.steps().flat_map(|step| step.names).copied();
    let fields = table.fields.iter().map(|field| field.name);
    no_such(table, "resource", name, steps).elaborate(format!(
        "condition `{}`: {}",
        condition.name,
        listing(table, fields)
    ))
}

fn listing(table: &'static Table, fields: impl Iterator<Item = &'static str>) -> String {
    let steps = table.steps().filter_map(|step| step.names.first()).map(|name| format!("{name}."));
    let known: Vec<_> = fields.map(str::to_owned).chain(steps).collect();
    format!("there are {}", known.join(", "))
}

/// The error that names what is unknown, and which of `names` was probably meant.
pub(super) fn no_such(table: &Table, what: &str, name: &str, names: impl Iterator<Item = &'static str>) -> ApiError {
    let kind = table.resource.kind();
    let meant = names.min_by_key(|known| distance(known, name)).map(|meant| format!("; did you mean `{meant}`?"));
    let details = format!("{kind} has no {what} `{name}` that can be queried{}", meant.unwrap_or_default());
    ApiError::new(Code::Internal, details)
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
