//! A directory of its own in the machine's bpffs: the lab's pins, gone on drop and with them the kernel's objects.

use super::{
    Result,
    netns::{is_alive, owner, run},
};
use anyhow::Context as _;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

const ROOT: &str = "/sys/fs/bpf";

#[derive(Debug)]
pub struct BpfDirectory {
    path: PathBuf,
}

impl BpfDirectory {
    /// Names the directory; the controller makes it.
    pub fn new(name: &str) -> Result<Self> {
        mount()?;
        Ok(Self { path: Path::new(ROOT).join(name) })
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

/// Mounts the bpffs where systemd would, if nothing did, and removes what killed labs pinned there.
fn mount() -> Result<()> {
    static MOUNTED: Mutex<bool> = Mutex::new(false);
    let mut mounted = MOUNTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if *mounted {
        return Ok(());
    }
    let is_mounted = || statfs(ROOT).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if !is_mounted() {
        let result = run(Command::new("mount").args(["-t", "bpf", "bpf", ROOT]));
        // Another lab's process may have mounted it in between.
        if !is_mounted() {
            result.context("cannot mount the bpffs")?;
        }
    }
    *mounted = true;
    let entries = fs::read_dir(ROOT).context("cannot list the bpffs")?;
    for entry in entries.flatten() {
        let dead = entry.file_name().to_str().and_then(owner).is_some_and(|process| !is_alive(process));
        if dead {
            // Another lab's sweep may have been faster.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}
