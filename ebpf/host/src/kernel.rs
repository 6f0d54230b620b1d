//! The calling thread's kernel: its clock, its routes, its sockets, where the last packet was sent, and what was told.

use std::cell::{Cell, RefCell};

thread_local! {
    static JIFFIES: Cell<u64> = const { Cell::new(0) };
    static ROUTES: RefCell<Vec<Route>> = const { RefCell::new(Vec::new()) };
    static SOCKETS: RefCell<Vec<Socket>> = const { RefCell::new(Vec::new()) };
    static REDIRECTED: Cell<Option<Redirect>> = const { Cell::new(None) };
    static RECORDS: RefCell<Vec<Vec<u64>>> = const { RefCell::new(Vec::new()) };
}

/// What a look-up of destinations in a network gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub network: [u8; 4],
    pub prefix_len: u32,
    /// One of `BPF_FIB_LKUP_RET_*`.
    pub answer: u32,
    /// The interface that it leads out of.
    pub ifindex: u32,
    /// The next hop's MAC address; None: that of the destination itself, [`neighbour`].
    pub gateway: Option<[u8; 6]>,
}

/// A socket that takes what comes to a port, for any of the machine's addresses and from anywhere.
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

/// What the clock says.
#[must_use]
pub fn jiffies() -> u64 {
    JIFFIES.get()
}

/// Replaces the routes. The first that covers an address has it.
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

/// Where a program sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirect {
    pub ifindex: u32,
    /// The kernel's neighbour table says to whom there.
    pub by_neighbour: bool,
}

/// The last redirect, if there was one since this was asked.
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

/// What programs told since this was asked: the numbers of each record.
#[must_use]
pub fn take_records() -> Vec<Vec<u64>> {
    RECORDS.take()
}

/// A program's record.
pub fn record(numbers: &[u64]) {
    RECORDS.with_borrow_mut(|records| records.push(numbers.to_vec()));
}
