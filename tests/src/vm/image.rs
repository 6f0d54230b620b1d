//! The archive that a guest boots from, in memory: our init, the package, the kernel's modules and a few tools.
//!
//! Tools are the host's, with the libraries that they are linked to. The shell is also the host's, because busybox's prefers
//! its own `ip` over iproute2's. Reads files; writes only the archive.

use super::{archive::Unpacked, modules::Modules};
use crate::lab::{Result, netns::run};
use anyhow::{Context as _, ensure};
use cpio::newc::{Builder, ModeFileType, trailer};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};
use vipgate_guest::{MODULES, STAGED};

/// Build products for the image, made by `cargo xtask vm`.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The package for routers.
    pub package: PathBuf,
    /// `vipgate-guest`, linked statically.
    pub init: PathBuf,
}

/// A file that a system on a disk gets in its `/run`.
#[derive(Clone, Debug)]
pub struct Staged {
    path: String,
    contents: Vec<u8>,
    executable: bool,
}

impl Staged {
    #[must_use]
    pub fn file(path: impl Into<String>, contents: Vec<u8>) -> Self {
        Self { path: path.into(), contents, executable: false }
    }

    #[must_use]
    pub fn program(path: impl Into<String>, contents: Vec<u8>) -> Self {
        Self { path: path.into(), contents, executable: true }
    }
}

/// Tools that busybox lacks, or whose version in busybox is not enough.
const TOOLS: [&str; 5] = ["ip", "tc", "bridge", "ethtool", "bpftool"];

/// The directory in which the kernel program loader looks for the tools.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

enum Node {
    File { contents: Vec<u8>, executable: bool },
    Link(String),
}

/// The archive's tree; directories are implied by paths.
#[derive(Default)]
struct Tree(BTreeMap<String, Node>);

/// Writes the archive for this kernel to `path`, with these further tools of the host; returns its size in bytes.
pub fn write(path: &Path, sources: &Sources, kernel: &Unpacked, tools: &[&str]) -> Result<u64> {
    let mut tree = Tree::default();
    for directory in ["bin", "sbin", "lib", "lib64"] {
        tree.link(directory, &format!("usr/{directory}"));
    }
    tree.file("init", fs::read(&sources.init).context("cannot read the guest's init")?, true);
    tree.package(&sources.package)?;
    let shell = fs::canonicalize("/bin/sh").context("this machine has no shell")?;
    tree.program(&shell, "usr/bin/sh")?;
    for tool in TOOLS.iter().chain(tools) {
        let path = found(tool)?;
        tree.program(&path, &format!("usr/sbin/{tool}"))?;
    }
    tree.busybox()?;
    tree.modules(kernel)?;
    tree.link("etc/mtab", "/proc/self/mounts");
    tree.file("root/.keep", Vec::new(), false);
    tree.save(path)
}

/// [`write()`] for an archive that boots a system on a disk, and gives it these files.
pub fn write_for_disk(path: &Path, sources: &Sources, kernel: &Unpacked, staged: Vec<Staged>) -> Result<u64> {
    let mut tree = Tree::default();
    tree.file("init", fs::read(&sources.init).context("cannot read the guest's init")?, true);
    // Mount point of the disk.
    tree.file("root/.keep", Vec::new(), false);
    let release = kernel.release()?;
    let modules = Modules::for_disk(kernel)?;
    let place = format!("lib/modules/{release}");
    tree.list(&place, &modules.at_boot);
    for (path, contents) in modules.files {
        tree.file(&format!("{place}/{path}"), contents, false);
    }
    for Staged { path, contents, executable } in staged {
        tree.file(&format!("{}/{path}", STAGED.trim_start_matches('/')), contents, executable);
    }
    tree.save(path)
}

impl Tree {
    fn file(&mut self, path: &str, contents: Vec<u8>, executable: bool) {
        self.0.insert(path.to_owned(), Node::File { contents, executable });
    }

    fn link(&mut self, path: &str, target: &str) {
        self.0.insert(path.to_owned(), Node::Link(target.to_owned()));
    }

