//! The kernel settings that managed devices, VIPs and source NAT need, and what they were before.
//!
//! Settings of devices are set for the managed ones only, so that the management device does not start to forward; which devices
//! answer ARP requests for VIPs is a setting of all devices. All stay when the controller ends, as the traffic does. Their earlier
//! values are kept beside the pins, which live as long as the kernel and its settings do, for `vipgate detach`.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use nix::net::if_::if_indextoname;
use vipgate_abi::snat::OWN_PORTS;

use super::{Device, NetError};

const IPV4: &str = "/proc/sys/net/ipv4";
/// Reverse-path filtering, and what makes it strict or loose.
const RP_FILTER: &str = "rp_filter";
const STRICT: u32 = 1;
const LOOSE: u32 = 2;
const OWN_PORT_RANGE: &str = "ip_local_port_range";
/// Stands for all devices, where others have their interface index.
const ALL: u32 = 0;

/// Settings that are changed, and what they were before.
///
/// That is a directory with a symbolic link for each: `<interface index>-<name>` for a device's, else the name alone. It names
/// the values of before and of ours, with a colon in between, and leads nowhere: where pins are there are no other files.
#[derive(Clone, Debug)]
pub struct Settings {
    kept: PathBuf,
    ipv4: PathBuf,
}

impl Settings {
    /// The settings of this network namespace; `kept` is made when something is to be kept.
    #[must_use]
    pub fn new(kept: PathBuf) -> Self {
        Self { kept, ipv4: IPV4.into() }
    }

    /// Sets up a device:
    /// - `forwarding`: packets that the programs hand to the stack are to be routed, and `bpf_fib_lookup` refuses without.
    /// - `accept_local`: the answers of backends carry a VIP, an address of ours, as their source once they are translated;
    ///   those that go through the stack (no neighbour entry yet, larger than the MTU) would be dropped as martians.
    /// - `arp_ignore` of all devices: an address is answered for by its own device alone. Else a device without a program
    ///   that shares the segment answers for VIPs, too, and gets their packets.
    /// - `arp_announce` of all devices: they ask with an address of their own. Else one asks with a VIP as the sender, by which
    ///   its neighbours learn to send there.
    pub fn prepare(&self, device: &Device) -> Result<(), NetError> {
        let Device { ifindex, name, .. } = device;
        self.set_of(*ifindex, name, "forwarding", 1)?;
        self.set_of(*ifindex, name, "accept_local", 1)?;
        if read("all", "arp_ignore") == 0 {
            self.set_of(ALL, "all", "arp_ignore", 1)?;
        }
        if read("all", "arp_announce") < 2 {
            self.set_of(ALL, "all", "arp_announce", 2)?;
        }
        Ok(())
    }

    /// Makes a device's reverse-path filtering loose where it is strict: answers of backends that go through the stack, with a VIP as
    /// their source, come in by another device than the VIP's. `true` if it was strict, and the programs must filter
    /// instead. That holds over restarts, until an operator writes another value, which is followed and kept from then on.
    pub fn loosen(&self, device: &Device) -> Result<bool, NetError> {
        let Device { ifindex, name, .. } = device;
        let [all, own] = ["all", name.as_str()].map(|device| self.number(&of_device(device, RP_FILTER)));
        if all.max(own) == STRICT {
            // The largest value wins.
            self.set_of(*ifindex, name, RP_FILTER, LOOSE)?;
            return Ok(true);
        }
        let record = self.kept.join(format!("{ifindex}-{RP_FILTER}"));
        let Some((before, _)) = kept(&record) else {
            return Ok(false);
        };
        if own != LOOSE {
            // Unless that fails it would count again should he set the value that we did.
            let _ = fs::remove_file(record);
            return Ok(false);
        }
        Ok(before.parse().is_ok_and(|before: u32| all.max(before) == STRICT))
    }

    /// Has the router's stack choose its own connections' ports among those that source NAT does not give to guests. A range
    /// that lies within them stays as it is.
    pub fn reserve_snat_ports(&self) -> Result<(), NetError> {
        let range = self.value(Path::new(OWN_PORT_RANGE)).unwrap_or_default();
        let first = range.split(' ').next().and_then(|first| first.parse().ok());
        if first.is_some_and(|first: u16| first >= OWN_PORTS) {
            return Ok(());
        }
        self.set(OWN_PORT_RANGE, Path::new(OWN_PORT_RANGE), &format!("{OWN_PORTS} {}", u16::MAX))
    }

    /// Puts back what was changed, where it still is as it was set, and forgets it. Tells how many settings are as they were
    /// before, and what could not be put back.
    pub fn restore(&self) -> (usize, Vec<String>) {
        let (mut count, mut left) = (0, Vec::new());
        for entry in fs::read_dir(&self.kept).into_iter().flatten().flatten() {
            match self.restore_one(&entry.path()) {
                Ok(restored) => count += usize::from(restored),
                Err(error) => left.push(format!("{}: {error}", entry.path().display())),
            }
        }
        // It stays with what is in it, which is told already.
        let _ = fs::remove_dir(&self.kept);
        (count, left)
    }

