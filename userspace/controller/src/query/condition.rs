//! From conditions to SQL: every name comes from the tables of resources and relations, every value is bound.
//!
//! A condition on a related resource holds if one of those meets its test. A condition on a list of texts or on tags is
//! about the list as a whole: `__userTag__!=a` holds for what has no tag `a`, `__userTag__ is null` for what has none.

use sea_query::{
    Alias, BinOper, Cond, Expr, ExprTrait, IntoColumnRef, IntoIden, SimpleExpr, extension::sqlite::SqliteExpr,
};
use vipgate_api::{
    ApiError, Code, Date, Resource, number,
    query::{Condition, Test},
};

use super::{
    relation::Step,
    search::{self, Met, Rows, Search, in_table},
    table::{Access, Field, Items, Kind, Table, column},
};
use crate::store::{
    self,
    fold::{COLLATION, MOST_PATTERN, glob},
};

/// The longest way from one resource to another: any that makes sense is shorter.
pub(super) const MOST_STEPS: usize = 16;

/// Conditions on what is told of any resource: on its tags, and on the account that owns it. Name, table, the resource's column
/// there, and the one that is tested.
const TOLD: [(&str, &str, &str, &str); 3] = [
    ("__systemTag__", "system_tags", "resource_uuid", "tag"),
    ("__userTag__", "user_tags", "resource_uuid", "tag"),
    ("__owner__", "resources", "uuid", "account_uuid"),
];

/// Fields that the document's examples ask for by a name that no inventory has: resource, that name, the field.
const SYNONYMS: [(Resource, &str, &str); 1] = [(Resource::Eip, "ip", "vipIp")];

/// The column of a field.
pub(super) fn ident(field: &str) -> impl IntoIden + IntoColumnRef + use<> {
    Alias::new(column(field))
}

/// What all rows of the table must meet, and all conditions. The statement they are for calls the table by [`alias`].
pub(super) async fn all(
    search: Search<'_>,
    table: &'static Table,
    conditions: &[Condition],
    viewer: Viewer<'_>,
) -> Result<Conditions, ApiError> {
    let mut reader = Reader::new(search, viewer).await?;
    let mut all = reader.of_table(table, &alias(0));
    for condition in conditions {
        let met = reader.follow(table, condition).await?;
        all.push(reader.search.lead(table.name, &alias(0), met).await?);
    }
    Ok(Conditions(all))
}

/// All that the rows of a query meet.
#[derive(Clone, Debug)]
pub(super) struct Conditions(Vec<Met>);

impl Conditions {
    /// For a statement that needs all rows.
    pub(super) fn gathering(&self) -> Cond {
        self.0.iter().fold(Cond::all(), |all, met| all.add(met.gathering.clone()))
    }

    /// For one that ends early.
    pub(super) fn asking(&self) -> Cond {
        self.0.iter().fold(Cond::all(), |all, met| all.add(met.asking.clone()))
    }
}

/// What statements call the table that a condition comes to after so many steps.
pub(super) fn alias(steps: usize) -> String {
    format!("t{steps}")
}

/// The account that asks; `None`: an administrator.
pub(super) type Viewer<'a> = Option<&'a str>;

/// What statements call a table of pairs, and one of tags or texts.
const PAIR: &str = "pair";
const ITEM: &str = "item";

/// The resources that accounts see.
const VISIBLE: Rows<'_> =
    Rows { name: "visible_resources", alias: "visible", column: "resource_uuid", as_they_lie: false };

