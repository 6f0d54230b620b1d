//! What a shell offers while a command is typed: fields of queries, and names of what there is.
//!
//! Names come from the API in the kept session's name. Without one, or without an answer soon, nothing is offered: a
//! shell that waits is worse than one that does not know.

use std::{ffi::OsStr, time::Duration};

use clap_complete::CompletionCandidate;
use vipgate_api::Resource;

use super::{http::Api, names::Reference, resolve, session::Session};

/// How long a shell may wait.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is offered at most.
const MOST: &str = "100";

/// Those that begin with what is typed, behind what stays as it is.
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

/// A condition: its field, with the operator that is asked for most.
pub(super) fn condition(resource: Resource, typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    beginning("", typed, resource.fields().iter().map(|field| format!("{field}=")))
}

/// Names of resources, as [`resolve`] takes them.
pub(super) fn names(reference: Reference, typed: &OsStr) -> Vec<CompletionCandidate> {
    let (Some((stays, typed)), Reference::One(resource)) = (typed.to_str().map(last), reference) else {
        return Vec::new();
    };
    beginning(stays, typed, known(resource, typed).unwrap_or_default())
}

fn known(resource: Resource, typed: &str) -> Option<Vec<String>> {
    let api = Api::of(&Session::load().ok()?, PATIENCE).ok()?;
    // NICs are called as their VMs are.
    let resource = if resource == Resource::VmNic { Resource::VmInstance } else { resource };
    let (_, call) = resolve::query(resource)?;
    let key = resolve::keys(resource).first()?;
    let condition = format!("{key}~={typed}%");
    let reply = api.query(call, &[("q", &condition), ("fields", key), ("sort", key), ("limit", MOST)]).ok()?;
    let found = reply["inventories"].as_array()?.iter().filter_map(|one| one[*key].as_str().map(str::to_owned));
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
    fn every_query_offers_fields() {
        for (name, _, _, resource) in queries() {
            assert!(!fields(resource, OsStr::new("")).is_empty(), "{name}");
        }
    }
}
