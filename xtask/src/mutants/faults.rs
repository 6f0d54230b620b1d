//! The table of faults.

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use std::{fs, path::Path};

/// Where it is.
pub(super) const TABLE: &str = "ebpf/faults.toml";

/// A fault that somebody could make.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fault {
    pub(super) name: String,
    /// Below the workspace's root.
    pub(super) file: String,
    /// Stands there once.
    find: String,
    replace: String,
    /// What it does wrong: goes on from "it".
    pub(super) why: String,
    /// Why no test can notice it, where none does.
    pub(super) survives: Option<String>,
}

impl Fault {
    /// The source with the fault.
    ///
    /// # Errors
    /// The source does not hold the text that it replaces, or not just once.
    pub(super) fn applied(&self, source: &str) -> Result<String> {
        let places = source.matches(&self.find).count();
        ensure!(
            places == 1,
            "the fault `{}` finds its text {places} times in {}: {TABLE} has to follow the source",
            self.name,
            self.file
        );
        Ok(source.replacen(&self.find, &self.replace, 1))
    }
}

/// Reads the table of the sources under this directory.
pub(super) fn read(root: &Path) -> Result<Vec<Fault>> {
    #[derive(Deserialize)]
    struct Table {
        fault: Vec<Fault>,
    }
    let text = fs::read_to_string(root.join(TABLE)).with_context(|| format!("cannot read {TABLE}"))?;
    let table: Table = toml::from_str(&text).with_context(|| format!("{TABLE} is no table of faults"))?;
    Ok(table.fault)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::sh::root;

    #[test]
    fn every_fault_can_be_made_in_the_source_as_it_is() -> Result<()> {
        let faults = read(&root())?;
        let mut names = HashSet::new();
        for fault in &faults {
            ensure!(names.insert(&fault.name), "two faults are `{}`", fault.name);
            let source = fs::read_to_string(root().join(&fault.file)).with_context(|| fault.file.clone())?;
            ensure!(fault.applied(&source)? != source, "`{}` changes nothing", fault.name);
        }
        ensure!(faults.len() >= 24, "{} faults", faults.len());
        Ok(())
    }
}
