//! The controller's sweeper, run between two packets (rules 1, 4 and 5 of `vipgate_abi::flow`).

use vipgate_abi::{
    flow::{Flow, State, WAYS, Word},
    load::Load,
};
use vipgate_pipeline::maps;

use crate::{
    wire::TCP,
    world::{self, World},
};

/// Removes connections that were idle in both directions for more than `idle` jiffies, and those of past generations. TCP
/// connections of past generations stay closed until they have been idle for that long.
pub(crate) fn sweep(world: &World, idle: u32) {
    for index in 0..world.buckets * WAYS as u32 {
        let Some((word, flow)) = slot(index) else { continue };
        let peer = slot(flow.peer).filter(|(_, peer)| peer.peer == index);
        let age = peer.map_or(word.age(world.now), |(peer, _)| word.age(world.now).min(peer.age(world.now)));
        let is_ended = world::backend(flow.backend()).generation != flow.generation;
        let state = match (is_ended, age > idle) {
            (true, false) if flow.key.protocol == TCP => State::Closed,
            (false, false) => continue,
            _ => State::Empty,
        };
        if let Some((peer_word, peer_flow)) = peer {
            leave(flow.peer, peer_word, &peer_flow, state);
        }
        leave(index, word, &flow, state);
    }
}

/// The slot's word and flow; `None` if it is empty.
fn slot(index: u32) -> Option<(Word, Flow)> {
    let word = Word(maps::FLOW_BUCKETS.get(index / WAYS as u32)?.words[index as usize % WAYS]);
    let flow = *maps::FLOWS.get(index)?;
    (!matches!(word.state(), State::Empty | State::Busy)).then_some((word, flow))
}

/// Changes the state of a slot's flow.
fn leave(index: u32, word: Word, flow: &Flow, state: State) {
    let moved = word.with_state(state);
    let number = index / WAYS as u32;
    if let Some(mut bucket) = maps::FLOW_BUCKETS.get(number).copied() {
        bucket.words[index as usize % WAYS] = moved.0;
        world::set(maps::FLOW_BUCKETS.set(number, bucket, 0));
    }
    if let Some(mark) = flow.mark.following(moved) {
        world::set(maps::FLOWS.set(index, Flow { mark, ..*flow }, 0));
    }
    let number = flow.backend();
    let load = world::load(number);
    if !flow.mark.is_reply() && load.counts(flow.generation) {
        let change = Load::change(word.state(), state);
        world::set(maps::BACKEND_LOAD.set(number, load.0.wrapping_add(change), 0));
        if word.state().is_admitted() {
            world::leave(world::backend(number).service, 1);
        }
    }
}
