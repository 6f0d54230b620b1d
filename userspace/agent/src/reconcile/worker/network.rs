//! The devices, and the VIPs' addresses on them.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::Ipv4Addr,
};

use futures::future::join_all;
use tokio::time::Instant;
use tracing::warn;
use vipgate_state::Source;

use super::{AppliedVip, Kernel, RETRY, Retry, Worker, again, background, open, unreadable};
use crate::{
    loader::{self, MissingProgram},
    net::{Device, HeldAddress, NetError},
    reconcile::{ApplyError, devices::Synced},
};

/// Addresses that the kernel is given at once: it has to keep an answer for each.
const GIVEN_AT_ONCE: usize = 64;

/// An address that a device has.
struct Given {
    device: Device,
    vip: Ipv4Addr,
    /// It has just got it.
    is_new: bool,
}

impl Given {
    fn key(&self) -> (u32, Ipv4Addr) {
        (self.device.ifindex, self.vip)
    }

    /// What is wrong with one that somebody else set.
    fn is_strange(&self) -> String {
        let Self { device: Device { name, .. }, vip, .. } = self;
        format!(
            "{vip}/32 is an address of {name} that vipgate has not set: remove it (ip address del {vip}/32 dev {name}), or the \
             VIP"
        )
    }
}

impl<S: Source> Worker<S> {
    /// Looks for programs that somebody took off their devices, and disciplines of queues, tells of each, and brings what the
    /// queues lack back; and for devices whose reverse-path filtering somebody set otherwise. True: there are devices to be set up
    /// anew, or told of.
    pub(super) async fn find_lost(&mut self) -> bool {
        let lost = self.with_kernel(|kernel| kernel.plane.missing_programs()).await.unwrap_or_else(|error| {
            warn!(error = %loader::causes(&error), "cannot see whether all programs are where they were put");
            Vec::new()
        });
        let (mut devices, mut pairs) = (BTreeSet::new(), BTreeSet::new());
        for MissingProgram { device, ifindex, hook, program } in lost {
            // A device that is another one now is noticed elsewhere.
            let is_ready = self.device(&device).is_some_and(|ready| ready.ifindex == ifindex);
            let pair = self.queue_pair_at(&device, ifindex);
            if is_ready || pair.is_some() {
                warn!(device, hook, program, "somebody took the program off: putting it back");
            }
            pairs.extend(pair);
            devices.extend(is_ready.then_some(device));
        }
        for number in pairs {
            self.restore_queue_end(number).await;
        }
        self.restore_disciplines().await;
        self.with_kernel(move |kernel| {
            devices.iter().for_each(|name| kernel.devices.forget(name));
            kernel.devices.loosen() || !devices.is_empty()
        })
        .await
    }

    /// Devices, then the VIPs' addresses on them.
    pub(super) async fn sync_network(&mut self) -> Result<(), ApplyError> {
        let mut result = self.sync_devices().await.map(drop);
        if let Err(error) = self.restore_addresses().await {
            result = result.and(Err(error));
        }
        match &result {
            Ok(()) => self.network_dirty = None,
            Err(error) => {
                warn!(%error, "trying again");
                self.network_dirty = Some(again(self.network_dirty));
            }
        }
        result
    }

    /// Sets up one device before something stored wants it.
    pub(super) async fn prepare_device(&mut self, name: String) -> Result<(), ApplyError> {
        let found = self.net.devices().await.map_err(open)?;
        let Some(device) = found.into_iter().find(|device| device.name == name) else {
            let reason = "there is no such device on this router".to_owned();
            return Err(ApplyError::Device { device: name, reason });
        };
        let prepared = self.with_kernel(move |kernel| kernel.devices.prepare(&device)).await;
        let synced = prepared.map_err(|reason| ApplyError::Device { device: name, reason })?;
        background::tell(&self.epoch, &synced);
        Ok(())
    }

