//! Decodes an input: a start, and steps.
//!
//! Kept inputs must not change their meaning: a step's number and operands never change, new steps take free numbers, and
//! steps with unknown numbers are skipped. Operands name things by small numbers (see `world`), so that most inputs
//! use services, backends and flows that exist.

/// A start, and the steps that follow.
#[derive(Clone, Debug)]
pub struct Case {
    /// Seed of the flow table's hash.
    pub seed: u8,
    /// Number of flow buckets: a power of two.
    pub buckets: u32,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub enum Step {
    /// A service's kind and algorithm, and the backends in its selection table.
    Serve {
        service: u8,
        what: u8,
        ring: Vec<u8>,
    },
    Withdraw {
        service: u8,
    },
    /// Another backend gets a number. It has one of four ports, and its network is behind one device (0x30) or any.
    Backend {
        number: u8,
        address: u8,
        port: u8,
    },
    /// All flows of a backend end.
    EndFlows {
        number: u8,
    },
    /// A port-forwarding rule: one backend, the shift of its ports, and the network that may use it.
    Forward {
        service: u8,
        backend: u8,
        shift: u16,
        source: u8,
        bits: u8,
    },
    /// The kernel's route to a network.
    Route {
        network: u8,
        answer: u8,
    },
    Mtu {
        interface: u8,
        mtu: u16,
    },
    /// A device comes or goes.
    Interface {
        interface: u8,
        present: bool,
    },
    /// A device's reverse-path filtering is strict, or loose.
    Strict {
        interface: u8,
        strict: bool,
    },
    Wait {
        jiffies: u16,
    },
    /// Changes a byte of the next packet.
    Mangle {
        offset: u8,
        bits: u8,
    },
    /// Cuts so many bytes off the next packet.
    Cut {
        bytes: u8,
    },
    /// Puts VLAN tags into the next packet.
    Tag {
        tags: Tags,
    },
    /// An interface takes socket buffers only, or frames, too.
    SocketsOnly {
        interface: u8,
        only: bool,
    },
    /// A client's packet to a service.
    Ask {
        client: u8,
        port: u8,
        service: u8,
        shape: Shape,
    },
    /// The answer to a packet that was forwarded.
    Answer {
        to: u8,
        shape: Shape,
    },
    /// Another packet with the addresses and ports of one that was forwarded.
    Again {
        after: u8,
        shape: Shape,
    },
    /// An ICMP error about a packet that was forwarded, by its receiver or a host on the path.
    Error {
        about: u8,
        from: u8,
        kind: u8,
        quoted: u8,
    },
    /// The same from the router's own stack.
    OwnError {
        about: u8,
        kind: u8,
        quoted: u8,
    },
    /// The most connections that a service may have; 0 for any number.
    Limit {
        service: u8,
        most: u8,
    },
    /// At XDP, the first buffer of the next packet has this many bytes, and other buffers the rest.
    Buffers {
        first: u16,
    },
    /// The sweeper removes connections that were idle for so many jiffies or are of past generations.
    Sweep {
        idle: u16,
    },
    /// A service's VIP becomes a guest's elastic IP; also for the connections that the guest begins, with 0x01 in `what`.
    /// The SNAT rule is for the public or the private device (0x02), or drops (0x04). The guest is behind one device (0x18)
    /// or any.
    Elastic {
        service: u8,
        backend: u8,
        guest: u8,
        what: u8,
    },
    /// A network gets source NAT with a service's VIP, which has services (0x01) or none. The rule is for the public or the
    /// private device (0x02), or drops (0x04). The network is behind one device (0x18) or any.
    Masquerade {
        service: u8,
        backend: u8,
        source: u8,
        bits: u8,
        what: u8,
    },
    /// Removes such a rule for the device that `what` names.
    Unmask {
        source: u8,
        bits: u8,
        what: u8,
    },
    /// A packet of any protocol (`traffic`), from a host to a host or a VIP.
    Begin {
        from: u8,
        to: u8,
        ports: u8,
        what: u8,
        shape: Shape,
    },
    /// The same, but sent by the stack.
    Leave {
        from: u8,
        to: u8,
        ports: u8,
        what: u8,
        shape: Shape,
    },
    /// The router's own stack sends a packet with the addresses and ports that a forwarded packet left with.
    Own {
        about: u8,
    },
    /// The router has a socket on one of the ports that hosts begin from (`traffic`), of TCP or UDP (0x08).
    Socket {
        port: u8,
    },
    /// A backend's packets, or those of one port of its VIP (0x02), count against a bandwidth limit from now on, or against
    /// none (0x04). The limit is inbound or outbound (0x01), at 8 kbit/s doubled so many times. It may be used up right now
    /// (0x08).
    Rate {
        backend: u8,
        limit: u8,
        doublings: u8,
        what: u8,
    },
    /// The next packet has a source that no host has, or that is the router's (0x0f), or comes by another device than the
    /// one that leads to its sender (0x30).
    Astray {
        what: u8,
    },
    /// Any bytes.
    Raw {
        bytes: Vec<u8>,
    },
}

/// VLAN tags: how many (0x03, up to two), the outer one's type (0x04: 802.1ad), and their TCIs.
#[derive(Clone, Copy, Debug)]
pub struct Tags {
    what: u8,
    outer: u16,
    inner: u16,
}

impl Tags {
    /// TPID and TCI of each, the outer one first.
    #[must_use]
    pub fn words(&self) -> Vec<[u16; 2]> {
        let inner = [0x8100, self.inner];
        let outer = [if self.what & 4 == 0 { 0x8100 } else { 0x88a8 }, self.outer];
        match self.what & 3 {
            0 => Vec::new(),
            1 => vec![outer],
            _ => vec![outer, inner],
        }
    }

