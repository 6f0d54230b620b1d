//! Wire types of the ZStack 3.0 network-service REST API: what a client may send, and what it gets back. No I/O.
//!
//! - [`call`] holds the types that describe a call: its URL, body key, parameters and their rules. Each resource family
//!   (`vip`, `load_balancer`, ...) describes its calls in its own file, next to the request and inventory types they
//!   carry.
//! - [`calls`] is the table of them all. Routing, decoding, checking and the conformance test read it.
//! - [`request`] turns path, query string and body into one checked JSON object, which deserialises to a request type.
//! - [`reply`] says what a call answers; [`resource`] names the resources and the Java classes of their inventories;
//!   [`inventory`] knows the inventories' types.
//! - [`listener_tag`] is the grammar of the system tags that hold a listener's settings.
//! - [`query`] is the grammar of the query API; [`error`] the error object; [`date`] and [`number`] read scalars in
//!   the notations of clients; [`json`] writes replies and leaves out members without a value.

pub mod account;
pub mod call;
pub mod calls;
pub mod common;
pub mod date;
pub mod eip;
pub mod error;
pub mod inventory;
pub mod json;
pub mod l2;
pub mod l3;
pub mod listener_tag;
pub mod load_balancer;
mod nearest;
pub mod network_service;
pub mod number;
pub mod port_forwarding;
pub mod protocol;
pub mod query;
pub mod reply;
pub mod request;
pub mod resource;
pub mod session;
pub mod tag;
pub mod unserved;
pub mod vip;
pub mod vip_qos;
pub mod vm;
pub mod zone;

pub use call::{Api, Call};
pub use date::Date;
pub use error::{ApiError, Code};
pub use nearest::nearest;
pub use protocol::Protocol;
pub use reply::Reply;
pub use resource::Resource;
