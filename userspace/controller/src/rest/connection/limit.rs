//! Limits how many connections are open.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use nix::sys::resource::{Resource, getrlimit};

/// The open connections of each address: at most `max` in all, and half of that from one address.
#[derive(Clone, Debug)]
pub(super) struct Limit {
    max: usize,
    pub(super) open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Limit {
    pub(super) fn new(max: usize) -> Self {
        Self { max, open: Arc::default() }
    }

    /// A permit for a connection from that address; `None` if too many are open.
    pub(super) fn admit(&self, address: IpAddr) -> Option<Permit> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let own = open.get(&address).copied().unwrap_or_default();
        if own >= self.max / 2 || open.values().sum::<usize>() >= self.max {
            return None;
        }
        open.insert(address, own + 1);
        Some(Permit { address, limit: self.clone() })
    }
}

/// Counts as an open connection until it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    address: IpAddr,
    limit: Limit,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.limit.open.lock().unwrap_or_else(PoisonError::into_inner);
        let left = open.get(&self.address).map_or(0, |own| own.saturating_sub(1));
        if left == 0 {
            open.remove(&self.address);
        } else {
            open.insert(self.address, left);
        }
    }
}

/// A quarter of the files that the process may open: health checks, devices and the database need the others.
pub(super) fn max_connections() -> usize {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(files / 4).unwrap_or(usize::MAX).clamp(16, 4096)
}