    fn decode(input: &mut Reader<'_>) -> Option<Self> {
        Some(Self { what: input.byte()?, outer: input.word()?, inner: input.word()? })
    }
}

/// A packet's properties beyond its addresses.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    pub tcp_flags: u8,
    pub ttl: Option<u8>,
    /// Identification; more fragments (0x80), don't fragment (0x40), offset in units of 8 bytes.
    pub fragment: Option<(u8, u8)>,
    pub payload: Option<u16>,
    pub tcp_options: Option<u8>,
    pub ip_options: Option<u8>,
    pub without_checksum: bool,
    /// At TC, a socket buffer that XDP never sees.
    pub buffer: Option<Buffer>,
}

/// A socket buffer that is not simply one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Directly readable bytes.
    pub linear: u8,
    pub segments: u8,
    pub segment_size: u16,
    pub partial_checksum: bool,
}

/// Most steps of one input. Longer inputs find nothing that several shorter ones do not.
const MAX_STEPS: usize = 64;

impl Case {
    /// Every sequence of bytes is a case. Bytes after the last complete step are ignored.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        let mut reader = Reader(bytes);
        let seed = reader.byte().unwrap_or(0);
        let buckets = 1 << (reader.byte().unwrap_or(0) & 3);
        let mut steps = Vec::new();
        while steps.len() < MAX_STEPS {
            let Some(number) = reader.byte() else { break };
            match Step::decode(number, &mut reader) {
                Some(Some(step)) => steps.push(step),
                Some(None) => {}
                None => break,
            }
        }
        Self { seed, buckets, steps }
    }
}

