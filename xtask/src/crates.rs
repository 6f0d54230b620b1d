//! Checks the manifests: which crate may depend on which, so that calls go down and never up.
//!
//! Cargo refuses cycles. This also refuses a dependency that nobody has decided on, and a library that belongs to another
//! crate. Dev-dependencies are free.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::sh::{capture, cargo};

/// Each crate of the product, and which of our other crates it may depend on. A new crate needs a row.
const MAY_USE: &[(&str, &[&str])] = &[
    ("vipgate-abi", &[]),
    ("vipgate-api", &[]),
    ("vipgate-state", &["vipgate-abi", "vipgate-api"]),
    ("vipgate-agent", &["vipgate-abi", "vipgate-state"]),
    ("vipgate-controller", &["vipgate-api", "vipgate-state"]),
    ("vipgate-client", &["vipgate-api"]),
    (
        "vipgate",
        &["vipgate-abi", "vipgate-agent", "vipgate-api", "vipgate-client", "vipgate-controller", "vipgate-state"],
    ),
];

/// What builds and tests the product may depend on anything.
const TOOLS: &[&str] = &["vipgate-fuzz", "vipgate-guest", "vipgate-host-kernel", "vipgate-tests", "xtask"];

/// Libraries that only some of our crates may use.
const BELONGS_TO: &[(&str, &[&str])] = &[
    // Behind a feature: aya's trait for map values.
    ("aya", &["vipgate-abi", "vipgate-agent"]),
    ("aya-log", &["vipgate-agent"]),
    ("netlink-packet-core", &["vipgate-agent"]),
    ("netlink-packet-route", &["vipgate-agent"]),
    ("rtnetlink", &["vipgate-agent"]),
    ("sea-query", &["vipgate-controller"]),
    ("sea-query-sqlx", &["vipgate-controller"]),
    ("sqlx", &["vipgate-controller"]),
    ("axum", &["vipgate-controller"]),
    ("reqwest", &["vipgate-client", "vipgate-controller"]),
    ("serde-saphyr", &["vipgate-client"]),
];

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `None` for an ordinary dependency, else `dev` or `build`.
    kind: Option<String>,
}

/// # Errors
/// A crate depends on something that it may not; the message names both and where the rule is.
pub(crate) fn check() -> Result<()> {
    eprintln!("==> dependencies between crates");
    let metadata = capture(&mut cargo(&["metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"]))
        .context("cargo metadata fails")?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata prints unexpected JSON")?;
    let found = offences(&metadata);
    if !found.is_empty() {
        bail!(
            "{}\nxtask/src/crates.rs lists which crate may depend on which; CONTRIBUTING.md says why",
            found.join("\n")
        );
    }
    Ok(())
}

fn offences(metadata: &Metadata) -> Vec<String> {
    let may_use: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    let belongs_to: BTreeMap<_, _> = BELONGS_TO.iter().copied().collect();
    let mut found = Vec::new();
    for Package { name, dependencies } in &metadata.packages {
        let Some(allowed) = may_use.get(name.as_str()) else {
            if !TOOLS.contains(&name.as_str()) {
                found.push(format!("{name} has no row"));
            }
            continue;
        };
        for Dependency { name: used, .. } in dependencies.iter().filter(|used| used.kind.as_deref() != Some("dev")) {
            let is_ours = used.starts_with("vipgate");
            let is_others = belongs_to.get(used.as_str()).is_some_and(|owners| !owners.contains(&name.as_str()));
            if is_others || is_ours && !allowed.contains(&used.as_str()) {
                found.push(format!("{name} may not depend on {used}"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, used: &str, kind: Option<&str>) -> Vec<String> {
        let used = Dependency { name: used.to_owned(), kind: kind.map(str::to_owned) };
        offences(&Metadata { packages: vec![Package { name: name.to_owned(), dependencies: vec![used] }] })
    }

    #[test]
    fn a_crate_may_depend_neither_on_one_above_it_nor_on_a_library_of_another() {
        assert_eq!(
            of("vipgate-agent", "vipgate-controller", None),
            ["vipgate-agent may not depend on vipgate-controller"]
        );
        assert_eq!(
            of("vipgate-client", "vipgate-state", Some("build")),
            ["vipgate-client may not depend on vipgate-state"]
        );
        assert_eq!(of("vipgate-agent", "sqlx", None), ["vipgate-agent may not depend on sqlx"]);
        assert_eq!(of("vipgate-agent", "vipgate-state", None), [""; 0]);
        assert_eq!(of("vipgate-client", "vipgate-controller", Some("dev")), [""; 0]);
        assert_eq!(of("vipgate-controller", "sqlx", None), [""; 0]);
    }

    #[test]
    fn a_new_crate_needs_a_row() {
        assert_eq!(of("vipgate-proxy", "sqlx", None), ["vipgate-proxy has no row"]);
        assert_eq!(of("vipgate-tests", "vipgate-agent", None), [""; 0]);
    }
}
