//! The devices that carry the programs: their numbers, settings and attached programs.
//!
//! A device that goes and comes back under its name, as VLAN devices do, is a new one to the kernel: it gets its
//! program, its settings and its VIPs again when it appears.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tracing::{info, warn};
use vipgate_abi::{interface::Interface, maps::MAX_INTERFACES};

use super::{ApplyError, Refusal, Refusals};
use crate::{
    loader::{Hook, Interfaces, LoadError, Plane, TableError, Target},
    net::{Device, NetError, sysctl::Settings},
};

/// The managed devices. Blocks: it makes system calls.
#[derive(Debug)]
pub(super) struct ManagedDevices {
    plane: Arc<Plane>,
    table: Interfaces,
    settings: Settings,
    interfaces: BTreeMap<u32, Interface>,
    /// By name: the device as it was set up, and its number.
    ready: BTreeMap<String, (Device, u32)>,
    /// Why wanted devices are not set up.
    refused: Refusals,
    /// Devices that got another MAC address while no controller ran.
    moved: BTreeSet<String>,
}

/// What a sync did.
#[derive(Debug, Default)]
pub(super) struct Synced {
    /// Interfaces or devices changed: remembered next hops may be wrong.
    pub(super) changed: bool,
    /// Some interface filters strictly by the reverse path.
    pub(super) strict: bool,
    /// Devices that were set up anew, came up or have another MAC address: their VIPs are to be announced.
    pub(super) fresh: BTreeSet<String>,
    pub(super) errors: Vec<ApplyError>,
}

impl ManagedDevices {
    /// Reads the interfaces that the kernel's tables hold.
    pub(super) fn new(plane: Arc<Plane>) -> Result<Self, LoadError> {
        let table = plane.interfaces()?;
        let interfaces = table.list()?;
        let settings = Settings::new(plane.kept_settings()?);
        Ok(Self {
            plane,
            table,
            settings,
            interfaces,
            ready: BTreeMap::new(),
            refused: Refusals::new(),
            moved: BTreeSet::new(),
        })
    }

    /// The device of that name, if it is set up.
    pub(super) fn get(&self, name: &str) -> Option<&Device> {
        self.ready.get(name).map(|(device, _)| device)
    }

    /// Why the device of that name is not set up, if that was tried.
    pub(super) fn reason(&self, name: &str) -> Option<&str> {
        self.refused.get(name).map(|refusal| refusal.reason.as_str())
    }

    /// Those that are wanted and could not be set up.
    pub(super) fn refused(&self) -> &Refusals {
        &self.refused
    }

    /// Keeps the router's stack from the ports that source NAT gives to guests.
    pub(super) fn reserve_snat_ports(&self) -> Result<(), NetError> {
        self.settings.reserve_snat_ports()
    }

