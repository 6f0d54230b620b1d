//! Counters. All per CPU: the packet path adds without atomics, the controller sums.

/// Traffic of a backend (and so, summed, of a listener and a VIP). Bytes count whole frames from the Ethernet header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Client to backend.
    pub packets_in: u64,
    pub bytes_in: u64,
    /// Backend to client.
    pub packets_out: u64,
    pub bytes_out: u64,
    /// Flows made.
    pub connections: u64,
    pub reserved: [u64; 3],
}

const _: () = assert!(size_of::<Traffic>() == 64);

crate::pod!(Traffic);

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal $verdict:ident $text:literal,)+) => {
        /// Why a packet was not simply forwarded: index of the REASONS map.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[doc = $doc])+ $name = $number,)+ }

        impl Reason {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The reason with this number.
            #[inline(always)]
            pub const fn of(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }

            /// The name that metrics and `vipgate status` print.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// True if the packet is dropped, false if it goes up the stack.
            pub const fn is_drop(self) -> bool {
                match self { $(Self::$name => matches!(Verdict::$verdict, Verdict::Drop),)+ }
            }

            /// The reasons of at least this severity, as a set.
            pub const fn at_least(severity: Severity) -> u64 {
                0 $(| if Self::$name.severity() as u32 >= severity as u32 { Self::$name.bit() } else { 0 })+
            }
        }
    };
}

enum Verdict {
    Drop,
    Pass,
}

reasons! {
    /// Not IPv4 (ARP, IPv6, ...).
    NotIpv4 = 0 Pass "not_ipv4",
    /// Headers end beyond the packet, or their lengths contradict each other.
    Malformed = 1 Pass "malformed",
    /// The kernel has no route to the flow's destination, or forbids it.
    Unroutable = 2 Drop "unroutable",
    /// A fragment whose packet's first fragment has not come.
    Fragment = 3 Pass "fragment",
    /// Neither TCP nor UDP, and for no flow or service.
    OtherProtocol = 4 Pass "other_protocol",
    /// No flow and no service: traffic that is not ours.
    NotOurs = 5 Pass "not_ours",
    /// A packet without a flow that cannot open one: a TCP segment without SYN, which the stack answers with RST, or a
    /// guest's ICMP answer to no request.
    NoFlow = 6 Pass "no_flow",
    /// Translated, then handed to the stack, which routes it: there is no neighbour entry yet, or the device carries no
    /// program.
    NoNeighbour = 7 Pass "no_neighbour",
    /// Larger than the outgoing interface's MTU: the stack fragments it, or sends an ICMP error.
    OverMtu = 8 Pass "over_mtu",
    /// The listener has no backend: the stack, which owns the VIP's address and has no socket there, refuses at once.
    NoBackend = 9 Pass "no_backend",
    /// The VIP is Disabled.
    Disabled = 10 Drop "disabled",
    /// The time to live would reach 0: the stack sends an ICMP error.
    TtlExpired = 11 Pass "ttl_expired",
    /// Every candidate slot holds a flow that cannot be evicted.
    TableFull = 12 Drop "flow_table_full",
    /// The answers would have the same key as another connection's, and no other port was found: all that were tried are in
    /// use, or the protocol has no ports, or another CPU was faster each time.
    ReplyInUse = 13 Drop "reply_in_use",
    /// The flow's listener is gone, or its backend's flows were ended. For TCP, only packets that are not answered with a
    /// reset.
    FlowEnded = 14 Drop "flow_ended",
    /// The listener has its maximum of connections: a client that retries gets in when one ends.
    TooManyConnections = 15 Drop "too_many_connections",
    /// The frame is addressed to a group or to another host's MAC address, like those that a bridge floods: the stack drops
    /// it, or has a device (such as a macvlan) with that address.
    OtherHost = 16 Pass "other_host",
    /// The service takes no flows from this source: a port-forwarding rule's allowedCidr.
    SourceNotAllowed = 17 Drop "source_not_allowed",
    /// Every port that was tried for a masqueraded connection is in use towards its destination.
    NoFreePort = 18 Drop "no_free_port",
    /// The stack was about to send a guest's packet with the guest's own source instead of a VIP, because it belongs to no
    /// known connection.
    Untranslated = 19 Drop "untranslated",
    /// Its VIP's or port's bandwidth is used up, and so is the room in its queue.
    OverLimit = 20 Drop "over_limit",
    /// XDP hands the packet over to the TC stage, because a bandwidth limit queues it, its outgoing device takes no frames
    /// from XDP, or a reset answers it.
    HandedOver = 21 Pass "handed_over",
    /// The kernel refused a packet that XDP redirected: the outgoing device takes no frames from other devices, or is down.
    /// Packets that the driver drops later are counted by the driver.
    RedirectFailed = 22 Drop "redirect_failed",
    /// No host can have its source (RFC 1812, section 5.3.7), or it is one of the router's own.
    Martian = 23 Drop "martian",
    /// It belongs to a connection, or is an ICMP error about one, but comes by another device than that side of the connection.
    WrongSide = 24 Drop "wrong_side",
    /// It has a guest's source, but comes by another device than the guest's network.
    Spoofed = 25 Drop "spoofed",
    /// It is for a backend or guest to which the kernel routes by another device than that of its network.
    Elsewhere = 26 Drop "elsewhere",
    /// It has a VLAN tag: the stack gives it to the VLAN device, if the router has one.
    Tagged = 27 Pass "tagged",
    /// A TCP segment of a connection that the router has ended, or a guest's of one that it does not know: answered with a
    /// reset.
    FlowReset = 28 Drop "flow_reset",
    /// It came to the stack for a VIP's port without a service. The router's sockets must not answer, so the stack refuses it.
    PortClosed = 29 Drop "port_closed",
    /// It is for an elastic IP, but cannot be assigned to a connection: it reaches neither the guest nor the router.
    Unreadable = 30 Drop "unreadable",
    /// A TCP segment without a flow, while flows are migrated from another version's tables. A reset would end a connection
    /// whose flow is about to come.
    ComingOver = 31 Drop "coming_over",
    /// It has a source route (loose or strict: RFC 791, section 3.1; RFC 7126, section 4.3).
    SourceRoute = 32 Drop "source_route",
    /// It comes by a device with strict reverse-path filtering (`rp_filter` 1; RFC 3704, section 2.2), but the route to its
    /// source is by another device.
    ReversePath = 33 Drop "reverse_path",
    /// A packet of a guest's own connection, to which the kernel forbids the way by now: the stack tells the guest.
    Forbidden = 34 Pass "forbidden",
}

