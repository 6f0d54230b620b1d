//! `cargo xtask setup`: finds what the machine lacks by programs and files, and installs it by package.
//!
//! Other commands call [`ensure`] for the part they need, which costs a few file look-ups if nothing is missing.

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
    /// Only print what is missing; exit status 1 if anything is.
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
    /// Tests of the API against its OpenAPI document.
    Api,
    /// The benchmark's traffic generators, and what it compares with.
    Bench,
    /// Virtual machines with distribution kernels.
    Vm,
    /// Formatting and lints.
    Lint,
    /// The fuzzer.
    Fuzz,
    /// cargo-mutants, for `cargo xtask mutants --pure` alone.
    Mutants,
}

const EVERYTHING: [Need; 7] = [Need::Build, Need::Lab, Need::Api, Need::Bench, Need::Vm, Need::Lint, Need::Fuzz];

/// A program, the Debian package that holds it, and what needs it.
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
    tool("ping", "iputils-ping", "ICMP, and traffic that belongs to no VIP"),
    tool("iperf3", "iperf3", "bulk TCP"),
    tool("nc", "netcat-openbsd", "single lines and datagrams"),
    tool("setpriv", "util-linux", "starting the controller with fewer privileges"),
    tool("nft", "nftables", "what the benchmark compares with"),
    tool("tcpdump", "tcpdump", "captures, and looking at packets when a test fails"),
    tool("scapy", "python3-scapy", "reading captures: checksums computed independently"),
    tool("zsh", "zsh", "tests of shell completion"),
    tool("fish", "fish", "tests of shell completion"),
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
    tool("mke2fs", "e2fsprogs", "makes the disk of that Debian"),
];

const QEMU: &str = "qemu-system-x86_64";

/// Packages whose installation starts a service.
const SERVICES: [(&str, &str); 2] = [("nginx-light", "nginx.service"), ("haproxy", "haproxy.service")];

/// Debian's compiler with the BPF target's core library prebuilt: no nightly, no build-std.
const DEBIAN_TOOLCHAIN: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// One missing thing.
#[derive(Debug)]
enum Missing {
    Package {
        name: &'static str,
        why: &'static str,
    },
    /// Debian has no BPF toolchain here: use rustup's nightly with rust-src.
    RustupToolchain,
    BpfLinker,
    Qemu,
    /// The project's Python virtual environment with the required packages.
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
                "tests the API with inputs that its OpenAPI document allows and forbids".to_owned(),
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

/// Installs what `needs` lacks on this machine; prints nothing if nothing is missing.
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
    // On Debian, the module that puts pip into a new environment has a package of its own.
    if capture(Command::new("python3").args(["-c", "import ensurepip"])).is_none() {
        missing.push(Missing::Package { name: "python3-venv", why: "runs schemathesis" });
    }
    missing.push(Missing::PythonPackages);
}

/// The file that lists the packages with versions and hashes.
fn requirements() -> PathBuf {
    root().join("tests/schemathesis/requirements.txt")
}

fn python_directory() -> PathBuf {
    target_directory().join("python")
}

/// A file in the environment: the requirements that it was made from.
const INSTALLED: &str = "requirements.txt";

const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// Without package lists apt knows no packages: then the release's name decides.
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
    // Only their programs are wanted. Their services would take ports, now and at every boot.
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

/// Does this to services if systemd runs on this machine.
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

/// `LLVM_PREFIX`: bpf-linker's build script does not find Debian's versioned LLVM by itself.
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
