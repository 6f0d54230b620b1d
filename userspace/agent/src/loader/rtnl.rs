//! Queueing disciplines and filters of devices, by rtnetlink (linux/rtnetlink.h, linux/pkt_cls.h), in the calling thread's
//! network namespace.
//!
//! Messages are parsed here, and only as far as needed: they list the disciplines and filters of all programs, and what a later
//! kernel adds to them must not keep us from finding our own.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL,
    NLM_F_REPLACE, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NlasIterator,
};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

/// Of clsact and of ingress, which exclude each other: the handle, and where they are.
const INGRESS_HANDLE: u32 = 0xffff_0000;
const INGRESS_PARENT: u32 = 0xffff_fff1;
/// Attributes of disciplines and filters.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
/// Attributes of the classifier `bpf`.
const BPF_FD: u16 = 6;
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
const BPF_ID: u16 = 11;
/// The program's result is the verdict.
const DIRECT_ACTION: u32 = 1;
/// Filters for packets of all protocols.
const ALL_PROTOCOLS: u16 = (libc::ETH_P_ALL as u16).to_be();
/// Bytes of the header of what is said of disciplines and filters (`struct tcmsg`).
const HEADER: usize = 20;
/// Larger than what the kernel sends at once.
const BUFFER: usize = 1 << 16;
/// So often a list is read again that changed while it was read.
const TRIES: u32 = 20;

/// Where on a device: a number by which clsact names its two lists of filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Ingress,
    Egress,
}

impl Side {
    const fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// What there can be one of: a device's side, a priority and a number within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) ifindex: u32,
    pub(super) side: Side,
    pub(super) priority: u16,
    pub(super) handle: u32,
}

/// A filter, of vipgate or another program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) place: Place,
    pub(super) kind: String,
    /// Of those that are BPF programs.
    pub(super) name: Option<String>,
    /// The kernel's number of its program.
    pub(super) program: Option<u32>,
}

/// The discipline where packets come in, if a device has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Qdisc {
    pub(super) ifindex: u32,
    pub(super) kind: String,
}

/// A socket to rtnetlink.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkRoute;
        Ok(Self(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?))
    }

    /// The ingress disciplines (clsact or ingress) of all devices.
    pub(super) fn qdiscs(&self) -> io::Result<Vec<Qdisc>> {
        self.list(libc::RTM_GETQDISC, [0; 4], |header, attributes| {
            let [ifindex, _, parent, _] = header;
            let kind = || text(attributes, KIND).unwrap_or_default();
            (parent == INGRESS_PARENT).then(|| Qdisc { ifindex, kind: kind() })
        })
    }

    pub(super) fn add_clsact(&self, ifindex: u32) -> io::Result<()> {
        let header = [ifindex, INGRESS_HANDLE, INGRESS_PARENT, 0];
        let kind = attributes(&[(KIND, b"clsact\0")]);
        self.change(libc::RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, header, &kind)
    }

    /// Removes clsact and all that is in it.
    pub(super) fn remove_clsact(&self, ifindex: u32) -> io::Result<()> {
        let header = [ifindex, INGRESS_HANDLE, INGRESS_PARENT, 0];
        self.change(libc::RTM_DELQDISC, 0, header, &attributes(&[(KIND, b"clsact\0")]))
    }

    /// All filters on a side of a device that has clsact.
    pub(super) fn filters(&self, ifindex: u32, side: Side) -> io::Result<Vec<Filter>> {
        self.list(libc::RTM_GETTFILTER, [ifindex, 0, side.parent(), 0], |header, attributes| {
            let [ifindex, handle, _, info] = header;
            let options = value(attributes, OPTIONS).unwrap_or_default();
            let filter = || Filter {
                place: Place { ifindex, side, priority: (info >> 16) as u16, handle },
                kind: text(attributes, KIND).unwrap_or_default(),
                name: text(options, BPF_NAME),
                program: value(options, BPF_ID).and_then(|id| word(id, 0)),
            };
            // Before the filters of a priority the kernel tells of the priority itself.
            (handle != 0).then(filter)
        })
    }

    /// Puts a program there, or in one step in place of the one that is there.
    pub(super) fn put(&self, place: Place, name: &str, program: BorrowedFd<'_>) -> io::Result<()> {
        let options = attributes(&[
            (BPF_FD, &program.as_raw_fd().to_ne_bytes()),
            (BPF_NAME, &[name.as_bytes(), &[0]].concat()),
            (BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes()),
        ]);
        let about = attributes(&[(KIND, b"bpf\0"), (OPTIONS, &options)]);
        self.change(libc::RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_REPLACE, header_of(place), &about)
    }

    pub(super) fn remove(&self, place: Place) -> io::Result<()> {
        let kind = attributes(&[(KIND, b"bpf\0")]);
        self.change(libc::RTM_DELTFILTER, 0, header_of(place), &kind)
    }

    fn change(&self, kind: u16, flags: u16, header: [u32; 4], attributes: &[u8]) -> io::Result<()> {
        self.ask(kind, NLM_F_ACK | flags, header, attributes, &mut |_, _| {}).map(drop)
    }

    /// All of a kind that `read` makes something of.
    fn list<T>(&self, kind: u16, header: [u32; 4], read: impl Fn([u32; 4], &[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        undisturbed(|| {
            let mut found = Vec::new();
            let take = &mut |header, attributes: &[u8]| found.extend(read(header, attributes));
            let changed = self.ask(kind, NLM_F_DUMP, header, &[], take)?;
            Ok((!changed).then_some(found))
        })
    }

    /// Sends a request and hands on what is answered: the header's words (device, handle, parent, info) and the attributes.
    /// `true` if what is listed changed meanwhile, so that some of it may be missing.
    fn ask(
        &self,
        kind: u16,
        flags: u16,
        header: [u32; 4],
        attributes: &[u8],
        take: &mut impl FnMut([u32; 4], &[u8]),
    ) -> io::Result<bool> {
        let length = 16 + HEADER + attributes.len();
        let mut request = vec![0; length];
        let mut buffer = NetlinkBuffer::new(&mut request);
        buffer.set_length(u32::try_from(length).map_err(io::Error::other)?);
        buffer.set_message_type(kind);
        buffer.set_flags(NLM_F_REQUEST | flags);
        let words: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
        buffer.payload_mut()[HEADER - words.len()..HEADER].copy_from_slice(&words);
        buffer.payload_mut()[HEADER..].copy_from_slice(attributes);
        send(self.0.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut answer = vec![0; BUFFER];
        let mut seen = Seen::default();
        while !seen.end {
            let length = match recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                length => length?,
            };
            take_all(&answer[..length], &mut seen, take)?;
        }
        Ok(seen.changed)
    }
}

/// What is known of a request from its answers so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// There is no more.
    end: bool,
    /// What is listed changed while it was.
    changed: bool,
}

