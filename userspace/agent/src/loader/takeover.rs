//! Takes over from the version before ours: its connections, limits and counters, and its devices, while traffic goes on.
//!
//! Its programs know its tables alone, and ours ours, so nothing bridges the two as it does where tables get another size
//! (`resize`). What connections are translated by is in both instead, for the moment in which devices of both kinds run:
//! 1. New tables are made beside the old ones, in a directory of their own. Those whose elements mean the same are shared
//!    (`abi8`), so that what is counted in them is counted once. Our programs are loaded and verified. Until then nothing of the
//!    old version's is touched: where this fails, or the kernel refuses a program, it runs on and is whole.
//! 2. Every connection is copied, and then again those that came meanwhile, until these are few.
//! 3. Every device gets our programs. From the first of them on there is no way back. They let a TCP segment pass by that has no
//!    flow, instead of having it reset: its connection may be one of the last that are not copied yet.
//! 4. When the last packet has left the old programs, those last connections are copied, and what packets still changed of the
//!    others is brought to their copies.
//! 5. Devices get the programs that reset again, the new directory its place, and the old one goes.
//!
//! So no connection that was there before step 3 is lost or reset. One that begins in step 3, which takes some milliseconds, may
//! lose packets: of TCP they come again, of a datagram's flow another backend may get the next. Of a packet in fragments the rest
//! may be lost, and a limit may let through twice its rate.
//!
//! A controller that is killed from step 3 on leaves the directory's name for the next one to go on (`bpffs`).

use std::time::Instant;

use tracing::{info, warn};
use vipgate_abi::{
    backend::Backend,
    flow::{State, WAYS, Word},
    load::Load,
    maps,
};

use super::{
    Hook, Options, Sizes,
    abi8::{self, FlowTable8},
    attach,
    bpffs::{PinDir, Stage},
    error::{LoadError, causes},
    flow_migration::{Copy, Copying, Migration, OldTable},
    flow_table::FlowTable,
    kernel,
    mapping::Mapping,
    object::{self, Programs},
    rcu,
    tables::{self, Tables},
};

/// Passes over the old table before the devices are switched, at most, and how few new connections are few.
const PASSES: usize = 8;
const FEW: usize = 16;
/// The table is made so large that connections take one of so many entries of it, as one is that has just grown or shrunk.
const ROOM: u32 = 4;

/// Takes over from the version before, if its tables are all there is.
pub(super) fn take_over(dir: &PinDir, options: &Options) -> Result<(), LoadError> {
    let old = dir.of_version(abi8::VERSION);
    let taken = dir.at(Stage::Taken);
    if taken.exists() && old.exists() {
        info!("going on with taking over from another version");
        let (sizes, table) = (object::sizes_of_pins(&taken, options.sizes)?, FlowTable8::open(&old)?);
        let mut programs = OurPrograms::load(&taken, &old, sizes, options)?;
        return finish(dir, &old, &taken, &table, &mut programs, Taken::new(&table));
    }
    if taken.exists() {
        return taken.rename(dir);
    }
    if dir.exists() || dir.others()? != [old.clone()] || !abi8::is_there(&old) {
        return Ok(());
    }
    let new = dir.at(Stage::New);
    new.remove()?;
    let table = FlowTable8::open(&old)?;
    let sizes = Sizes { flows: flows_for(table.entries(), options), ..object::sizes_of_pins(&old, options.sizes)? };
    let prepared = prepare(&old, &new, sizes, options);
    let (mut programs, copied) = match prepared.and_then(|programs| Ok((programs, copy(&new, &table)?))) {
        Ok(prepared) => prepared,
        Err(error) => {
            warn!(error = %causes(&error), tables = %old.path().display(), "the other version runs on");
            new.remove()?;
            return Err(kernel::explain(error));
        }
    };
    new.rename(&taken)?;
    finish(dir, &old, &taken, &table, &mut programs, copied)
}

/// The size of a flow table for so many entries.
fn flows_for(entries: u32, options: &Options) -> u32 {
    let (most, mut flows) = (options.sizes.flows, options.least_flows.min(options.sizes.flows));
    while flows < most && flows / ROOM < entries {
        flows = flows.saturating_mul(4).min(most);
    }
    flows
}

/// Step 1.
fn prepare(old: &PinDir, new: &PinDir, sizes: Sizes, options: &Options) -> Result<OurPrograms, LoadError> {
    new.make()?;
    object::share(old, new, &abi8::SAME)?;
    object::make_maps(new, sizes)?;
    let programs = OurPrograms::load(new, old, sizes, options)?;
    tables::begin(new, abi8::config(old)?, sizes)?;
    Tables::open(new)?.begin()?;
    let (backends, loads) = (tables::mapping::<Backend>(new, maps::BACKENDS)?, loads(new)?);
    for number in 0..backends.len() {
        let generation = backends.read(number).unwrap_or_default().generation;
        loads.write(number, Load::of(generation));
    }
    Ok(programs)
}

fn loads(dir: &PinDir) -> Result<Mapping<Load>, LoadError> {
    tables::mapping(dir, maps::BACKEND_LOAD)
}

