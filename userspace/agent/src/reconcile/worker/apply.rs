//! Applies and removes VIPs.
//!
//! The queues of its limits come before its entries and go after them. A VIP's address comes after its entries and goes
//! before them, so that no packet reaches the router for a service that it does not know yet, or no longer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use tracing::{info, warn};
use vipgate_state::{Source, VipState};

use super::{AppliedVip, Retry, Worker, failed, neighbours, open, unreadable};
use crate::reconcile::{
    ApplyError,
    compile::{check, compile, ipv4},
};

/// VIPs that are read from the store at once.
const READ_AT_ONCE: usize = 128;

/// A VIP on its way to the kernel.
struct Ready {
    uuid: String,
    vip: VipState<Ipv4Addr>,
    /// Backends that it did not have before.
    fresh: BTreeSet<Ipv4Addr>,
}

impl<S: Source> Worker<S> {
    /// Applies everything stored and removes everything else.
    pub(super) async fn full_pass(&mut self) -> Result<(), ApplyError> {
        if let Err(error) = self.sync_devices().await {
            warn!(%error, "trying again");
            self.network_dirty = Some(Retry::after(self.network_dirty));
        }
        let vips = self.source.vips().await.map_err(|error| unreadable(&error))?;
        let count = vips.len();
        let wanted = vips.iter().filter_map(|vip| match vip.address {
            IpAddr::V4(address) => Some((address, vip.device.clone())),
            IpAddr::V6(_) => None,
        });
        let wanted = wanted.collect();
        let states = vips.into_iter().map(|vip| (vip.uuid.clone(), Some(vip))).collect();
        let errors = self.apply_states(states).await;
        let moved = self.lock().devices.take_moved();
        self.refresh_vips(&moved).await?;
        let removed = self.remove_orphans(wanted).await?;
        info!(vips = count, failed = errors.len(), orphans = removed, "the router is in line with the store");
        Ok(())
    }

    /// Removes the entries of VIPs that are not stored any more, and addresses where no VIP wants them. Returns how many VIPs
    /// had such entries.
    async fn remove_orphans(&mut self, wanted: HashMap<Ipv4Addr, String>) -> Result<usize, ApplyError> {
        let held = self.lock().engine.vips();
        let orphans: BTreeSet<Ipv4Addr> = held.into_iter().filter(|vip| !wanted.contains_key(vip)).collect();
        let addresses = self.net.addresses().await.map_err(open)?;
        self.note(&addresses);
        for held in addresses.into_iter().filter(|held| held.vip) {
            let stays = match wanted.get(&held.address) {
                Some(device) => self.device(device).is_none_or(|device| device.ifindex == held.ifindex),
                None => false,
            };
            if stays {
                continue;
            }
            match self.net.remove_vip(held).await {
                Ok(()) => drop(self.marked.remove(&(held.ifindex, held.address))),
                Err(error) => warn!(%error, "an address without a VIP stays"),
            }
        }
        let count = orphans.len();
        let removed = self.with_kernel(move |kernel| {
            let removed = orphans.into_iter().try_for_each(|vip| kernel.engine.remove(vip, Instant::now()));
            kernel.engine.remove_unclaimed_meters();
            removed
        });
        if let Err(error) = removed.await {
            warn!(%error, "entries without a VIP stay until the next start");
        }
        self.remove_left_queues().await;
        Ok(count)
    }

    /// Brings VIPs in line; the errors by uuid.
    pub(super) async fn apply(&mut self, vips: &BTreeSet<String>) -> HashMap<String, ApplyError> {
        let mut states = Vec::new();
        let mut unread = HashMap::new();
        let uuids: Vec<String> = vips.iter().cloned().collect();
        for uuids in uuids.chunks(READ_AT_ONCE) {
            if let Ok(found) = self.source.vips_of(uuids).await {
                let mut found: HashMap<_, _> = found.into_iter().map(|vip| (vip.uuid.clone(), vip)).collect();
                states.extend(uuids.iter().map(|uuid| (uuid.clone(), found.remove(uuid))));
                continue;
            }
            // A VIP that can't be read must not fail the others.
            for uuid in uuids {
                match self.source.vip(uuid).await {
                    Ok(state) => states.push((uuid.clone(), state)),
                    Err(error) => drop(unread.insert(uuid.clone(), unreadable(&error))),
                }
            }
        }
        for (uuid, error) in &unread {
            self.mark(uuid, Some(error));
        }
        unread.extend(self.apply_states(states).await);
        unread
    }

    async fn apply_states(&mut self, states: Vec<(String, Option<VipState>)>) -> HashMap<String, ApplyError> {
        let uuids: Vec<String> = states.iter().map(|(uuid, _)| uuid.clone()).collect();
        let mut errors = HashMap::new();
        // Removals first: another VIP of the batch may have got the address or a number.
        let (stored, gone): (Vec<_>, Vec<_>) = states.into_iter().partition(|(_, state)| state.is_some());
        for (uuid, _) in gone {
            if let Err(error) = self.remove(&uuid).await {
                errors.insert(uuid, error);
            }
        }
        let mut ready = Vec::new();
        for (uuid, vip) in stored.into_iter().filter_map(|(uuid, state)| Some((uuid, state?))) {
            match self.prepare(vip).await {
                Ok(prepared) => ready.push(prepared),
                Err(error) => drop(errors.insert(uuid, error)),
            }
        }
        if ready.iter().any(|ready| self.device(&ready.vip.device).is_none()) {
            // A VIP may be on a device that was not asked for yet; an error is reported for the VIP.
            let _ = self.sync_devices().await;
        }
        self.make_queues(ready.iter().map(|ready| &ready.vip)).await;
        let ready = self.fill_tables(ready, &mut errors).await;
        self.remove_queues().await;
        self.place(ready, &mut errors).await;
        for uuid in uuids {
            self.mark(&uuid, errors.get(&uuid));
        }
        errors
    }

