//! Names and default sizes of the maps. The controller may size the ones marked *sized* at load time.

/// One [`crate::config::Config`].
pub const CONFIG: &str = "CONFIG";
/// Array of [`crate::flow::Bucket`], mmapable, *sized*: the flow table's slot words.
pub const FLOW_BUCKETS: &str = "FLOW_BUCKETS";
/// Array of [`crate::flow::Flow`], mmapable, *sized*: [`crate::flow::WAYS`] for each bucket.
pub const FLOWS: &str = "FLOWS";
/// As FLOW_BUCKETS, of the table that a program *bridges* to; no pin of its own.
pub const OTHER_BUCKETS: &str = "OTHER_BUCKETS";
/// As FLOWS, of the table that a program *bridges* to; no pin of its own.
pub const OTHER_FLOWS: &str = "OTHER_FLOWS";
/// Global variable, u32: the bucket mask of that table; 0 if the program does not bridge.
pub const OTHER_MASK: &str = "OTHER_MASK";
/// Global variable, u32: 1 while flows are migrated from the tables of another version, so that a packet without a flow may
/// get one soon.
pub const TAKES_OVER: &str = "TAKES_OVER";
/// Array of u64, mmapable: the set of [`crate::address_filter::Bit`]s.
pub const INTEREST: &str = "INTEREST";
/// LPM trie: [`crate::service::ServiceKey`] to [`crate::service::Service`], *sized*: [`KEYS_PER_SERVICE`] for each service.
pub const SERVICES: &str = "SERVICES";
/// LPM trie: [`crate::snat::SnatKey`] to [`crate::snat::SnatRule`], *sized*: one for each service.
pub const SOURCES: &str = "SOURCES";
/// Array of u32 by a hash of a masqueraded connection's destination: how many ports were tried for it
/// ([`crate::snat::CURSORS`]).
pub const PORT_CURSORS: &str = "PORT_CURSORS";
/// Array of [`crate::backend::Backend`], mmapable, *sized*.
pub const BACKENDS: &str = "BACKENDS";
/// Array of [`crate::load::Load`] by backend, mmapable, *sized* as BACKENDS.
pub const BACKEND_LOAD: &str = "BACKEND_LOAD";
/// Array of [`crate::backend::BackendRoute`] by backend, *sized* as BACKENDS.
pub const BACKEND_ROUTES: &str = "BACKEND_ROUTES";
/// Per-CPU array of [`crate::counters::Traffic`] by backend, *sized* as BACKENDS.
pub const BACKEND_TRAFFIC: &str = "BACKEND_TRAFFIC";
/// Array of [`crate::counters::Traffic`] by backend, mmapable, *sized* as BACKENDS: what BACKEND_TRAFFIC counted before it
/// was replaced by one of another size. No program writes it; a backend's traffic is the sum of both.
pub const PAST_TRAFFIC: &str = "PAST_TRAFFIC";
/// Array of u32, mmapable, *sized*: the arena of the selection tables, whose elements are backend numbers.
pub const RINGS: &str = "RINGS";
/// Array of u64 by service number, *sized*: the round-robin cursors.
pub const CURSORS: &str = "CURSORS";
/// Array of u32 by service number, mmapable, *sized* as CURSORS: live connections of each service.
pub const SERVICE_LOAD: &str = "SERVICE_LOAD";
/// Array of [`crate::interface::Interface`] by interface number.
pub const PORTS: &str = "PORTS";
/// Hash: interface index (u32) to interface number (u32).
pub const PORT_NUMBERS: &str = "PORT_NUMBERS";
/// Array of u32 by a hash of a next hop: when the kernel was last given a packet to confirm it ([`NEXT_HOPS`]).
pub const CONFIRMED: &str = "CONFIRMED";
/// DEVMAP: interface number to interface index, for XDP redirects.
pub const TX_PORTS: &str = "TX_PORTS";
/// Array of [`crate::meter::Meter`] by a limit's number, mmapable.
pub const METERS: &str = "METERS";
/// Array of [`crate::meter::MeterState`] by a limit's number.
pub const METER_STATES: &str = "METER_STATES";
/// Per-CPU array of [`crate::meter::MeterTraffic`] by a limit's number.
pub const METER_TRAFFIC: &str = "METER_TRAFFIC";
/// Array of [`crate::fair_share::Share`] by [`crate::fair_share::Share::place`].
pub const METER_SHARES: &str = "METER_SHARES";
/// Hash: [`crate::meter::MeterPort`] to the number (u32) of that port's limit.
pub const PORT_METERS: &str = "PORT_METERS";
/// Array of u64 by [`crate::sample::group`]: hashes of connections that a full service may end.
pub const SAMPLE: &str = "SAMPLE";
/// LRU hash: [`crate::fragment::FragmentKey`] to [`crate::fragment::FragmentPorts`].
pub const FRAGMENTS: &str = "FRAGMENTS";
/// LRU hash: [`crate::flow::FlowKey`] of a guest's answers to a client of its own address, to u32, the low half of jiffies
/// when the client last sent a packet.
pub const DIRECT: &str = "DIRECT";
/// LRU hash: [`crate::flow::FlowKey`] of a packet that the stack is to refuse, as the stack sees it, to
/// [`crate::refused::OriginalDestination`].
pub const REFUSED: &str = "REFUSED";
/// Per-CPU array of u64 by [`crate::counters::Reason`].
pub const REASONS: &str = "REASONS";

