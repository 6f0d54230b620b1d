//! The router itself: its configuration, interfaces and addresses.

use anyhow::Result;
use aya::maps::{HashMap, xdp::DevMap};
use vipgate_abi::{address_filter::Bit, config::Config, interface::Interface, maps};

use super::{Bench, network::ifindex};

impl Bench {
    pub fn set_config(&mut self, config: Config) -> Result<()> {
        Ok(self.array(maps::CONFIG)?.set(0, config, 0)?)
    }

    pub fn config(&mut self) -> Result<Config> {
        Ok(self.array(maps::CONFIG)?.get(&0, 0)?)
    }

    /// Makes a device an interface of the router.
    pub fn set_interface(&mut self, number: u32, device: &str, mac: [u8; 6]) -> Result<()> {
        let ifindex = ifindex(device)?;
        self.array(maps::PORTS)?.set(number, Interface { ifindex, mtu: 1500, mac, ..Interface::default() }, 0)?;
        HashMap::<_, u32, u32>::try_from(self.map(maps::PORT_NUMBERS)?)?.insert(ifindex, number, 0)?;
        Ok(DevMap::try_from(self.map(maps::TX_PORTS)?)?.set(number, ifindex, None, 0)?)
    }

    /// Makes a further device an interface; frames with its MAC come in by it.
    pub fn add_device(&mut self, number: u32, device: &str, mac: [u8; 6]) -> Result<()> {
        self.own.push((mac, ifindex(device)?));
        self.set_interface(number, device, mac)
    }

    /// Sets an interface's MTU, in bytes of the IP packet.
    pub fn set_mtu(&mut self, number: u32, mtu: u32) -> Result<()> {
        let mut ports = self.array::<Interface>(maps::PORTS)?;
        let port = ports.get(&number, 0)?;
        Ok(ports.set(number, Interface { mtu, ..port }, 0)?)
    }

    /// Makes an interface drop packets whose source the kernel routes by another one (strict reverse path).
    pub fn set_strict(&mut self, number: u32) -> Result<()> {
        let mut ports = self.array::<Interface>(maps::PORTS)?;
        let port = ports.get(&number, 0)?;
        ports.set(number, Interface { strict: 1, ..port }, 0)?;
        let config = self.config()?;
        self.set_config(Config { strict: 1, ..config })
    }

    /// Interface index of a device.
    pub fn device(&self, name: &str) -> Result<u32> {
        ifindex(name)
    }

    /// Makes an interface one that XDP cannot send by.
    pub fn set_sockets_only(&mut self, number: u32) -> Result<()> {
        let mut ports = self.array::<Interface>(maps::PORTS)?;
        let port = ports.get(&number, 0)?;
        Ok(ports.set(number, Interface { sockets_only: 1, ..port }, 0)?)
    }

    /// Sets a bit of the address filter.
    pub fn add_to_address_filter(&mut self, bit: Bit) -> Result<()> {
        self.add_to_address_filters([bit])
    }

    pub(super) fn add_to_address_filters(&mut self, bits: impl IntoIterator<Item = Bit>) -> Result<()> {
        let mut wanted = std::collections::HashMap::<u32, u64>::new();
        for bit in bits {
            *wanted.entry(bit.word()).or_default() |= bit.mask();
        }
        let mut words = self.array::<u64>(maps::INTEREST)?;
        for (word, mask) in wanted {
            let held = words.get(&word, 0)?;
            words.set(word, held | mask, 0)?;
        }
        Ok(())
    }

    /// Removes an interface, as when its device goes away.
    pub fn remove_interface(&mut self, number: u32) -> Result<()> {
        Ok(self.array(maps::PORTS)?.set(number, Interface::default(), 0)?)
    }

    /// Advances the epoch, so that every flow looks its route up again.
    pub fn move_epoch(&mut self) -> Result<()> {
        let config = self.config()?;
        self.set_config(Config { epoch: config.epoch + 1, ..config })
    }
}
