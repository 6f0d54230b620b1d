//! Starts a system from a disk, as a distribution's own initramfs does: loads drivers, mounts the root file system, and runs
//! that system's init.
//!
//! The host's files for this boot go to `/run`, which is memory: the disk stays as its system made it.

use crate::boot;
use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    unistd::{chdir, chroot},
};
use std::{
    convert::Infallible,
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};
use vipgate_guest::STAGED;

const DEVICE: &str = "/dev/vda";
const ROOT: &str = "/root";

/// File system types and mount points that move to the other system.
const MOUNTS: [(&str, &str); 4] = [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run")];

/// How long the disk may take to appear once its driver is there.
const APPEARS: Duration = Duration::from_secs(30);

/// Replaces this process by the init of the system on the disk.
pub(crate) fn start() -> Result<Infallible> {
    boot::mount_all(&MOUNTS)?;
    if let Some(complaint) = boot::load_modules()?.first() {
        bail!("{complaint}");
    }
    wait_for_disk()?;
    mount(Some(DEVICE), ROOT, Some("ext4"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount {DEVICE}"))?;
    copy(Path::new(STAGED), Path::new("/run"))?;
    for (_, place) in MOUNTS {
        let to = format!("{ROOT}{place}");
        moved(place, &to)?;
    }
    chdir(ROOT).context("cannot go to the disk's root")?;
    moved(".", "/")?;
    chroot(".").context("cannot make the disk's root the root")?;
    Err(Command::new("/sbin/init").exec()).context("cannot start the disk's init")
}

fn wait_for_disk() -> Result<()> {
    let deadline = Instant::now() + APPEARS;
    while !Path::new(DEVICE).exists() {
        if Instant::now() > deadline {
            bail!("no {DEVICE} here: is virtio_blk loaded?");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn moved(from: &str, to: &str) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .with_context(|| format!("cannot move the mount {from} to {to}"))
}

/// Copies a directory's content, with permissions.
fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", from.display()))?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
            copy(&from, &to)?;
        } else {
            fs::copy(&from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        }
    }
    Ok(())
}
