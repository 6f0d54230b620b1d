//! Builds the lab: namespaces, switches, addresses, and the offload settings that native XDP on veth needs.

use super::{
    BpfDirectory, Controller, Host, Namespace, Result,
    leftovers::{next_number, prefix},
};
use anyhow::Context as _;
use std::{fmt, net::Ipv4Addr, path::Path, time::Duration};
use tempfile::TempDir;

/// The hook that the router's programs attach to, as `vipgate serve --hook` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Auto,
    Xdp,
    XdpGeneric,
    Tc,
}

impl fmt::Display for Hook {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::Xdp => "xdp",
            Self::XdpGeneric => "xdp-generic",
            Self::Tc => "tc",
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub struct LabOptions {
    pub hook: Hook,
    pub clients: u8,
    pub backends: u8,
}

/// Dropped in this order: programs and tables first, then the hosts, then the wires between them.
#[derive(Debug)]
pub struct Lab {
    pub bpffs: BpfDirectory,
    pub clients: Vec<Host>,
    pub backends: Vec<Host>,
    pub router: Namespace,
    pub hook: Hook,
    switches: [Namespace; 2],
    directory: TempDir,
}

/// The router's device on the public network, its address, and the addresses that VIPs are taken from.
pub const PUBLIC_DEVICE: &str = "pub0";
pub const PUBLIC_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
pub const PUBLIC_RANGE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 1, 0, 10), Ipv4Addr::new(10, 1, 0, 99)];
/// The router's device on the backends' network and its address there, which is the backends' gateway.
pub const PRIVATE_DEVICE: &str = "priv0";
pub const PRIVATE_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
pub const PRIVATE_RANGE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 2, 0, 2), Ipv4Addr::new(10, 2, 0, 250)];
pub const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

impl Lab {
    /// Builds hosts, wires and running backends; starts no controller.
    pub fn new(options: LabOptions) -> Result<Self> {
        let prefix = prefix(next_number());
        let router = Namespace::new(format!("{prefix}router"))?;
        router.sysctl("net/ipv4/ip_forward", "1")?;
        let around = Surroundings::new(&prefix, options.clients, options.backends, HostKind::BesideNamespace)?;
        for (switch, device, address) in
            [(&around.public, PUBLIC_DEVICE, PUBLIC_ROUTER), (&around.private, PRIVATE_DEVICE, PRIVATE_ROUTER)]
        {
            switch.plug_router(&router, device, address)?;
        }
        let bpffs = BpfDirectory::new(prefix.trim_end_matches('-'))?;
        let Surroundings { clients, backends, public, private, directory } = around;
        let switches = [public.namespace, private.namespace];
        Ok(Self { bpffs, clients, backends, router, hook: options.hook, switches, directory })
    }

    /// Directory of the lab's files: the store, the logs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts `vipgate serve` in the router's namespace and waits until it is ready.
    pub fn start_controller(&self) -> Result<Controller> {
        Controller::start(self, &[])
    }

    /// Starts the clients' services, for guests to ask.
    pub fn serve_outside(&mut self) -> Result<()> {
        self.clients.iter_mut().try_for_each(|client| client.serve(self.directory.path()))
    }

    /// Adds another device without an address to the router on the public network.
    pub fn plug_extra(&self, device: &str) -> Result<()> {
        wire(&self.switches[0], &self.router, device, device)
    }

    /// Gives every device of the lab this MTU.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        let hosts = self.clients.iter().chain(&self.backends).map(|host| &host.namespace);
        self.switches.iter().chain(hosts).chain([&self.router]).try_for_each(|namespace| set_mtu(namespace, mtu))
    }

    /// Unplugs the router's private device from its switch, or plugs it in again.
    pub fn plug_private(&self, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        self.switches[1].ip(&format!("link set router {state}")).map(drop)
    }

    #[must_use]
    pub fn client(&self) -> &Host {
        &self.clients[0]
    }
}

/// Gives every veth of a namespace this MTU.
fn set_mtu(namespace: &Namespace, mtu: u32) -> Result<()> {
    let links = namespace.ip("-oneline link")?;
    // A line for a veth begins with `number: name@other: `.
    for (name, _) in links.lines().filter_map(|link| link.split(' ').nth(1)?.split_once('@')) {
        namespace.ip(&format!("link set {name} mtu {mtu}"))?;
    }
    Ok(())
}

/// Everything around a router: clients and running backends, each side on a switch. The router is not plugged in yet.
/// Dropped in this order.
#[derive(Debug)]
pub struct Surroundings {
    pub clients: Vec<Host>,
    pub backends: Vec<Host>,
    pub public: Switch,
    pub private: Switch,
    pub directory: TempDir,
}