    /// `true` if it is as before. What is no record of ours, or of a device that is gone, is only forgotten.
    fn restore_one(&self, record: &Path) -> io::Result<bool> {
        let setting = record.file_name().and_then(|name| setting(name.to_str()?));
        let mut restored = false;
        if let (Some((before, ours)), Some(setting)) = (kept(record), setting)
            && self.value(&setting) == Some(ours)
            && !self.is_everywhere(&setting)
        {
            fs::write(self.ipv4.join(&setting), before)?;
            restored = true;
        }
        fs::remove_file(record)?;
        Ok(restored)
    }

    /// Whether all devices have it so by a setting that is none of ours: `ip_forward` gives every device `forwarding`.
    fn is_everywhere(&self, setting: &Path) -> bool {
        setting.ends_with("forwarding") && self.value(Path::new("ip_forward")).as_deref() == Some("1")
    }

    fn set_of(&self, ifindex: u32, device: &str, name: &str, value: u32) -> Result<(), NetError> {
        self.set(&format!("{ifindex}-{name}"), &of_device(device, name), &value.to_string())
    }

    /// Gives a setting a value; what it was is kept first.
    fn set(&self, record: &str, setting: &Path, value: &str) -> Result<(), NetError> {
        let path = self.ipv4.join(setting);
        let before = self.value(setting);
        if before.as_deref() == Some(value) {
            return Ok(());
        }
        // First, so that a controller which ends here has left nothing that nobody would put back.
        if let Some(before) = before {
            self.keep(record, &format!("{before}:{value}")).map_err(|source| NetError::Keep {
                setting: path.display().to_string(),
                path: self.kept.display().to_string(),
                source,
            })?;
        }
        let failed = |source| NetError::Sysctl { path: path.display().to_string(), value: value.to_owned(), source };
        fs::write(&path, value).map_err(failed)
    }

    fn keep(&self, record: &str, values: &str) -> io::Result<()> {
        fs::create_dir_all(&self.kept)?;
        let record = self.kept.join(record);
        match fs::remove_file(&record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        symlink(values, record)
    }

    /// 0 when it cannot be read.
    fn number(&self, setting: &Path) -> u32 {
        self.value(setting).and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    /// As it reads, with single spaces between numbers; `None` if it cannot be read.
    fn value(&self, setting: &Path) -> Option<String> {
        let text = fs::read_to_string(self.ipv4.join(setting)).ok()?;
        Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// The values of before and of ours that a record holds; `None` if it is no record.
fn kept(record: &Path) -> Option<(String, String)> {
    let values = fs::read_link(record).ok()?;
    let (before, ours) = values.to_str()?.split_once(':')?;
    Some((before.to_owned(), ours.to_owned()))
}

/// The path of the setting that a record is about; `None` if it is no record, or its device is gone.
fn setting(record: &str) -> Option<PathBuf> {
    let Some((ifindex, name)) = record.split_once('-') else {
        return (record == OWN_PORT_RANGE).then(|| record.into());
    };
    match ifindex.parse().ok()? {
        ALL => Some(of_device("all", name)),
        ifindex => Some(of_device(&if_indextoname(ifindex).ok()?.to_string_lossy(), name)),
    }
}

fn of_device(device: &str, name: &str) -> PathBuf {
    ["conf", device, name].iter().collect()
}

/// Whether a device answers ARP requests for addresses of other devices.
pub fn answers_for_others(device: &str) -> bool {
    in_force(device, "arp_ignore") == 0
}

/// Of some settings the larger of `all` and the device's own counts (ip-sysctl).
pub fn in_force(device: &str, name: &str) -> u32 {
    read("all", name).max(read(device, name))
}

/// Whether the kernel routes; a device that vipgate manages does so in any case.
pub fn routes() -> bool {
    fs::read_to_string(Path::new(IPV4).join("ip_forward")).is_ok_and(|text| text.trim() != "0")
}

/// Keeps IPv6 off a device that nobody shall talk to; a kernel without IPv6 has nothing to keep off.
pub fn disable_ipv6(device: &str) -> Result<(), NetError> {
    let path: PathBuf = ["/proc/sys/net/ipv6/conf", device, "disable_ipv6"].iter().collect();
    if !path.exists() {
        return Ok(());
    }
    let failed = |source| NetError::Sysctl { path: path.display().to_string(), value: "1".to_owned(), source };
    fs::write(&path, "1").map_err(failed)
}

/// A device's setting; of `all` those of all devices. 0 when it cannot be read: then it cannot be written either, which is
/// reported.
pub fn read(device: &str, name: &str) -> u32 {
    let text = fs::read_to_string(Path::new(IPV4).join(of_device(device, name)));
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
