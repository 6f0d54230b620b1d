//! The vipgate controller as a library, so that the tests drive the real loader and tables.
pub mod config;
pub mod controller_status;
pub mod doctor;
pub mod follow_addresses;
pub mod lock;
pub mod logging;
pub mod packet_log;
pub mod reload;
pub mod serve;