/// Reads a list until it did not change meanwhile: until `read` gives something.
fn undisturbed<T>(mut read: impl FnMut() -> io::Result<Option<T>>) -> io::Result<T> {
    for _ in 0..TRIES {
        if let Some(found) = read()? {
            return Ok(found);
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "the kernel's list changed each time that it was read"))
}

/// Hands on the messages of one answer.
fn take_all(mut answer: &[u8], seen: &mut Seen, take: &mut impl FnMut([u32; 4], &[u8])) -> io::Result<()> {
    while !answer.is_empty() && !seen.end {
        let message = NetlinkBuffer::new_checked(answer).map_err(io::Error::other)?;
        let payload = message.payload();
        seen.changed |= message.flags() & NLM_F_DUMP_INTR != 0;
        match message.message_type() {
            NLMSG_DONE => seen.end = true,
            NLMSG_ERROR => match word(payload, 0).map(u32::cast_signed) {
                Some(0) => seen.end = true,
                code => return Err(io::Error::from_raw_os_error(code.map_or(libc::EPROTO, i32::abs))),
            },
            _ => {
                if let (Some(attributes), [Some(device), Some(handle), Some(parent), Some(info)]) =
                    (payload.get(HEADER..), [4, 8, 12, 16].map(|at| word(payload, at)))
                {
                    take([device, handle, parent, info], attributes);
                }
            }
        }
        let length = (message.length() as usize).next_multiple_of(4);
        answer = answer.get(length..).unwrap_or_default();
    }
    Ok(())
}

fn header_of(place: Place) -> [u32; 4] {
    let info = u32::from(place.priority) << 16 | u32::from(ALL_PROTOCOLS);
    [place.ifindex, place.handle, place.side.parent(), info]
}

fn attributes(of: &[(u16, &[u8])]) -> Vec<u8> {
    let attributes: Vec<DefaultNla> = of.iter().map(|(kind, value)| DefaultNla::new(*kind, value.to_vec())).collect();
    let mut bytes = vec![0; attributes.as_slice().buffer_len()];
    attributes.as_slice().emit(&mut bytes);
    bytes
}

fn value(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let found = NlasIterator::new(attributes).flatten().find(|attribute| attribute.kind() == kind)?;
    let length = usize::from(found.length());
    found.into_inner().get(NLA_HEADER_SIZE..length)
}

/// An attribute that is a string, which ends with its zero.
fn text(attributes: &[u8], kind: u16) -> Option<String> {
    let bytes = value(attributes, kind)?.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(bytes).into_owned())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