/// Array of 64-bit jiffies by [`crate::counters::Reason`]: when the programs last logged a packet with that reason.
pub const LAST_TOLD: &str = "LAST_TOLD";
/// The ring buffer of the programs' log records, as aya-log names it.
pub const AYA_LOGS: &str = "AYA_LOGS";
/// Its size in bytes, as aya-log makes it.
pub const AYA_LOGS_BYTES: u32 = 1 << 17;

/// The XDP program, attached to each interface in the hook `xdp`.
pub const PROGRAM_XDP: &str = "vipgate_xdp";
/// The same for the hook `xdp-generic`.
pub const PROGRAM_GENERIC: &str = "vipgate_generic";
/// The TC program, attached to each interface's ingress in the hook `tc`.
pub const PROGRAM_TC: &str = "vipgate_tc";
/// The TC program at each interface's egress, whichever hook carries the traffic: for the stack's own ICMP errors.
pub const PROGRAM_EGRESS: &str = "vipgate_egress";
/// The TC program at the ingress of an interface that has the XDP program: it takes the packets that XDP hands over.
pub const PROGRAM_BEHIND: &str = "vipgate_behind";
/// The TC program at the end of the limits' queues: it sends the packets that come out of them.
pub const PROGRAM_QUEUE: &str = "vipgate_queue";
/// An XDP program that is never attached: a test run of it returns the low 32 bits of jiffies.
pub const PROGRAM_CLOCK: &str = "vipgate_clock";

/// At the kernel's tracepoint `xdp_redirect_err`: counts packets that XDP redirected and the kernel refused.
pub const PROGRAM_REDIRECTS: &str = "vipgate_redirects";
/// The `sk_lookup` program of the network namespace: makes the stack find no listening socket for a VIP.
pub const PROGRAM_SOCKETS: &str = "vipgate_sockets";

/// Every map that is pinned: all but those of the secondary table.
pub const PINNED: [&str; 31] = [
    CONFIG,
    FLOW_BUCKETS,
    FLOWS,
    INTEREST,
    SERVICES,
    SOURCES,
    PORT_CURSORS,
    BACKENDS,
    BACKEND_LOAD,
    BACKEND_ROUTES,
    BACKEND_TRAFFIC,
    PAST_TRAFFIC,
    RINGS,
    CURSORS,
    SERVICE_LOAD,
    PORTS,
    PORT_NUMBERS,
    CONFIRMED,
    TX_PORTS,
    METERS,
    METER_STATES,
    METER_TRAFFIC,
    METER_SHARES,
    PORT_METERS,
    SAMPLE,
    FRAGMENTS,
    DIRECT,
    REFUSED,
    REASONS,
    LAST_TOLD,
    AYA_LOGS,
];

/// Default of the largest number of flow entries, two per connection. A power of two.
pub const DEFAULT_FLOWS: u32 = 1 << 20;
/// Number of flow entries that the table starts with, if the largest number allows it. A power of two.
pub const FIRST_FLOWS: u32 = 1 << 16;
/// Default number of services: listeners, port-forwarding rules, elastic IPs and networks with source NAT.
pub const DEFAULT_SERVICES: u32 = 1 << 16;
/// Capacity of the services trie for each service. Unused capacity costs nothing. The widest range of ports takes 30
/// prefixes (1 to 65534), and a VIP has a key of its own.
pub const KEYS_PER_SERVICE: u32 = 32;
/// Default number of backends, over all listeners.
pub const DEFAULT_BACKENDS: u32 = 1 << 17;
/// Number of bandwidth limits of VIPs and their ports, including number 0, which is no limit.
pub const DEFAULT_LIMITS: u32 = 1 << 14;
/// Default number of elements of all selection tables: 10,000 listeners of 10 backends fit.
pub const DEFAULT_RING_ELEMENTS: u32 = 1 << 24;
/// Elements of the CONFIRMED map, a power of two: next hops that share one are confirmed in turn.
pub const NEXT_HOPS: u32 = 1 << 12;
/// Number of interfaces; number 0 is no device, see [`crate::interface`].
pub const MAX_INTERFACES: u32 = 256;
