//! The queues of bandwidth limits: there before the meters that lead to them, and until no meter does.
//!
//! The kernel may have no HTB, or the queues' devices no names that are free: then the limits are kept without queues, which is
//! logged once, and tried again at the next start.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use tracing::{info, warn};
use vipgate_abi::meter::{INBOUND, OUTBOUND, class, limit_of};
use vipgate_state::{Source, VipState};

use super::{Kernel, Worker};
use crate::{
    loader::Target,
    net::{
        Device, NetError, Netlink,
        queue::{self, Class, Pair},
    },
    reconcile::{ApplyError, bandwidth::Rates},
};

/// What is known of the queues.
#[derive(Debug, Default)]
pub(super) struct Queues {
    pairs: BTreeMap<u32, Pair>,
    /// Rates by minor number, in bits per second; 0: it was there when the worker began.
    classes: BTreeMap<u16, u64>,
    /// No more can be made here.
    refused: bool,
}

/// The pair that has a class.
fn pair_of(minor: u16) -> u32 {
    queue::pair_of(limit_of(minor.into()))
}

impl Queues {
    /// Those that an earlier controller left.
    pub(super) async fn find(net: &Netlink) -> Result<Self, NetError> {
        let pairs = net.queue_pairs().await?;
        let mut classes = BTreeMap::new();
        for pair in pairs.values() {
            classes.extend(net.classes(pair).await?.into_iter().map(|minor| (minor, 0)));
        }
        Ok(Self { pairs, classes, refused: false })
    }

    /// From now on there is no such pair, and none of its classes.
    fn forget(&mut self, pair: u32) {
        self.classes.retain(|minor, _| pair_of(*minor) != pair);
        self.pairs.remove(&pair);
    }

    /// True while a pair has a class.
    fn is_used(&self, pair: u32) -> bool {
        self.classes.keys().any(|minor| pair_of(*minor) == pair)
    }
}

impl<S: Source> Worker<S> {
    /// Gives the devices of the queues that were found the program of this controller.
    pub(super) async fn resume_queues(&mut self) -> Result<(), ApplyError> {
        for (number, pair) in self.queues.pairs.clone() {
            self.lead_to(number, Some(pair)).await.map_err(|reason| ApplyError::Open { reason })?;
        }
        Ok(())
    }