/// Number of elements of the REASONS map; larger than the enum, so that reasons can be added without a new layout.
pub const REASON_SLOTS: u32 = 64;

/// A reason's severity in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Ordinary: the programs never log such a packet.
    Silent,
    /// Happens on any network; helps to find out why something does not work.
    Debug,
    /// A connection or packet was refused, or has to wait.
    Info,
    /// The router or its configuration lacks capacity.
    Warn,
}

impl Reason {
    /// Its severity in the log.
    pub const fn severity(self) -> Severity {
        match self {
            Self::TableFull | Self::NoFreePort => Severity::Warn,
            // RedirectFailed and PortClosed are counted by programs that do not have the packet.
            Self::NotIpv4
            | Self::NotOurs
            | Self::OtherProtocol
            | Self::OtherHost
            | Self::HandedOver
            | Self::RedirectFailed
            | Self::Tagged
            | Self::FlowReset
            | Self::PortClosed => Severity::Silent,
            Self::Malformed
            | Self::Fragment
            | Self::NoFlow
            | Self::OverMtu
            | Self::TtlExpired
            | Self::Disabled
            | Self::FlowEnded
            | Self::ComingOver => Severity::Debug,
            _ => Severity::Info,
        }
    }

    /// Its bit in a set of reasons.
    #[inline(always)]
    pub const fn bit(self) -> u64 {
        1 << self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_from_its_gravity_on_and_what_is_ordinary_never() {
        const LEVELS: [Severity; 3] = [Severity::Debug, Severity::Info, Severity::Warn];
        for reason in Reason::ALL {
            assert_eq!(Reason::of(*reason as u32), Some(*reason));
            assert!((*reason as u32) < REASON_SLOTS.min(u64::BITS), "{}", reason.name());
            let told = LEVELS.map(|from| Reason::at_least(from) & reason.bit() != 0);
            assert_eq!(told, LEVELS.map(|from| reason.severity() >= from), "{}", reason.name());
        }
        assert_eq!(Reason::at_least(Severity::Debug) & Reason::NotOurs.bit(), 0);
        assert_eq!(Reason::of(REASON_SLOTS), None);
    }
}
