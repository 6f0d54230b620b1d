//! What a device's driver reports: its name, features and channels, by the `SIOCETHTOOL` request
//! (linux/ethtool.h). In the loader because the request takes bare pointers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::UdpSocket,
    os::fd::{AsRawFd, RawFd},
};

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const GDRVINFO: u32 = 0x03;
const GSTRINGS: u32 = 0x1b;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;
const GCHANNELS: u32 = 0x3c;
/// The string set of the features' names.
const FEATURES: u32 = 4;
/// Bytes of a string in a set.
const STRING: usize = 32;
/// More features than any kernel has: a bound on what is asked for.
const MOST_FEATURES: u32 = 1024;

/// A driver's answers. What it does not answer is left empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Driver {
    pub name: String,
    /// Features (offloads) by ethtool's names, and whether they are on.
    pub features: BTreeMap<String, bool>,
    /// Those of them that cannot be switched.
    pub fixed: BTreeSet<String>,
    /// Receive queues in use and at most.
    pub channels: Option<(u32, u32)>,
}

/// Asks the driver of a device in the calling thread's network namespace.
pub fn driver(device: &str) -> io::Result<Driver> {
    // Any socket takes the request.
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let ask = |buffer: &mut Vec<u32>| request(socket.as_raw_fd(), device, buffer);
    let channels = {
        let mut answer = command(GCHANNELS, 9);
        // cmd, most rx, tx, other, combined; then those in use.
        ask(&mut answer).ok().map(|()| (answer[5] + answer[8], answer[1] + answer[4]))
    };
    let mut info = command(GDRVINFO, 49);
    // The loopback, which has none, refuses.
    let name = ask(&mut info).map(|()| text(&bytes(&info[1..9]))).unwrap_or_default();
    let states = features(ask)?;
    let fixed = states.iter().filter(|(_, state)| state.fixed).map(|(name, _)| name.clone()).collect();
    let features = states.into_iter().map(|(name, state)| (name, state.active)).collect();
    Ok(Driver { name, features, fixed, channels })
}

/// The names of the drivers that carry a device's frames: its own, or those of the devices that are bonded to it. Empty where
/// nothing is told.
pub fn drivers(device: &str) -> Vec<String> {
    let name = |device: &str| {
        let socket = UdpSocket::bind("127.0.0.1:0").ok()?;
        let mut info = command(GDRVINFO, 49);
        request(socket.as_raw_fd(), device, &mut info).ok()?;
        Some(text(&bytes(&info[1..9])))
    };
    let bonded = fs::read_to_string(format!("/proc/thread-self/net/bonding/{device}")).unwrap_or_default();
    let bonded: Vec<String> = slaves(&bonded).filter_map(name).collect();
    if bonded.is_empty() { name(device).into_iter().collect() } else { bonded }
}

/// The devices of a bond, from the kernel's description of it.
fn slaves(bond: &str) -> impl Iterator<Item = &str> {
    bond.lines().filter_map(|line| line.strip_prefix("Slave Interface:")).map(str::trim)
}

struct Feature {
    active: bool,
    fixed: bool,
}

fn features(ask: impl Fn(&mut Vec<u32>) -> io::Result<()>) -> io::Result<BTreeMap<String, Feature>> {
    // cmd, reserved, a mask of 64 bits, the length of the one set that was asked for.
    let mut set = command(GSSET_INFO, 5);
    set[2] = 1 << FEATURES;
    ask(&mut set)?;
    let count = set[4].min(MOST_FEATURES);
    let mut names = command(GSTRINGS, 3 + count as usize * STRING / 4);
    (names[1], names[2]) = (FEATURES, count);
    ask(&mut names)?;
    let blocks = count.div_ceil(32);
    // For each 32 features: available, requested, active, never changed.
    let mut states = command(GFEATURES, 2 + blocks as usize * 4);
    states[1] = blocks;
    ask(&mut states)?;
    let names = bytes(&names[3..]);
    let is = |feature: usize, word: usize| states[2 + feature / 32 * 4 + word] >> (feature % 32) & 1 == 1;
    let state = |feature| Feature { active: is(feature, 2), fixed: !is(feature, 0) || is(feature, 3) };
    Ok(names.chunks(STRING).enumerate().map(|(feature, name)| (text(name), state(feature))).collect())
}

fn command(number: u32, words: usize) -> Vec<u32> {
    let mut buffer = vec![0; words];
    buffer[0] = number;
    buffer
}

fn request(socket: RawFd, device: &str, buffer: &mut [u32]) -> io::Result<()> {
    // SAFETY: all zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    let room = request.ifr_name.len() - 1;
    if device.len() > room {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no device has such a long name"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = buffer.as_mut_ptr().cast();
    // SAFETY: the request's data points to a buffer, alive during the call, as large as the command in its first word
    // and the lengths beside it say; the kernel writes no more than that.
    match unsafe { libc::ioctl(socket, SIOCETHTOOL, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A string that ends with its first zero.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_devices_of_a_bond_are_read_from_the_kernels_description() {
        let text = "Bonding Mode: fault-tolerance (active-backup)\nCurrently Active Slave: eth1\n\n\
                    Slave Interface: eth1\nMII Status: up\n\nSlave Interface: eth2\nMII Status: up\n";
        assert_eq!(slaves(text).collect::<Vec<_>>(), ["eth1", "eth2"]);
        assert!(drivers("none").is_empty());
    }

    #[test]
    fn the_loopback_has_features_and_what_is_no_device_has_an_error() {
        let driver = driver("lo").expect("every machine has it");
        assert!(driver.features.contains_key("rx-gro") && !driver.fixed.contains("rx-gro"), "{driver:?}");
        assert!(driver.features["loopback"] && driver.fixed.contains("loopback"), "{driver:?}");
        assert!(super::driver("none").is_err());
        assert!(super::driver("a-name-that-is-much-too-long").is_err());
    }
}
