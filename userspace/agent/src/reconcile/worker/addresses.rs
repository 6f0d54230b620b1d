//! The VIPs' addresses on the router's devices, and the router's own.

use std::{
    collections::{BTreeMap, HashSet},
    net::Ipv4Addr,
};

use futures::future::join_all;
use tracing::warn;
use vipgate_state::Source;

use super::{AppliedVip, Worker, open};
use crate::{
    net::{Device, HeldAddress, NetError},
    reconcile::ApplyError,
};

/// Addresses that are added in parallel: the kernel has to buffer an answer for each.
const GIVEN_AT_ONCE: usize = 64;

/// An address that a device has.
struct Given {
    device: Device,
    vip: Ipv4Addr,
    /// The device has just got it.
    is_new: bool,
}

impl Given {
    fn key(&self) -> (u32, Ipv4Addr) {
        (self.device.ifindex, self.vip)
    }

    /// The error of an address that somebody else set.
    fn conflict(&self) -> String {
        let Self { device: Device { name, .. }, vip, .. } = self;
        format!(
            "{vip}/32 is an address of {name} that vipgate has not set: remove it (ip address del {vip}/32 dev {name}), or the \
             VIP"
        )
    }
}

impl<S: Source> Worker<S> {
    /// All addresses of the router, with interface indices. Notes those with vipgate's mark.
    pub(super) async fn held(&mut self) -> Result<HashSet<(u32, Ipv4Addr)>, ApplyError> {
        let held = self.net.addresses().await.map_err(open)?;
        self.note(&held);
        Ok(held.into_iter().map(|held| (held.ifindex, held.address)).collect())
    }

    /// Notes which of all `held` addresses vipgate set. Passes the others, and the broadcast addresses of their networks, on to the
    /// programs: no packet that comes in may have them as its source.
    pub(super) fn note(&mut self, held: &[HeldAddress]) {
        let own = held.iter().filter(|held| !held.vip);
        self.own.set(own.flat_map(|held| [Some(held.address), held.broadcast()]).flatten());
        self.marked = held.iter().filter(|held| held.vip).map(|held| (held.ifindex, held.address)).collect();
    }

    /// Puts back the addresses that a device lost: the device was made anew, or somebody removed them.
    pub(super) async fn restore_addresses(&mut self) -> Result<(), ApplyError> {
        let held = self.net.addresses().await.map_err(open)?;
        self.note(&held);
        let vips: Vec<AppliedVip> = self.applied().values().filter(|applied| !applied.own).cloned().collect();
        // A VIP without its device is dirty, and is applied again when the device comes.
        let device = |applied: &AppliedVip| self.device(&applied.device).map(|device| device.ifindex);
        let is_lost = |applied: &AppliedVip| {
            device(applied).is_some_and(|ifindex| !self.marked.contains(&(ifindex, applied.address)))
        };
        let lost: Vec<AppliedVip> = vips.into_iter().filter(is_lost).collect();
        let given = self.give_addresses(lost.iter().map(|applied| (applied.device.as_str(), applied.address))).await;
        let mut announced: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
        let mut result = Ok(());
        for (applied, given) in lost.into_iter().zip(given) {
            match given {
                Ok(_) => announced.entry(applied.device).or_default().push(applied.address),
                Err(reason) => result = Err(ApplyError::Vip { vip: applied.address.to_string(), reason }),
            }
        }
        self.announce(announced).await;
        result
    }

    /// Adds VIPs' addresses to the devices of these names. Returns a result for each, in their order: `true` if the address is new
    /// on its device. An address that somebody else set is an error.
    pub(super) async fn give_addresses<'a>(
        &mut self,
        wanted: impl Iterator<Item = (&'a str, Ipv4Addr)>,
    ) -> Vec<Result<bool, String>> {
        let wanted: Vec<_> = wanted.collect();
        let mut given = Vec::new();
        for wanted in wanted.chunks(GIVEN_AT_ONCE) {
            given.extend(join_all(wanted.iter().map(|(device, vip)| self.give_address(device, *vip))).await);
        }
        self.marked.extend(given.iter().flatten().filter(|given| given.is_new).map(Given::key));
        // They may be from before this controller started.
        if given.iter().flatten().any(|given| !self.marked.contains(&given.key()))
            && let Err(error) = self.held().await
        {
            warn!(%error, "addresses that are ours may be taken for somebody else's");
        }
        let judged = |given: Given| match self.marked.contains(&given.key()) {
            true => Ok(given.is_new),
            false => Err(given.conflict()),
        };
        given.into_iter().map(|given| given.and_then(judged)).collect()
    }

    /// Adds a VIP's address to the device of this name.
    async fn give_address(&self, name: &str, vip: Ipv4Addr) -> Result<Given, String> {
        let Some(device) = self.device(name) else {
            let kernel = self.lock();
            let reason = kernel.devices.reason(name).unwrap_or("nothing has asked for it yet");
            return Err(format!("its device {name} is not set up: {reason}"));
        };
        let is_new = self.net.add_vip(&device, vip).await.map_err(|error| error.to_string())?;
        Ok(Given { device, vip, is_new })
    }

    /// Removes a VIP's address from its device, if vipgate set it there.
    pub(super) async fn take_address(&mut self, applied: &AppliedVip) -> Result<(), NetError> {
        let Some(Device { ifindex, .. }) = self.device(&applied.device) else { return Ok(()) };
        let key = (ifindex, applied.address);
        if self.marked.contains(&key) {
            self.net.remove_vip(HeldAddress::vip(ifindex, applied.address)).await?;
            self.marked.remove(&key);
        }
        Ok(())
    }
}