    /// Removes a VIP: its address, then its entries.
    async fn remove(&mut self, uuid: &str) -> Result<(), ApplyError> {
        let Some(applied) = self.applied().get(uuid).cloned() else {
            return Ok(());
        };
        let vip = applied.address;
        let failed = |reason: String| ApplyError::Vip { vip: vip.to_string(), reason };
        // A new VIP may have taken the address over already.
        if self.owners.get(&vip).is_some_and(|owner| owner == uuid) {
            self.take_address(&applied).await.map_err(|error| failed(error.to_string()))?;
            let removed = self.with_kernel(move |kernel| {
                let removed = kernel.engine.remove(vip, Instant::now());
                kernel.sweeper.flows_ended();
                removed
            });
            removed.await.map_err(|error| failed(error.to_string()))?;
            self.remove_queues().await;
            self.owners.remove(&vip);
        }
        self.applied().remove(uuid);
        self.checks.forget(uuid);
        Ok(())
    }

    /// Notes where a VIP will be, and removes it from where it was.
    async fn prepare(&mut self, vip: VipState) -> Result<Ready, ApplyError> {
        let address = vip.address;
        let vip = ipv4(vip).map_err(|error| failed(address, &error))?;
        check(&vip, &self.capacity).map_err(|error| failed(vip.address, &error))?;
        let uuid = vip.uuid.clone();
        let before = self.applied().get(&uuid).cloned();
        match &before {
            Some(before) if before.address != vip.address => self.remove(&uuid).await?,
            Some(before) if before.device != vip.device => {
                self.take_address(before).await.map_err(|error| failed(vip.address, &error))?;
            }
            _ => {}
        }
        let backends: BTreeSet<Ipv4Addr> = active_backends(&vip);
        let fresh = before.map_or_else(|| backends.clone(), |before| &backends - &before.backends);
        self.owners.insert(vip.address, uuid.clone());
        let applied = AppliedVip {
            address: vip.address,
            device: vip.device.clone(),
            own: vip.own,
            named: BTreeMap::new(),
            backends,
        };
        self.applied().insert(uuid.clone(), applied);
        self.checks.watch(&vip);
        Ok(Ready { uuid, vip, fresh })
    }

    /// Brings VIPs' entries to the kernel; returns the VIPs whose entries it holds.
    async fn fill_tables(&self, vips: Vec<Ready>, errors: &mut HashMap<String, ApplyError>) -> Vec<Ready> {
        let results = self.with_kernel(move |kernel| {
            let now = Instant::now();
            if vips.iter().any(|ready| !ready.vip.masquerades.is_empty())
                && let Err(error) = kernel.devices.reserve_snat_ports()
            {
                warn!(%error, "guests' connections end where the router's own take their ports");
            }
            let applied = vips.into_iter().map(|ready| {
                let devices = |name: &str| kernel.devices.get(name).map(|device| device.ifindex);
                let tables = compile(&ready.vip, &devices);
                let named = ready.vip.devices().into_iter().map(|name| (name.to_owned(), devices(name)));
                let named: BTreeMap<String, Option<u32>> = named.collect();
                (kernel.engine.apply(&tables, now), named, ready)
            });
            let applied: Vec<(_, _, Ready)> = applied.collect();
            if kernel.engine.take_ended() {
                kernel.sweeper.flows_ended();
            }
            applied
        });
        let mut held = Vec::new();
        for (result, named, ready) in results.await {
            if let Some(applied) = self.applied().get_mut(&ready.uuid) {
                applied.named = named;
            }
            match result {
                Ok(()) => held.push(ready),
                Err(error) => drop(errors.insert(ready.uuid, failed(ready.vip.address, &error))),
            }
        }
        held
    }

    /// Puts the addresses of VIPs whose entries are there on their devices.
    async fn place(&mut self, vips: Vec<Ready>, errors: &mut HashMap<String, ApplyError>) {
        let mut backends = BTreeSet::new();
        let mut announced: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
        backends.extend(vips.iter().flat_map(|ready| &ready.fresh));
        let others: Vec<Ready> = vips.into_iter().filter(|ready| !ready.vip.own).collect();
        let given =
            self.give_addresses(others.iter().map(|ready| (ready.vip.device.as_str(), ready.vip.address))).await;
        for (Ready { uuid, vip, .. }, given) in others.into_iter().zip(given) {
            match given {
                Ok(true) => announced.entry(vip.device).or_default().push(vip.address),
                Ok(false) => {}
                Err(reason) => {
                    errors.insert(uuid, ApplyError::Vip { vip: vip.address.to_string(), reason });
                }
            }
        }
        self.announce(announced).await;
        if !backends.is_empty() {
            tokio::spawn(neighbours::confirm(self.net.clone(), backends));
        }
    }
}

/// The addresses to which a VIP sends new flows.
fn active_backends(vip: &VipState<Ipv4Addr>) -> BTreeSet<Ipv4Addr> {
    let backends = vip.listeners.iter().filter(|_| vip.enabled).flat_map(|listener| &listener.backends);
    let backends = backends.filter(|backend| backend.active && backend.healthy).map(|backend| backend.address);
    let guests =
        vip.forwards.iter().map(|forward| forward.guest).chain(vip.elastic.iter().map(|elastic| elastic.guest));
    backends.chain(guests.filter(|_| vip.enabled)).collect()
}
