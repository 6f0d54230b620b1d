//! Building the kernel programs: `ebpf/` is a workspace of its own, with its own compiler, target and lock file.
//!
//! Debian's compiler is preferred: its package holds the BPF target's core library prebuilt, so neither a nightly nor
//! `-Z build-std` is needed. `RUSTC_BOOTSTRAP` unlocks the one unstable feature that BPF inline assembly needs. The
//! linker's LLVM must be as new as the compiler's: 22 for both.

use crate::sh::{capture, root, step, which};
use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSymbol as _};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// The programs that the loader looks up by name.
const PROGRAMS: [&str; 9] = [
    "vipgate_xdp",
    "vipgate_generic",
    "vipgate_behind",
    "vipgate_tc",
    "vipgate_egress",
    "vipgate_queue",
    "vipgate_clock",
    "vipgate_redirects",
    "vipgate_sockets",
];

/// The toolchain channel if rustup is used; its LLVM is 22, as the linker's. `EBPF_TOOLCHAIN` overrides it.
pub(crate) fn rustup_channel() -> String {
    env::var("EBPF_TOOLCHAIN").unwrap_or_else(|_| "nightly-2026-05-15".to_owned())
}

#[derive(Debug)]
pub(crate) enum Toolchain {
    Debian,
    Rustup(String),
}

impl Toolchain {
    pub(crate) fn find() -> Option<Self> {
        let prebuilt = Path::new("/usr/lib/rustlib").join(TARGET).join("lib");
        if Path::new(DEBIAN_CARGO).exists() && Path::new(DEBIAN_RUSTC).exists() && prebuilt.exists() {
            return Some(Self::Debian);
        }
        let channel = rustup_channel();
        let sysroot = capture(Command::new("rustup").args(["run", &channel, "rustc", "--print", "sysroot"]))?;
        Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").exists().then_some(Self::Rustup(channel))
    }

    fn describe(&self) -> String {
        match self {
            Self::Debian => {
                capture(Command::new(DEBIAN_RUSTC).arg("--version")).unwrap_or_else(|| "Debian's rustc".to_owned())
            }
            Self::Rustup(channel) => format!("rustup's {channel}, core library built here"),
        }
    }

    /// `cargo <verb>` for the kernel programs, without the variables that the outer cargo and rustup set.
    pub(crate) fn cargo(&self, verb: &str) -> Result<Command> {
        self.cargo_in(&root(), verb)
    }

    /// [`Self::cargo`] in another copy of the sources.
    fn cargo_in(&self, tree: &Path, verb: &str) -> Result<Command> {
        let mut command = match self {
            Self::Debian => {
                let mut command = Command::new(DEBIAN_CARGO);
                command.arg(verb).env("RUSTC", DEBIAN_RUSTC);
                command
            }
            Self::Rustup(channel) => {
                let mut command = Command::new("rustup");
                command.args(["run", channel, "cargo", verb, "-Z", "build-std=core"]).env_remove("RUSTC");
                command
            }
        };
        for inherited in
            ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_TARGET_DIR"]
        {
            command.env_remove(inherited);
        }
        let architecture = format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH);
        let linker = format!("-Clinker={}", linker()?.display());
        let flags = [&linker, &architecture, "-Cdebuginfo=2", "-Clink-arg=--btf", "-Ctarget-cpu=v3"];
        command
            .current_dir(tree.join("ebpf"))
            .args(["--release", "--locked", "--target", TARGET, "--target-dir"])
            .arg(tree.join("ebpf/target"))
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        Ok(command)
    }
}

/// The linker, if it is installed and runs.
pub(crate) fn linker() -> Result<PathBuf> {
    let path = which("bpf-linker").context("bpf-linker is not installed: cargo xtask setup")?;
    if capture(Command::new(&path).arg("--version")).is_none() {
        bail!("{} does not run (its libLLVM is missing?): cargo xtask setup", path.display());
    }
    Ok(path)
}

/// Path of the object file.
pub(crate) fn object_path() -> PathBuf {
    object_in(&root())
}

/// Path of the object file in another copy of the sources.
pub(crate) fn object_in(tree: &Path) -> PathBuf {
    tree.join("ebpf/target").join(TARGET).join("release/vipgate-ebpf")
}

/// Builds the kernel programs and checks that the object holds them.
pub(crate) fn build() -> Result<()> {
    let toolchain = Toolchain::find().context("no toolchain for the kernel programs: cargo xtask setup")?;
    step(&format!("kernel programs ({})", toolchain.describe()), &mut toolchain.cargo("build")?)
        .context("the kernel programs do not build: the compiler's output is above")?;
    check(&object_path())
}

/// Builds the kernel programs of another copy of the sources. Prints nothing; the error holds the compiler's output.
pub(crate) fn build_in(tree: &Path) -> Result<()> {
    let toolchain = Toolchain::find().context("no toolchain for the kernel programs: cargo xtask setup")?;
    let output = toolchain.cargo_in(tree, "build")?.output().context("cannot start the build")?;
    if !output.status.success() {
        bail!("the kernel programs do not build:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    check(&object_in(tree))
}

/// A linker that drops what it takes for unused leaves a valid, empty object, which fails only on the router.
fn check(path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("the build left no object at {}", path.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{} is not an object file", path.display()))?;
    let symbols: Vec<&str> = file.symbols().filter_map(|symbol| symbol.name().ok()).collect();
    let absent: Vec<&str> = PROGRAMS.into_iter().filter(|program| !symbols.contains(program)).collect();
    if !absent.is_empty() {
        bail!("{} lacks the programs {}: it holds {}", path.display(), absent.join(", "), symbols.join(", "));
    }
    if file.section_by_name(".BTF").is_none() {
        bail!("{} has no .BTF section: was it linked by bpf-linker with --btf?", path.display());
    }
    Ok(())
}
