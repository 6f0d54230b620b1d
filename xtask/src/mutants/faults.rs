//! The table of faults.

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use std::{fs, path::Path};

/// Its path.
pub(super) const TABLE: &str = "ebpf/faults.toml";

/// A fault that a developer could make.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fault {
    pub(super) name: String,
    /// Relative to the workspace's root.
    pub(super) file: String,
    /// The text to replace; occurs exactly once.
    find: String,
    replace: String,
    /// What the fault breaks; continues a sentence that begins with "it".
    pub(super) why: String,
    /// Why no test can notice it, if none can.
    pub(super) survives: Option<String>,
}

impl Fault {
    /// Returns the source with the fault in it.
    ///
    /// # Errors
    /// The text to replace does not occur exactly once.
    pub(super) fn applied(&self, source: &str) -> Result<String> {
        let places = source.matches(&self.find).count();
        ensure!(
            places == 1,
            "the fault `{}` finds its text {places} times in {}: {TABLE} must follow the source",
            self.name,
            self.file
        );
        Ok(source.replacen(&self.find, &self.replace, 1))
    }
}

/// Reads the table of the tree at `root`.
pub(super) fn read(root: &Path) -> Result<Vec<Fault>> {
    #[derive(Deserialize)]
    struct Table {
        fault: Vec<Fault>,
    }
    let text = fs::read_to_string(root.join(TABLE)).with_context(|| format!("cannot read {TABLE}"))?;
    let table: Table = toml::from_str(&text).with_context(|| format!("{TABLE} is not a valid table of faults"))?;
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
