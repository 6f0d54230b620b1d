//! The API over real HTTP on loopback, with a real store in a temporary file. Only the kernel side is a stand-in.

mod conventions;
mod hostile;
mod job;
mod openapi;
mod query;
mod session;
mod support;
