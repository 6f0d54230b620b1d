//! The controller: serves the REST API, keeps the desired state in SQL, and has an agent apply it.
//!
//! Knows no table of the kernel and no device: those are behind [`vipgate_state::Apply`] and [`vipgate_state::Devices`].

mod findings;
pub mod jobs;
pub mod model;
pub mod query;
pub mod rest;
pub mod store;
