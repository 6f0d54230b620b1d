//! The vipgate controller as a library, so that the tests drive the real loader and tables.
pub mod config;
pub mod doctor;
pub mod follow;
pub mod health;
pub mod jobs;
pub mod loader;
pub mod lock;
pub mod logging;
pub mod model;
pub mod net;
pub mod query;
pub mod reconcile;
pub mod rest;
pub mod serve;
pub mod state;
pub mod store;
pub mod told;