impl Surroundings {
    pub fn new(prefix: &str, clients: u8, backends: u8, kind: HostKind) -> Result<Self> {
        let switch = |name: &str| Switch::new(Namespace::new(format!("{prefix}{name}"))?);
        let (public, private) = (switch("public")?, switch("private")?);
        let directory = TempDir::with_prefix(prefix).context("cannot make a temporary directory")?;
        let plugged = |switch: &Switch, name: String, number, address, gateway| {
            let host = Namespace::new(format!("{prefix}{name}"))?;
            let mac = switch.plug(&host, kind, number, address, gateway)?;
            Result::Ok(Host::new(name, host, address, mac, kind.patience()))
        };
        let client = |number| {
            plugged(&public, format!("client{number}"), number, Ipv4Addr::new(10, 1, 0, 100 + number), PUBLIC_ROUTER)
        };
        let backend = |number| {
            let address = Ipv4Addr::new(10, 2, 0, 10 + number);
            let mut backend = plugged(&private, format!("backend{number}"), number, address, PRIVATE_ROUTER)?;
            backend.serve(directory.path())?;
            Result::Ok(backend)
        };
        let clients = (1..=clients).map(client).collect::<Result<_>>()?;
        let backends = (1..=backends).map(backend).collect::<Result<_>>()?;
        Ok(Self { clients, backends, public, private, directory })
    }

    /// Sets this MTU on every host and on its port of the switch.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        let hosts = self.clients.iter().chain(&self.backends).map(|host| &host.namespace);
        hosts.chain([&self.public.namespace, &self.private.namespace]).try_for_each(|namespace| set_mtu(namespace, mtu))
    }
}

/// The kind of router that a host is set up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// A router in a namespace. The host computes transmit checksums before packets leave: between namespaces they would
    /// stay unfinished, and an XDP program on the router cannot see that.
    BesideNamespace,
    /// A router in a virtual machine: the host keeps every offload, as hosts on a cloud's network do, and waits longer,
    /// since the machine may be emulated.
    BesideMachine,
}

impl HostKind {
    /// Longer than any answer takes, shorter than a test's deadline.
    fn patience(self) -> Duration {
        match self {
            Self::BesideNamespace => Duration::from_secs(2),
            Self::BesideMachine => Duration::from_secs(20),
        }
    }
}

/// A bridge in a namespace of its own.
#[derive(Debug)]
pub struct Switch {
    pub namespace: Namespace,
}

impl Switch {
    fn new(namespace: Namespace) -> Result<Self> {
        namespace.ip("link add switch type bridge")?;
        namespace.ip("link set switch up")?;
        Ok(Self { namespace })
    }

    /// Plugs the router in. GRO on the switch's end of the veth makes it poll, which it must to receive what the router's XDP
    /// program sends. The router's end keeps its defaults.
    fn plug_router(&self, router: &Namespace, device: &str, address: Ipv4Addr) -> Result<()> {
        wire(&self.namespace, router, device, "router")?;
        self.namespace.run("ethtool", "-K router gro on")?;
        router.ip(&format!("addr add {address}/24 dev {device}")).map(drop)
    }

    /// Plugs in a device of another namespace that has no peer here: a machine's tap.
    pub fn plug_device(&self, from: &Namespace, device: &str, mtu: u32) -> Result<()> {
        from.ip(&format!("link set {device} netns {}", self.namespace.name()))?;
        self.namespace.ip(&format!("link set {device} mtu {mtu} master switch up")).map(drop)
    }

    /// Plugs a host in as its `eth0`; returns its MAC address.
    fn plug(
        &self,
        host: &Namespace,
        kind: HostKind,
        number: u8,
        address: Ipv4Addr,
        gateway: Ipv4Addr,
    ) -> Result<String> {
        wire(&self.namespace, host, "eth0", &format!("port{number}"))?;
        if kind == HostKind::BesideNamespace {
            host.run("ethtool", "-K eth0 tx off")?;
        }
        host.ip(&format!("addr add {address}/24 dev eth0"))?;
        host.ip(&format!("route add default via {gateway}"))?;
        let link = host.ip("-oneline link show dev eth0")?;
        let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
        words.nth(1).map(str::to_owned).context("a veth has a MAC address")
    }
}

/// Connects a new device of `host` to the switch in another namespace.
fn wire(switch: &Namespace, host: &Namespace, device: &str, port: &str) -> Result<()> {
    host.ip(&format!("link add {device} type veth peer name {port} netns {}", switch.name()))?;
    switch.ip(&format!("link set {port} master switch up"))?;
    host.ip(&format!("link set {device} up"))?;
    Ok(())
}