/// Reads conditions of one who sees a part of everything.
struct Reader<'a> {
    search: Search<'a>,
    viewer: Viewer<'a>,
    /// The uuids of what an account sees, if they are few.
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

    /// What every row of the table meets that the viewer sees.
    fn of_table(&self, table: &Table, alias: &str) -> Vec<Met> {
        let mut all = Vec::new();
        if let Some((column, value)) = table.only {
            all.push(Met::untried(Expr::col(in_table(alias, column)).eq(value)));
        }
        match (self.viewer, table.access) {
            (None, _) | (_, Access::Everybody) => {}
            (Some(account), Access::Account(column)) => {
                all.push(Met::untried(Expr::col(in_table(alias, column)).eq(account)));
            }
            (Some(account), Access::Resource(column)) => {
                let uuid = Expr::col(in_table(alias, column));
                all.push(search::is_among(uuid, VISIBLE, is_of(account), self.visible.as_deref()));
            }
        }
        all
    }

    /// The condition as one on the rows of `table`, from where its steps lead back to there.
    async fn follow(&mut self, table: &'static Table, condition: &Condition) -> Result<Met, ApiError> {
        let names: Vec<_> = condition.name.split('.').collect();
        if names.len() > MOST_STEPS {
            return Err(ApiError::invalid_argument(format!(
                "condition `{}` takes {} steps, at most {MOST_STEPS} are possible",
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
        let mut met = self.one(far, &alias(steps.len()), last, condition).await?;
        for (near, step) in steps.iter().enumerate().rev() {
            met = self.across(near, step, met).await?;
        }
        Ok(met)
    }

    /// One of the resources at the step's far end that the viewer sees meets the condition.
    async fn across(&mut self, near: usize, step: &Step, met: Met) -> store::Result<Met> {
        let (near, far) = (alias(near), alias(near + 1));
        let met = self.of_table(step.table, &far).iter().fold(met, Met::seen);
        let rows = Rows { name: step.table.name, alias: &far, column: &column(step.far), as_they_lie: true };
        let near = Expr::col(in_table(&near, &column(step.near)));
        match step.via {
            None => self.search.is_among(near, rows, met).await,
            Some((pairs, owner, key)) => {
                let met = self.search.is_among(Expr::col(in_table(PAIR, key)), rows, met).await?;
                let pairs = Rows { name: pairs, alias: PAIR, column: owner, as_they_lie: false };
                self.search.is_among(near, pairs, met).await
            }
        }
    }

    async fn one(
        &mut self,
        table: &'static Table,
        alias: &str,
        name: &str,
        condition: &Condition,
    ) -> Result<Met, ApiError> {
        let test = &condition.test;
        let synonym = SYNONYMS.iter().find(|(resource, known, _)| *resource == table.resource && *known == name);
        if let Some(field) = table.field(synonym.map_or(name, |(.., field)| field)) {
            return Ok(Met::untried(meets(field, ident(field.name), test)?));
        }
        let key = Expr::col(in_table(alias, &column(table.key)));
        let items = |name, column| Rows { name, alias: ITEM, column, as_they_lie: false };
        let told = TOLD.iter().find(|(known, ..)| *known == name).filter(|_| table.has_tags());
        if let Some((_, rows, column, text)) = told {
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

    /// A test of the list of texts that `key` owns, each of which is one of `items`.
    async fn listed(
        &mut self,
        key: SimpleExpr,
        items: Rows<'_>,
        text: &'static str,
        test: &Test,
    ) -> Result<Met, ApiError> {
        let having = |test: &Test| meets(&Field { name: text, kind: Kind::Text }, text, test);
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
            | Test::Like(_) => Ok(self.search.is_among(key, items, Met::untried(having(test)?)).await?),
        }
    }
}

fn is_of(account: &str) -> Met {
    Met::untried(Expr::col("account_uuid").eq(account))
}

/// The value of `column` meets the test.
fn meets(field: &Field, column: impl IntoColumnRef, test: &Test) -> Result<SimpleExpr, ApiError> {
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

/// What is compared with a [`value`].
pub(super) fn compared(kind: Kind, column: SimpleExpr) -> SimpleExpr {
    match kind {
        Kind::Uuid | Kind::Number | Kind::Flag => column,
        Kind::Text => column.binary(BinOper::Custom("COLLATE"), Expr::col(COLLATION)),
        Kind::Date => column.div(1000),
    }
}

/// The value of a condition in the field's type.
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

/// What a pattern is matched with.
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
            "the pattern for field `{}` is longer than {MOST_PATTERN} characters, or has a NUL in it",
            field.name
        ))
    })
}

/// What the last name of a condition can be.
pub(super) fn askable(table: &'static Table) -> impl Iterator<Item = &'static str> + Clone {
    let lists = table.lists.iter().filter(|list| matches!(list.of, Items::Texts { .. })).map(|list| list.name);
    let told = TOLD.iter().filter(|_| table.has_tags()).map(|(name, ..)| *name);
    let synonyms = SYNONYMS.iter().filter(|(resource, ..)| *resource == table.resource).map(|(_, name, _)| *name);
    table.fields.iter().map(|field| field.name).chain(synonyms).chain(lists).chain(told)
}

/// The last name of a condition is no field.
fn no_field(table: &'static Table, name: &str, condition: &Condition) -> ApiError {
    let fields = askable(table);
    let error = if table.step(name).is_some() {
        let kind = table.resource.kind();
        let details = format!("`{name}` of {kind} is a resource: ask for a field of it, such as `{name}.uuid`");
        ApiError::new(Code::Internal, details)
    } else {
        no_such(table, "field", name, fields.clone())
    };
    error.elaborate(format!("condition `{}`: {}", condition.name, listing(table, fields)))
}

/// A name before a dot is no resource.
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

/// The error that names what is unknown and what was probably meant, of `names`.
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