/// Step 2.
fn copy(new: &PinDir, table: &FlowTable8) -> Result<Taken, LoadError> {
    let mut taken = Taken::new(table);
    let copies = FlowTable::open(new)?;
    let migration = migration(new, table, &copies)?;
    for _ in 0..PASSES {
        if taken.copy(&migration, false) < FEW {
            break;
        }
    }
    Ok(taken)
}

fn migration<'a>(
    dir: &PinDir,
    old: &'a FlowTable8,
    new: &'a FlowTable,
) -> Result<Migration<'a, FlowTable8>, LoadError> {
    let config = tables::Epoch::open(dir)?.get()?;
    let now = object::prepare_reading(dir)?.jiffies()?;
    Ok(Migration { old, new, seed: config.flow_seed, now })
}

/// Steps 3 to 5.
fn finish(
    dir: &PinDir,
    old: &PinDir,
    taken: &PinDir,
    table: &FlowTable8,
    programs: &mut OurPrograms,
    mut copied: Taken,
) -> Result<(), LoadError> {
    let copies = FlowTable::open(taken)?;
    let migration = migration(taken, table, &copies)?;
    abi8::copy_meter_states(old, taken)?;
    taken.share_links(old)?;
    let begun = Instant::now();
    attach::update_all(taken, &mut programs.patient)?;
    let mut last = copied.copy(&migration, true);
    rcu::synchronize();
    last += copied.copy(&migration, true);
    let between = begun.elapsed();
    let (connections, lost) = copied.settle(&migration);
    if lost > 0 {
        warn!(connections, lost, "the new flow table had no place for some connections; raise datapath.flows");
    }
    attach::update_all(taken, &mut programs.usual)?;
    taken.rename(dir)?;
    old.remove()?;
    info!(from = abi8::VERSION, connections, last, ?between, "took over from another version");
    Ok(())
}

/// Those that devices get in step 3, and in step 5.
struct OurPrograms {
    patient: Programs,
    usual: Programs,
}

impl OurPrograms {
    /// Loads all that will be needed.
    fn load(new: &PinDir, old: &PinDir, sizes: Sizes, options: &Options) -> Result<Self, LoadError> {
        let load = |mut programs: Programs, hook: Hook| {
            programs.refuse(options.refused);
            programs.load_for(hook)?;
            attach::load_all(old, &mut programs)?;
            Ok::<_, LoadError>(programs)
        };
        Ok(Self {
            patient: load(object::prepare_taking(new, sizes)?, options.hook)?,
            usual: load(object::prepare_with_secondary(new, sizes, None)?, options.hook)?,
        })
    }
}

/// The connections that were copied.
struct Taken {
    copies: Vec<[Copy; 2]>,
    /// By slot of the old table: which flow of it was copied, or found no place.
    seen: Vec<u32>,
    lost: u64,
}

impl Taken {
    fn new(table: &FlowTable8) -> Self {
        Self { copies: Vec::new(), seen: vec![0; table.slots() as usize], lost: 0 }
    }

    /// Copies those that have come since the last time, and takes back those that have gone; how many have come.
    fn copy(&mut self, migration: &Migration<'_, FlowTable8>, used: bool) -> usize {
        self.copies.retain(|both| {
            let gone = migration.is_gone(&both[0]);
            if gone {
                migration.discard(*both);
            }
            !gone
        });
        let before = self.copies.len();
        for slot in 0..migration.old.slots() {
            let Some(word) = migration.old.word(slot).filter(|word| word.state() > State::Busy) else { continue };
            if self.seen[slot as usize] == identity(word) {
                continue;
            }
            match migration.copy(slot, used) {
                Copying::None => {}
                Copying::NoSlot => {
                    self.lost += 1;
                    self.seen[slot as usize] = identity(word);
                }
                Copying::Done(both) => {
                    for (slot, word) in both.map(|copy| copy.from) {
                        self.seen[slot as usize] = identity(word);
                    }
                    self.copies.push(both);
                }
            }
        }
        self.copies.len() - before
    }

    /// Brings the copies to what packets changed meanwhile: how many there are, and how many connections found no place.
    fn settle(self, migration: &Migration<'_, FlowTable8>) -> (usize, u64) {
        for [first, reply] in &self.copies {
            migration.settle(*first, *reply);
        }
        (self.copies.len(), self.lost)
    }
}

/// What tells one flow in a slot from the next: never 0.
fn identity(word: Word) -> u32 {
    (word.0 & Word::IDENTITY) as u32 | 1
}

const _: () = assert!(WAYS == 8, "as version 8 had");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::TcMode;

    #[test]
    fn a_table_has_room_for_what_comes_over_up_to_the_largest_there_may_be() {
        let options = Options {
            bpffs: "/nowhere".into(),
            hook: Hook::Auto,
            tc: TcMode::Auto,
            sizes: Sizes { flows: 1 << 20, ..Sizes::default() },
            least_flows: 1 << 16,
            refused: &[],
        };
        for (entries, flows) in
            [(0, 1 << 16), (1 << 14, 1 << 16), ((1 << 14) + 1, 1 << 18), (1 << 18, 1 << 20), (1 << 20, 1 << 20)]
        {
            assert_eq!(flows_for(entries, &options), flows, "{entries}");
        }
        let small = Options { sizes: Sizes { flows: 4096, ..options.sizes }, ..options };
        assert_eq!(flows_for(4096, &small), 4096);
    }
}
