//! The configuration that every program reads for every packet: the one element of the CONFIG map.

/// Written by the controller only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Secret seed of the flow table's hash, chosen when the map is made: attackers cannot aim at a bucket.
    pub flow_seed: u64,
    /// Number of flow buckets minus one; the number is a power of two.
    pub bucket_mask: u32,
    /// A flow with another epoch looks its route up again. The controller increments it when a neighbour, a route,
    /// a link or a policy changes. Only the low 16 bits are compared, of which the lowest 8 are never all 0
    /// ([`crate::flow::next_epoch`]).
    pub epoch: u32,
    /// Nanoseconds of one of the kernel's jiffies.
    pub tick: u32,
    /// The kernel's ID of the map TX_PORTS, by which failed redirects are recognised; 0 if not known.
    pub tx_ports: u32,
    /// Jiffies after which a route is looked up again and its next hop confirmed; 0 for never.
    pub confirm: u32,
    /// 1 if an interface may be strict ([`crate::interface::Interface::strict`]), 0 if none is.
    pub strict: u32,
    /// The reasons that the programs log ([`crate::counters::Reason::bit`]); 0 for none.
    pub log: u64,
}

impl Config {
    /// Jiffies a second.
    #[inline(always)]
    pub const fn second(&self) -> u32 {
        match 1_000_000_000u32.checked_div(self.tick) {
            Some(jiffies) => jiffies,
            None => u32::MAX,
        }
    }
}

const _: () = assert!(size_of::<Config>() == 40);

crate::pod!(Config);
