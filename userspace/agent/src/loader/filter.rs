//! TC programs on kernels without TCX links (before 6.6): as filters of the discipline clsact.
//!
//! A filter is ours by its name, at a priority of ours and a handle for each program, and by that program, which is pinned here
//! or uses tables that are (`owned`): nobody else's is touched, another vipgate's neither. It stays when the controller ends,
//! and is replaced in place. clsact itself is made where it is missing, and goes again with the last filter, if it was made here
//! and holds none of others: that is remembered by a directory named after the device's index, beside the pins (`bpffs`).
//!
//! The kernel keeps filters for devices, not for names or directories: so what nothing wants any more is found by looking at
//! all devices ([`Filters::sweep`]).

use std::{collections::BTreeSet, io, os::fd::BorrowedFd};

use thiserror::Error;

use super::{
    bpffs::Marks,
    classifier::Classifier,
    own_programs::OwnPrograms,
    rtnl::{Filter, Place, Side, Socket},
};

/// Of all our filters: late enough that an operator's own can come before, and seldom used by others.
pub const PRIORITY: u16 = 0x56;

/// Why a filter could not be put, or taken off.
#[derive(Debug, Error)]
pub enum FilterError {
    #[error("{what} is where vipgate's filter goes; `{remedy}` removes it")]
    Foreign { what: String, remedy: String },
    #[error(
        "{what} is another vipgate's, whose pins are not under {root}: `vipgate detach --bpffs` with the directory of its \
         pins takes it off, or, where they are gone, `{remedy}`"
    )]
    Another { what: String, root: String, remedy: String },
    #[error(
        "the kernel has neither TCX links (Linux 6.6) nor clsact and cls_bpf (CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF)"
    )]
    Missing,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The filters of this network namespace.
#[derive(Debug)]
pub(super) struct Filters {
    socket: Socket,
    marks: Marks,
    owned: OwnPrograms,
}

impl Filters {
    pub(super) fn open(marks: Marks) -> io::Result<Self> {
        Ok(Self { socket: Socket::open()?, owned: OwnPrograms::read(marks.root())?, marks })
    }

    /// Attaches a program to a device, or replaces ours that is there. `true` if one was there.
    pub(super) fn put(&self, ifindex: u32, which: Classifier, program: BorrowedFd<'_>) -> Result<bool, FilterError> {
        let made = self.make_room(ifindex)?;
        let all = self.all(ifindex)?;
        if !made && !all.iter().any(|filter| self.is_ours(filter)) {
            // Somebody else made it, in the place of one that was made here.
            self.marks.remove(ifindex)?;
        }
        let put = self.put_beside(&all, place(ifindex, which), which, program);
        if made && put.is_err() {
            self.release(ifindex)?;
        }
        put
    }

