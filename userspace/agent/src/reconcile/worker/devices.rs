//! The devices that carry the programs: set up, followed, and given back what somebody took off.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::Ipv4Addr,
};

use tracing::warn;
use vipgate_state::Source;

use super::{AppliedVip, Kernel, Retry, Worker, epoch, open, unreadable};
use crate::{
    loader::{self, MissingProgram},
    reconcile::{ApplyError, devices::Synced},
};

impl<S: Source> Worker<S> {
    /// Looks for programs and queueing disciplines that somebody took off, logs each, and restores those of the queues; and for
    /// devices whose reverse-path filtering somebody changed. `true` if devices must be synced: they lack a program, or the
    /// programs know another filtering.
    pub(super) async fn find_lost(&mut self) -> bool {
        let lost = self.with_kernel(|kernel| kernel.plane.missing_programs()).await.unwrap_or_else(|error| {
            warn!(error = %loader::causes(&error), "cannot see whether all programs are where they were put");
            Vec::new()
        });
        let (mut devices, mut pairs) = (BTreeSet::new(), BTreeSet::new());
        for MissingProgram { device, ifindex, hook, program } in lost {
            // A device that was replaced is noticed by the next sync.
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

    /// Brings the devices in line, then the VIPs' addresses on them.
    pub(super) async fn sync_network(&mut self) -> Result<(), ApplyError> {
        let mut result = self.sync_devices().await.map(drop);
        if let Err(error) = self.restore_addresses().await {
            result = result.and(Err(error));
        }
        match &result {
            Ok(()) => self.network_dirty = None,
            Err(error) => {
                warn!(%error, "trying again");
                self.network_dirty = Some(Retry::after(self.network_dirty));
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
        epoch::publish(&self.epoch, &synced);
        Ok(())
    }

    /// Brings the devices in line, and announces the VIPs of those that are new or came up. VIPs whose entries name a device that
    /// was replaced become due to be applied.
    ///
    /// # Errors
    /// The first of all.
    pub(super) async fn sync_devices(&mut self) -> Result<(), ApplyError> {
        let wanted = self.source.devices().await.map_err(|error| unreadable(&error))?;
        let found = self.net.devices().await.map_err(open)?;
        let all = found.clone();
        let sync = move |kernel: &mut Kernel| (kernel.devices.sync(&wanted, &found), kernel.devices.refused().clone());
        let (synced, refused) = self.with_kernel(sync).await;
        self.refused.send_replace(refused);
        epoch::publish(&self.epoch, &synced);
        let Synced { fresh, errors, .. } = synced;
        self.restore_queues(&all).await;
        self.refresh_vips(&fresh).await?;
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    /// Marks VIPs whose entries name a device that was replaced as due to be applied, and announces those on `fresh` devices.
    pub(super) async fn refresh_vips(&mut self, fresh: &BTreeSet<String>) -> Result<(), ApplyError> {
        let vips: Vec<(String, AppliedVip)> = self.applied().clone().into_iter().collect();
        // The router's own address is announced only while the router has it.
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
                // Its entries name a device that is gone.
                self.dirty.insert(uuid, Retry::now());
            }
            let is_there = !applied.own || index.is_some_and(|index| held.contains(&(index, applied.address)));
            if is_there && fresh.contains(&applied.device) {
                announce.entry(applied.device).or_default().push(applied.address);
            }
        }
        self.announce(announce).await;
        Ok(())
    }
}
