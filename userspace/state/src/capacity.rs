//! How much the kernel's tables hold.

use vipgate_abi::maps;

/// What the store keeps its numbers below; the reconciler checks once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Numbers of listeners, rules, elastic IPs and networks with source NAT are below it.
    pub services: u32,
    /// Backend numbers are below it.
    pub backends: u32,
    /// Backends of one listener: what least connections can compare for one new flow.
    pub backends_per_listener: u32,
    /// Numbers of bandwidth limits are below it.
    pub limits: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            services: maps::DEFAULT_SERVICES,
            backends: maps::DEFAULT_BACKENDS,
            backends_per_listener: 1000,
            limits: maps::DEFAULT_LIMITS,
        }
    }
}
