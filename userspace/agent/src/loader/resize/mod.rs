//! Gives the tables other sizes while packets go through them, and loses none, nor a connection, nor a count.
//!
//! Programs and devices are switched one after another, never all at once. So:
//! 1. New tables are made beside the old ones, in a directory of their own, and filled (`contents`). Tables whose size stays
//!    are shared.
//! 2. If the flow table is one of the new: every device gets programs that make flows in the old table, and find them in
//!    both. So programs of this step find what programs of the next step make.
//! 3. Every device gets programs that use the new tables, and find flows in both. From the first of them on there is no way
//!    back: connections are in both tables.
//! 4. When the last packet has left the old tables, what they counted is brought over, and their connections are carried
//!    to the new table (`flow_migration`).
//! 5. The new directory takes the old one's place. Programs that know only the new tables come with the next attachment, or
//!    at once where devices are attached already.
//!
//! A controller that is killed leaves programs that do their work, at whatever step; the directories' names show the next
//! one how far it was (`bpffs`). Before step 3 it starts over, later it goes on.
//!
//! All tables get their sizes before anything else writes them. The flow table gets others while the controller runs
//! ([`resize_flows`]): all else is shared, so that holders of other tables need not know of it. Only [`Epoch`]
//! takes part, as it writes for programs of both tables; holders of the flow table must open it again.

mod contents;

use std::sync::Mutex;

use tracing::{debug, info, warn};
use vipgate_abi::{flow::WAYS, maps};

use self::contents::Begun;
use super::{
    Sizes, attach,
    bpffs::{PinDir, Stage},
    error::{LoadError, causes},
    flow_migration::Migration,
    flow_table::FlowTable,
    lock, namespace,
    object::{self, Programs},
    rcu, redirect_errors, socket_lookup,
    tables::Epoch,
};

/// Finishes, or undoes, a resize that a controller left half done.
pub(super) fn resume(dir: &PinDir) -> Result<(), LoadError> {
    let carried = dir.at(Stage::Carried);
    dir.at(Stage::New).remove()?;
    if carried.exists() && dir.exists() {
        info!("going on with a change of the tables' sizes");
        let sizes = object::sizes_of_pins(&carried, Sizes::default())?;
        let mut programs = with_secondary(&carried, sizes, dir)?;
        finish(dir, &carried, &mut programs, &Begun::default())?;
    } else if carried.exists() {
        carried.rename(dir)?;
    }
    dir.at(Stage::Old).remove()
}

/// Gives the tables the wanted sizes, as far as what they hold allows. Those that cannot be made leave all as it was.
pub(super) fn resize(dir: &PinDir, wanted: Sizes) -> Result<(), LoadError> {
    let held = object::sizes_of_pins(dir, wanted)?;
    if held == wanted {
        return Ok(());
    }
    object::make_maps(dir, held)?;
    let sizes = contents::that_fit(dir, held, wanted)?;
    if sizes != held {
        let epoch = Mutex::new(Epoch::open(dir)?);
        change(dir, held, sizes, &epoch)?;
        dir.at(Stage::Old).remove()?;
    }
    Ok(())
}

/// Gives the flow table another size while the reconciler works: the programs that devices have then. `None` if the table stays
/// as it was, since it cannot be made, or does not hold what is there.
///
/// # Errors
/// An error after the point of no return: only a start of the controller goes on from there.
pub(super) fn resize_flows(
    dir: &PinDir,
    held: Sizes,
    flows: u32,
    refused: &'static [&'static str],
    epoch: &Mutex<Epoch>,
) -> Result<Option<Programs>, LoadError> {
    if contents::least_flows(dir, held.flows, flows)? > flows {
        debug!(flows, "what is in the flow table does not fit so few entries");
        return Ok(None);
    }
    let sizes = Sizes { flows, ..held };
    if !change(dir, held, sizes, epoch)? {
        return Ok(None);
    }
    namespace::remember(dir)?;
    let mut programs = object::prepare_with_secondary(dir, sizes, None)?;
    programs.refuse(refused);
    attach::update_all(dir, &mut programs)?;
    redirect_errors::watch(&mut programs, dir);
    socket_lookup::keep(&mut programs, dir);
    dir.at(Stage::Old).remove()?;
    Ok(Some(programs))
}

/// All steps; the old directory stays. `false` if the new tables cannot be made, and all is as it was.
fn change(dir: &PinDir, held: Sizes, sizes: Sizes, epoch: &Mutex<Epoch>) -> Result<bool, LoadError> {
    let new = dir.at(Stage::New);
    let (mut programs, begun) = match prepare(dir, held, &new, sizes, epoch) {
        Ok(prepared) => prepared,
        Err(error) => {
            warn!(error = %causes(&error), ?held, ?sizes, "the tables keep their sizes");
            lock(epoch).drop_secondary();
            new.remove()?;
            return Ok(false);
        }
    };
    let carried = dir.at(Stage::Carried);
    new.rename(&carried)?;
    finish(dir, &carried, &mut programs, &begun)?;
    lock(epoch).switch_to_secondary();
    info!(?held, ?sizes, "the tables have other sizes");
    Ok(true)
}

/// Steps 1 and 2; the programs of step 3.
fn prepare(
    dir: &PinDir,
    held: Sizes,
    new: &PinDir,
    sizes: Sizes,
    epoch: &Mutex<Epoch>,
) -> Result<(Programs, Begun), LoadError> {
    new.make()?;
    object::make_resized(dir, held, new, sizes)?;
    let mut programs = with_secondary(new, sizes, dir)?;
    attach::load_all(dir, &mut programs)?;
    if held.flows != sizes.flows {
        let mut first = object::prepare_with_secondary(dir, held, Some((new, sizes.flows)))?;
        attach::update_all(dir, &mut first)?;
        rcu::synchronize();
        lock(epoch).add_secondary(new, sizes.flows / WAYS as u32 - 1)?;
    }
    let begun = contents::fill(dir, new)?;
    Ok((programs, begun))
}

/// The programs of step 3.
fn with_secondary(next: &PinDir, sizes: Sizes, dir: &PinDir) -> Result<Programs, LoadError> {
    let old = object::sizes_of_pins(dir, sizes)?;
    let is_shared = object::is_shared(maps::FLOWS, dir, next)?;
    object::prepare_with_secondary(next, sizes, (!is_shared).then_some((dir, old.flows)))
}

/// Steps 3 to 5.
fn finish(dir: &PinDir, next: &PinDir, programs: &mut Programs, begun: &Begun) -> Result<(), LoadError> {
    attach::update_all(dir, programs)?;
    rcu::synchronize();
    contents::settle(dir, next, begun)?;
    if !object::is_shared(maps::FLOWS, dir, next)? {
        let (old, new) = (FlowTable::open(dir)?, FlowTable::open(next)?);
        let seed = Epoch::open(next)?.get()?.flow_seed;
        let migration = Migration { old: &old, new: &new, seed, now: programs.jiffies()? };
        let carried = migration.migrate(rcu::synchronize);
        if carried.lost == 0 {
            info!(connections = carried.connections, "all connections are carried over");
        } else {
            warn!(?carried, "the new flow table had no place for some connections; raise datapath.flows");
        }
    }
    next.share_links(dir)?;
    dir.rename(&dir.at(Stage::Old))?;
    next.rename(dir)
}
