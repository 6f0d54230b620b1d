//! The order of `vipgate flows --sort` and `--top`.

use std::cmp::{Ordering, Reverse};

use clap::ValueEnum;
use vipgate_agent::loader::Connection;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Sort {
    Packets,
    Bytes,
    Idle,
    Client,
    Vip,
    Backend,
}

impl Sort {
    fn compare(self, one: &Connection, other: &Connection) -> Ordering {
        let by = |key: fn(&Connection) -> u64| Reverse(key(one)).cmp(&Reverse(key(other)));
        match self {
            Self::Packets => by(|flow| u64::from(flow.packets_in) + u64::from(flow.packets_out)),
            Self::Bytes => by(|flow| flow.bytes_in.saturating_add(flow.bytes_out)),
            Self::Idle => by(|flow| flow.idle.into()),
            Self::Client => one.client.cmp(&other.client),
            Self::Vip => one.vip.cmp(&other.vip),
            Self::Backend => one.backend.cmp(&other.backend),
        }
    }

    /// Sorts what was found; with `top` leaves only the first so many.
    pub(super) fn arrange(self, flows: &mut Vec<Connection>, top: Option<usize>) {
        let compare = |one: &Connection, other: &Connection| self.compare(one, other);
        if let Some(top) = top
            && top < flows.len()
        {
            // The order of the others does not matter: they are not shown.
            flows.select_nth_unstable_by(top, compare);
            flows.truncate(top);
        }
        flows.sort_unstable_by(compare);
    }
}
