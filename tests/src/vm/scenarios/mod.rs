//! The cases that run on the machines. Each file has the cases of one idea, as a suite; `layers.rs` chooses the kernels.

pub mod devices;
pub mod load;
pub mod traffic;
pub mod userland;

/// Both networks, a load balancer, an elastic IP, port forwarding and limits: every program is used.
pub const ROUTER: &str = include_str!("../../../../docs/router.yaml");
