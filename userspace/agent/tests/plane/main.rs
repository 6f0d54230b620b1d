//! The loader and the reconciler against the real kernel, each test in a room of its own. They need root.

mod failing;
mod filters;
mod growing;
mod loading;
mod lost;
mod network;
mod reconciling;
mod resizing;
mod room;
mod source;