    /// Adds the package, unpacked as on a router, and the libraries of its binary.
    fn package(&mut self, package: &Path) -> Result<()> {
        let place = tempfile::tempdir().context("cannot make a temporary directory")?;
        run(Command::new("tar").arg("--extract").arg("--file").arg(package).arg("--directory").arg(place.path()))?;
        self.directory(place.path(), place.path())?;
        self.libraries(&place.path().join("usr/bin/vipgate"))
    }

    /// Adds all files below `directory`, by their paths relative to `base`.
    fn directory(&mut self, base: &Path, directory: &Path) -> Result<()> {
        for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
            let path = entry.with_context(|| format!("cannot list {}", directory.display()))?.path();
            if path.is_dir() {
                self.directory(base, &path)?;
                continue;
            }
            let executable = path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o111 != 0);
            let contents = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.strip_prefix(base).unwrap_or(&path).to_string_lossy().into_owned();
            self.file(&name, contents, executable);
        }
        Ok(())
    }

    fn program(&mut self, from: &Path, to: &str) -> Result<()> {
        self.file(to, fs::read(from).with_context(|| format!("cannot read {}", from.display()))?, true);
        self.libraries(from)
    }

    /// Adds the libraries of a program, where its loader looks first.
    fn libraries(&mut self, program: &Path) -> Result<()> {
        let said = run(Command::new("ldd").arg(program))?;
        // A line is `libelf.so.1 => /lib/x86_64-linux-gnu/libelf.so.1 (0x...)`; the loader's line has no arrow.
        let paths = said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
        for path in paths {
            let name = path.rsplit('/').next().unwrap_or(path);
            let place = if path == LOADER { "usr/lib64" } else { "usr/lib/x86_64-linux-gnu" };
            let contents = fs::read(path).with_context(|| format!("cannot read {path}"))?;
            self.file(&format!("{place}/{name}"), contents, true);
        }
        Ok(())
    }

    /// Adds busybox under the name of each of its tools that the image does not have yet.
    fn busybox(&mut self) -> Result<()> {
        let busybox = found("busybox")?;
        let linked = run(Command::new("ldd").arg(&busybox));
        ensure!(linked.is_err(), "{} is not static: install busybox-static", busybox.display());
        let applets = run(Command::new(&busybox).arg("--list"))?;
        let applets = applets.lines().filter(|applet| *applet != "busybox");
        for applet in applets {
            if ["usr/bin", "usr/sbin"].iter().all(|place| !self.0.contains_key(&format!("{place}/{applet}"))) {
                self.link(&format!("usr/bin/{applet}"), "busybox");
            }
        }
        self.link("usr/sbin/modprobe", "../bin/busybox");
        self.program_without_libraries(&busybox, "usr/bin/busybox")
    }

    fn program_without_libraries(&mut self, from: &Path, to: &str) -> Result<()> {
        self.file(to, fs::read(from).with_context(|| format!("cannot read {}", from.display()))?, true);
        Ok(())
    }

    /// Adds modules with the lists that modprobe reads, computed for just these modules.
    fn modules(&mut self, kernel: &Unpacked) -> Result<()> {
        let modules = Modules::collect(kernel)?;
        let release = kernel.release()?;
        let base = tempfile::tempdir().context("cannot make a temporary directory")?;
        let directory = base.path().join("lib/modules").join(&release);
        for (path, contents) in &modules.files {
            let path = directory.join(path);
            fs::create_dir_all(path.parent().unwrap_or(&directory)).context("cannot make a directory")?;
            fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))?;
        }
        for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            fs::copy(kernel.modules.join(list), directory.join(list)).with_context(|| format!("cannot copy {list}"))?;
        }
        run(Command::new("depmod").arg("--basedir").arg(base.path()).arg(&release))?;
        for (path, contents) in modules.files {
            self.file(&format!("usr/lib/modules/{release}/{path}"), contents, false);
        }
        for list in ["modules.dep", "modules.alias", "modules.symbols", "modules.builtin", "modules.softdep"] {
            let contents = fs::read(directory.join(list)).with_context(|| format!("depmod made no {list}"))?;
            self.file(&format!("usr/lib/modules/{release}/{list}"), contents, false);
        }
        self.list(&format!("lib/modules/{release}"), &modules.at_boot);
        Ok(())
    }

    /// Adds the list of modules that init loads.
    fn list(&mut self, place: &str, at_boot: &[String]) {
        let order = at_boot.iter().map(|path| format!("/{place}/{path}\n")).collect::<String>();
        self.file(MODULES.trim_start_matches('/'), order.into_bytes(), false);
    }

    /// Writes the archive to `path`; returns its size.
    fn save(&self, path: &Path) -> Result<u64> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        self.write(BufWriter::new(file)).context("cannot write the image")?;
        Ok(fs::metadata(path).context("the image is gone")?.len())
    }

    /// Writes the archive; each directory precedes its content.
    fn write(&self, out: impl Write) -> Result<()> {
        let mut written = Vec::new();
        // The kernel opens dev/console for init before anything is mounted.
        let console = Builder::new("dev/console").mode(0o600).set_mode_file_type(ModeFileType::Char);
        let mut out = self.parents("dev/console", &mut written, out)?;
        out = console.rdev_major(5).rdev_minor(1).ino(0).write(out, 0).finish()?;
        for (path, node) in &self.0 {
            out = self.parents(path, &mut written, out)?;
            let (builder, contents): (_, &[u8]) = match node {
                Node::File { contents, executable } => {
                    let mode = if *executable { 0o755 } else { 0o644 };
                    (Builder::new(path).mode(mode).set_mode_file_type(ModeFileType::Regular), contents)
                }
                Node::Link(target) => {
                    (Builder::new(path).mode(0o777).set_mode_file_type(ModeFileType::Symlink), target.as_bytes())
                }
            };
            let size = u32::try_from(contents.len()).with_context(|| format!("{path} is too big for an archive"))?;
            let inode = u32::try_from(written.len()).context("too many files")?;
            let mut entry = builder.ino(inode).write(out, size);
            entry.write_all(contents)?;
            out = entry.finish()?;
            written.push(path.clone());
        }
        trailer(out)?.flush().context("cannot end the archive")
    }

    /// Writes the directories above `path` that are not yet `written`.
    fn parents<W: Write>(&self, path: &str, written: &mut Vec<String>, mut out: W) -> Result<W> {
        for (end, _) in path.match_indices('/') {
            let directory = &path[..end];
            if !written.iter().any(|path| path == directory) {
                let inode = u32::try_from(written.len()).context("too many files")?;
                let builder = Builder::new(directory).mode(0o755).set_mode_file_type(ModeFileType::Directory);
                out = builder.ino(inode).write(out, 0).finish()?;
                written.push(directory.to_owned());
            }
        }
        Ok(out)
    }
}

