//! `cargo xtask setup`: what the machine must have, looked for by what it does (a program, a file), installed by package.
//!
//! The other commands call [`ensure`] for the part they need, which costs a few file look-ups when nothing is missing.

use crate::{
    build::target_directory,
    ebpf::{self, Toolchain},
    qemu,
    sh::{as_root, capture, root, step, which},
};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only say what is missing; exit status 1 if anything is.
    #[arg(long)]
    check: bool,
}

/// Which part of the machine a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// The toolchain of the kernel programs.
    Build,
    /// The network-namespace lab.
    Lab,
    /// What reads the API's document and holds the API against it.
    Api,
    /// The benchmark's generators and peers.
    Bench,
    /// Virtual machines with distribution kernels.
    Vm,
    /// Formatting and lints.
    Lint,
    /// The fuzzer.
    Fuzz,
    /// Faults that are made by program: `cargo xtask mutants --pure` alone needs it.
    Mutants,
}

const EVERYTHING: [Need; 7] = [Need::Build, Need::Lab, Need::Api, Need::Bench, Need::Vm, Need::Lint, Need::Fuzz];

/// A program of the lab, the Debian package that brings it, and what for.
struct Tool {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const fn tool(program: &'static str, package: &'static str, why: &'static str) -> Tool {
    Tool { program, package, why }
}

const LAB: [Tool; 14] = [
    tool("ip", "iproute2", "namespaces, veth pairs and addresses of the lab"),
    tool("ethtool", "ethtool", "offload settings that native XDP on veth needs"),
    tool("nginx", "nginx-light", "the TCP backends: a real web server"),
    tool("curl", "curl", "the clients, and the REST calls as a user would type them"),
    tool("ping", "iputils-ping", "ICMP, and traffic that is no VIP's"),
    tool("iperf3", "iperf3", "bulk TCP"),
    tool("nc", "netcat-openbsd", "lines and datagrams, by hand"),
    tool("setpriv", "util-linux", "starting the controller with fewer privileges"),
    tool("nft", "nftables", "the benchmark's other contestant"),
    tool("tcpdump", "tcpdump", "captures, and looking at packets when a test fails"),
    tool("scapy", "python3-scapy", "reading captures: checksums computed by another hand"),
    tool("zsh", "zsh", "completion as its users have it"),
    tool("fish", "fish", "completion as its users have it"),
    tool("bpftool", "bpftool", "looking at programs and maps when a test fails"),
];

const BENCH: [Tool; 3] = [
    tool("wrk", "wrk", "new connections of the benchmark"),
    tool("haproxy", "haproxy", "the proxy that the benchmark compares with"),
    tool("ipvsadm", "ipvsadm", "the kernel's balancer, which `vm bench` compares with in a virtual machine"),
];

const VM: [Tool; 6] = [
    tool("busybox", "busybox-static", "the small tools of virtual machines"),
    tool("depmod", "kmod", "lists of the modules of kernels that are not installed"),
    tool("xz", "xz-utils", "unpacks kernels' modules"),
    tool("zstd", "zstd", "unpacks kernels' modules"),
    tool("debootstrap", "debootstrap", "the whole Debian 13 that the package is installed on in a virtual machine"),
    tool("mke2fs", "e2fsprogs", "makes that one's disk"),
];

const QEMU: &str = "qemu-system-x86_64";

/// Packages that start a service when they are installed.
const SERVICES: [(&str, &str); 2] = [("nginx-light", "nginx.service"), ("haproxy", "haproxy.service")];

/// Debian's compiler with the BPF target's core library prebuilt: no nightly, no build-std.
const DEBIAN_TOOLCHAIN: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// One thing that is not there.
#[derive(Debug)]
enum Missing {
    Package {
        name: &'static str,
        why: &'static str,
    },
    /// Debian has no BPF toolchain here: rustup's nightly with rust-src instead.
    RustupToolchain,
    BpfLinker,
    Qemu,
    /// A virtual environment of the project's own with the packages of the requirements.
    PythonPackages,
    CargoFuzz,
    CargoMutants,
    Component(&'static str),
}

impl Missing {
    fn describe(&self) -> (String, String) {
        match self {
            Self::Package { name, why } => (format!("{name} (apt)"), (*why).to_owned()),
            Self::RustupToolchain => (
                format!("{} with rust-src (rustup)", ebpf::rustup_channel()),
                "compiles the kernel programs".to_owned(),
            ),
            Self::BpfLinker => {
                ("bpf-linker 0.13 (cargo)".to_owned(), "links the kernel programs and writes their BTF".to_owned())
            }
            Self::Qemu => ("qemu-system-x86 (apt)".to_owned(), "virtual machines with distribution kernels".to_owned()),
            Self::PythonPackages => (
                "schemathesis 4 (pip, into target/python)".to_owned(),
                "throws at the API what its OpenAPI document allows and forbids".to_owned(),
            ),
            Self::CargoFuzz => ("cargo-fuzz 0.13 (cargo)".to_owned(), "cargo xtask fuzz".to_owned()),
            Self::CargoMutants => ("cargo-mutants 27 (cargo)".to_owned(), "cargo xtask mutants --pure".to_owned()),
            Self::Component(name) => (format!("{name} (rustup component)"), "cargo xtask lint".to_owned()),
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let missing = missing(&EVERYTHING);
    if missing.is_empty() {
        eprintln!("setup: everything is here");
        return Ok(());
    }
    if args.check {
        announce(&missing);
        bail!("{} missing: cargo xtask setup installs them", missing.len());
    }
    install(missing)
}

/// Installs what `needs` lacks on this machine; silent when nothing is missing.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let missing = missing(needs);
    if missing.is_empty() { Ok(()) } else { install(missing) }
}

fn missing(needs: &[Need]) -> Vec<Missing> {
    let mut missing = Vec::new();
    if needs.contains(&Need::Build) {
        missing_for_build(&mut missing);
    }
    if needs.contains(&Need::Api) {
        missing_for_api(&mut missing);
    }
    for (need, tools) in [(Need::Lab, LAB.as_slice()), (Need::Bench, BENCH.as_slice()), (Need::Vm, VM.as_slice())] {
        if needs.contains(&need) {
            let absent = tools.iter().filter(|tool| which(tool.program).is_none());
            missing.extend(absent.map(|tool| Missing::Package { name: tool.package, why: tool.why }));
        }
    }
    if needs.contains(&Need::Vm) && which(QEMU).is_none() {
        missing.push(Missing::Qemu);
    }
    if needs.contains(&Need::Lint) {
        let absent = [("cargo-clippy", "clippy"), ("rustfmt", "rustfmt")]
            .into_iter()
            .filter(|(program, _)| which(program).is_none());
        missing.extend(absent.map(|(_, component)| Missing::Component(component)));
    }
    if needs.contains(&Need::Fuzz) {
        if which("c++").is_none() {
            missing.push(Missing::Package { name: "g++", why: "compiles the fuzzer's runtime" });
        }
        if which("cargo-fuzz").is_none() {
            missing.push(Missing::CargoFuzz);
        }
    }
    if needs.contains(&Need::Mutants) && which("cargo-mutants").is_none() {
        missing.push(Missing::CargoMutants);
    }
    missing
}

fn missing_for_build(missing: &mut Vec<Missing>) {
    if Toolchain::find().is_none() {
        if debian_has_toolchain() {
            missing.extend(
                DEBIAN_TOOLCHAIN
                    .map(|name| Missing::Package { name, why: "compiles the kernel programs, core library prebuilt" }),
            );
        } else {
            missing.push(Missing::RustupToolchain);
        }
    }
    if ebpf::linker().is_err() {
        if !Path::new(LLVM_PREFIX).exists() {
            missing.push(Missing::Package { name: "llvm-22-dev", why: "the LLVM that bpf-linker is built on" });
        }
        missing.push(Missing::BpfLinker);
    }
}

fn missing_for_api(missing: &mut Vec<Missing>) {
    let (wanted, installed) = (requirements(), python_directory().join(INSTALLED));
    if fs::read(wanted).ok().is_some_and(|wanted| fs::read(installed).is_ok_and(|installed| installed == wanted)) {
        return;
    }
    // Debian has the module that puts pip into a new environment in a package of its own.
    if capture(Command::new("python3").args(["-c", "import ensurepip"])).is_none() {
        missing.push(Missing::Package { name: "python3-venv", why: "runs schemathesis" });
    }
    missing.push(Missing::PythonPackages);
}

/// The packages with their versions and hashes.
fn requirements() -> PathBuf {
    root().join("tests/schemathesis/requirements.txt")
}

fn python_directory() -> PathBuf {
    target_directory().join("python")
}

/// In the environment: the requirements that it was made by.
const INSTALLED: &str = "requirements.txt";

const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// A machine whose package lists were never fetched knows none of its packages: then Debian's name decides.
fn debian_has_toolchain() -> bool {
    which("apt-get").is_some()
        && (capture(Command::new("apt-cache").args(["show", DEBIAN_TOOLCHAIN[0]])).is_some_and(|text| !text.is_empty())
            || capture(Command::new("apt-cache").args(["show", "coreutils"]))
                .is_none_or(|text| !text.contains("Filename:")))
}

fn announce(missing: &[Missing]) {
    eprintln!("setup: missing on this machine:");
    for one in missing {
        let (what, why) = one.describe();
        eprintln!("  {what:<34} {why}");
    }
}

fn install(missing: Vec<Missing>) -> Result<()> {
    announce(&missing);
    let packages: Vec<&str> = missing
        .iter()
        .filter_map(|one| if let Missing::Package { name, .. } = one { Some(*name) } else { None })
        .collect();
    if !packages.is_empty() {
        apt(&packages)?;
    }
    for one in missing {
        match one {
            Missing::Package { .. } => {}
            Missing::RustupToolchain => rustup_toolchain()?,
            Missing::BpfLinker => bpf_linker()?,
            Missing::Qemu => qemu::install()?,
            Missing::PythonPackages => python_packages()?,
            Missing::CargoFuzz => cargo_install("cargo-fuzz", "^0.13", "about a minute")?,
            Missing::CargoMutants => cargo_install("cargo-mutants", "^27", "about three minutes")?,
            Missing::Component(name) => step(
                &format!("rustup component {name}"),
                Command::new("rustup").current_dir(root()).args(["component", "add", name]),
            )?,
        }
    }
    Ok(())
}

pub(crate) fn apt(packages: &[&str]) -> Result<()> {
    let Some(apt_get) = which("apt-get") else {
        bail!("this machine has no apt-get: install these with its own package manager: {}", packages.join(" "));
    };
    let mut update = as_root(&apt_get, "installing packages")?;
    step("package lists", update.args(["update", "-qq"]))?;
    // Their programs are wanted, not their services, which would take ports now and at every boot.
    let services: Vec<&str> =
        SERVICES.into_iter().filter(|(package, _)| packages.contains(package)).map(|(_, service)| service).collect();
    systemctl("mask", &services)?;
    eprintln!("==> installing {}", packages.join(" "));
    let mut install = as_root(Path::new("/usr/bin/env"), "installing packages")?;
    install.arg("DEBIAN_FRONTEND=noninteractive").arg(apt_get);
    install.args(["install", "-y", "--no-install-recommends"]).args(packages);
    crate::sh::run(&mut install).context("apt-get could not install the packages")?;
    systemctl("unmask", &services)?;
    systemctl("disable", &services)
}

/// Has systemd, if it runs this machine, do this to services.
fn systemctl(verb: &str, services: &[&str]) -> Result<()> {
    if services.is_empty() || !Path::new("/run/systemd/system").exists() {
        return Ok(());
    }
    let Some(systemctl) = which("systemctl") else { return Ok(()) };
    let mut command = as_root(&systemctl, "keeping services from starting")?;
    crate::sh::run(command.arg("--quiet").arg(verb).args(services))
}

fn rustup_toolchain() -> Result<()> {
    if which("rustup").is_none() {
        bail!(
            "no BPF toolchain: this machine has neither Debian's {} nor rustup (https://rustup.rs): install one of them",
            DEBIAN_TOOLCHAIN.join(" ")
        );
    }
    let channel = ebpf::rustup_channel();
    step(
        &format!("rustup toolchain {channel} with rust-src"),
        Command::new("rustup").args([
            "toolchain",
            "install",
            &channel,
            "--profile",
            "minimal",
            "--component",
            "rust-src",
        ]),
    )
}

fn cargo_install(package: &str, version: &str, takes: &str) -> Result<()> {
    step(
        &format!("{package} ({takes})"),
        Command::new("cargo")
            .args(["install", package, "--version", version, "--locked"])
            .env_remove("CARGO_TARGET_DIR"),
    )
}

/// bpf-linker's build script does not find Debian's versioned LLVM by itself: `LLVM_PREFIX` names it.
fn bpf_linker() -> Result<()> {
    let mut command = Command::new("cargo");
    command.args([
        "install",
        "bpf-linker",
        "--version",
        "^0.13",
        "--no-default-features",
        "--features",
        "llvm-22",
        "--locked",
    ]);
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO_TARGET_DIR");
    if Path::new(LLVM_PREFIX).exists() {
        command.env("LLVM_PREFIX", LLVM_PREFIX);
    }
    step("bpf-linker (about two minutes)", &mut command)
}

fn python_packages() -> Result<()> {
    let directory = python_directory();
    step("a Python environment", Command::new("python3").args(["-m", "venv", "--clear"]).arg(&directory))?;
    let mut pip = Command::new(directory.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--requirement"]);
    step("schemathesis (about a minute)", pip.arg(requirements()))?;
    fs::copy(requirements(), directory.join(INSTALLED)).context("cannot note what is installed")?;
    Ok(())
}
