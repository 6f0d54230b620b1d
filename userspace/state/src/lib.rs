//! The vocabulary between the controller, which decides what a router shall do, and the agent, which brings a router to it.
//!
//! - [`Source`] yields the desired state, a [`VipState`] for each VIP: plain values, with no UUID that the kernel would need
//!   and no table detail that the store would need. [`Findings`] takes what health checks found.
//! - [`Apply`] brings the kernel to a [`Change`] of the desired state.
//! - [`Devices`] are the router's own, as the rules see them.
//!
//! No I/O.

mod apply;
mod capacity;
mod desired;
mod devices;
mod source;

pub use vipgate_api::{Protocol, listener_tag::Algorithm};

pub use self::{
    apply::{Apply, Change, NotApplied},
    capacity::Capacity,
    desired::{
        Address, BackendState, ElasticState, ForwardState, HealthCheck, LimitState, ListenerState, MasqueradeState,
        VipState,
    },
    devices::Devices,
    source::{Findings, Source},
};
