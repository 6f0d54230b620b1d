//! The vipgate controller as a library, so that the tests drive the real loader and tables.
pub mod config;
pub mod doctor;
pub mod follow;
pub mod lock;
pub mod logging;
pub mod packets;
pub mod reload;
pub mod serve;
pub mod told;
