//! A full Debian 13 on a disk, with systemd and udev, as routers are installed on.
//!
//! debootstrap makes it once, mke2fs makes a file system of it, and the cache keeps that. Machines write to a temporary copy
//! that QEMU makes. debootstrap works without mounts where they are refused, as in containers, and does not touch the host's
//! apt. What belongs to one boot goes to the machine's `/run`: the agent, the package, the names and addresses of its cards.
//! May touch the cache and, through debootstrap, the network.

use super::{
    Kernel, Nic, Side,
    archive::{self, MIRROR, Unpacked},
    image::{Sources, Staged},
    lab::VmLab,
    machine,
};
use crate::lab::{
    Result,
    netns::run,
    topology::{PRIVATE_ROUTER, PUBLIC_ROUTER},
};
use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// The kernel of `SUITE`, which its userland goes with.
pub const KERNEL: &str = "6.12";

const SUITE: &str = "trixie";

/// What a router needs beyond the least that is Debian: its init, its network, and the programs that the book asks for.
const PACKAGES: &str = "systemd,systemd-sysv,udev,dbus,kmod,iproute2,procps,ethtool,ca-certificates,curl,jq";

/// The script that turns debootstrap's result into a machine's system.
const SETTLE: &str = "\
set -e
systemctl enable systemd-networkd
echo router > /etc/hostname
echo '127.0.0.1 localhost router' > /etc/hosts
echo '/dev/vda / ext4 defaults 0 1' > /etc/fstab
rm -rf /var/cache/apt/archives/*.deb /var/lib/apt/lists/* /var/log/bootstrap.log
";

/// Size of the file system. It is sparse; the system takes a quarter of it.
const SIZE: &str = "2G";

/// The directory in the machine that holds the host's files.
pub const DIRECTORY: &str = "/run/vipgate-test";

const AGENT: &str = "\
[Unit]
Description=Agent of the tests
[Service]
ExecStart=/run/vipgate-test/agent agent
KillMode=mixed
";

/// The disk's file, made if it is not in the cache. It must not be written to.
pub fn disk(kernel: &Kernel, files: &Unpacked) -> Result<PathBuf> {
    let recipe = [SUITE, PACKAGES, SETTLE, SIZE, &kernel.release, &kernel.packages[0].version].join("\n");
    let stamp = &hex::encode(Sha256::digest(recipe))[..12];
    let place = archive::cache()?.join("userlands");
    let image = place.join(format!("{SUITE}-{stamp}.ext4"));
    if image.exists() {
        return Ok(image);
    }
    let _lock = archive::lock()?;
    if !image.exists() {
        fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        make(&place, &image, kernel, files).context("cannot make a Debian 13 for virtual machines")?;
    }
    Ok(image)
}

fn make(place: &Path, image: &Path, kernel: &Kernel, files: &Unpacked) -> Result<()> {
    let started = Instant::now();
    let report = |what: &str| eprintln!("    {what} after {:.0} s", started.elapsed().as_secs_f64());
    let program = |name: &str| super::which(name).with_context(|| format!("{name} is missing: run cargo xtask setup"));
    eprintln!("==> Debian 13 ({SUITE}) by debootstrap, a minute or more");
    let work = tempfile::tempdir_in(place).context("cannot make a temporary directory")?;
    let root = work.path().join("root");
    let mut debootstrap = Command::new(program("debootstrap")?);
    debootstrap.args(["--variant=minbase", &format!("--include={PACKAGES}"), &format!("--keyring={}", archive::KEYS)]);
    run(debootstrap.arg(SUITE).arg(&root).arg(MIRROR))?;
    report("packages");
    let settle = ["/bin/sh", "-c", SETTLE];
    run(Command::new(program("chroot")?).arg(&root).args(settle).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))?;
    let modules = root.join("usr/lib/modules").join(&kernel.release);
    fs::create_dir_all(modules.parent().unwrap_or(&root)).context("cannot make the modules' directory")?;
    run(Command::new("cp").arg("--archive").arg(&files.modules).arg(&modules))?;
    let unfinished = work.path().join("image");
    let mut format = Command::new(program("mke2fs")?);
    format.args(["-q", "-t", "ext4", "-L", "router", "-d"]).arg(&root).arg(&unfinished).arg(SIZE);
    run(&mut format)?;
    fs::rename(&unfinished, image).with_context(|| format!("cannot keep {}", image.display()))?;
    report("done");
    Ok(())
}

/// The files that the machine gets in its `/run` at each boot.
pub fn staged(sources: &Sources, nics: &[Nic]) -> Result<Vec<Staged>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let package = sources.package.file_name().context("a package has a name")?.to_string_lossy().into_owned();
    let text = |path: &str, contents: &str| Staged::file(path, contents.as_bytes().to_vec());
    let mut staged = vec![
        Staged::program("vipgate-test/agent", read(&sources.init)?),
        Staged::file(format!("vipgate-test/{package}"), read(&sources.package)?),
        text("systemd/system/vipgate-test-agent.service", AGENT),
        text("systemd/system/multi-user.target.d/agent.conf", "[Unit]\nWants=vipgate-test-agent.service\n"),
        text("sysctl.d/router.conf", "net.ipv4.ip_forward = 1\n"),
    ];
    for (number, Nic { device, side, .. }) in nics.iter().enumerate() {
        let address = if *side == Side::Public { PUBLIC_ROUTER } else { PRIVATE_ROUTER };
        let link = format!("[Match]\nPermanentMACAddress={}\n[Link]\nName={device}\n", Nic::mac(number));
        let network = format!("[Match]\nName={device}\n[Network]\nAddress={address}/24\n");
        staged.push(text(&format!("systemd/network/10-{device}.link"), &link));
        staged.push(text(&format!("systemd/network/10-{device}.network"), &network));
    }
    Ok(staged)
}

/// Starting a system's services takes a minute on an emulated machine, more if other machines run.
const SETTLES: Duration = Duration::from_secs(300);

impl VmLab {
    /// Waits until systemd has started everything.
    ///
    /// # Errors
    /// Something failed to start; the message lists it.
    pub fn settle(&self) -> Result<()> {
        let said = self.agent().run_with("systemctl is-system-running --wait", "", SETTLES)?;
        if said.stdout.trim() != "running" {
            let failed = self.agent().run("systemctl --failed --no-pager --plain; networkctl --no-pager")?.stdout;
            bail!("systemd reports the machine as {}: {failed}", said.stdout.trim());
        }
        Ok(())
    }

    /// Reboots the machine as an operator would.
    pub fn reboot(&self) -> Result<()> {
        let hello = self.machine().reboot(machine::UP)?;
        ensure!(hello.kernel == self.kernel.release, "it came up with {}", hello.kernel);
        self.settle()
    }
}
