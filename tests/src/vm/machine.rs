//! A virtual machine: QEMU with a kernel and an image, and the agent in it. It ends on drop, or with the thread that
//! started it.
//!
//! QEMU runs in the router's namespace and makes its taps there itself, by name. Once the guest is up, the taps move into the
//! switches' namespaces. So this program never handles a device's file descriptor, which would need `unsafe`.
//! to be `unsafe` to make one.

use super::{accel::Accelerator, agent::Agent};
use crate::lab::{Namespace, Process, Result};
use anyhow::{Context as _, anyhow, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    ffi::OsString,
    fs,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use vipgate_guest::{Hello, PORT};

const QEMU: &str = "qemu-system-x86_64";

/// Deadline for the guest to be up: it takes some seconds on an idle machine, ten times that on a busy one that emulates.
pub const UP: Duration = Duration::from_secs(240);

/// The properties of a machine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory in MiB. vipgate's default tables take 260 of them, the image about 80 while it is unpacked.
    pub memory: u32,
    pub cpus: u32,
    pub nics: Vec<Nic>,
}

/// A network card, and the tap that QEMU makes for it.
#[derive(Clone, Debug)]
pub struct Nic {
    /// Name of the tap, and of the device in the guest.
    pub device: String,
    /// The switch that it is plugged into.
    pub side: Side,
    pub model: Model,
    /// MTU of the device in the guest, and of the tap.
    pub mtu: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Public,
    Private,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    Virtio {
        /// Number of queue pairs. Native XDP also needs a transmit queue for each processor.
        queues: u32,
        /// Further properties of the device, such as `guest_tso4=off`.
        properties: Vec<String>,
    },
    /// A card without virtio's offloads, by QEMU's name.
    E1000,
    E1000e,
    /// An Intel card whose Linux driver has native XDP, and keeps its offloads under it.
    Igb,
}

/// The files that a machine boots from.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    pub kernel: &'a Path,
    /// The archive that the machine boots from, in memory.
    pub image: &'a Path,
    /// A disk image. The machine's writes last as long as QEMU. A machine with a disk can reboot.
    pub disk: Option<&'a Path>,
}

#[derive(Debug)]
pub struct Machine {
    pub agent: Agent,
    /// The guest's first message.
    pub hello: Hello,
    /// Time from QEMU's start to that message.
    pub took: Duration,
    console: PathBuf,
    process: Process,
}

impl Machine {
    /// Boots the machine and waits for its agent. Files that it needs go to `directory`.
    ///
    /// # Errors
    /// The guest does not come up; the message ends with the console's last lines.
    pub fn boot(
        options: &Options,
        accelerator: Accelerator,
        start: Start<'_>,
        namespace: &Namespace,
        directory: &Path,
        patience: Duration,
    ) -> Result<Self> {
        let qemu = super::which(QEMU).with_context(|| format!("{QEMU} is missing: run cargo xtask setup"))?;
        let started = Instant::now();
        let socket = directory.join("agent.socket");
        let listener = UnixListener::bind(&socket).with_context(|| format!("cannot bind {}", socket.display()))?;
        let console = directory.join("console.log");
        let mut command = namespace.command(qemu);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"])
            // Names the threads, so that processors' can be told from those that serve devices.
            .args(["-name", "debug-threads=on"])
            .args(accelerator.arguments())
            .args(["-smp", &options.cpus.to_string(), "-m", &options.memory.to_string()])
            .args(start.arguments())
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-device", "virtio-serial-pci", "-chardev"])
            .arg(format!("socket,id=agent,path={}", socket.display()))
            .args(["-device", &format!("virtserialport,chardev=agent,name={PORT}"), "-device", "virtio-rng-pci"]);
        for (number, nic) in options.nics.iter().enumerate() {
            command.args(nic.arguments(number));
        }
        let mut process = Process::start("qemu", &command, directory)?;
        let deadline = started + patience;
        let connected = wait(&listener, &mut process, deadline)
            .and_then(|()| listener.accept().context("QEMU does not connect"))
            .and_then(|(stream, _)| wait(&stream, &mut process, deadline).map(|()| stream))
            .and_then(|stream: UnixStream| Agent::connect(stream, Duration::from_secs(30)));
        let (agent, hello) = connected
            .map_err(|error| anyhow!("{error:#}\n-- the end of the guest's console:\n{}", tail(&console, 40)))?;
        ensure!(hello.complaints.is_empty(), "errors while the guest booted: {}", hello.complaints.join("; "));
        Ok(Self { agent, hello, took: started.elapsed(), console, process })
    }

