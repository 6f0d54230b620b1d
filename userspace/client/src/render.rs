//! Prints a reply as a table for people, as JSON or as YAML. JSON and YAML hold the API's whole reply.

use clap::ValueEnum;
use serde_json::Value;
use unicode_width::UnicodeWidthStr as _;

use super::{ClientError, yaml};

/// How replies are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

/// Columns that a table has only on request: they are long or rarely needed.
const ASIDE: [&str; 3] = ["description", "createDate", "lastOpDate"];

/// Columns that come first.
const FIRST: [&str; 2] = ["name", "uuid"];

/// `fields` are the columns of a table; if it is empty, the table has the usual ones.
pub(super) fn render(reply: &Value, format: Format, fields: &[String]) -> Result<String, ClientError> {
    match format {
        Format::Table => Ok(table(reply, fields)),
        Format::Json => Ok(json(reply)),
        Format::Yaml => yaml::write(reply).map_err(ClientError::Yaml),
    }
}

/// Replaces control characters in texts of others, such as names: a terminal would obey them.
pub(super) fn sanitized(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// JSON itself escapes only the first 32 control characters.
fn json(reply: &Value) -> String {
    let mut text = String::new();
    for character in format!("{reply:#}\n").chars() {
        match character {
            '\u{7f}'..='\u{9f}' => text.push_str(&format!("\\u{:04x}", u32::from(character))),
            other => text.push(other),
        }
    }
    text
}

fn table(reply: &Value, fields: &[String]) -> String {
    let mut text = match (reply["inventories"].as_array(), &reply["inventory"]) {
        (Some(inventories), _) if inventories.is_empty() => "none found\n".to_owned(),
        (Some(inventories), _) => rows(inventories, fields),
        (None, inventory @ Value::Object(_)) => members(inventory),
        (None, _) => members(reply),
    };
    if reply["inventories"].is_array() && !reply["total"].is_null() {
        text.push_str(&format!("{} in all\n", cell(&reply["total"])));
    }
    text
}

/// One line for each member that has a value.
fn members(of: &Value) -> String {
    let members = of.as_object().into_iter().flatten();
    let lines = members.map(|(name, value)| vec![name.clone(), cell(value)]).filter(|line| !line[1].is_empty());
    aligned(&lines.collect::<Vec<_>>())
}

/// One line for each inventory, below the names of the columns.
fn rows(inventories: &[Value], fields: &[String]) -> String {
    let columns = if fields.is_empty() { usual(inventories) } else { fields.to_vec() };
    let values = inventories.iter().map(|inventory| columns.iter().map(|name| cell(&inventory[name])).collect());
    aligned(&std::iter::once(columns.clone()).chain(values).collect::<Vec<_>>())
}

/// The columns in which at least one inventory has a value.
fn usual(inventories: &[Value]) -> Vec<String> {
    let mut columns: Vec<String> = Vec::new();
    for (name, value) in inventories.iter().filter_map(Value::as_object).flatten() {
        if !ASIDE.contains(&name.as_str()) && !cell(value).is_empty() && !columns.contains(name) {
            columns.push(name.clone());
        }
    }
    columns.sort_by_key(|name| FIRST.iter().position(|first| first == name).unwrap_or(FIRST.len()));
    columns
}

/// A list is joined by commas; an inventory in it is shown by its name.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => sanitized(text),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Object(members) => {
            let named =
                ["name", "ip", "vmNicUuid", "networkServiceType", "uuid"].iter().find_map(|name| members.get(*name));
            named.map_or_else(|| value.to_string(), cell)
        }
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// Columns two spaces apart; a cell is as wide as a terminal shows it.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.width()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let padded = |(cell, width): (&String, &usize)| format!("{cell}{}", " ".repeat(width - cell.width()));
    let line = |line: &Vec<String>| {
        let cells: Vec<_> = line.iter().zip(&widths).map(padded).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn inventories_are_lines_with_the_columns_that_say_something() {
        let reply = json!({ "inventories": [
            { "uuid": "1", "name": "web", "description": "long", "ip": "10.1.0.10", "useFor": null },
            { "uuid": "2", "name": "mail\u{1b}[2J", "ip": "10.1.0.9", "listeners": [{ "name": "a" }, { "name": "b" }] },
        ], "total": 2 });
        let expected = "\
name      uuid  ip         listeners
web       1     10.1.0.10
mail\u{fffd}[2J  2     10.1.0.9   a,b
2 in all
";
        assert_eq!(table(&reply, &[]), expected);
        assert_eq!(table(&reply, &["ip".to_owned()]), "ip\n10.1.0.10\n10.1.0.9\n2 in all\n");
    }

    #[test]
    fn columns_stand_below_each_other_whatever_the_width_of_a_character() {
        let reply = json!({ "inventories": [
            { "name": "\u{8d1f}\u{8f7d}", "uuid": "1" },
            { "name": "e\u{301}te\u{301}", "uuid": "2" },
            { "name": "lb", "uuid": "" },
        ] });
        assert_eq!(table(&reply, &[]), "name  uuid\n\u{8d1f}\u{8f7d}  1\ne\u{301}te\u{301}   2\nlb\n");
    }

    #[test]
    fn one_inventory_and_other_members_are_a_line_each() {
        let reply = json!({ "inventory": { "uuid": "1", "name": "web", "useFor": null, "port": 80 } });
        assert_eq!(table(&reply, &[]), "uuid  1\nname  web\nport  80\n");
        assert_eq!(table(&json!({ "valid": true }), &[]), "valid  true\n");
        assert_eq!(table(&json!({ "total": 3 }), &[]), "total  3\n");
        assert_eq!(table(&json!({}), &[]), "");
        assert_eq!(table(&json!({ "inventories": [] }), &[]), "none found\n");
    }

    #[test]
    fn json_and_yaml_are_the_reply_as_it_is_without_what_a_terminal_obeys() {
        let name = "no\u{1b}[2J\u{7f}\u{85}\u{9b}2J\n\u{e9}";
        let reply = json!({ "inventories": [{ "uuid": "0123", "name": name, "useFor": null }] });
        let json = render(&reply, Format::Json, &[]).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), reply);
        let text = render(&reply, Format::Yaml, &[]).unwrap();
        assert_eq!(yaml::read::<Value>(&text).unwrap(), reply);
        for text in [json, text] {
            assert!(text.chars().all(|one| one == '\n' || !one.is_control()), "{text:?}");
        }
    }
}
