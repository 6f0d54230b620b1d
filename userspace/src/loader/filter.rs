//! TC programs on kernels without TCX links (before 6.6): as filters of the discipline clsact.
//!
//! A filter is ours by its name, at a priority of ours and a handle for each program, where nobody else's is touched. It stays
//! when the controller ends, and is replaced in place. clsact itself is made where it is missing, and goes again with the last
//! filter, if it was made here and holds none of others: that is remembered by a directory named after the device's index,
//! beside the pins (`bpffs`).
//!
//! The kernel keeps filters for devices, not for names or directories: so what nothing wants any more is found by looking at
//! all devices ([`Filters::sweep`]).

use std::{collections::BTreeSet, io, os::fd::BorrowedFd};

use thiserror::Error;

use super::{
    bpffs::Marks,
    classifier::Classifier,
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
}

impl Filters {
    pub(super) fn open(marks: Marks) -> io::Result<Self> {
        Ok(Self { socket: Socket::open()?, marks })
    }

    /// Puts a program on a device, or in place of ours that is there. True: one was there.
    pub(super) fn put(&self, ifindex: u32, which: Classifier, program: BorrowedFd<'_>) -> Result<bool, FilterError> {
        self.make_room(ifindex)?;
        let place = place(ifindex, which);
        let others = self.socket.filters(ifindex, place.side)?;
        let held = others.iter().find(|filter| filter.place == place);
        if let Some(foreign) = held.filter(|filter| !is_ours(filter)) {
            return Err(foreign_filter(foreign));
        }
        let replaced = held.is_some();
        match self.socket.put(place, which.program(), program) {
            Ok(()) => Ok(replaced),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Err(FilterError::Missing),
            // A priority has filters of one kind and for one protocol.
            Err(error) => match others.iter().find(|filter| filter.place.priority == PRIORITY && !is_ours(filter)) {
                Some(foreign) => Err(foreign_filter(foreign)),
                None => Err(error.into()),
            },
        }
    }

    pub(super) fn is_there(&self, ifindex: u32, which: Classifier) -> io::Result<bool> {
        let place = place(ifindex, which);
        if self.kind_of(ifindex)?.as_deref() != Some(CLSACT) {
            return Ok(false);
        }
        Ok(self.socket.filters(ifindex, place.side)?.iter().any(|filter| filter.place == place && is_ours(filter)))
    }

    /// Takes every filter of ours off that `keep` does not want, given the device's index, and then clsact where it was made
    /// here and nothing is left in it. The devices that lost one.
    pub(super) fn sweep(&self, keep: impl Fn(u32, Classifier) -> bool) -> io::Result<BTreeSet<u32>> {
        let qdiscs = self.socket.qdiscs()?;
        let mut swept = BTreeSet::new();
        for qdisc in qdiscs.iter().filter(|qdisc| qdisc.kind == CLSACT) {
            let ifindex = qdisc.ifindex;
            for filter in self.all(ifindex)?.iter().filter(|filter| is_ours(filter)) {
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

    /// Gives a device clsact, unless it has it.
    fn make_room(&self, ifindex: u32) -> Result<(), FilterError> {
        match self.kind_of(ifindex)?.as_deref() {
            Some(CLSACT) => return Ok(()),
            Some(other) => {
                return Err(FilterError::Foreign {
                    what: format!("the queueing discipline `{other}`"),
                    remedy: format!("tc qdisc del dev {} {other}", name_of(ifindex)),
                });
            }
            None => {}
        }
        // The mark first: what is marked and not there does no harm.
        self.marks.add(ifindex)?;
        match self.socket.add_clsact(ifindex) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.marks.remove(ifindex)?;
                match error.raw_os_error() {
                    // Somebody was faster.
                    Some(libc::EEXIST) => Ok(()),
                    Some(libc::ENOENT | libc::EOPNOTSUPP) => Err(FilterError::Missing),
                    _ => Err(error.into()),
                }
            }
        }
    }

    /// Takes clsact off a device if it was made here and holds nothing. With filters of others it is theirs from now on.
    fn release(&self, ifindex: u32) -> io::Result<()> {
        let filters = self.all(ifindex)?;
        if filters.iter().any(is_ours) || !self.marks.list()?.contains(&ifindex) {
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
}

const CLSACT: &str = "clsact";

fn place(ifindex: u32, which: Classifier) -> Place {
    Place { ifindex, side: which.side(), priority: PRIORITY, handle: which.number() }
}

fn is_ours(filter: &Filter) -> bool {
    let name = filter.name.as_deref().unwrap_or_default();
    filter.place.priority == PRIORITY && filter.kind == "bpf" && Classifier::of_program(name).is_some()
}

fn foreign_filter(filter: &Filter) -> FilterError {
    let Filter { place: Place { ifindex, side, priority, handle }, kind, name } = filter;
    let side = match side {
        Side::Ingress => "ingress",
        Side::Egress => "egress",
    };
    let name = name.as_ref().map_or_else(String::new, |name| format!(" `{name}`"));
    FilterError::Foreign {
        what: format!("the {side} filter {kind}{name} with priority {priority} and handle {handle:#x}"),
        remedy: format!("tc filter del dev {} {side} pref {priority}", name_of(*ifindex)),
    }
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
    fn a_filter_is_ours_by_kind_priority_and_name() {
        let ours = Filter {
            place: place(2, Classifier::Tc),
            kind: "bpf".to_owned(),
            name: Some(Classifier::Tc.program().to_owned()),
        };
        assert!(is_ours(&ours));
        assert!(!is_ours(&Filter { name: Some("other".to_owned()), ..ours.clone() }));
        assert!(!is_ours(&Filter { name: None, ..ours.clone() }));
        assert!(!is_ours(&Filter { place: Place { priority: 1, ..ours.place }, ..ours.clone() }));
        assert!(!is_ours(&Filter { kind: "flower".to_owned(), ..ours }));
    }

    #[test]
    fn what_is_in_the_way_is_named_with_the_command_that_removes_it() {
        let place = Place { ifindex: 1, side: Side::Egress, priority: PRIORITY, handle: 1 };
        let error = foreign_filter(&Filter { place, kind: "bpf".to_owned(), name: Some("shaper".to_owned()) });
        let text = error.to_string();
        assert!(text.contains("bpf `shaper`") && text.contains("tc filter del dev lo egress pref 86"), "{text}");
    }
}
