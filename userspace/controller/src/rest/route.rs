//! Finds the calls of a method and a path in the table of calls. Pure.

use std::sync::LazyLock;

use vipgate_api::{
    Call,
    call::{Method, Route},
    calls,
    unserved::{self, Unserved},
};

/// A row of one of the two tables.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    Served(&'static Call),
    Unserved(&'static Unserved),
}

impl Target {
    /// The members of the body that select this call.
    pub(super) fn keys(&self) -> &[&'static str] {
        match self {
            Self::Served(call) => call.body,
            Self::Unserved(call) => std::slice::from_ref(&call.action),
        }
    }

    pub(super) const fn needs_session(self) -> bool {
        match self {
            Self::Served(call) => call.session,
            Self::Unserved(_) => true,
        }
    }
}

/// A call that matches, with the variables of its path.
#[derive(Debug)]
pub(super) struct Match {
    pub(super) target: Target,
    pub(super) variables: Vec<(String, String)>,
}

#[derive(Debug)]
pub(super) enum Found {
    NoPath,
    /// The path exists with these methods only.
    WrongVerb(Vec<Method>),
    /// More than one for the actions of a resource: the body selects one.
    Calls(Vec<Match>),
}

#[derive(Clone, Copy)]
enum Segment {
    Fixed(&'static str),
    Variable(&'static str),
}

struct Entry {
    method: Method,
    segments: Vec<Segment>,
    target: Target,
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let served = calls::all().flat_map(|call| call.routes.iter().map(move |route| (*route, Target::Served(call))));
    let unserved =
        unserved::CALLS.iter().flat_map(|call| call.routes.iter().map(move |route| (*route, Target::Unserved(call))));
    served.chain(unserved).flat_map(|(route, target)| entries(route, target)).collect()
});

const ACTIONS: &str = "/actions";

/// The two names of the collection of VIPs.
const VIPS: [&str; 2] = ["vip", "vips"];

/// The entries of a route. An update is found with and without `/actions`, a call of VIPs by both names of their collection,
/// whichever is documented.
fn entries(route: Route, target: Target) -> Vec<Entry> {
    let mut paths = vec![segments(route.path)];
    if route.method == Method::Put && route.path.contains('{') {
        let other = match route.path.strip_suffix(ACTIONS) {
            Some(bare) => segments(bare),
            None => segments(route.path).into_iter().chain(segments(ACTIONS)).collect(),
        };
        paths.push(other);
    }
    let names: Vec<_> = match paths[0].first() {
        Some(Segment::Fixed(name)) if VIPS.contains(name) => VIPS.map(Segment::Fixed).into(),
        first => first.copied().into_iter().collect(),
    };
    let spelt = paths.iter().flat_map(|path| names.iter().map(move |name| [&[*name], &path[1..]].concat()));
    spelt.map(|segments| Entry { method: route.method, segments, target }).collect()
}

fn segments(path: &'static str) -> Vec<Segment> {
    let parts = path.split('/').skip(1);
    parts
        .map(|part| match part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            Some(name) => Segment::Variable(name),
            None => Segment::Fixed(part),
        })
        .collect()
}

/// Finds the calls of `path`, given as its decoded segments below `/v1`. A fixed segment takes precedence over a variable.
/// `method` is `None` for a verb that the API does not know.
pub(super) fn find(method: Option<Method>, path: &[String]) -> Found {
    let matching: Vec<_> = ENTRIES.iter().filter(|entry| matches(entry, path)).collect();
    if matching.is_empty() {
        return Found::NoPath;
    }
    let with_verb: Vec<_> = matching.iter().filter(|entry| Some(entry.method) == method).collect();
    let Some(best) = with_verb.iter().map(|entry| fixed(entry)).max() else {
        let mut verbs: Vec<_> = matching.iter().map(|entry| entry.method).collect();
        verbs.sort();
        verbs.dedup();
        return Found::WrongVerb(verbs);
    };
    let best = with_verb.into_iter().filter(|entry| fixed(entry) == best);
    Found::Calls(best.map(|entry| Match { target: entry.target, variables: variables(entry, path) }).collect())
}

