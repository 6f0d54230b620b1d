//! Completion in shells: fields of queries, and names of resources.
//!
//! The API is asked for names with the saved session. Without a session or a quick answer nothing is offered: a shell
//! that waits is worse than one without a suggestion. Any account can choose names, and a shell may insert a suggestion
//! unquoted: only names that are plain words in every shell are offered, other resources by their uuids.

use std::{ffi::OsStr, time::Duration};

use clap_complete::CompletionCandidate;
use vipgate_api::Resource;

use super::{http::Api, names::Reference, render::sanitized, resolve, session::Session};

/// The longest time that a shell waits.
const PATIENCE: Duration = Duration::from_secs(1);

/// The maximum of suggestions.
const MOST: &str = "100";

/// The candidates that begin with the typed text, after the part that stays.
fn beginning(stays: &str, typed: &str, offered: impl IntoIterator<Item = String>) -> Vec<CompletionCandidate> {
    let fitting = offered.into_iter().filter(|offer| offer.starts_with(typed));
    fitting.map(|offer| CompletionCandidate::new(format!("{stays}{offer}"))).collect()
}

/// The elements of a list are completed one by one.
fn last(typed: &str) -> (&str, &str) {
    typed.split_at(typed.rfind(',').map_or(0, |comma| comma + 1))
}

fn owned(fields: &[&str]) -> Vec<String> {
    fields.iter().map(|field| (*field).to_owned()).collect()
}

/// `--fields`
pub(super) fn fields(resource: Resource, typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some((stays, typed)) = typed.to_str().map(last) else { return Vec::new() };
    beginning(stays, typed, owned(resource.fields()))
}

/// `--sort`
pub(super) fn sort(resource: Resource, typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    let (sign, typed) = typed.split_at(typed.len() - typed.trim_start_matches(['-', '+']).len());
    beginning(sign, typed, owned(resource.fields()))
}

/// A condition: its field, with the most frequent operator.
pub(super) fn condition(resource: Resource, typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    beginning("", typed, resource.fields().iter().map(|field| format!("{field}=")))
}

/// Names of resources, as [`resolve`] takes them.
pub(super) fn names(reference: Reference, typed: &OsStr) -> Vec<CompletionCandidate> {
    let (Some((stays, typed)), Reference::One(resource)) = (typed.to_str().map(last), reference) else {
        return Vec::new();
    };
    let known = known(resource, typed).unwrap_or_default();
    known.iter().filter_map(|(name, uuid)| called(stays, typed, name, uuid.as_deref())).collect()
}

/// The suggestion for a resource, if its name begins with the typed text.
fn called(stays: &str, typed: &str, name: &str, uuid: Option<&str>) -> Option<CompletionCandidate> {
    if !name.starts_with(typed) {
        return None;
    }
    if is_plain(name) {
        return Some(CompletionCandidate::new(format!("{stays}{name}")));
    }
    let uuid = uuid.filter(|uuid| resolve::is_uuid(uuid))?;
    Some(CompletionCandidate::new(format!("{stays}{uuid}")).help(Some(sanitized(name).into())))
}

/// Whether no shell interprets any part of this word, and it is no option.
fn is_plain(name: &str) -> bool {
    let is_word = |character: char| character.is_alphanumeric() || "._:@+-".contains(character);
    !name.is_empty() && !name.starts_with('-') && name.chars().all(is_word)
}

/// Names that begin with the typed text, with the uuids.
fn known(resource: Resource, typed: &str) -> Option<Vec<(String, Option<String>)>> {
    let api = Api::of(&Session::load().ok()?, PATIENCE).ok()?;
    // The names of VMs stand for their NICs, but the uuids of VMs do not.
    let (resource, is_itself) = match resource {
        Resource::VmNic => (Resource::VmInstance, false),
        other => (other, true),
    };
    let (_, call) = resolve::query(resource)?;
    let key = resolve::keys(resource).first()?;
    let (condition, fields) = (format!("{key}~={typed}%"), format!("{key},uuid"));
    let reply = api.query(call, &[("q", &condition), ("fields", &fields), ("sort", key), ("limit", MOST)]).ok()?;
    let found = reply["inventories"].as_array()?.iter().filter_map(|one| {
        let uuid = one["uuid"].as_str().filter(|_| is_itself).map(str::to_owned);
        Some((one[*key].as_str()?.to_owned(), uuid))
    });
    Some(found.collect())
}

#[cfg(test)]
mod tests {
    use super::{super::names::queries, *};

    fn offered(candidates: &[CompletionCandidate]) -> Vec<&str> {
        candidates.iter().filter_map(|candidate| candidate.get_value().to_str()).collect()
    }

    #[test]
    fn fields_are_offered_behind_what_is_typed() {
        let of = |typed: &str| fields(Resource::Vip, OsStr::new(typed));
        assert_eq!(offered(&of("uuid,na")), ["uuid,name"]);
        assert_eq!(offered(&of("zz")), Vec::<&str>::new());
        assert_eq!(offered(&sort(Resource::Vip, OsStr::new("-creat"))), ["-createDate"]);
        assert_eq!(offered(&condition(Resource::Vip, OsStr::new("useF"))), ["useFor="]);
    }

    #[test]
    fn a_name_that_a_shell_would_obey_is_offered_as_its_uuid() {
        let uuid = "0123456789abcdef0123456789abcdef";
        let offer = |name: &str, uuid: Option<&str>| {
            called("a,", "", name, uuid).map(|candidate| candidate.get_value().to_string_lossy().into_owned())
        };
        for name in ["web", "web-1.shop:80", "a@b+c_d", "caf\u{e9}", "\u{4e2d}\u{6587}"] {
            assert_eq!(offer(name, Some(uuid)), Some(format!("a,{name}")));
        }
        for name in [
            "shop$(touch${IFS}x)",
            "shop`id`",
            "data;id",
            "a'b",
            "a\"b",
            "a\nid\n",
            "a\rid",
            "a\u{b}b",
            "*",
            "a b",
            "~root",
            "!!",
            "a\\b",
            "a|b",
            "a>b",
            "a&b",
            "{a,b}",
            "#a",
            "=ls",
            "-rf",
            "--prune",
            "a\u{2028}b",
            "a\u{1b}[2J",
            "",
        ] {
            assert_eq!(offer(name, Some(uuid)), Some(format!("a,{uuid}")), "{name:?}");
            assert_eq!(offer(name, None), None, "{name:?}");
            assert_eq!(offer(name, Some("$(id)")), None, "{name:?}");
        }
        let named = called("", "sh", "sh$(id)\n", Some(uuid)).unwrap();
        assert_eq!(named.get_help().unwrap().to_string(), "sh$(id)\u{fffd}");
        assert!(called("", "web", "shop", Some(uuid)).is_none());
    }

    #[test]
    fn every_query_offers_fields() {
        for (name, _, _, resource) in queries() {
            assert!(!fields(resource, OsStr::new("")).is_empty(), "{name}");
        }
    }
}
