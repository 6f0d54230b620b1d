//! The rules of nftables, as the kernel lists them (linux/netfilter/nf_tables.h).

use std::{collections::BTreeMap, fs, io};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::{Action, Base, Condition, Device, Hook, Rule, Table};

/// `NFNL_SUBSYS_NFTABLES`, and its requests that list chains and rules.
const SUBSYSTEM: u16 = 10;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
/// Families whose chains see IPv4 packets, and what commands call them.
const FAMILIES: [(u8, &str); 2] = [(1, "inet"), (2, "ip")];
/// Kinds of a netlink message that is no answer.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Length of a netlink message's header, and of what netfilter puts behind it.
const HEADER: usize = 16;
const FAMILY: usize = 4;

/// A list of attributes by their kind. Of a kind that comes more often the last is kept.
type Attributes<'a> = BTreeMap<u16, &'a [u8]>;

/// The tables with chains for IPv4. None where the kernel has no nftables loaded: a request would load them.
pub(super) fn read() -> io::Result<Vec<Table>> {
    if !fs::read_to_string("/proc/kallsyms")?.contains(" nf_tables_getchain") {
        return Ok(Vec::new());
    }
    let socket = Socket::new(NETLINK_NETFILTER)?;
    let mut tables = BTreeMap::new();
    list(&socket, GET_CHAIN, |family, attributes| take_chain(&mut tables, family, &attributes))?;
    list(&socket, GET_RULE, |family, attributes| take_rule(&mut tables, family, &attributes))?;
    Ok(tables.into_values().collect())
}

/// Gives each object that a request lists to `take`, with its family.
fn list(socket: &Socket, request: u16, mut take: impl FnMut(u8, Attributes<'_>)) -> io::Result<()> {
    let mut message = [0; HEADER + FAMILY];
    message[..4].copy_from_slice(&((HEADER + FAMILY) as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&(SUBSYSTEM << 8 | request).to_ne_bytes());
    message[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    socket.send_to(&message, &SocketAddr::new(0, 0), 0)?;
    loop {
        let received = match socket.recv_from_full() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            received => received?.0,
        };
        let mut rest = &received[..];
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
            match message.message_type() {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(refused(message.payload())),
                _ => {
                    if let Some((header, attributes)) = message.payload().split_at_checked(FAMILY) {
                        take(header[0], parse(attributes));
                    }
                }
            }
            let length = message.length().next_multiple_of(4) as usize;
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

/// The error that a message carries: its number below zero.
fn refused(payload: &[u8]) -> io::Error {
    let number = payload.first_chunk().map_or(0, |number| i32::from_ne_bytes(*number));
    io::Error::from_raw_os_error(-number)
}

fn parse(bytes: &[u8]) -> Attributes<'_> {
    each(bytes).collect()
}

/// Each attribute's kind and value, up to one that is cut off. Two bits of a kind say how its value is to be read.
fn each(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & KIND, value))
    })
}

fn text(attributes: &Attributes<'_>, kind: u16) -> String {
    let bytes = attributes.get(&kind).copied().unwrap_or_default();
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

fn number(attributes: &Attributes<'_>, kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(attributes.get(&kind)?.first_chunk().copied()?))
}

fn nested<'a>(attributes: &Attributes<'a>, kind: u16) -> Attributes<'a> {
    parse(attributes.get(&kind).copied().unwrap_or_default())
}

/// The table that an object is in, if it sees IPv4. Its attribute 1 is the table's name.
fn table<'a>(
    tables: &'a mut BTreeMap<String, Table>,
    family: u8,
    attributes: &Attributes<'_>,
) -> Option<&'a mut Table> {
    let (_, family) = FAMILIES.iter().find(|(known, _)| *known == family)?;
    let name = format!("{family} {}", text(attributes, 1));
    Some(tables.entry(name.clone()).or_insert_with(|| Table { name, ..Table::default() }))
}

/// Attributes of a chain: 3 name, 4 hook (1 number), 5 policy, 7 type.
fn take_chain(tables: &mut BTreeMap<String, Table>, family: u8, attributes: &Attributes<'_>) {
    let Some(table) = table(tables, family, attributes) else { return };
    let hook = match number(&nested(attributes, 4), 1) {
        Some(1) => Some(Hook::Input),
        Some(2) => Some(Hook::Forward),
        _ => None,
    };
    let filters = text(attributes, 7) == "filter";
    let base = hook.filter(|_| filters).map(|hook| Base { hook, drops: number(attributes, 5) == Some(0) });
    table.chains.entry(text(attributes, 3)).or_default().base = base;
}

/// Attributes of a rule: 2 chain, 4 expressions.
fn take_rule(tables: &mut BTreeMap<String, Table>, family: u8, attributes: &Attributes<'_>) {
    let Some(table) = table(tables, family, attributes) else { return };
    let expressions = attributes.get(&4).copied().unwrap_or_default();
    table.chains.entry(text(attributes, 2)).or_default().rules.push(parse_rule(expressions));
}

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    From,
    To,
    Family,
    /// A connection's state, and the bits of it that are asked for.
    State(u32),
    Other,
}

