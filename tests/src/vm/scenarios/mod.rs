//! What is tried on the machines, a file for each idea. Each gives the cases of one suite; `layers.rs` says on which
//! kernels.

pub mod devices;
pub mod load;
pub mod traffic;
pub mod userland;

/// Both networks, a load balancer, an elastic IP, port forwarding, limits: every program has something to do.
pub const ROUTER: &str = include_str!("../../../../docs/router.yaml");
