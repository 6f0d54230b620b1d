//! What the router's packet filter does to packets that the programs hand to the kernel's stack: the doctor asks.
//!
//! [`nftables`] reads the kernel's rules, [`iptables`] those of its predecessor, which only the program of that name can list;
//! iptables' own on nftables are read as nftables'. Reads only. A rule is understood as far as it names devices and asks for
//! the state of a connection; of all other conditions it is not known whether a packet meets them.

mod iptables;
mod nftables;

use std::collections::BTreeMap;

/// Chains within chains that are followed; netfilter itself follows 16.
const DEPTH: u32 = 16;

/// Where a base chain is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// What is for the router itself.
    Input,
    Forward,
}

/// A packet, as rules may ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The name of the device by which it comes.
    pub from: &'a str,
    /// That by which it leaves; `None` if it is for the router itself.
    pub to: Option<&'a str>,
    /// It is the first one of its connection.
    pub is_new: bool,
}

/// All rules of IPv4.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    tables: Vec<Table>,
    /// Why some rules, or all, could not be read.
    pub unread: Option<String>,
}

/// A table's chains by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    /// What commands call it.
    name: String,
    is_iptables: bool,
    chains: BTreeMap<String, Chain>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chain {
    base: Option<Base>,
    rules: Vec<Rule>,
}

/// A chain that packets come to by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Base {
    hook: Hook,
    /// What becomes of those that no rule decides about.
    drops: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rule {
    conditions: Vec<Condition>,
    action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    From(Device),
    To(Device),
    /// The connection's state; whether that of new ones is meant, and that of established ones.
    State {
        new: bool,
        established: bool,
    },
    /// IPv4 is meant.
    Family(bool),
    /// It may be met.
    Other,
}

/// The device that a packet's is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    name: String,
    /// The name is the beginning of those that are meant.
    is_prefix: bool,
    is_not: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Action {
    /// It goes on with the next rule.
    #[default]
    Nothing,
    Accept,
    Drop,
    Jump(String),
    Goto(String),
    Return,
    /// It is not understood.
    Other,
}

/// What a base chain does to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// As commands name the chain.
    pub chain: String,
    is_iptables: bool,
    pub drops: bool,
    /// Rules that are not understood may decide otherwise.
    pub is_unsure: bool,
}

impl Decision {
    /// The command that puts a rule before all others of the chain, given as each of the two programs writes it.
    #[must_use]
    pub fn insert(&self, nft: &str, iptables: &str) -> String {
        match self.is_iptables {
            true => format!("{} -I {} {iptables}", iptables::PROGRAM, self.chain),
            false => format!("nft insert rule {} {nft}", self.chain),
        }
    }
}

impl Filter {
    /// Reads the rules of the calling thread's network namespace. Blocks.
    #[must_use]
    pub fn read() -> Self {
        let (nftables, iptables) = (nftables::read(), iptables::read());
        let unread =
            [nftables.as_ref().err().map(|error| format!("nftables: {error}")), iptables.as_ref().err().cloned()];
        let unread: Vec<String> = unread.into_iter().flatten().collect();
        Self {
            tables: nftables.into_iter().flatten().chain(iptables.into_iter().flatten()).collect(),
            unread: (!unread.is_empty()).then(|| unread.join("; ")),
        }
    }

    /// Rules as `iptables-save` prints them.
    #[must_use]
    pub fn of_iptables(text: &str) -> Self {
        Self { tables: vec![iptables::parse(text)], unread: None }
    }

    /// What each base chain of a hook does to a packet.
    pub fn decisions(&self, hook: Hook, packet: Packet<'_>) -> Vec<Decision> {
        let mut decisions = Vec::new();
        for table in &self.tables {
            for (name, chain) in &table.chains {
                let Some(base) = chain.base.filter(|base| base.hook == hook) else { continue };
                let mut walk = Walk { table, packet, otherwise: [false; 2] };
                let drops = match walk.through(chain, DEPTH) {
                    Outcome::Accepted => false,
                    Outcome::Dropped => true,
                    Outcome::Undecided => base.drops,
                };
                decisions.push(Decision {
                    chain: if table.is_iptables { name.clone() } else { format!("{} {name}", table.name) },
                    is_iptables: table.is_iptables,
                    drops,
                    is_unsure: walk.otherwise[usize::from(!drops)],
                });
            }
        }
        decisions
    }
}

/// What the rules of a chain come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Accepted,
    Dropped,
    /// No rule decides.
    Undecided,
}

/// A packet on its way through a table.
struct Walk<'a> {
    table: &'a Table,
    packet: Packet<'a>,
    /// Rules that it met and that are not understood may accept it; may drop it.
    otherwise: [bool; 2],
}

impl Walk<'_> {
    fn through(&mut self, chain: &Chain, depth: u32) -> Outcome {
        for rule in &chain.rules {
            let Some(is_met) = self.meets(rule) else { continue };
            match &rule.action {
                Action::Accept if is_met => return Outcome::Accepted,
                Action::Drop if is_met => return Outcome::Dropped,
                Action::Return if is_met => return Outcome::Undecided,
                Action::Jump(name) | Action::Goto(name) => {
                    let before = self.otherwise;
                    let next = self.table.chains.get(name).filter(|_| depth > 0);
                    let outcome = next.map_or(Outcome::Undecided, |next| self.through(next, depth - 1));
                    match (is_met, outcome) {
                        (true, Outcome::Undecided) if matches!(rule.action, Action::Goto(_)) => return outcome,
                        (_, Outcome::Undecided) => {}
                        (true, outcome) => return outcome,
                        (false, Outcome::Accepted) => self.otherwise = [true, before[1]],
                        (false, Outcome::Dropped) => self.otherwise = [before[0], before[1] || rule.names_device()],
                    }
                }
                Action::Accept => self.otherwise[0] = true,
                // One that names no device is about some hosts, not about all of a network.
                Action::Drop => self.otherwise[1] |= rule.names_device(),
                Action::Other => self.otherwise = [true, self.otherwise[1] || rule.names_device()],
                Action::Nothing | Action::Return => {}
            }
        }
        Outcome::Undecided
    }

    /// `Some(true)` if the packet meets all conditions of a rule, `Some(false)` if that is not certain, `None` if it does not.
    fn meets(&self, rule: &Rule) -> Option<bool> {
        let mut is_met = true;
        for condition in &rule.conditions {
            let is_possible = match condition {
                Condition::From(device) => device.is(self.packet.from),
                Condition::To(device) => self.packet.to.is_some_and(|to| device.is(to)),
                Condition::State { new, established } => {
                    if self.packet.is_new {
                        *new
                    } else {
                        *established
                    }
                }
                Condition::Family(is_meant) => *is_meant,
                Condition::Other => {
                    is_met = false;
                    true
                }
            };
            if !is_possible {
                return None;
            }
        }
        Some(is_met)
    }
}

impl Rule {
    fn names_device(&self) -> bool {
        self.conditions.iter().any(|condition| matches!(condition, Condition::From(_) | Condition::To(_)))
    }
}

impl Device {
    fn is(&self, name: &str) -> bool {
        let is_same = if self.is_prefix { name.starts_with(&self.name) } else { name == self.name };
        is_same != self.is_not
    }
}

#[cfg(test)]
mod tests;
