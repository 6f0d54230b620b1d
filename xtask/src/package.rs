//! `cargo xtask package`: a tarball to unpack on a router. The binary embeds the kernel programs: a router needs no toolchain.

use crate::{
    build::{binary, target_directory},
    ebpf,
    setup::{self, Need},
    sh::{root, step},
};
use anyhow::{Context as _, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// What goes into the tarball besides the binary and the book: where it comes from, where it is installed.
const FILES: [(&str, &str); 5] = [
    ("packaging/vipgate.service", "usr/lib/systemd/system/vipgate.service"),
    ("packaging/vipgate.toml", "etc/vipgate/vipgate.toml"),
    ("README.md", "usr/share/doc/vipgate/README.md"),
    ("docs/router.yaml", "usr/share/doc/vipgate/router.yaml"),
    ("LICENSE", "usr/share/doc/vipgate/LICENSE"),
];

/// Where the book goes, beside README, whose links lead there.
const BOOK: &str = "usr/share/doc/vipgate/docs";

pub(crate) fn run(_: &Args) -> Result<()> {
    println!("{}", build()?.display());
    Ok(())
}

/// Makes the tarball and returns its path.
pub(crate) fn build() -> Result<PathBuf> {
    setup::ensure(&[Need::Build])?;
    ebpf::build()?;
    let mut contents = vec![(binary(true)?, PathBuf::from("usr/bin/vipgate"))];
    contents.extend(FILES.map(|(from, to)| (root().join(from), to.into())));
    book(&root().join("docs"), Path::new(BOOK), &mut contents)?;

    let name = format!("vipgate-{}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let directory = target_directory().join("package");
    let tree = directory.join(&name);
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("cannot empty {}", tree.display()))?;
    }
    for (from, to) in &contents {
        let to = tree.join(to);
        fs::create_dir_all(to.parent().unwrap_or(&tree))
            .with_context(|| format!("cannot make the directory of {}", to.display()))?;
        fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    let tarball = directory.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "--create", "--gzip", "--file"])
        .arg(&tarball)
        .arg("--directory")
        .arg(&tree)
        .args(["usr", "etc"]);
    step("tarball", &mut tar)?;
    Ok(tarball)
}

/// Adds the files below `from`, to be installed below `to`.
fn book(from: &Path, to: &Path, contents: &mut Vec<(PathBuf, PathBuf)>) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry.with_context(|| format!("cannot read {}", from.display()))?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() { book(&path, &to, contents)? } else { contents.push((path, to)) }
    }
    Ok(())
}
