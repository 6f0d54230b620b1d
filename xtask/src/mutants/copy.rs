//! A copy of the sources that faults are put into, so that the originals stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::faults::Fault;
use crate::{build, sh::root};

pub(super) struct Sources {
    tree: PathBuf,
}

impl Sources {
    /// Brings the copy up to date with the sources, committed or not.
    pub(super) fn make() -> Result<Self> {
        let tree = build::target_directory().join("mutants/tree");
        let listed = Command::new("git")
            .current_dir(root())
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .output()
            .context("cannot list the sources: is git installed?")?;
        ensure!(listed.status.success(), "cannot list the sources: {}", String::from_utf8_lossy(&listed.stderr));
        for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
            let (from, to) = (root().join(name), tree.join(name));
            match fs::read(&from) {
                // An unchanged file keeps its modification time, so that cargo does not build it again.
                Ok(bytes) if fs::read(&to).is_ok_and(|held| held == bytes) => {}
                Ok(bytes) => {
                    let directory = to.parent().context("a file is in a directory")?;
                    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
                    fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
                }
                // A file that was deleted but not committed: as a test it would still run.
                Err(_) => drop(fs::remove_file(&to)),
            }
        }
        Ok(Self { tree })
    }

    pub(super) fn tree(&self) -> &Path {
        &self.tree
    }

    /// Runs `work` while the fault is in the copy.
    pub(super) fn with<T>(&self, fault: &Fault, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let path = self.tree.join(&fault.file);
        let sound = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let write = |text: &str| fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()));
        write(&fault.applied(&sound)?)?;
        let done = work();
        write(&sound)?;
        done
    }
}
