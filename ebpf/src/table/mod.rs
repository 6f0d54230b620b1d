//! Stage 2: the flow table. Its layout and race rules (numbered there) are in `vipgate_abi::flow`.

mod claim;
mod idle;
mod insert;
mod lookup;
mod remove;
mod slot;

pub use self::{
    insert::{IS_DUE, insert, inserted_by_other_cpu, opened},
    lookup::{ELSEWHERE, lookup, search, search_elsewhere},
    remove::{peer, remove},
    slot::{Slot, found, slot, touch, touch_over, touch_peer},
};
