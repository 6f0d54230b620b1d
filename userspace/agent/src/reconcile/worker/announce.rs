//! Announces VIPs by gratuitous ARP: at once, and a few times later.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use tokio::{sync::mpsc, time::sleep};
use tracing::warn;
use vipgate_state::Source;

use super::{Command, Worker, blocking};
use crate::net::{Device, arp::Announcer};

/// Pauses before each repetition, in case the first announcement is lost.
const REPEAT_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

impl<S: Source> Worker<S> {
    /// Announces VIPs now and a few times later. A failure is only logged: it delays the moment at which a neighbour that knew the
    /// address elsewhere learns better, and nothing else.
    pub(super) async fn announce(&mut self, vips: BTreeMap<String, Vec<Ipv4Addr>>) {
        if vips.is_empty() {
            return;
        }
        self.announce_now(&vips).await;
        while self.repeats.try_join_next().is_some() {}
        self.repeats.spawn(repeat(vips, self.commands.clone()));
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
            send(self.announcer.clone(), vips).await;
        }
    }
}

/// Asks for announcements of VIPs, by the name of their device, again later.
async fn repeat(vips: BTreeMap<String, Vec<Ipv4Addr>>, commands: mpsc::WeakSender<Command>) {
    for pause in REPEAT_AFTER {
        sleep(pause).await;
        // The worker has ended.
        let Some(commands) = commands.upgrade() else { return };
        if commands.send(Command::Announce { vips: vips.clone() }).await.is_err() {
            return;
        }
    }
}

async fn send(announcer: Announcer, vips: Vec<(Device, Vec<Ipv4Addr>)>) {
    blocking(move || {
        for (device, vips) in vips {
            if let Err(error) = announcer.announce(&device, &vips) {
                warn!(%error, "neighbours may know the VIP elsewhere for a while");
            }
        }
    })
    .await;
}