impl Step {
    /// `None` if the input ends within the step, `Some(None)` if its number is unknown.
    fn decode(number: u8, input: &mut Reader<'_>) -> Option<Option<Self>> {
        Some(Some(match number & 0x1f {
            0 => {
                let (service, what) = (input.byte()?, input.byte()?);
                Self::Serve { service, what, ring: input.bytes(usize::from(what >> 5))? }
            }
            1 => Self::Withdraw { service: input.byte()? },
            2 => Self::Backend { number: input.byte()?, address: input.byte()?, port: input.byte()? },
            3 => Self::EndFlows { number: input.byte()? },
            4 => Self::Route { network: input.byte()?, answer: input.byte()? },
            5 => Self::Mtu { interface: input.byte()?, mtu: input.word()? },
            6 => {
                let interface = input.byte()?;
                Self::Interface { interface, present: interface & 0x80 == 0 }
            }
            7 => Self::Wait { jiffies: input.word()? },
            8 => Self::Mangle { offset: input.byte()?, bits: input.byte()? },
            9 => Self::Cut { bytes: input.byte()? },
            10 => Self::Ask {
                client: input.byte()?,
                port: input.byte()?,
                service: input.byte()?,
                shape: Shape::decode(input)?,
            },
            11 => Self::Answer { to: input.byte()?, shape: Shape::decode(input)? },
            12 => Self::Again { after: input.byte()?, shape: Shape::decode(input)? },
            13 => Self::Error { about: input.byte()?, from: input.byte()?, kind: input.byte()?, quoted: input.byte()? },
            14 => Self::OwnError { about: input.byte()?, kind: input.byte()?, quoted: input.byte()? },
            15 => {
                let length = usize::from(input.byte()?);
                Self::Raw { bytes: input.bytes(length)? }
            }
            16 => Self::Tag { tags: Tags::decode(input)? },
            17 => Self::SocketsOnly { interface: input.byte()?, only: !Tags::decode(input)?.words().is_empty() },
            18 => Self::Forward {
                service: input.byte()?,
                backend: input.byte()?,
                shift: input.word()?,
                source: input.byte()?,
                bits: input.byte()?,
            },
            19 => Self::Limit { service: input.byte()?, most: input.byte()? },
            20 => Self::Buffers { first: input.word()? },
            21 => Self::Sweep { idle: input.word()? },
            22 => Self::Elastic {
                service: input.byte()?,
                backend: input.byte()?,
                guest: input.byte()?,
                what: input.byte()?,
            },
            23 => Self::Masquerade {
                service: input.byte()?,
                backend: input.byte()?,
                source: input.byte()?,
                bits: input.byte()?,
                what: input.byte()?,
            },
            24 => Self::Unmask { source: input.byte()?, bits: input.byte()?, what: input.byte()? },
            25 => Self::Begin {
                from: input.byte()?,
                to: input.byte()?,
                ports: input.byte()?,
                what: input.byte()?,
                shape: Shape::decode(input)?,
            },
            26 => Self::Leave {
                from: input.byte()?,
                to: input.byte()?,
                ports: input.byte()?,
                what: input.byte()?,
                shape: Shape::decode(input)?,
            },
            27 => Self::Own { about: input.byte()? },
            28 => Self::Socket { port: input.byte()? },
            29 => Self::Rate {
                backend: input.byte()?,
                limit: input.byte()?,
                doublings: input.byte()?,
                what: input.byte()?,
            },
            30 => Self::Astray { what: input.byte()? },
            31 => {
                let interface = input.byte()?;
                Self::Strict { interface, strict: interface & 0x80 == 0 }
            }
            _ => return Some(None),
        }))
    }
}

impl Shape {
    fn decode(input: &mut Reader<'_>) -> Option<Self> {
        let (tcp_flags, has) = (input.byte()?, input.byte()?);
        let mut shape = Self { tcp_flags, ..Self::default() };
        if has & 1 != 0 {
            shape.ttl = Some(input.byte()?);
        }
        if has & 2 != 0 {
            shape.fragment = Some((input.byte()?, input.byte()?));
        }
        if has & 4 != 0 {
            shape.payload = Some(input.word()?);
        }
        if has & 8 != 0 {
            shape.tcp_options = Some(input.byte()?);
        }
        if has & 16 != 0 {
            shape.ip_options = Some(input.byte()?);
        }
        shape.without_checksum = has & 32 != 0;
        if has & 64 != 0 {
            shape.buffer = Some(Buffer {
                linear: input.byte()?,
                segments: input.byte()?,
                segment_size: input.word()?,
                partial_checksum: has & 128 != 0,
            });
        }
        Some(shape)
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Two bytes, the lower first.
    fn word(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes([self.byte()?, self.byte()?]))
    }

    fn bytes(&mut self, length: usize) -> Option<Vec<u8>> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes.to_vec())
    }
}
