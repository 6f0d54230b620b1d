//! The queues of bandwidth limits: there before the meters that lead to them, and until no meter does.
//!
//! The kernel may have no HTB, or the queues' device no name that is free: then the limits are kept without queues, which is
//! told once, and what needs them is tried again at the next start.

use std::collections::BTreeMap;

use tracing::{info, warn};

use super::{Kernel, Worker};
use crate::{
    loader::Target,
    net::{
        Device, NetError, Netlink,
        queue::{Class, Pair, RECEIVING},
    },
    reconcile::{ApplyError, limits::Rates},
    state::{Source, VipState},
};

/// What is known of the queues.
#[derive(Debug, Default)]
pub(super) struct Queues {
    pair: Option<Pair>,
    /// Rates by minor number, in bits per second; 0: it was there when the worker began.
    classes: BTreeMap<u16, u64>,
    /// They cannot be made here.
    refused: bool,
}

impl Queues {
    /// Those that an earlier controller left.
    pub(super) async fn find(net: &Netlink) -> Result<Self, NetError> {
        let pair = net.queue_pair().await?;
        let minors = match &pair {
            Some(pair) => net.classes(pair).await?,
            None => [].into(),
        };
        Ok(Self { pair, classes: minors.into_iter().map(|minor| (minor, 0)).collect(), refused: false })
    }
}

impl<S: Source> Worker<S> {
    /// Gives the device of the queues that were found the program of this controller.
    pub(super) async fn resume_queues(&mut self) -> Result<(), ApplyError> {
        if let Some(pair) = self.queues.pair.clone() {
            self.lead_to(Some(pair)).await.map_err(|reason| ApplyError::Open { reason })?;
        }
        Ok(())
    }

    /// Makes the queues that these VIPs' limits need.
    pub(super) async fn make_queues<'a>(&mut self, vips: impl Iterator<Item = &'a VipState>) {
        let limits = vips.filter(|vip| vip.enabled).flat_map(|vip| &vip.limits);
        let wanted: Vec<Class> = limits.flat_map(|limit| Rates::of(limit).classes(limit.number)).collect();
        if wanted.is_empty() || self.queues.refused {
            return;
        }
        if self.queues.pair.is_some() {
            match self.set_classes(&wanted).await {
                Ok(()) => return,
                Err(error) => warn!(%error, "making the queues anew"),
            }
        }
        self.make_pair(&wanted).await;
    }

    /// Makes the device of the queues again if it is none of these, which are all there are.
    pub(super) async fn restore_queues(&mut self, devices: &[Device]) {
        let is_there = |pair: &Pair| [&pair.sending, &pair.receiving].into_iter().all(|end| devices.contains(end));
        if self.queues.pair.as_ref().is_some_and(|pair| !is_there(pair)) {
            warn!("the device of the queues is gone or was changed: making it anew");
            self.make_pair(&[]).await;
        }
    }

    /// Removes the queues that no limit needs any more, and the device with the last of them.
    pub(super) async fn remove_queues(&mut self) {
        let freed = self.lock().engine.take_freed();
        let stale: Vec<u16> = {
            let kernel = self.lock();
            let needs = |minor: u16| {
                kernel
                    .engine
                    .rates(u32::from(minor) / 2)
                    .is_some_and(|rates| rates.classes(u32::from(minor) / 2).any(|class| class.minor == minor))
            };
            let minors = freed.iter().flat_map(|number| [2 * number, 2 * number + 1]);
            let minors = minors.filter_map(|minor| u16::try_from(minor).ok());
            minors.filter(|minor| self.queues.classes.contains_key(minor) && !needs(*minor)).collect()
        };
        self.drop_classes(stale).await;
    }

    /// The same for those that an earlier controller left, when all VIPs have been applied.
    pub(super) async fn remove_left_queues(&mut self) {
        let stale = self.queues.classes.iter().filter(|(_, rate)| **rate == 0).map(|(minor, _)| *minor).collect();
        self.drop_classes(stale).await;
    }

    async fn drop_classes(&mut self, stale: Vec<u16>) {
        let Some(pair) = self.queues.pair.clone() else { return };
        for minor in &stale {
            self.queues.classes.remove(minor);
        }
        let result = if self.queues.classes.is_empty() {
            self.queues.pair = None;
            if let Err(reason) = self.lead_to(None).await {
                warn!(reason, "the queues' program stays");
            }
            info!("no limit is left that needs a queue");
            self.net.remove_queue_pair().await
        } else {
            self.net.remove_classes(&pair, &stale).await
        };
        if let Err(error) = result {
            warn!(%error, "a queue that nothing leads to stays until the next start");
        }
    }

    /// Makes the device, with queues for all limits that are known and these.
    async fn make_pair(&mut self, wanted: &[Class]) {
        self.queues.classes.clear();
        self.queues.pair = None;
        let made = match self.net.make_queue_pair().await {
            Ok(pair) => {
                self.queues.pair = Some(pair.clone());
                let known: Vec<Class> = {
                    let kernel = self.lock();
                    kernel.engine.limits().flat_map(|(number, rates)| rates.classes(number)).collect()
                };
                let known: BTreeMap<u16, u64> =
                    known.iter().chain(wanted).map(|class| (class.minor, class.rate)).collect();
                let all: Vec<Class> = known.into_iter().map(|(minor, rate)| Class { minor, rate }).collect();
                match self.set_classes(&all).await {
                    Ok(()) => self.lead_to(Some(pair)).await,
                    Err(error) => Err(error.to_string()),
                }
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(reason) = made {
            warn!(reason, "bandwidth limits have no queues, and drop what exceeds them");
            self.queues = Queues { refused: true, ..Queues::default() };
            if let Err(reason) = self.lead_to(None).await {
                warn!(reason, "the queues' program stays");
            }
        }
    }

    /// Makes these classes, unless they are as they should be.
    async fn set_classes(&mut self, wanted: &[Class]) -> Result<(), NetError> {
        let Some(pair) = &self.queues.pair else { return Ok(()) };
        let is_new = |class: &&Class| self.queues.classes.get(&class.minor) != Some(&class.rate);
        let new: Vec<Class> = wanted.iter().filter(is_new).copied().collect();
        self.net.set_classes(pair, &new).await?;
        self.queues.classes.extend(new.iter().map(|class| (class.minor, class.rate)));
        Ok(())
    }

    /// Brings the program to the device at which the queues end, and tells the meters where they begin.
    async fn lead_to(&self, pair: Option<Pair>) -> Result<(), String> {
        self.with_kernel(move |kernel: &mut Kernel| match pair {
            Some(Pair { sending, receiving }) => {
                let target = Target { name: receiving.name, ifindex: receiving.ifindex, veth: true };
                kernel.plane.attach_queue(&target).map_err(|error| error.to_string())?;
                kernel.engine.set_queue(sending.ifindex);
                Ok(())
            }
            None => {
                kernel.engine.set_queue(0);
                kernel.plane.detach_queue(RECEIVING).map_err(|error| error.to_string())
            }
        })
        .await
    }
}
