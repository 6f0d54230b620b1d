//! The controller's sweeper, as it meets the flow table between two packets (rules 1, 4 and 5 of `vipgate_abi::flow`).

use vipgate_abi::{
    flow::{Flow, State, WAYS, Word},
    load::Load,
};
use vipgate_pipeline::maps;

use crate::world::{self, World};

/// Removes connections that were idle in both directions for more than `idle` jiffies, and those of past generations.
pub(crate) fn sweep(world: &World, idle: u32) {
    for index in 0..world.buckets * WAYS as u32 {
        let Some((word, flow)) = slot(index) else { continue };
        let peer = slot(flow.peer).filter(|(_, peer)| peer.peer == index);
        let age = peer.map_or(word.age(world.now), |(peer, _)| word.age(world.now).min(peer.age(world.now)));
        if world::backend(flow.backend()).generation != flow.generation || age > idle {
            if let Some((peer_word, peer_flow)) = peer {
                empty(flow.peer, peer_word, &peer_flow);
            }
            empty(index, word, &flow);
        }
    }
}

/// A slot that a flow is in.
fn slot(index: u32) -> Option<(Word, Flow)> {
    let word = Word(maps::FLOW_BUCKETS.get(index / WAYS as u32)?.words[index as usize % WAYS]);
    let flow = *maps::FLOWS.get(index)?;
    (!matches!(word.state(), State::Empty | State::Busy)).then_some((word, flow))
}

fn empty(index: u32, word: Word, flow: &Flow) {
    let emptied = word.with_state(State::Empty);
    let number = index / WAYS as u32;
    if let Some(mut bucket) = maps::FLOW_BUCKETS.get(number).copied() {
        bucket.words[index as usize % WAYS] = emptied.0;
        world::set(maps::FLOW_BUCKETS.set(number, bucket, 0));
    }
    if let Some(mark) = flow.mark.following(emptied) {
        world::set(maps::FLOWS.set(index, Flow { mark, ..*flow }, 0));
    }
    let number = flow.backend();
    let load = world::load(number);
    if !flow.mark.is_reply() && load.counts(flow.generation) {
        let change = Load::change(word.state(), State::Empty);
        world::set(maps::BACKEND_LOAD.set(number, load.0.wrapping_add(change), 0));
        if word.state().is_admitted() {
            world::leave(world::backend(number).service, 1);
        }
    }
}
