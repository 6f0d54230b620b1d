//! Installs QEMU: from the machine's own release, but on Debian 12 from its backports.
//!
//! Images of Debian 12 often have packages from backports already. Beside those the release's own QEMU is too old, and apt
//! would remove them. apt uses separate package lists for this, so that the machine's sources stay as they are, and
//! installs only if no installed package is upgraded or removed.

use crate::{
    build::target_directory,
    setup,
    sh::{as_root, capture, step, which},
};
use anyhow::{Context as _, Result, bail};
use std::{fs, path::Path, process::Command};

const PACKAGE: &str = "qemu-system-x86";
const BACKPORTS: &str = "bookworm-backports";
const SOURCES: &str = "\
deb http://deb.debian.org/debian bookworm main
deb http://deb.debian.org/debian bookworm-backports main
deb http://deb.debian.org/debian-security bookworm-security main
";

pub(crate) fn install() -> Result<()> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !release.lines().any(|line| line == "VERSION_CODENAME=bookworm") {
        return setup::apt(&[PACKAGE]);
    }
    let options = private_lists()?;
    let command = |arguments: &[&str]| -> Result<Command> {
        let apt_get = which("apt-get").context("Debian has apt-get")?;
        let mut command = as_root(Path::new("/usr/bin/env"), "installing packages")?;
        command.args(["DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"]).arg(apt_get);
        command.args(&options).args(arguments);
        Ok(command)
    };
    step("package lists of Debian 12's backports", &mut command(&["update", "-qq"])?)?;
    let words = ["install", "-y", "--no-remove", "--no-install-recommends", "-t", BACKPORTS, PACKAGE];
    let rehearsal = capture(command(&words)?.arg("--simulate"));
    let Some(rehearsal) = rehearsal else {
        bail!("{PACKAGE} cannot be installed without removing packages of this machine: install it by hand");
    };
    if !rehearsal.lines().any(|line| line.starts_with("0 upgraded,") && line.contains(" 0 to remove")) {
        bail!("{PACKAGE} of {BACKPORTS} would upgrade packages of this machine: install it by hand");
    }
    step("QEMU", &mut command(&words)?)
}

/// Options that give apt separate sources, lists and archives.
fn private_lists() -> Result<Vec<String>> {
    let root = target_directory().join("apt");
    for directory in ["lists/partial", "archives/partial"] {
        let directory = root.join(directory);
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let sources = root.join("sources.list");
    fs::write(&sources, SOURCES).with_context(|| format!("cannot write {}", sources.display()))?;
    let options = [
        format!("Dir::Etc::sourcelist={}", sources.display()),
        "Dir::Etc::sourceparts=-".to_owned(),
        format!("Dir::State::lists={}", root.join("lists").display()),
        format!("Dir::Cache={}", root.display()),
        "APT::Sandbox::User=root".to_owned(),
    ];
    Ok(options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect())
}
