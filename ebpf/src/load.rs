//! Counts the current connections of backends and services (rule 5 of `vipgate_abi::flow`, and `vipgate_abi::load`).

use core::ptr;

use vipgate_abi::{flow::State, load::Load};

use crate::{
    atomic,
    maps::{BACKEND_LOAD, BACKENDS},
    service,
    verifier::opaque,
};

/// The counter of a connection: index of BACKENDS, and the generation under which its flows were made.
#[derive(Clone, Copy)]
pub struct Counter {
    pub backend: u32,
    pub generation: u16,
}

/// Number of a backend's connections.
#[inline(always)]
pub fn live(backend: u32) -> Option<u32> {
    Some(Load(*BACKEND_LOAD.get(backend)?).live())
}

/// Adds a [`Load::change`] to a backend's load. False if the backend has another generation by now, which does not count
/// that flow.
#[inline(always)]
pub fn add(Counter { backend, generation }: Counter, change: u64) -> bool {
    let Some(load) = BACKEND_LOAD.get_ptr_mut(backend) else {
        return false;
    };
    // SAFETY: aligned element of BACKEND_LOAD.
    if !Load(unsafe { ptr::read_volatile(load) }).counts(generation) {
        return false;
    }
    // SAFETY: as above.
    let counts = Load(unsafe { atomic::fetch_add(load, change) }).counts(generation);
    if !counts {
        // SAFETY: as above.
        unsafe { atomic::fetch_add(load, change.wrapping_neg()) };
    }
    counts
}

/// Updates the loads after a connection's first flow left a state for another one. `left` is `None` if it did not.
#[inline(always)]
pub fn account(counter: Counter, left: Option<State>, state: State) {
    if let Some(left) = left {
        opaque(account_for(counter.backend, counter.generation as u32, left as u32, state as u32));
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn account_for(backend: u32, generation: u32, left: u32, state: u32) -> u32 {
    let (left, state) = (State::from_byte(left as u8), State::from_byte(state as u8));
    let change = Load::change(left, state);
    // Read before the load: the controller changes the service of a number first, and the load later.
    let service = BACKENDS.get(backend).map(|backend| backend.service);
    if change != 0
        && add(Counter { backend, generation: generation as u16 }, change)
        && left.is_admitted() != state.is_admitted()
        && let Some(service) = service
    {
        if state.is_admitted() { service::enter(service) } else { service::leave(service) }
    }
    opaque(0)
}
