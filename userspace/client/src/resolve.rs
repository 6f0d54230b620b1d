//! Finds the uuid of a resource by its name, which the API is asked for. Exactly one resource must have it.

use serde_json::Value;
use vipgate_api::{
    Call, Resource,
    query::{self as grammar, Test},
};

use super::{
    ClientError,
    http::Api,
    names::{self, Reference},
    render::sanitized,
};

/// The maximum of candidates that an error names.
const MOST_NAMED: usize = 8;

/// The fields that can name a resource; the first that finds something decides. If there is none, only its uuid names
/// it.
pub(super) fn keys(resource: Resource) -> &'static [&'static str] {
    match resource {
        Resource::Vip => &["name", "ip"],
        // NICs have no names: the names of their VMs stand for them.
        Resource::VmNic => &["vmInstance.name", "ip"],
        Resource::NetworkServiceProvider => &["name", "type"],
        _ if resource.fields().contains(&"name") && resource.fields().contains(&"uuid") => &["name"],
        _ => &[],
    }
}

/// The query that finds a resource, and its name.
pub(super) fn query(resource: Resource) -> Option<(String, &'static Call)> {
    names::queries().find_map(|(name, _, call, found)| (found == resource).then_some((name, call)))
}

pub(super) fn uuid(api: &Api, reference: Reference, given: &str) -> Result<String, ClientError> {
    if is_uuid(given) {
        return Ok(given.to_ascii_lowercase());
    }
    match reference {
        Reference::One(resource) => one(given, &kind(resource), candidates(api, resource, given)?),
        Reference::Any => {
            let mut found = Vec::new();
            for (.., resource) in names::queries() {
                // These are some of the L2 networks, which have a query of their own.
                if resource != Resource::L2VlanNetwork {
                    found.extend(candidates(api, resource, given)?);
                }
            }
            one(given, "resources", found)
        }
    }
}

pub(super) fn is_uuid(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn kind(resource: Resource) -> String {
    query(resource).map_or_else(|| resource.kind().to_owned(), |(name, _)| name)
}

/// A resource that may be meant: how it is shown, and its uuid.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    shown: String,
    uuid: String,
    /// Its name equals the given one in its case, too; the API ignores case.
    exact: bool,
}

fn candidates(api: &Api, resource: Resource, given: &str) -> Result<Vec<Candidate>, ClientError> {
    let Some((kind, call)) = query(resource) else { return Ok(Vec::new()) };
    for key in keys(resource) {
        let reply = api.query(call, &[("q", &condition(key, given)?)])?;
        let found: Vec<_> = reply["inventories"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| candidate(&kind, one, given))
            .collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// A condition for exactly this value; for some values the grammar has none.
fn condition(key: &str, value: &str) -> Result<String, ClientError> {
    let text = format!("{key}={value}");
    let read = grammar::parse(&[("q".to_owned(), text.clone())]);
    match read.ok().and_then(|query| query.conditions.into_iter().next()) {
        Some(read) if read.name == key && read.test == Test::Equal(value.to_owned()) => Ok(text),
        _ => Err(ClientError::Unaskable { name: value.to_owned() }),
    }
}

fn candidate(kind: &str, inventory: &Value, given: &str) -> Option<Candidate> {
    let uuid = inventory["uuid"].as_str()?;
    let called: Vec<_> = ["name", "ip"].iter().filter_map(|field| inventory[*field].as_str()).collect();
    let shown = [&called[..], &[uuid, &format!("({kind})")]].concat().join(" ");
    Some(Candidate { shown: sanitized(&shown), uuid: uuid.to_owned(), exact: called.contains(&given) })
}

fn one(given: &str, kind: &str, found: Vec<Candidate>) -> Result<String, ClientError> {
    let exact = found.iter().filter(|candidate| candidate.exact);
    let mut left = if exact.clone().count() == 1 { exact.cloned().collect() } else { found };
    match left.len() {
        0 => Err(ClientError::UnknownName { name: given.to_owned(), kind: kind.to_owned() }),
        1 => Ok(left.remove(0).uuid),
        count => {
            let named = left.iter().take(MOST_NAMED).map(|candidate| candidate.shown.as_str());
            let mut candidates = named.collect::<Vec<_>>().join("\n  ");
            if count > MOST_NAMED {
                candidates.push_str("\n  ...");
            }
            Err(ClientError::Ambiguous { name: given.to_owned(), kind: kind.to_owned(), count, candidates })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(names: &[&str]) -> Vec<Candidate> {
        let inventories =
            names.iter().enumerate().map(|(number, name)| json!({ "name": name, "uuid": format!("{number:032x}") }));
        inventories.filter_map(|inventory| candidate("vips", &inventory, "web")).collect()
    }

    #[test]
    fn a_name_must_be_of_exactly_one() {
        assert_eq!(one("web", "vips", found(&["web"])).unwrap(), format!("{:032x}", 0));
        assert_eq!(one("web", "vips", found(&["Web", "web"])).unwrap(), format!("{:032x}", 1), "case decides");
        let unknown = one("web", "vips", found(&[])).unwrap_err().to_string();
        assert!(unknown.contains("`web`") && unknown.contains("query vips"), "{unknown}");
        let ambiguous = one("web", "vips", found(&["web"; 20])).unwrap_err().to_string();
        assert!(ambiguous.contains("20") && ambiguous.contains(&format!("{:032x}", 7)), "{ambiguous}");
        assert!(!ambiguous.contains(&format!("{:032x}", 8)), "{ambiguous}");
    }

    #[test]
    fn names_that_the_grammar_cannot_ask_for_are_told() {
        for name in ["web 1", "a<b", "café", "100%"] {
            assert_eq!(condition("name", name).unwrap(), format!("name={name}"));
        }
        for name in ["a!=b", "a~=b", "null", " a"] {
            assert!(condition("name", name).is_err(), "{name}");
        }
    }

    #[test]
    fn what_is_resolved_has_the_fields_it_is_called_by() {
        for (.., resource) in names::queries() {
            for key in keys(resource).iter().filter(|key| !key.contains('.')) {
                assert!(resource.fields().contains(key), "{resource:?} has no {key}");
            }
        }
    }
}