    /// Makes the queues that these VIPs' limits need.
    pub(super) async fn make_queues<'a>(&mut self, vips: impl Iterator<Item = &'a VipState<Ipv4Addr>>) {
        let limits = vips.filter(|vip| vip.enabled).flat_map(|vip| &vip.limits);
        let mut wanted: BTreeMap<u32, Vec<Class>> = BTreeMap::new();
        for class in limits.flat_map(|limit| Rates::of(limit).classes(limit.number)) {
            wanted.entry(pair_of(class.minor)).or_default().push(class);
        }
        for (number, classes) in wanted {
            let is_known = self.queues.pairs.contains_key(&number);
            if is_known {
                match self.set_classes(number, &classes).await {
                    Ok(()) => continue,
                    Err(error) => warn!(%error, "making the queues of {} anew", queue::sending(number)),
                }
            }
            if is_known || !self.queues.refused {
                self.make_pair(number, &classes).await;
            }
        }
    }

    /// Makes the devices of the queues again that are none of these, which are all there are.
    pub(super) async fn restore_queues(&mut self, devices: &[Device]) {
        // By index and name alone: udev gives every new device a MAC address of its own making, and a queue works with any.
        let holds = |end: &Device| {
            devices.iter().any(|device| device.up && device.ifindex == end.ifindex && device.name == end.name)
        };
        let is_there = |pair: &Pair| holds(&pair.sending) && holds(&pair.receiving);
        let gone = self.queues.pairs.iter().filter(|(_, pair)| !is_there(pair));
        for number in gone.map(|(number, _)| *number).collect::<Vec<_>>() {
            warn!("the device {} of the queues is gone or was changed: making it anew", queue::sending(number));
            self.make_pair(number, &[]).await;
        }
    }

    /// Makes queues again that lost their discipline: the kernel does not announce that.
    pub(super) async fn restore_disciplines(&mut self) {
        let bare = self.net.without_discipline(&self.queues.pairs).await.unwrap_or_else(|error| {
            warn!(%error, "cannot see whether all queues have their discipline");
            BTreeSet::new()
        });
        for number in bare {
            let device = queue::sending(number);
            warn!(device, "somebody took the discipline of the queues off: making them anew");
            self.make_pair(number, &[]).await;
        }
    }

    /// The pair that has this device at its end.
    pub(super) fn queue_pair_at(&self, name: &str, ifindex: u32) -> Option<u32> {
        let number = queue::pair_with(name)?;
        let receiving = &self.queues.pairs.get(&number)?.receiving;
        (receiving.name == name && receiving.ifindex == ifindex).then_some(number)
    }

    /// Brings the program back to the end of a pair's queues, or makes the pair anew where that is not to be done.
    pub(super) async fn restore_queue_end(&mut self, number: u32) {
        let pair = self.queues.pairs.get(&number).cloned();
        if let Err(reason) = self.lead_to(number, pair).await {
            warn!(reason, "making the queues of {} anew", queue::sending(number));
            self.make_pair(number, &[]).await;
        }
    }

    /// Removes the queues that no limit needs any more, and the devices with the last of theirs.
    pub(super) async fn remove_queues(&mut self) {
        let freed = self.lock().engine.take_freed_meters();
        let stale: Vec<u16> = {
            let kernel = self.lock();
            let needs = |minor: u16| {
                let number = limit_of(minor.into());
                let rates = kernel.engine.meters().rates(number);
                rates.is_some_and(|rates| rates.classes(number).any(|class| class.minor == minor))
            };
            let minors = freed.iter().flat_map(|number| [INBOUND, OUTBOUND].map(|direction| class(*number, direction)));
            let minors = minors.filter_map(|minor| u16::try_from(minor).ok());
            minors.filter(|minor| self.queues.classes.contains_key(minor) && !needs(*minor)).collect()
        };
        self.drop_classes(stale).await;
    }

    /// Removes the queues that an earlier controller left, when all VIPs have been applied.
    pub(super) async fn remove_left_queues(&mut self) {
        let stale = self.queues.classes.iter().filter(|(_, rate)| **rate == 0).map(|(minor, _)| *minor).collect();
        self.drop_classes(stale).await;
        let unused = self.queues.pairs.keys().filter(|number| !self.queues.is_used(**number));
        for number in unused.copied().collect::<Vec<_>>() {
            self.remove_pair(number).await;
        }
    }

    async fn drop_classes(&mut self, stale: Vec<u16>) {
        let mut by_pair: BTreeMap<u32, Vec<u16>> = BTreeMap::new();
        for minor in stale {
            self.queues.classes.remove(&minor);
            by_pair.entry(pair_of(minor)).or_default().push(minor);
        }
        for (number, minors) in by_pair {
            let Some(pair) = self.queues.pairs.get(&number) else { continue };
            if !self.queues.is_used(number) {
                info!("no limit is left that needs the queues of {}", queue::sending(number));
                self.remove_pair(number).await;
            } else if let Err(error) = self.net.remove_classes(pair, &minors).await {
                warn!(%error, "a queue that nothing leads to stays until the next start");
            }
        }
    }

    /// Removes a pair, and what is left in its queues.
    async fn remove_pair(&mut self, number: u32) {
        self.queues.forget(number);
        if let Err(reason) = self.lead_to(number, None).await {
            warn!(reason, "the queues' program stays");
        }
        if let Err(error) = self.net.remove_queue_pair(number).await {
            warn!(%error, "a device that nothing leads to stays until the next start");
        }
    }

    /// Makes a pair, with queues for all its limits that are known and these.
    async fn make_pair(&mut self, number: u32, wanted: &[Class]) {
        self.queues.forget(number);
        let made = match self.net.make_queue_pair(number).await {
            Ok(pair) => {
                self.queues.pairs.insert(number, pair.clone());
                let known: Vec<Class> = {
                    let kernel = self.lock();
                    let limits = kernel.engine.meters().limits().filter(|(limit, _)| queue::pair_of(*limit) == number);
                    limits.flat_map(|(limit, rates)| rates.classes(limit)).collect()
                };
                let known: BTreeMap<u16, u64> =
                    known.iter().chain(wanted).map(|class| (class.minor, class.rate)).collect();
                let all: Vec<Class> = known.into_iter().map(|(minor, rate)| Class { minor, rate }).collect();
                match self.set_classes(number, &all).await {
                    Ok(()) => self.lead_to(number, Some(pair)).await,
                    Err(error) => Err(error.to_string()),
                }
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(reason) = made {
            let name = queue::sending(number);
            warn!(reason, "the bandwidth limits of {name} have no queues, and drop what exceeds them");
            self.queues.refused = true;
            self.remove_pair(number).await;
        }
    }

    /// Makes these classes of a pair, unless they are as they should be.
    async fn set_classes(&mut self, number: u32, wanted: &[Class]) -> Result<(), NetError> {
        let Some(pair) = self.queues.pairs.get(&number) else { return Ok(()) };
        let is_new = |class: &&Class| self.queues.classes.get(&class.minor) != Some(&class.rate);
        let new: Vec<Class> = wanted.iter().filter(is_new).copied().collect();
        self.net.set_classes(pair, &new).await?;
        self.queues.classes.extend(new.iter().map(|class| (class.minor, class.rate)));
        Ok(())
    }

    /// Attaches the program to the device at which a pair's queues end, and sets the device at which they begin in the meters.
    async fn lead_to(&self, number: u32, pair: Option<Pair>) -> Result<(), String> {
        self.with_kernel(move |kernel: &mut Kernel| match pair {
            Some(Pair { sending, receiving }) => {
                let target = Target::find(&receiving.name, receiving.ifindex);
                kernel.plane.attach_queue(&target).map_err(|error| error.to_string())?;
                kernel.engine.set_queue(number, Some(sending.ifindex));
                Ok(())
            }
            None => {
                kernel.engine.set_queue(number, None);
                kernel.plane.detach_queue(&queue::receiving(number)).map_err(|error| error.to_string())
            }
        })
        .await
    }
}
