//! Whether a pinned link is on a device of the calling thread's network namespace. A device that moved to another one keeps its
//! index there, and its links still report it, while another device may have that index here. So the device here is asked, too.
//!
//! By numbers alone: to open programs or links by them takes CAP_SYS_ADMIN.

use std::{io, path::Path};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, LinkXdp},
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{link, syscall::bpf};

/// `BPF_PROG_QUERY` of linux/bpf.h.
const PROG_QUERY: libc::c_long = 16;
/// `BPF_TCX_EGRESS` of `enum bpf_attach_type`.
const TCX_EGRESS: u32 = 47;
/// The kernel allows no more on a device's side (`BPF_MPROG_MAX`).
const MOST: usize = 64;

/// Arguments of the command.
#[repr(C)]
struct ProgQuery {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The kernel's description of a pinned link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct About {
    ifindex: u32,
    link: u32,
    program: u32,
    tcx: bool,
}

/// Whether an XDP or TCX link is pinned at `path`, and on this device here.
pub(super) fn is_on(path: &Path, ifindex: u32) -> io::Result<bool> {
    let mut about = read(path)?;
    while let Some(told) = about.filter(|about| about.ifindex == ifindex && ifindex != 0) {
        let numbers = if told.tcx { tcx_links(ifindex) } else { xdp_programs(ifindex) };
        let numbers = match numbers {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(false),
            numbers => numbers?,
        };
        if numbers.contains(if told.tcx { &told.link } else { &told.program }) {
            return Ok(true);
        }
        // It may just have been given another program.
        about = read(path)?;
        if about == Some(told) {
            return Ok(false);
        }
    }
    Ok(false)
}

fn read(path: &Path) -> io::Result<Option<About>> {
    Ok(link::describe(path)?.and_then(|description| parse(&description)))
}

fn parse(description: &str) -> Option<About> {
    let number = |name| link::field(description, name)?.parse().ok();
    let tcx = link::field(description, "link_type:")? == "tcx";
    Some(About { ifindex: number("ifindex:")?, link: number("link_id:")?, program: number("prog_id:")?, tcx })
}

/// The numbers of the TCX links on a device.
fn tcx_links(ifindex: u32) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for attach_type in [link::TCX_INGRESS, TCX_EGRESS] {
        // Without a buffer for the programs' numbers the kernel returns none at all.
        let (mut programs, mut links) = ([0u32; MOST], [0u32; MOST]);
        let mut query = ProgQuery {
            target_ifindex: ifindex,
            attach_type,
            query_flags: 0,
            attach_flags: 0,
            prog_ids: programs.as_mut_ptr() as u64,
            count: MOST as u32,
            padding: 0,
            prog_attach_flags: 0,
            link_ids: links.as_mut_ptr() as u64,
            link_attach_flags: 0,
            revision: 0,
        };
        // SAFETY: the kernel reads and writes `query` of the size given, and writes at most `count` numbers to each of the two
        // lists that it points to, which have that length; all are alive during the call.
        unsafe { bpf(PROG_QUERY, &mut query) }?;
        found.extend(links.into_iter().take(query.count as usize));
    }
    Ok(found)
}

/// The numbers of the XDP programs on a device, one of which each way to attach them may have.
fn xdp_programs(ifindex: u32) -> io::Result<Vec<u32>> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(message));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    let answer = loop {
        match socket.recv_from_full() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => break received?.0,
        }
    };
    match NetlinkMessage::deserialize(&answer).map_err(io::Error::other)?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(programs_of(&link)),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::Error::other("the kernel told of something else than the device")),
    }
}

fn programs_of(link: &LinkMessage) -> Vec<u32> {
    let xdp = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::Xdp(about) => Some(about),
        _ => None,
    });
    let number = |about: &LinkXdp| match about {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => Some(*id),
        _ => None,
    };
    xdp.flatten().filter_map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_known_by_their_kernels_description() {
        let text = "pos:\t0\nlink_type:\ttcx\nlink_id:\t5\nprog_id:\t9\nifindex:\t12\nattach_type:\t46 (tcx_ingress)\n";
        assert_eq!(parse(text), Some(About { ifindex: 12, link: 5, program: 9, tcx: true }));
        let text = text.replace("tcx", "xdp");
        assert_eq!(parse(&text), Some(About { ifindex: 12, link: 5, program: 9, tcx: false }));
        assert_eq!(parse("pos:\t0\nprog_type:\t3\nprog_id:\t9\n"), None);
    }

    #[test]
    fn a_device_that_is_not_there_has_nothing() {
        let none = u32::MAX >> 1;
        assert_eq!(xdp_programs(none).expect_err("none").raw_os_error(), Some(libc::ENODEV));
    }
}
