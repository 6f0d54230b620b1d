//! The controller's sweeper, as it meets the flow table between two packets (rules 1, 4 and 5 of `vipgate_abi::flow`).

use vipgate_abi::{
    flow::{Flow, State, WAYS, Word},
    load::Load,
};
use vipgate_pipeline::maps;

use crate::{
    wire::TCP,
    world::{self, World},
};

/// Removes connections that were idle in both directions for more than `idle` jiffies, and those of past generations; of the
/// latter TCP's stay closed until they were idle for so long.
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

/// A slot that a flow is in.
fn slot(index: u32) -> Option<(Word, Flow)> {
    let word = Word(maps::FLOW_BUCKETS.get(index / WAYS as u32)?.words[index as usize % WAYS]);
    let flow = *maps::FLOWS.get(index)?;
    (!matches!(word.state(), State::Empty | State::Busy)).then_some((word, flow))
}

/// Moves a slot's flow to a state.
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
