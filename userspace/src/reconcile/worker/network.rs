//! The devices, and the VIPs' addresses on them.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::Ipv4Addr,
    time::Duration,
};

use futures::future::join_all;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{Kernel, Placed, RETRY, Retry, Worker, again, helpers, open, unreadable};
use crate::{
    loader::{self, Lost},
    net::{Device, NetError},
    reconcile::{ApplyError, devices::Synced},
    state::Source,
};

/// Announcements after the first, should that one be lost.
const REPEAT_ANNOUNCEMENT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// Addresses that the kernel is given at once: it has to keep an answer for each.
const GIVEN_AT_ONCE: usize = 64;

impl<S: Source> Worker<S> {
    /// Looks for programs that somebody took off their devices, and disciplines of queues, tells of each, and brings what the
    /// queues lack back. True: there are devices to be set up anew.
    pub(super) async fn find_lost(&mut self) -> bool {
        let lost = self.with_kernel(|kernel| kernel.plane.lost()).await.unwrap_or_else(|error| {
            warn!(error = %loader::causes(&error), "cannot see whether all programs are where they were put");
            Vec::new()
        });
        let (mut devices, mut pairs) = (BTreeSet::new(), BTreeSet::new());
        for Lost { device, ifindex, hook, program } in lost {
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
        let mut kernel = self.lock();
        devices.iter().for_each(|name| kernel.devices.forget(name));
        !devices.is_empty()
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
        if prepared.map_err(|reason| ApplyError::Device { device: name, reason })? {
            helpers::bump(&self.epoch);
        }
        Ok(())
    }

    /// Brings the devices in line, and announces the VIPs of those that are new or came up; VIPs whose entries name a device
    /// that is another one now are due to be applied. The first error, if any.
    pub(super) async fn sync_devices(&mut self) -> Result<(), ApplyError> {
        let wanted = self.source.devices().await.map_err(|error| unreadable(&error))?;
        let found = self.net.devices().await.map_err(open)?;
        let all = found.clone();
        let sync = move |kernel: &mut Kernel| (kernel.devices.sync(&wanted, &found), kernel.devices.refused().clone());
        let (Synced { changed, fresh, errors }, refused) = self.with_kernel(sync).await;
        self.refused.send_replace(refused);
        if changed {
            helpers::bump(&self.epoch);
        }
        self.restore_queues(&all).await;
        let vips: Vec<(String, Placed)> = self.placed().clone().into_iter().collect();
        let mut announce: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
        for (uuid, placed) in vips {
            let index = self.device(&placed.device).map(|device| device.ifindex);
            if index.is_some() && placed.names_device.is_some_and(|named| Some(named) != index) {
                // Its entries are of a device that is no more.
                self.dirty.insert(uuid, Retry { at: Instant::now(), pause: RETRY.0 });
            }
            if !placed.own && fresh.contains(&placed.device) {
                announce.entry(placed.device).or_default().push(placed.address);
            }
        }
        self.announce(announce).await;
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    /// Puts addresses back that a device lost: it was made anew, or somebody removed them.
    async fn restore_addresses(&mut self) -> Result<(), ApplyError> {
        let held = self.net.addresses().await.map_err(open)?;
        let held: HashSet<(u32, Ipv4Addr)> = held.into_iter().map(|held| (held.ifindex, held.address)).collect();
        let vips: Vec<Placed> = self.placed().values().filter(|placed| !placed.own).cloned().collect();
        // Without its device a VIP is dirty, and comes when the device does.
        let device = |placed: &Placed| self.device(&placed.device).map(|device| device.ifindex);
        let is_lost =
            |placed: &Placed| device(placed).is_some_and(|ifindex| !held.contains(&(ifindex, placed.address)));
        let lost: Vec<Placed> = vips.into_iter().filter(is_lost).collect();
        let given = self.give_addresses(lost.iter().map(|placed| (placed.device.as_str(), placed.address))).await;
        let mut announced: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
        let mut result = Ok(());
        for (placed, given) in lost.into_iter().zip(given) {
            match given {
                Ok(_) => announced.entry(placed.device).or_default().push(placed.address),
                Err(reason) => result = Err(ApplyError::Vip { vip: placed.address.to_string(), reason }),
            }
        }
        self.announce(announced).await;
        result
    }

    /// Announces VIPs by gratuitous ARP: once now, and a few times later. Nothing depends on it but how soon a neighbour
    /// that knew the address elsewhere learns better, so a failure is only told.
    pub(super) async fn announce(&mut self, vips: BTreeMap<String, Vec<Ipv4Addr>>) {
        let vips: Vec<(Device, Vec<Ipv4Addr>)> = {
            let kernel = self.lock();
            vips.into_iter().filter_map(|(name, vips)| Some((kernel.devices.get(&name)?.clone(), vips))).collect()
        };
        if vips.is_empty() {
            return;
        }
        let announcer = self.announcer.clone();
        helpers::announce(announcer.clone(), vips.clone()).await;
        while self.repeats.try_join_next().is_some() {}
        self.repeats.spawn(async move {
            for pause in REPEAT_ANNOUNCEMENT {
                sleep(pause).await;
                helpers::announce(announcer.clone(), vips.clone()).await;
            }
        });
    }

    /// Gives addresses to the devices of these names, as [`Self::give_address`] does; what became of each, in their order.
    pub(super) async fn give_addresses<'a>(
        &self,
        wanted: impl Iterator<Item = (&'a str, Ipv4Addr)>,
    ) -> Vec<Result<bool, String>> {
        let wanted: Vec<_> = wanted.collect();
        let mut given = Vec::new();
        for wanted in wanted.chunks(GIVEN_AT_ONCE) {
            given.extend(join_all(wanted.iter().map(|(device, vip)| self.give_address(device, *vip))).await);
        }
        given
    }

    /// True: the address is new on its device.
    async fn give_address(&self, device: &str, vip: Ipv4Addr) -> Result<bool, String> {
        let Some(device) = self.device(device) else {
            let kernel = self.lock();
            let reason = kernel.devices.reason(device).unwrap_or("nothing has asked for it yet");
            return Err(format!("its device {device} is not set up: {reason}"));
        };
        self.net.add_vip(&device, vip).await.map_err(|error| error.to_string())
    }

    /// Takes a VIP's address from its device, unless it is the router's own.
    pub(super) async fn take_address(&self, placed: &Placed) -> Result<(), NetError> {
        match self.device(&placed.device) {
            Some(device) if !placed.own => self.net.remove_vip(device.ifindex, placed.address).await,
            // It stays; or the device is gone, and the address with it.
            _ => Ok(()),
        }
    }
}