    fn put_beside(
        &self,
        all: &[Filter],
        place: Place,
        which: Classifier,
        program: BorrowedFd<'_>,
    ) -> Result<bool, FilterError> {
        let others = || all.iter().filter(|filter| filter.place.side == place.side && !self.is_ours(filter));
        // Beside another vipgate's there is no place for ours, wherever its own is: both would take the same packets.
        if let Some(foreign) = others().find(|filter| filter.place == place || is_vipgates(filter)) {
            return Err(self.foreign(foreign));
        }
        match self.socket.put(place, which.program(), program) {
            Ok(()) => Ok(all.iter().any(|filter| filter.place == place)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Err(FilterError::Missing),
            // A priority has filters of one kind and for one protocol.
            Err(error) => match others().find(|filter| filter.place.priority == PRIORITY) {
                Some(foreign) => Err(self.foreign(foreign)),
                None => Err(error.into()),
            },
        }
    }

    pub(super) fn is_there(&self, ifindex: u32, which: Classifier) -> io::Result<bool> {
        Ok(self.missing(&BTreeSet::from([(ifindex, which)]))?.is_empty())
    }

    /// Those of the wanted filters that are not there.
    pub(super) fn missing(&self, wanted: &BTreeSet<(u32, Classifier)>) -> io::Result<BTreeSet<(u32, Classifier)>> {
        let qdiscs = self.socket.qdiscs()?;
        let mut there = BTreeSet::new();
        let sides: BTreeSet<_> = wanted.iter().map(|(ifindex, which)| (*ifindex, which.side())).collect();
        for (ifindex, side) in sides {
            if qdiscs.iter().any(|qdisc| qdisc.ifindex == ifindex && qdisc.kind == CLSACT) {
                let filters = self.socket.filters(ifindex, side)?;
                let ours = filters.into_iter().filter(|filter| self.is_ours(filter)).map(|filter| filter.place);
                there.extend(ours.map(|place| (place.ifindex, place.side, place.handle)));
            }
        }
        let is_missing =
            |(ifindex, which): &&(u32, Classifier)| !there.contains(&(*ifindex, which.side(), which.number()));
        Ok(wanted.iter().filter(is_missing).copied().collect())
    }

    /// Takes every filter of ours off that `keep` does not want, given the device's index, and then clsact where it was made
    /// here and nothing is left in it. The devices that lost one.
    pub(super) fn sweep(&self, keep: impl Fn(u32, Classifier) -> bool) -> io::Result<BTreeSet<u32>> {
        let qdiscs = self.socket.qdiscs()?;
        let mut swept = BTreeSet::new();
        for qdisc in qdiscs.iter().filter(|qdisc| qdisc.kind == CLSACT) {
            let ifindex = qdisc.ifindex;
            for filter in self.all(ifindex)?.iter().filter(|filter| self.is_ours(filter)) {
                let wanted = Classifier::of_program(filter.name.as_deref().unwrap_or_default());
                if !wanted.is_some_and(|which| place(ifindex, which) == filter.place && keep(ifindex, which)) {
                    ignore(&[libc::ENOENT, libc::ENODEV, libc::EINVAL], self.socket.remove(filter.place))?;
                    swept.insert(ifindex);
                }
            }
            self.release(ifindex)?;
        }
        let has_clsact = |ifindex| qdiscs.iter().any(|qdisc| qdisc.ifindex == ifindex && qdisc.kind == CLSACT);
        for gone in self.marks.list()?.into_iter().filter(|mark| !has_clsact(*mark)) {
            self.marks.remove(gone)?;
        }
        Ok(swept)
    }

    /// Gives a device clsact, unless it has it. `true` if it was made.
    fn make_room(&self, ifindex: u32) -> Result<bool, FilterError> {
        match self.kind_of(ifindex)?.as_deref() {
            Some(CLSACT) => return Ok(false),
            Some(other) => {
                return Err(FilterError::Foreign {
                    what: format!("the queueing discipline `{other}`"),
                    remedy: format!("tc qdisc del dev {} {other}", name_of(ifindex)),
                });
            }
            None => {}
        }
        // The mark of a clsact that is gone does not hold for the next one. The mark comes after its clsact: a controller that is
        // killed in between leaves a clsact for good, and never removes another program's.
        self.marks.remove(ifindex)?;
        match self.socket.add_clsact(ifindex) {
            Ok(()) => self.marks.add(ifindex).map(|()| true).map_err(Into::into),
            Err(error) => match error.raw_os_error() {
                // Somebody was faster.
                Some(libc::EEXIST) => Ok(false),
                Some(libc::ENOENT | libc::EOPNOTSUPP) => Err(FilterError::Missing),
                _ => Err(error.into()),
            },
        }
    }

    /// Takes clsact off a device if it was made here and holds nothing. With filters of others it is theirs from now on.
    fn release(&self, ifindex: u32) -> io::Result<()> {
        let filters = self.all(ifindex)?;
        if filters.iter().any(|filter| self.is_ours(filter)) || !self.marks.list()?.contains(&ifindex) {
            return Ok(());
        }
        if filters.is_empty() {
            ignore(&[libc::ENOENT, libc::ENODEV, libc::EINVAL], self.socket.remove_clsact(ifindex))?;
        }
        self.marks.remove(ifindex)
    }

    /// The kind of a device's ingress discipline.
    fn kind_of(&self, ifindex: u32) -> io::Result<Option<String>> {
        let qdiscs = self.socket.qdiscs()?;
        Ok(qdiscs.into_iter().find(|qdisc| qdisc.ifindex == ifindex).map(|qdisc| qdisc.kind))
    }

    fn all(&self, ifindex: u32) -> io::Result<Vec<Filter>> {
        let mut filters = self.socket.filters(ifindex, Side::Ingress)?;
        filters.extend(self.socket.filters(ifindex, Side::Egress)?);
        Ok(filters)
    }

    fn is_ours(&self, filter: &Filter) -> bool {
        is_vipgates(filter) && filter.program.is_some_and(|program| self.owned.has(program))
    }

    /// What is in the way.
    fn foreign(&self, filter: &Filter) -> FilterError {
        let (what, remedy) = described(filter);
        match is_vipgates(filter) {
            true => FilterError::Another { what, root: self.marks.root().display().to_string(), remedy },
            false => FilterError::Foreign { what, remedy },
        }
    }
}

const CLSACT: &str = "clsact";

fn place(ifindex: u32, which: Classifier) -> Place {
    Place { ifindex, side: which.side(), priority: PRIORITY, handle: which.number() }
}

/// Whether a filter is a vipgate's, ours or another's.
fn is_vipgates(filter: &Filter) -> bool {
    let name = filter.name.as_deref().unwrap_or_default();
    filter.place.priority == PRIORITY && filter.kind == "bpf" && Classifier::of_program(name).is_some()
}

/// A filter in words, and the command that removes it.
fn described(filter: &Filter) -> (String, String) {
    let Filter { place: Place { ifindex, side, priority, handle }, kind, name, .. } = filter;
    let side = match side {
        Side::Ingress => "ingress",
        Side::Egress => "egress",
    };
    let name = name.as_ref().map_or_else(String::new, |name| format!(" `{name}`"));
    let what = format!("the {side} filter {kind}{name} with priority {priority} and handle {handle:#x}");
    (what, format!("tc filter del dev {} {side} pref {priority}", name_of(*ifindex)))
}

fn name_of(ifindex: u32) -> String {
    let name = nix::net::if_::if_indextoname(ifindex).ok();
    name.map_or_else(|| format!("if{ifindex}"), |name| name.to_string_lossy().into_owned())
}

/// What is gone already needs not be removed.
fn ignore(errors: &[i32], result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error().is_some_and(|number| errors.contains(&number)) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_vipgates_by_kind_priority_and_name() {
        let ours = Filter {
            place: place(2, Classifier::Tc),
            kind: "bpf".to_owned(),
            name: Some(Classifier::Tc.program().to_owned()),
            program: Some(7),
        };
        assert!(is_vipgates(&ours));
        assert!(!is_vipgates(&Filter { name: Some("other".to_owned()), ..ours.clone() }));
        assert!(!is_vipgates(&Filter { name: None, ..ours.clone() }));
        assert!(!is_vipgates(&Filter { place: Place { priority: 1, ..ours.place }, ..ours.clone() }));
        assert!(!is_vipgates(&Filter { kind: "flower".to_owned(), ..ours }));
    }

    #[test]
    fn what_is_in_the_way_is_named_with_the_command_that_removes_it() {
        let place = Place { ifindex: 1, side: Side::Egress, priority: PRIORITY, handle: 1 };
        let name = Some("shaper".to_owned());
        let (what, remedy) = described(&Filter { place, kind: "bpf".to_owned(), name, program: None });
        assert!(what.contains("bpf `shaper`"), "{what}");
        assert_eq!(remedy, "tc filter del dev lo egress pref 86");
    }
}
