//! A lab's own directory in the machine's bpffs. It holds the lab's pins; dropping it removes them and with them the kernel's
//! objects.

use super::{Result, leftovers::BPFFS, netns::run};
use anyhow::Context as _;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

#[derive(Debug)]
pub struct BpfDirectory {
    path: PathBuf,
}

impl BpfDirectory {
    /// Names the directory; the controller makes it.
    pub fn new(name: &str) -> Result<Self> {
        mount()?;
        Ok(Self { path: Path::new(BPFFS).join(name) })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for BpfDirectory {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                eprintln!("lab: cannot remove {}: {error}", self.path.display());
            }
            _ => {}
        }
    }
}

/// Mounts the bpffs where systemd would, unless it is mounted.
fn mount() -> Result<()> {
    let is_mounted = || statfs(BPFFS).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if !is_mounted() {
        let result = run(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]));
        // Another lab may have mounted it in between; a second mount on top of it would hide its pins.
        if !is_mounted() {
            result.context("cannot mount the bpffs")?;
        }
    }
    Ok(())
}