    /// Brings the devices in line, and announces the VIPs of those that are new or came up; VIPs whose entries name a device
    /// that is another one now are due to be applied. The first error, if any.
    pub(super) async fn sync_devices(&mut self) -> Result<(), ApplyError> {
        let wanted = self.source.devices().await.map_err(|error| unreadable(&error))?;
        let found = self.net.devices().await.map_err(open)?;
        let all = found.clone();
        let sync = move |kernel: &mut Kernel| (kernel.devices.sync(&wanted, &found), kernel.devices.refused().clone());
        let (synced, refused) = self.with_kernel(sync).await;
        self.refused.send_replace(refused);
        background::tell(&self.epoch, &synced);
        let Synced { fresh, errors, .. } = synced;
        self.restore_queues(&all).await;
        self.renew_placed(&fresh).await?;
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    /// Has VIPs applied whose entries name a device that is another one now, and announces those of devices that are `fresh`.
    pub(super) async fn renew_placed(&mut self, fresh: &BTreeSet<String>) -> Result<(), ApplyError> {
        let vips: Vec<(String, AppliedVip)> = self.applied().clone().into_iter().collect();
        // The router's own address is no VIP of ours to announce while the router does not have it.
        let is_asked = vips.iter().any(|(_, applied)| applied.own && fresh.contains(&applied.device));
        let held = if is_asked { self.held().await? } else { HashSet::new() };
        let mut announce: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
        for (uuid, applied) in vips {
            let index = self.device(&applied.device).map(|device| device.ifindex);
            let is_other = |(name, named): (&String, &Option<u32>)| {
                let found = self.device(name).map(|device| device.ifindex);
                found.is_some() && found != *named
            };
            if applied.named.iter().any(is_other) {
                // Its entries are of a device that is no more.
                self.dirty.insert(uuid, Retry { at: Instant::now(), pause: RETRY.0 });
            }
            let is_there = !applied.own || index.is_some_and(|index| held.contains(&(index, applied.address)));
            if is_there && fresh.contains(&applied.device) {
                announce.entry(applied.device).or_default().push(applied.address);
            }
        }
        self.announce(announce).await;
        Ok(())
    }

    /// All addresses by interface index; the marked ones are noted.
    async fn held(&mut self) -> Result<HashSet<(u32, Ipv4Addr)>, ApplyError> {
        let held = self.net.addresses().await.map_err(open)?;
        self.note(&held);
        Ok(held.into_iter().map(|held| (held.ifindex, held.address)).collect())
    }

    /// Notes which addresses vipgate set, of all that there are, and tells the programs of the others, and of the broadcast
    /// addresses of their networks: no packet that comes in is from them.
    pub(super) fn note(&mut self, held: &[HeldAddress]) {
        let own = held.iter().filter(|held| !held.vip);
        self.own.set(own.flat_map(|held| [Some(held.address), held.broadcast()]).flatten());
        self.marked = held.iter().filter(|held| held.vip).map(|held| (held.ifindex, held.address)).collect();
    }

    /// Puts addresses back that a device lost: it was made anew, or somebody removed them.
    async fn restore_addresses(&mut self) -> Result<(), ApplyError> {
        let held = self.net.addresses().await.map_err(open)?;
        self.note(&held);
        let vips: Vec<AppliedVip> = self.applied().values().filter(|applied| !applied.own).cloned().collect();
        // Without its device a VIP is dirty, and comes when the device does.
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

    /// Announces VIPs by gratuitous ARP: once now, and a few times later. Nothing depends on it but how soon a neighbour
    /// that knew the address elsewhere learns better, so a failure is only told.
    pub(super) async fn announce(&mut self, vips: BTreeMap<String, Vec<Ipv4Addr>>) {
        if vips.is_empty() {
            return;
        }
        self.announce_now(&vips).await;
        while self.repeats.try_join_next().is_some() {}
        self.repeats.spawn(background::repeat(vips, self.commands.clone()));
    }

    /// Announces VIPs that were announced before: those that are still there, at the MAC address that their device has now.
    pub(super) async fn announce_again(&mut self, mut vips: BTreeMap<String, Vec<Ipv4Addr>>) {
        vips.values_mut().for_each(|vips| vips.retain(|vip| self.owners.contains_key(vip)));
        self.announce_now(&vips).await;
    }

    async fn announce_now(&self, vips: &BTreeMap<String, Vec<Ipv4Addr>>) {
        let vips: Vec<(Device, Vec<Ipv4Addr>)> = {
            let kernel = self.lock();
            let known =
                |(name, vips): (&String, &Vec<Ipv4Addr>)| Some((kernel.devices.get(name)?.clone(), vips.clone()));
            vips.iter().filter_map(known).collect()
        };
        if !vips.is_empty() {
            background::announce(self.announcer.clone(), vips).await;
        }
    }

    /// Gives VIPs' addresses to the devices of these names; what became of each, in their order. True: the address is new on
    /// its device. One that the device has from somebody else is none of ours, and so an error.
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
        // They may be of a time before this controller.
        if given.iter().flatten().any(|given| !self.marked.contains(&given.key()))
            && let Err(error) = self.held().await
        {
            warn!(%error, "addresses that are ours may be taken for somebody else's");
        }
        let judged = |given: Given| match self.marked.contains(&given.key()) {
            true => Ok(given.is_new),
            false => Err(given.is_strange()),
        };
        given.into_iter().map(|given| given.and_then(judged)).collect()
    }

    /// Gives a VIP's address to the device of this name.
    async fn give_address(&self, name: &str, vip: Ipv4Addr) -> Result<Given, String> {
        let Some(device) = self.device(name) else {
            let kernel = self.lock();
            let reason = kernel.devices.reason(name).unwrap_or("nothing has asked for it yet");
            return Err(format!("its device {name} is not set up: {reason}"));
        };
        let is_new = self.net.add_vip(&device, vip).await.map_err(|error| error.to_string())?;
        Ok(Given { device, vip, is_new })
    }

    /// Takes a VIP's address from its device, if vipgate set it there. Else it stays, or is gone with the device.
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