fn found(program: &str) -> Result<PathBuf> {
    super::which(program).with_context(|| format!("the guest needs {program}: run cargo xtask setup"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The archive's content as cpio lists it, in the format of `ls -l`.
    fn listed(tree: &Tree) -> Result<Vec<String>> {
        let place = tempfile::tempdir()?;
        let path = place.path().join("image.cpio");
        tree.write(File::create(&path)?)?;
        let mut reader = File::open(&path)?;
        let mut entries = Vec::new();
        loop {
            let entry = cpio::NewcReader::new(reader)?;
            if entry.entry().is_trailer() {
                return Ok(entries);
            }
            entries.push(format!("{:o} {}", entry.entry().mode(), entry.entry().name()));
            reader = entry.finish()?;
        }
    }

    #[test]
    fn directories_come_once_and_before_what_is_in_them_and_links_stay_links() -> Result<()> {
        let mut tree = Tree::default();
        tree.file("usr/bin/vipgate", b"binary".to_vec(), true);
        tree.file("usr/bin/a", Vec::new(), false);
        tree.link("bin", "usr/bin");
        let expected = [
            "40755 dev",
            "20600 dev/console",
            "120777 bin",
            "40755 usr",
            "40755 usr/bin",
            "100644 usr/bin/a",
            "100755 usr/bin/vipgate",
        ];
        assert_eq!(listed(&tree)?, expected);
        Ok(())
    }
}
