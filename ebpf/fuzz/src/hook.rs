//! Running one packet at a hook.

use vipgate_abi::counters::Reason;
use vipgate_host_kernel::{
    bindings::{
        TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC,
        xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT},
    },
    kernel,
    packet::{Checksum, SocketBuffer, XdpFrame},
};
use vipgate_pipeline::{
    icmp, outward,
    packet::Packet as _,
    pipeline,
    tc::TcPacket,
    types::Rewritten,
    xdp::{BY_NEIGHBOUR, NATIVE, XdpPacket},
};

use crate::{frame::Frame, input::Buffer, judge, refusals, world};

/// The hook that sees a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Xdp,
    Tc,
}

/// A packet that arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arriving {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ifindex: u32,
    /// At TC, if the packet is not simply one frame.
    pub(crate) buffer: Option<Buffer>,
    /// At XDP, number of bytes in the first of several buffers.
    pub(crate) first_buffer: Option<usize>,
}

/// What became of an arriving packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) bytes: Vec<u8>,
}

/// What became of a packet that the stack was about to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Departure {
    /// True if it was an error about a translated packet, and its quote was translated back.
    pub(crate) translated: bool,
    /// True if it leaves.
    pub(crate) leaves: bool,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Up the stack, for this reason.
    Pass(Reason),
    Drop(Reason),
    /// Out of the interface of this index.
    Redirect(u32),
    /// The same, to the next hop that the kernel's neighbour table names.
    ByNeighbour(u32),
    /// The packet was turned into the reset that answers it, and left by the interface that it came by.
    Reset,
}

impl Verdict {
    /// The interface that the packet leaves by.
    pub(crate) fn leaves_by(self) -> Option<u32> {
        match self {
            Self::Redirect(ifindex) | Self::ByNeighbour(ifindex) => Some(ifindex),
            Self::Pass(_) | Self::Drop(_) | Self::Reset => None,
        }
    }
}

impl Arriving {
    /// A frame that is addressed to the device that it comes by.
    pub(crate) fn by(ifindex: u32, mut frame: Frame) -> Self {
        frame.dst_mac = world::mac(ifindex);
        Self { bytes: frame.bytes(), ifindex, buffer: None, first_buffer: None }
    }

    /// Runs the packet through the pipeline, and again at TC if XDP hands it over.
    pub(crate) fn run(&self, hook: Hook) -> Outcome {
        let mut mark = 0;
        let outcome = self.run_at(hook, &mut mark);
        let is_handed_over = outcome.verdict == Verdict::Pass(Reason::HandedOver);
        assert_eq!(is_handed_over, mark != 0, "handed over without a mark, or marked without being handed over");
        if !is_handed_over {
            return outcome;
        }
        assert_eq!(outcome.bytes, self.bytes, "handed over, yet changed");
        self.run_at(Hook::Tc, &mut mark)
    }

    /// Runs the packet at one hook, and checks that verdict and counters agree. `mark` is what XDP leaves for the TC stage.
    fn run_at(&self, hook: Hook, mark: &mut u32) -> Outcome {
        let before = world::reasons();
        let last_told = world::last_told();
        let _ = kernel::take_redirect();
        let (verdict, bytes) = match hook {
            Hook::Xdp => self.run_xdp(mark),
            Hook::Tc => self.run_tc(*mark == BY_NEIGHBOUR),
        };
        let counted = world::reason_since(&before);
        refusals::record(&kernel::take_records(), counted, &last_told, &bytes, self.ifindex);
        let redirect = kernel::take_redirect();
        let [pass, drop, redirected] = match hook {
            Hook::Xdp => [XDP_PASS, XDP_DROP, XDP_REDIRECT].map(|action| action as i32),
            Hook::Tc => [TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT],
        };
        let verdict = match (counted, redirect) {
            (None, Some(redirect)) if verdict == redirected => match redirect.by_neighbour {
                true => Verdict::ByNeighbour(redirect.ifindex),
                false => Verdict::Redirect(redirect.ifindex),
            },
            (Some(Reason::FlowReset), Some(to))
                if hook == Hook::Tc && verdict == redirected && to.ifindex == self.ifindex =>
            {
                Verdict::Reset
            }
            (Some(reason), None) if verdict == pass && !reason.is_drop() => Verdict::Pass(reason),
            (Some(reason), None) if verdict == drop && reason.is_drop() => Verdict::Drop(reason),
            _ => panic!("{hook:?}: verdict {verdict}, counted {counted:?}, redirected to {redirect:?}"),
        };
        if hook == Hook::Xdp
            && let Some(ifindex) = verdict.leaves_by()
        {
            assert!(judge::interface_of(ifindex).takes_frames(), "a frame is sent to what takes none");
        }
        Outcome { verdict, bytes }
    }

    fn run_xdp(&self, mark: &mut u32) -> (i32, Vec<u8>) {
        let mut frame = XdpFrame::new(&self.bytes, self.first_buffer.unwrap_or(usize::MAX), self.ifindex);
        let verdict = pipeline::run(XdpPacket::<NATIVE>::new(frame.context()));
        *mark = frame.metadata().try_into().map_or(0, u32::from_ne_bytes);
        (verdict, frame.bytes())
    }

    fn run_tc(&self, by_neighbour: bool) -> (i32, Vec<u8>) {
        let mut buffer = self.socket_buffer();
        let verdict = pipeline::run_marked(TcPacket(buffer.context()), by_neighbour);
        (verdict, buffer.on_wire())
    }

    /// Does what the egress program does with a packet of the stack.
    pub(crate) fn run_at_egress(&self) -> Departure {
        let before = world::reasons();
        let mut buffer = self.socket_buffer();
        let mut outer = Rewritten::UNSET;
        let mut packet = TcPacket(buffer.context());
        let is_ours = !packet.is_in_vlan();
        let answer = if is_ours { icmp::translate_error(&mut packet, true, &mut outer) } else { 0 };
        let translated = answer == icmp::TRANSLATED;
        let leaves = !is_ours || answer == icmp::DIRECT || !outward::is_untranslated(&mut packet);
        assert_eq!(world::reason_since(&before), None, "a packet of the stack was counted");
        assert_eq!(kernel::take_redirect(), None, "a packet of the stack was redirected");
        Departure { translated, leaves, bytes: buffer.on_wire() }
    }

    /// The same for a packet that the router's stack created.
    pub(crate) fn run_as_own(&self) {
        let mut buffer = SocketBuffer::new(&self.bytes, self.bytes.len(), self.ifindex).local();
        let mut packet = TcPacket(buffer.context());
        assert!(packet.is_local(), "the stack's own packet came from elsewhere");
        outward::reclaim_port(&mut packet);
        assert_eq!(buffer.on_wire(), self.bytes, "the router's own packet is changed");
    }

    fn socket_buffer(&self) -> SocketBuffer {
        let mac = world::mac(self.ifindex);
        let whole = SocketBuffer::new(&self.bytes, self.bytes.len(), self.ifindex);
        match self.buffer {
            None => whole.received(mac),
            Some(Buffer { linear, segments, segment_size, partial_checksum }) => {
                SocketBuffer::new(&self.bytes, linear.into(), self.ifindex)
                    .segments(segments.into(), segment_size.into())
                    .checksum(if partial_checksum { Checksum::Partial } else { Checksum::Complete })
                    .received(mac)
            }
        }
    }
}