    /// The devices that got another MAC address while no controller ran; once.
    pub(super) fn take_moved(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.moved)
    }

    /// Makes the next sync set a device up anew.
    pub(super) fn forget(&mut self, name: &str) {
        self.ready.remove(name);
    }

    /// Sets up a device that nothing stored wants yet.
    pub(super) fn prepare(&mut self, device: &Device) -> Result<Synced, String> {
        let mut synced = Synced::default();
        self.set_up(device, &mut synced).map_err(|refusal| refusal.reason)?;
        synced.strict = self.is_strict();
        Ok(synced)
    }

    fn is_strict(&self) -> bool {
        self.interfaces.values().any(Interface::is_strict)
    }

    /// Makes reverse-path filtering loose that somebody made strict. `true` if the programs know a device's setting otherwise.
    pub(super) fn loosen(&self) -> bool {
        let differs = |(device, number): &(Device, u32)| {
            let is_strict = self.interfaces.get(number).is_some_and(Interface::is_strict);
            // A failure is reported when the device is set up.
            self.settings.loosen(device).map_or(true, |strict| strict != is_strict)
        };
        self.ready.values().filter(|ready| differs(ready)).count() > 0
    }

    /// Sets up what is wanted of the router's `devices` and takes the programs off all others.
    pub(super) fn sync(&mut self, wanted: &BTreeSet<String>, devices: &[Device]) -> Synced {
        let mut synced = Synced::default();
        let found: BTreeMap<&str, &Device> = devices.iter().map(|device| (device.name.as_str(), device)).collect();
        self.drop_others(wanted, &found, &mut synced);
        self.refused.clear();
        for name in wanted {
            let result = match found.get(name.as_str()) {
                Some(device) => self.set_up(device, &mut synced),
                None => Err(Refusal {
                    reason: "there is no such device on this router; it will be set up when it appears".to_owned(),
                    remedy: format!(
                        "ip link # tells whether it has another name: name it {name} again, or bring it back"
                    ),
                }),
            };
            if let Err(refusal) = result {
                synced.errors.push(ApplyError::Device { device: name.clone(), reason: refusal.reason.clone() });
                self.refused.insert(name.clone(), refusal);
            }
        }
        synced.strict = self.is_strict();
        synced
    }

    fn drop_others(&mut self, wanted: &BTreeSet<String>, found: &BTreeMap<&str, &Device>, synced: &mut Synced) {
        let kept = |name: &str| wanted.contains(name).then(|| found.get(name).map(|device| device.ifindex)).flatten();
        self.ready.retain(|name, (device, _)| kept(name) == Some(device.ifindex));
        let attached = self.plane.attached().unwrap_or_else(|error| {
            warn!(%error, "cannot list the devices that carry a program");
            Vec::new()
        });
        for (_, name) in attached.into_iter().filter(|(_, name)| kept(name).is_none()) {
            synced.changed = true;
            if let Err(error) = self.plane.detach_device(&name) {
                synced.errors.push(ApplyError::Device { device: name, reason: error.to_string() });
            }
        }
        let used: BTreeSet<u32> = wanted.iter().filter_map(|name| kept(name)).collect();
        for (number, port) in self.interfaces.clone().into_iter().filter(|(_, port)| !used.contains(&port.ifindex)) {
            synced.changed = true;
            match self.table.clear(number, port) {
                Ok(()) => drop(self.interfaces.remove(&number)),
                Err(error) => warn!(number, %error, "cannot free a port"),
            }
        }
    }

    fn set_up(&mut self, device: &Device, synced: &mut Synced) -> Result<(), Refusal> {
        if !device.ethernet {
            return Err(Refusal {
                reason: "it carries no Ethernet frames".to_owned(),
                remedy: "give its L3 network another device".to_owned(),
            });
        }
        let text = |error: TableError| refused(error.to_string());
        let strict = self.settings.loosen(device).map_err(|error| refused(error.to_string()))?;
        if let Some((held, number)) = self.ready.get(&device.name).cloned() {
            let hook = if self.takes_frames(device.ifindex) { Hook::Xdp } else { Hook::Tc };
            synced.changed |= self.describe(number, device, hook, strict).map_err(text)?;
            if (device.up && !held.up) || device.mac != held.mac {
                synced.fresh.insert(device.name.clone());
            }
            self.ready.insert(device.name.clone(), (device.clone(), number));
            return Ok(());
        }
        let number = self
            .number(device.ifindex)
            .ok_or_else(|| refused(format!("all {} ports are in use", MAX_INTERFACES - 1)))?;
        if self.interfaces.get(&number).is_some_and(|port| port.ifindex == device.ifindex && port.mac != device.mac) {
            self.moved.insert(device.name.clone());
        }
        // The interface before the program, so that the first packet finds its way out. Until the hook is known, XDP sends by it only
        // if it did so before and its program is still there.
        let is_xdp = self.plane.hook() != Hook::Tc && self.takes_frames(device.ifindex) && self.has_xdp(&device.name);
        self.describe(number, device, if is_xdp { Hook::Xdp } else { Hook::Tc }, strict).map_err(text)?;
        self.settings.prepare(device).map_err(|error| refused(error.to_string()))?;
        let target = Target::find(&device.name, device.ifindex);
        let hook = self.plane.attach(&target);
        let hook = hook.map_err(|error| Refusal { reason: error.to_string(), remedy: error.remedy() })?;
        self.describe(number, device, hook, strict).map_err(text)?;
        info!(device = device.name, number, %hook, mtu = device.mtu, "device set up");
        self.ready.insert(device.name.clone(), (device.clone(), number));
        synced.changed = true;
        synced.fresh.insert(device.name.clone());
        Ok(())
    }

    /// Whether an XDP program is pinned for the device of this name.
    fn has_xdp(&self, name: &str) -> bool {
        let is_xdp = |(hook, device): &(Hook, String)| device == name && matches!(hook, Hook::Xdp | Hook::XdpGeneric);
        self.plane.attached().is_ok_and(|attached| attached.iter().any(is_xdp))
    }

    /// Whether XDP sends by the device with this interface index.
    fn takes_frames(&self, ifindex: u32) -> bool {
        self.interfaces.values().any(|port| port.ifindex == ifindex && port.takes_frames())
    }

    /// Describes a device that carries the programs at this hook to the programs. XDP sends frames only where XDP receives them: a
    /// driver that runs native XDP has queues for redirected frames, others lose them without an error. `strict`: the programs filter
    /// by the reverse path. `true` if the description changed.
    fn describe(&mut self, number: u32, device: &Device, hook: Hook, strict: bool) -> Result<bool, TableError> {
        let sockets_only = u16::from(!matches!(hook, Hook::Xdp | Hook::XdpGeneric));
        let Device { ifindex, mtu, mac, .. } = *device;
        let port = Interface { ifindex, mtu, mac, sockets_only, strict: strict.into(), ..Interface::default() };
        if self.interfaces.get(&number) == Some(&port) {
            return Ok(false);
        }
        self.set_interface(number, port).map(|()| true)
    }

    /// The number that the device has, else the lowest free one; 0 is the stack.
    fn number(&self, ifindex: u32) -> Option<u32> {
        let held = self.interfaces.iter().find(|(_, port)| port.ifindex == ifindex).map(|(number, _)| *number);
        held.or_else(|| (1..MAX_INTERFACES).find(|number| !self.interfaces.contains_key(number)))
    }

    fn set_interface(&mut self, number: u32, port: Interface) -> Result<(), TableError> {
        self.table.set(number, port, self.interfaces.get(&number).copied())?;
        self.interfaces.insert(number, port);
        Ok(())
    }
}

/// A refusal that no single command mends.
fn refused(reason: String) -> Refusal {
    Refusal { reason, remedy: "journalctl -u vipgate # tells what came before".to_owned() }
}
