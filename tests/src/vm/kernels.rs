//! The table of kernels, read from `kernels.toml` beside this file. Touches nothing else.

use crate::lab::Result;
use anyhow::{Context as _, bail};
use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Name on the command line, such as `6.12-cloud`.
    pub name: String,
    /// Release, as `uname -r` prints it.
    pub release: String,
    /// Debian's suite that holds it, such as `trixie-security`.
    pub suite: String,
    pub packages: Vec<Package>,
    /// vipgate does not run there and must refuse to.
    #[serde(default)]
    pub refused: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub sha256: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    kernel: Vec<Kernel>,
}

/// All kernels, oldest first.
pub fn all() -> Result<Vec<Kernel>> {
    let table: Table = toml::from_str(include_str!("kernels.toml")).context("tests/src/vm/kernels.toml")?;
    Ok(table.kernel)
}

/// The kernels of these names, in the table's order; all kernels if `names` is empty.
pub fn named(names: &[String]) -> Result<Vec<Kernel>> {
    let all = all()?;
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|kernel| kernel.name == **name)) {
        let known: Vec<&str> = all.iter().map(|kernel| kernel.name.as_str()).collect();
        bail!("`{unknown}` is not a known kernel: give one of {}", known.join(", "));
    }
    Ok(all.into_iter().filter(|kernel| names.is_empty() || names.contains(&kernel.name)).collect())
}

/// The kernel of this name.
pub fn one(name: &str) -> Result<Kernel> {
    named(&[name.to_owned()]).map(|mut found| found.remove(0))
}

/// Returns the name if it is a kernel's.
pub fn known(name: &str) -> Result<String> {
    one(name).map(|kernel| kernel.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_each_kernel_once_with_whole_checksums() -> Result<()> {
        let all = all()?;
        for (index, kernel) in all.iter().enumerate() {
            assert!(all[..index].iter().all(|other| other.name != kernel.name), "{} is listed twice", kernel.name);
            assert!(!kernel.packages.is_empty(), "{} has no packages", kernel.name);
            for package in &kernel.packages {
                assert_eq!(hex::decode(&package.sha256)?.len(), 32, "{}", package.name);
            }
        }
        Ok(())
    }

    #[test]
    fn an_unknown_name_is_refused_with_a_list_of_known_ones() -> Result<()> {
        let error = named(&["4.19".to_owned()]).expect_err("no such kernel").to_string();
        assert!(error.contains("`4.19`") && error.contains("6.12-cloud"), "{error}");
        assert_eq!(named(&["7.3".to_owned()])?.len(), 1);
        Ok(())
    }
}
