//! The API over real HTTP on loopback, with a real store in a temporary file. Only the kernel side is stood in for.

mod conventions;
mod hostile;
mod job;
mod openapi;
mod query;
mod session;
mod support;
