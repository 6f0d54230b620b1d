//! Gratuitous ARP: announces a VIP's present MAC address to its neighbours (RFC 5227, section 2.3; RFC 5944, 4.6).

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, sendto, socket},
};

use super::{Device, NetError};

const BROADCAST: [u8; 6] = [0xff; 6];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
/// Shortest Ethernet frame without its checksum.
const FRAME: usize = 60;

/// Sends announcements; clones share what they have.
#[derive(Clone, Debug, Default)]
pub struct Announcer {
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    /// Kept, because the kernel waits for all that its CPUs do before it closes one: ten milliseconds and more.
    socket: Option<Arc<OwnedFd>>,
    /// Link-layer addresses by interface index, which names one device for ever: to list them takes the kernel longer the
    /// more VIPs there are.
    links: HashMap<u32, SockaddrStorage>,
}

impl Announcer {
    /// Sends one announcement of each VIP from a device. Blocks no longer than the device's queue; needs CAP_NET_RAW.
    pub fn announce(&self, device: &Device, vips: &[Ipv4Addr]) -> Result<(), NetError> {
        let Some(first) = vips.first().filter(|_| device.ethernet && device.up) else {
            return Ok(());
        };
        let failed = |vip: Ipv4Addr, error: nix::Error| NetError::Announce {
            vip,
            device: device.name.clone(),
            source: error.into(),
        };
        let (socket, link) = self.held(device).map_err(|error| failed(*first, error))?;
        for vip in vips {
            sendto(socket.as_raw_fd(), &announcement(device.mac, *vip), &link, MsgFlags::empty())
                .map_err(|error| failed(*vip, error))?;
        }
        Ok(())
    }

    /// The socket, which receives nothing, and the device's own link-layer address, which names it.
    fn held(&self, device: &Device) -> nix::Result<(Arc<OwnedFd>, SockaddrStorage)> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Held { socket: kept, links } = &mut *held;
        let opened = match kept {
            Some(kept) => Arc::clone(kept),
            None => Arc::new(socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?),
        };
        *kept = Some(Arc::clone(&opened));
        if let Some(link) = links.get(&device.ifindex) {
            return Ok((opened, *link));
        }
        let addresses = getifaddrs()?
            .filter(|interface| interface.interface_name == device.name)
            .filter_map(|interface| interface.address);
        for address in addresses {
            if let Some(link) = address.as_link_addr() {
                links.insert(u32::try_from(link.ifindex()).unwrap_or_default(), address);
            }
        }
        let link = links.get(&device.ifindex).ok_or(nix::Error::ENODEV)?;
        Ok((opened, *link))
    }
}

/// An ARP announcement: a broadcast request whose sender and target are both the VIP, so that nobody answers and
/// everybody who knows the VIP learns `mac`.
fn announcement(mac: [u8; 6], vip: Ipv4Addr) -> [u8; FRAME] {
    const ETHERNET: [u8; 2] = [0, 1];
    const IPV4: [u8; 2] = [0x08, 0];
    const LENGTHS: [u8; 2] = [6, 4];
    const REQUEST: [u8; 2] = [0, 1];
    let address = vip.octets();
    let parts: [&[u8]; 11] =
        [&BROADCAST, &mac, &ETHERTYPE_ARP, &ETHERNET, &IPV4, &LENGTHS, &REQUEST, &mac, &address, &[0; 6], &address];
    let mut frame = [0; FRAME];
    for (to, from) in frame.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_a_request_for_the_senders_own_address() {
        let mac = [2, 0, 0, 0, 0, 9];
        let frame = announcement(mac, Ipv4Addr::new(10, 0, 0, 5));
        assert_eq!(frame[..14], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 9, 8, 6]);
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(frame[22..32], [2, 0, 0, 0, 0, 9, 10, 0, 0, 5], "sender");
        assert_eq!(frame[32..42], [0, 0, 0, 0, 0, 0, 10, 0, 0, 5], "target");
        assert!(frame[42..].iter().all(|byte| *byte == 0), "padding");
    }
}