    /// Reboots the machine's system and waits for its agent; returns the agent's first message.
    pub fn reboot(&self, patience: Duration) -> Result<Hello> {
        self.agent.says("systemctl reboot")?;
        let hello = self.agent.reconnect(patience);
        hello.with_context(|| {
            format!("it does not come up again\n-- the end of the guest's console:\n{}", self.console(40))
        })
    }

    /// QEMU's process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The last lines of the console.
    #[must_use]
    pub fn console(&self, lines: usize) -> String {
        tail(&self.console, lines)
    }

    /// The file that the console goes to.
    #[must_use]
    pub fn console_path(&self) -> &Path {
        &self.console
    }
}

impl Start<'_> {
    fn arguments(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> =
            ["-kernel".into(), self.kernel.into(), "-initrd".into(), self.image.into()].into();
        match self.disk {
            // Devices keep the kernel's names until the lab finds each by its MAC address and renames it.
            None => {
                let line = "console=ttyS0 quiet panic=-1 net.ifnames=0";
                words.extend(["-append", line, "-no-reboot"].map(OsString::from));
            }
            Some(disk) => {
                let mut drive = OsString::from("if=virtio,format=raw,snapshot=on,file=");
                drive.push(disk);
                // On a terminal that can do more, init would send control sequences, which would end up in the console's file.
                words.extend(["-append", "console=ttyS0 quiet panic=-1 TERM=dumb", "-drive"].map(OsString::from));
                words.push(drive);
            }
        }
        words
    }
}

impl Nic {
    #[must_use]
    pub fn virtio(device: &str, side: Side, queues: u32) -> Self {
        let model = Model::Virtio { queues, properties: Vec::new() };
        Self { device: device.to_owned(), side, model, mtu: 1500 }
    }

    /// The MAC address of a machine's card with this number, from 0: it identifies the card in the guest.
    #[must_use]
    pub fn mac(number: usize) -> String {
        format!("52:54:00:00:00:{:02x}", number + 1)
    }

    fn arguments(&self, number: usize) -> [String; 4] {
        let Self { device, model, mtu, .. } = self;
        let mut backend = format!("tap,id=net{number},ifname={device},script=no,downscript=no");
        let mut card = match model {
            Model::Virtio { queues, properties } => {
                let mut card = format!("virtio-net-pci,host_mtu={mtu},rx_queue_size=1024");
                if *queues > 1 {
                    backend.push_str(&format!(",queues={queues}"));
                    // One interrupt for each direction of each queue pair, one for the control queue, one for the configuration.
                    card.push_str(&format!(",mq=on,vectors={}", 2 * queues + 2));
                }
                for property in properties {
                    card.push_str(&format!(",{property}"));
                }
                card
            }
            Model::E1000 => "e1000".to_owned(),
            Model::E1000e => "e1000e".to_owned(),
            Model::Igb => "igb".to_owned(),
        };
        // Without a boot ROM, which only costs time.
        card.push_str(&format!(",netdev=net{number},mac={},romfile=", Self::mac(number)));
        ["-netdev".to_owned(), backend, "-device".to_owned(), card]
    }
}

/// Waits until there is something to read; fails if QEMU ends first.
fn wait(source: &impl AsFd, process: &mut Process, deadline: Instant) -> Result<()> {
    loop {
        let mut polled = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, PollTimeout::from(100_u8)).context("cannot poll")? > 0 {
            return Ok(());
        }
        if let Some(status) = process.ended()? {
            bail!("QEMU ended with {status}: {}", process.said());
        }
        // QEMU stops such a machine but does not exit.
        ensure!(!process.said().contains("KVM internal error"), "KVM does not work here: {}", process.said());
        ensure!(Instant::now() < deadline, "the guest is not up in time; QEMU's output: {}", process.said());
    }
}

fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_with_several_queues_gets_interrupts_for_all_of_them() {
        let [_, backend, _, card] = Nic::virtio("pub0", Side::Public, 4).arguments(0);
        assert_eq!(backend, "tap,id=net0,ifname=pub0,script=no,downscript=no,queues=4");
        assert!(card.contains("mq=on,vectors=10"), "{card}");
        let [_, backend, _, card] = Nic::virtio("pub0", Side::Public, 1).arguments(0);
        assert!(!backend.contains("queues") && !card.contains("mq="), "{backend} {card}");
    }
}