/// Each expression is an attribute in the list; of its own, 1 is the name, 2 is what it is about.
fn parse_rule(expressions: &[u8]) -> Rule {
    let mut rule = Rule::default();
    let mut held: BTreeMap<u32, Field> = BTreeMap::new();
    for (_, expression) in each(expressions) {
        let expression = parse(expression);
        let about = nested(&expression, 2);
        match text(&expression, 1).as_str() {
            "meta" => load(&mut held, &about, 1, meta(&about)),
            "ct" => load(&mut held, &about, 1, of_connection(&about)),
            "bitwise" => mask(&mut held, &about),
            "cmp" => rule.conditions.push(compare(&held, &about)),
            "immediate" => {
                if let Some(action) = verdict(&about) {
                    rule.action = action;
                }
            }
            "reject" => rule.action = Action::Drop,
            "payload" | "fib" | "rt" | "socket" | "osf" | "exthdr" | "hash" | "numgen" => {
                load(&mut held, &about, 1, Field::Other);
            }
            "counter" | "log" | "notrack" => {}
            "queue" => rule.action = Action::Other,
            // A set, or a map: 3 the register that it gives something to, of which 0 is the verdict.
            "lookup" => {
                rule.conditions.push(Condition::Other);
                if number(&about, 3) == Some(0) {
                    rule.action = Action::Other;
                }
            }
            // What iptables has no other word for: 1 its name.
            "target" => match text(&about, 1).as_str() {
                "REJECT" => rule.action = Action::Drop,
                "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TCPMSS" => {}
                _ => rule.conditions.push(Condition::Other),
            },
            "match" if text(&about, 1) == "comment" => {}
            _ => rule.conditions.push(Condition::Other),
        }
    }
    rule
}

/// Notes what the register holds that the attribute names.
fn load(held: &mut BTreeMap<u32, Field>, about: &Attributes<'_>, register: u16, field: Field) {
    if let Some(register) = number(about, register) {
        held.insert(register, field);
    }
}

/// 2 key: `NFT_META_IIFNAME`, `NFT_META_OIFNAME`, `NFT_META_NFPROTO`.
fn meta(about: &Attributes<'_>) -> Field {
    match number(about, 2) {
        Some(6) => Field::From,
        Some(7) => Field::To,
        Some(15) => Field::Family,
        _ => Field::Other,
    }
}

/// 2 key, of which 0 is the state.
fn of_connection(about: &Attributes<'_>) -> Field {
    if number(about, 2) == Some(0) { Field::State(u32::MAX) } else { Field::Other }
}

/// 1 register that is read, 2 one that is written, 4 mask (1 value).
fn mask(held: &mut BTreeMap<u32, Field>, about: &Attributes<'_>) {
    let from = number(about, 1).and_then(|register| held.get(&register).copied());
    let mask = nested(about, 4).get(&1).and_then(|mask| mask.first_chunk().copied()).map(u32::from_ne_bytes);
    let field = match (from, mask) {
        (Some(Field::State(_)), Some(mask)) => Field::State(mask),
        _ => Field::Other,
    };
    load(held, about, 2, field);
}

/// 1 register, 2 how (0 equal, 1 not), 3 what with (1 value).
fn compare(held: &BTreeMap<u32, Field>, about: &Attributes<'_>) -> Condition {
    /// `NFPROTO_IPV4`.
    const IPV4: u8 = 2;
    /// Bits of states (`NF_CT_STATE_BIT`).
    const ESTABLISHED: u32 = 2;
    const NEW: u32 = 8;
    /// Length of a device's name.
    const NAME: usize = 16;
    let is_not = match number(about, 2) {
        Some(0) => false,
        Some(1) => true,
        _ => return Condition::Other,
    };
    let compared = nested(about, 3);
    let value = compared.get(&1).copied().unwrap_or_default();
    let device = || Device {
        name: String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
        is_prefix: value.len() < NAME && !value.ends_with(&[0]),
        is_not,
    };
    match number(about, 1).and_then(|register| held.get(&register)) {
        Some(Field::From) => Condition::From(device()),
        Some(Field::To) => Condition::To(device()),
        Some(Field::Family) => Condition::Family((value.first() == Some(&IPV4)) != is_not),
        Some(Field::State(mask)) => {
            let value = value.first_chunk().copied().map_or(0, u32::from_ne_bytes);
            let means = |state: u32| (mask & state == value) != is_not;
            Condition::State { new: means(NEW), established: means(ESTABLISHED) }
        }
        _ => Condition::Other,
    }
}

/// 2 what it gives: of that 2 a verdict: 1 its code, 2 a chain.
fn verdict(about: &Attributes<'_>) -> Option<Action> {
    let verdict = parse(nested(about, 2).get(&2)?);
    let chain = text(&verdict, 2);
    match number(&verdict, 1)? as i32 {
        0 => Some(Action::Drop),
        1 => Some(Action::Accept),
        -3 => Some(Action::Jump(chain)),
        -4 => Some(Action::Goto(chain)),
        -5 => Some(Action::Return),
        _ => None,
    }
}
