//! Uses KVM where it works, emulation elsewhere.
//!
//! On some machines (nested ones, for example) `/dev/kvm` opens, but a guest dies in its first moments. So KVM is tried with
//! a guest, and the result is cached until the host boots again. May touch the cache.

use super::{
    Kernel, archive,
    image::{self, Sources},
    machine::{Machine, Options, Start},
};
use crate::lab::{Namespace, Result, leftovers::unique};
use anyhow::Context as _;
use std::{fs, time::Duration};
use tempfile::TempDir;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    /// Emulation, with a thread for each processor.
    Tcg,
}

/// A guest under KVM is up in two seconds; one that is not up by then never comes up.
const PATIENCE: Duration = Duration::from_secs(30);

impl Accelerator {
    /// The accelerator that works here. Boots this kernel to find out, unless a cached result is from this boot of the host.
    pub fn detect(sources: &Sources, kernel: &Kernel) -> Result<Self> {
        if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return Ok(Self::Tcg);
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot read the boot id")?;
        let memory = archive::cache()?.join("kvm");
        if let Some((known, answer)) = fs::read_to_string(&memory).unwrap_or_default().split_once(' ')
            && known == boot.trim()
        {
            return Ok(if answer.trim() == "works" { Self::Kvm } else { Self::Tcg });
        }
        eprintln!("==> trying KVM by booting {}", kernel.name);
        let answer = match Self::try_kvm(sources, kernel) {
            Ok(()) => Self::Kvm,
            Err(error) => {
                let reason = format!("{error:#}");
                eprintln!("    no: {}", reason.lines().next().unwrap_or_default());
                Self::Tcg
            }
        };
        let word = if answer == Self::Kvm { "works" } else { "fails" };
        fs::write(&memory, format!("{} {word}\n", boot.trim()))
            .with_context(|| format!("cannot write {}", memory.display()))?;
        Ok(answer)
    }

    fn try_kvm(sources: &Sources, kernel: &Kernel) -> Result<()> {
        let files = archive::fetch(kernel)?;
        let namespace = Namespace::new(unique("kvm"))?;
        let directory = TempDir::with_prefix(unique("kvm")).context("cannot make a temporary directory")?;
        let image = directory.path().join("image.cpio");
        image::write(&image, sources, &files, &[])?;
        let options = Options { memory: 512, cpus: 2, nics: Vec::new() };
        let start = Start { kernel: &files.image, image: &image, disk: None };
        Machine::boot(&options, Self::Kvm, start, &namespace, directory.path(), PATIENCE).map(drop)
    }

    pub(super) fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }
}

impl std::fmt::Display for Accelerator {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "emulation",
        })
    }
}
