//! A router in a virtual machine, between the lab's clients and backends.

use super::{
    Agent, Kernel, Nic,
    accel::Accelerator,
    archive,
    image::{self, Sources},
    machine::{self, Machine, Options, Side, Start},
    userland,
};
use crate::lab::{
    Host, Namespace, Result,
    leftovers::{next_number, prefix},
    topology::{HostKind, PRIVATE_DEVICE, PRIVATE_ROUTER, PUBLIC_DEVICE, PUBLIC_ROUTER, Surroundings},
};
use anyhow::Context as _;
use std::path::Path;

/// What all labs of a run share.
#[derive(Clone, Debug)]
pub struct Bench {
    pub sources: Sources,
    pub accelerator: Accelerator,
}

/// A lab to make.
#[derive(Clone, Debug)]
pub struct VmLabOptions {
    pub clients: u8,
    pub backends: u8,
    pub machine: Options,
    pub system: System,
    /// Further programs of the host for a bare machine.
    pub tools: &'static [&'static str],
}

/// The system of a lab's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// Our own init, the package unpacked, and a few tools.
    Bare,
    /// Debian 13 on a disk, with the package's tarball in [`userland::DIRECTORY`].
    Debian,
}

impl VmLabOptions {
    /// A router with two processors, and with as many queues as native XDP on virtio needs.
    #[must_use]
    pub fn new(clients: u8, backends: u8) -> Self {
        let nics = vec![Nic::virtio(PUBLIC_DEVICE, Side::Public, 4), Nic::virtio(PRIVATE_DEVICE, Side::Private, 4)];
        Self { clients, backends, machine: Options { memory: 1024, cpus: 2, nics }, system: System::Bare, tools: &[] }
    }
}

/// Dropped in this order: the machine, then the hosts and switches, then the namespace that QEMU ran in.
#[derive(Debug)]
pub struct VmLab {
    pub kernel: Kernel,
    pub system: System,
    machine: Machine,
    around: Surroundings,
    /// The image's size in bytes.
    pub image_size: u64,
    /// The namespace that QEMU runs in.
    _namespace: Namespace,
}

impl VmLab {
    /// Boots the router and gives its devices names and addresses, as an operator would; starts no controller.
    pub fn new(bench: &Bench, kernel: &Kernel, options: &VmLabOptions) -> Result<Self> {
        let files = archive::fetch(kernel)?;
        let prefix = prefix(next_number());
        let namespace = Namespace::new(format!("{prefix}router"))?;
        let around = Surroundings::new(&prefix, options.clients, options.backends, HostKind::BesideMachine)?;
        let directory = around.directory.path();
        let image = directory.join("image.cpio");
        let (image_size, disk) = match options.system {
            System::Bare => (image::write(&image, &bench.sources, &files, options.tools)?, None),
            System::Debian => {
                let staged = userland::staged(&bench.sources, &options.machine.nics)?;
                let size = image::write_for_disk(&image, &bench.sources, &files, staged)?;
                (size, Some(userland::disk(kernel, &files)?))
            }
        };
        let start = Start { kernel: &files.image, image: &image, disk: disk.as_deref() };
        let machine = Machine::boot(&options.machine, bench.accelerator, start, &namespace, directory, machine::UP)?;
        // The guest has it in memory now.
        std::fs::remove_file(&image).context("cannot remove the image")?;
        for nic in &options.machine.nics {
            let switch = if nic.side == Side::Public { &around.public } else { &around.private };
            switch.plug_device(&namespace, &nic.device, nic.mtu)?;
        }
        let system = options.system;
        let lab = Self { kernel: kernel.clone(), system, machine, around, image_size, _namespace: namespace };
        match system {
            System::Bare => lab.name_devices(&options.machine.nics)?,
            System::Debian => lab.settle()?,
        }
        Ok(lab)
    }

    /// Names the devices. Devices with one of the lab's names get an address, too; a case configures others itself.
    fn name_devices(&self, nics: &[Nic]) -> Result<()> {
        for (number, Nic { device, mtu, .. }) in nics.iter().enumerate() {
            let mac = Nic::mac(number);
            let line = format!(
                "set -e; path=$(grep -l {mac} /sys/class/net/*/address) || \
                 {{ echo 'no device is {mac}: does this kernel have a driver for the card?' >&2; exit 1; }}; \
                 ip link set $(basename ${{path%/address}}) name {device}; ip link set {device} mtu {mtu} up"
            );
            self.agent().says(&line)?;
        }
        for (device, address) in [(PUBLIC_DEVICE, PUBLIC_ROUTER), (PRIVATE_DEVICE, PRIVATE_ROUTER)] {
            if nics.iter().any(|nic| nic.device == device) {
                self.agent().says(&format!("ip addr add {address}/24 dev {device}"))?;
            }
        }
        self.agent().says("echo 1 > /proc/sys/net/ipv4/ip_forward").map(drop)
    }

    #[must_use]
    pub fn agent(&self) -> &Agent {
        &self.machine.agent
    }

    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Directory of the lab's files.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.around.directory.path()
    }

    #[must_use]
    pub fn clients(&self) -> &[Host] {
        &self.around.clients
    }

    #[must_use]
    pub fn client(&self) -> &Host {
        &self.around.clients[0]
    }

    #[must_use]
    pub fn backends(&self) -> &[Host] {
        &self.around.backends
    }

    /// Sets this MTU on every host and on its port of the switch. The machine's MTUs are set by its cards.
    pub fn set_mtu_around(&self, mtu: u32) -> Result<()> {
        self.around.set_mtu(mtu)
    }

    /// Starts the clients' services, for guests to ask.
    pub fn serve_outside(&mut self) -> Result<()> {
        let Surroundings { clients, directory, .. } = &mut self.around;
        clients.iter_mut().try_for_each(|client| client.serve(directory.path()))
    }
}
