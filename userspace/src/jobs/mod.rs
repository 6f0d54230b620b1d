//! Jobs: asynchronous calls that were accepted, until their result is fetched or forgotten.

mod apply;

pub use apply::{Apply, ApplyError, Change};
