//! The calling thread's kernel: its clock, its routes, its sockets, the last redirect, and the log records.

use std::cell::{Cell, RefCell};

thread_local! {
    static JIFFIES: Cell<u64> = const { Cell::new(0) };
    static ROUTES: RefCell<Vec<Route>> = const { RefCell::new(Vec::new()) };
    static SOCKETS: RefCell<Vec<Socket>> = const { RefCell::new(Vec::new()) };
    static REDIRECTED: Cell<Option<Redirect>> = const { Cell::new(None) };
    static RECORDS: RefCell<Vec<Vec<u64>>> = const { RefCell::new(Vec::new()) };
}

/// The result of a route lookup for destinations in a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub network: [u8; 4],
    pub prefix_len: u32,
    /// One of `BPF_FIB_LKUP_RET_*`.
    pub answer: u32,
    /// The outgoing interface.
    pub ifindex: u32,
    /// The gateway's MAC address; `None` if destinations are directly connected, and have the address of [`neighbour`].
    pub gateway: Option<[u8; 6]>,
}

/// A socket that accepts packets to a port of any of the machine's addresses, from anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// IANA protocol number.
    pub protocol: u8,
    pub port: u16,
}

impl Route {
    fn covers(&self, address: [u8; 4]) -> bool {
        let differs = u32::from_be_bytes(self.network) ^ u32::from_be_bytes(address);
        differs.leading_zeros() >= self.prefix_len
    }
}

/// The MAC address of the host with this address.
#[must_use]
pub fn neighbour([a, b, c, d]: [u8; 4]) -> [u8; 6] {
    [0x02, 0, a, b, c, d]
}

/// Sets the clock.
pub fn set_jiffies(jiffies: u64) {
    JIFFIES.set(jiffies);
}

/// The current time.
#[must_use]
pub fn jiffies() -> u64 {
    JIFFIES.get()
}

/// Replaces the routes. The first one that covers an address is used.
pub fn set_routes(routes: Vec<Route>) {
    ROUTES.set(routes);
}

/// The route of an address.
#[must_use]
pub fn route(address: [u8; 4]) -> Option<Route> {
    ROUTES.with_borrow(|routes| routes.iter().find(|route| route.covers(address)).copied())
}

/// Replaces the sockets.
pub fn set_sockets(sockets: Vec<Socket>) {
    SOCKETS.set(sockets);
}

/// True while there is such a socket.
#[must_use]
pub fn has_socket(socket: Socket) -> bool {
    SOCKETS.with_borrow(|sockets| sockets.contains(&socket))
}

/// Where a program redirected a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirect {
    pub ifindex: u32,
    /// True if the kernel's neighbour table names the next hop.
    pub by_neighbour: bool,
}

/// The last redirect since the last call.
#[must_use]
pub fn take_redirect() -> Option<Redirect> {
    REDIRECTED.take()
}

pub(crate) fn redirect(ifindex: u32) {
    REDIRECTED.set(Some(Redirect { ifindex, by_neighbour: false }));
}

pub(crate) fn redirect_by_neighbour(ifindex: u32) {
    REDIRECTED.set(Some(Redirect { ifindex, by_neighbour: true }));
}

/// The log records since the last call: the numbers of each.
#[must_use]
pub fn take_records() -> Vec<Vec<u64>> {
    RECORDS.take()
}

/// Stores a program's log record.
pub fn record(numbers: &[u64]) {
    RECORDS.with_borrow_mut(|records| records.push(numbers.to_vec()));
}
