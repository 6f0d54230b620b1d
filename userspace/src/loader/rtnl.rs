//! Queueing disciplines and filters of devices, by rtnetlink (linux/rtnetlink.h, linux/pkt_cls.h), in the calling thread's
//! network namespace.
//!
//! Messages are read here, and only what is asked for: these are everybody's disciplines and filters, and what a later kernel
//! says of them shall not keep us from finding our own.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE,
    NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NlasIterator,
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
/// The program's result is the verdict.
const DIRECT_ACTION: u32 = 1;
/// Filters for packets of all protocols.
const ALL_PROTOCOLS: u16 = (libc::ETH_P_ALL as u16).to_be();
/// Bytes of the header of what is said of disciplines and filters (`struct tcmsg`).
const HEADER: usize = 20;
/// Larger than what the kernel sends at once.
const BUFFER: usize = 1 << 16;

/// Where on a device: a number by which clsact names its two lists of filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// A filter, whoever's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) place: Place,
    pub(super) kind: String,
    /// Of those that are BPF programs.
    pub(super) name: Option<String>,
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
        let mut found = Vec::new();
        self.ask(libc::RTM_GETQDISC, NLM_F_DUMP, [0; 4], &[], |header, attributes| {
            let [ifindex, _, parent, _] = header;
            if parent == INGRESS_PARENT {
                found.push(Qdisc { ifindex, kind: text(attributes, KIND).unwrap_or_default() });
            }
        })?;
        Ok(found)
    }

    pub(super) fn add_clsact(&self, ifindex: u32) -> io::Result<()> {
        let header = [ifindex, INGRESS_HANDLE, INGRESS_PARENT, 0];
        let kind = attributes(&[(KIND, b"clsact\0")]);
        self.ask(libc::RTM_NEWQDISC, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, header, &kind, |_, _| {})
    }

    /// Removes clsact and all that is in it.
    pub(super) fn remove_clsact(&self, ifindex: u32) -> io::Result<()> {
        let header = [ifindex, INGRESS_HANDLE, INGRESS_PARENT, 0];
        self.ask(libc::RTM_DELQDISC, NLM_F_ACK, header, &attributes(&[(KIND, b"clsact\0")]), |_, _| {})
    }

    /// All filters on a side of a device that has clsact.
    pub(super) fn filters(&self, ifindex: u32, side: Side) -> io::Result<Vec<Filter>> {
        let mut found = Vec::new();
        self.ask(libc::RTM_GETTFILTER, NLM_F_DUMP, [ifindex, 0, side.parent(), 0], &[], |header, attributes| {
            let [ifindex, handle, _, info] = header;
            // Before the filters of a priority the kernel tells of the priority itself.
            if handle != 0 {
                let place = Place { ifindex, side, priority: (info >> 16) as u16, handle };
                let name = value(attributes, OPTIONS).and_then(|options| text(options, BPF_NAME));
                found.push(Filter { place, kind: text(attributes, KIND).unwrap_or_default(), name });
            }
        })?;
        Ok(found)
    }

    /// Puts a program there, or in one step in place of the one that is there.
    pub(super) fn put(&self, place: Place, name: &str, program: BorrowedFd<'_>) -> io::Result<()> {
        let options = attributes(&[
            (BPF_FD, &program.as_raw_fd().to_ne_bytes()),
            (BPF_NAME, &[name.as_bytes(), &[0]].concat()),
            (BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes()),
        ]);
        let about = attributes(&[(KIND, b"bpf\0"), (OPTIONS, &options)]);
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.ask(libc::RTM_NEWTFILTER, flags, header_of(place), &about, |_, _| {})
    }

    pub(super) fn remove(&self, place: Place) -> io::Result<()> {
        let kind = attributes(&[(KIND, b"bpf\0")]);
        self.ask(libc::RTM_DELTFILTER, NLM_F_ACK, header_of(place), &kind, |_, _| {})
    }

    /// Sends a request and hands on what is answered: the header's words (device, handle, parent, info) and the attributes.
    fn ask(
        &self,
        kind: u16,
        flags: u16,
        header: [u32; 4],
        attributes: &[u8],
        mut take: impl FnMut([u32; 4], &[u8]),
    ) -> io::Result<()> {
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
        loop {
            let length = match recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                length => length?,
            };
            if take_all(&answer[..length], &mut take)? {
                return Ok(());
            }
        }
    }
}

/// Hands on the messages of one answer; true: it was the last.
fn take_all(mut answer: &[u8], take: &mut impl FnMut([u32; 4], &[u8])) -> io::Result<bool> {
    while !answer.is_empty() {
        let message = NetlinkBuffer::new_checked(answer).map_err(io::Error::other)?;
        let payload = message.payload();
        match message.message_type() {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => match word(payload, 0).map(u32::cast_signed) {
                Some(0) => return Ok(true),
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
    Ok(false)
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
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let options = attributes(&[(BPF_NAME, b"vipgate_tc\0"), (BPF_FLAGS, &1u32.to_ne_bytes())]);
        let all = attributes(&[(KIND, b"bpf\0"), (OPTIONS, &options)]);
        assert_eq!(text(&all, KIND).as_deref(), Some("bpf"));
        assert_eq!(value(&all, OPTIONS).and_then(|options| text(options, BPF_NAME)).as_deref(), Some("vipgate_tc"));
        assert_eq!(value(&all, BPF_FD), None);
    }

    #[test]
    fn what_is_cut_off_is_no_answer() {
        let answer = [16u32.to_ne_bytes(), [0; 4], [0; 4]].concat();
        assert!(take_all(&answer, &mut |_, _| {}).is_err());
        assert!(!take_all(&[], &mut |_, _| {}).expect("nothing is said"));
    }
}