fn matches(entry: &Entry, path: &[String]) -> bool {
    entry.segments.len() == path.len()
        && entry.segments.iter().zip(path).all(|(segment, part)| match segment {
            Segment::Fixed(fixed) => fixed == part,
            Segment::Variable(_) => !part.is_empty(),
        })
}

/// Which segments are fixed; the leftmost has the highest weight.
fn fixed(entry: &Entry) -> Vec<bool> {
    entry.segments.iter().map(|segment| matches!(segment, Segment::Fixed(_))).collect()
}

fn variables(entry: &Entry, path: &[String]) -> Vec<(String, String)> {
    let pairs = entry.segments.iter().zip(path);
    pairs
        .filter_map(|(segment, part)| match segment {
            Segment::Fixed(_) => None,
            Segment::Variable(name) => Some(((*name).to_owned(), part.clone())),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(method: Method, path: &str) -> Vec<&'static str> {
        let path: Vec<_> = path.split('/').skip(1).map(str::to_owned).collect();
        match find(Some(method), &path) {
            Found::Calls(calls) => calls.iter().map(|found| name(found.target)).collect(),
            Found::NoPath | Found::WrongVerb(_) => Vec::new(),
        }
    }

    fn name(target: Target) -> &'static str {
        match target {
            Target::Served(call) => call.api.name(),
            Target::Unserved(call) => call.name,
        }
    }

    #[test]
    fn a_fixed_segment_beats_a_variable() {
        assert_eq!(names(Method::Get, "/l3-networks/ip-ranges"), ["QueryIpRange"]);
        assert_eq!(names(Method::Get, "/l3-networks/u"), ["QueryL3Network"]);
        assert_eq!(names(Method::Get, "/load-balancers/listeners/u"), ["QueryLoadBalancerListener"]);
        assert_eq!(names(Method::Delete, "/load-balancers/listeners/u"), ["DeleteLoadBalancerListener"]);
    }

    #[test]
    fn updates_are_found_with_and_without_actions() {
        for path in ["/load-balancers/listeners/u", "/load-balancers/listeners/u/actions"] {
            assert_eq!(names(Method::Put, path), ["UpdateLoadBalancerListener"], "{path}");
        }
        for path in ["/vips/u", "/vips/u/actions"] {
            assert_eq!(names(Method::Put, path), ["UpdateVip", "ChangeVipState", "SetVipQos"], "{path}");
        }
    }

    #[test]
    fn vips_are_found_by_both_names_of_their_collection() {
        for path in ["/vip/u/vip-qos", "/vips/u/vip-qos"] {
            assert_eq!(names(Method::Get, path), ["GetVipQos"], "{path}");
            assert_eq!(names(Method::Delete, path), ["DeleteVipQos"], "{path}");
        }
        assert_eq!(names(Method::Put, "/vip/u/actions"), names(Method::Put, "/vips/u"));
    }

    #[test]
    fn a_known_path_with_another_verb_names_the_verbs() {
        let path = ["vips".to_owned()];
        let Found::WrongVerb(verbs) = find(Some(Method::Delete), &path) else { panic!("no DELETE of all VIPs") };
        assert_eq!(verbs, [Method::Get, Method::Post]);
        assert!(matches!(find(None, &path), Found::WrongVerb(_)));
    }

    #[test]
    fn an_empty_variable_matches_nothing() {
        assert!(matches!(find(Some(Method::Get), &["vips".to_owned(), String::new()]), Found::NoPath));
    }

    #[test]
    fn every_row_of_both_tables_is_found_under_its_own_route() {
        let served = calls::all().flat_map(|call| call.routes.iter().map(|route| (call.api.name(), route)));
        let unserved = unserved::CALLS.iter().flat_map(|call| call.routes.iter().map(|route| (call.name, route)));
        for (name, route) in served.chain(unserved) {
            assert!(names(route.method, route.path).contains(&name), "{name} at {}", route.path);
        }
    }
}
