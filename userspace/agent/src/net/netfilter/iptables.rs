//! The rules of iptables as it was before nftables, which the kernel tells that program alone.

use std::{fs, process::Command};

use super::{Action, Base, Chain, Condition, Device, Hook, Rule, Table};

/// What sets such rules.
pub(super) const PROGRAM: &str = "iptables-legacy";
/// What prints them.
const PRINTS: &str = "iptables-legacy-save";
/// Names the tables of this network namespace that such rules have been in.
const TABLES: &str = "/proc/self/net/ip_tables_names";

/// The filter table; `None` if this kernel has none of that kind. The error says why it could not be read.
pub(super) fn read() -> Result<Option<Table>, String> {
    if !fs::read_to_string(TABLES).is_ok_and(|names| names.lines().any(|name| name == "filter")) {
        return Ok(None);
    }
    let output = Command::new(PRINTS).args(["-t", "filter"]).output().map_err(|error| format!("{PRINTS}: {error}"))?;
    match output.status.success() {
        true => Ok(Some(parse(&String::from_utf8_lossy(&output.stdout)))),
        false => Err(format!("{PRINTS}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Reads what the program prints.
pub(super) fn parse(text: &str) -> Table {
    let mut table = Table { name: "filter".to_owned(), is_iptables: true, ..Table::default() };
    for line in text.lines() {
        let words = words(line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            [chain, policy, ..] if chain.starts_with(':') => {
                let hook = match &chain[1..] {
                    "INPUT" => Some(Hook::Input),
                    "FORWARD" => Some(Hook::Forward),
                    _ => None,
                };
                let base = hook.map(|hook| Base { hook, drops: policy == "DROP" });
                table.chains.insert(chain[1..].to_owned(), Chain { base, rules: Vec::new() });
            }
            ["-A", chain, ref rule @ ..] => {
                table.chains.entry(chain.to_owned()).or_default().rules.push(parse_rule(rule));
            }
            _ => {}
        }
    }
    table
}

fn parse_rule(words: &[&str]) -> Rule {
    let mut rule = Rule::default();
    let mut words = words.iter().copied();
    let mut is_not = false;
    while let Some(word) = words.next() {
        let mut device = || {
            let name = words.next().unwrap_or_default();
            let (name, is_prefix) = name.strip_suffix('+').map_or((name, false), |name| (name, true));
            Device { name: name.to_owned(), is_prefix, is_not }
        };
        match word {
            "!" => {
                is_not = true;
                continue;
            }
            "-i" => rule.conditions.push(Condition::From(device())),
            "-o" => rule.conditions.push(Condition::To(device())),
            "-m" => match words.next() {
                // It says nothing of the packet.
                Some("comment") => {}
                // What follows says what of it.
                Some("conntrack" | "state") => {}
                _ => rule.conditions.push(Condition::Other),
            },
            "--comment" => drop(words.next()),
            "--ctstate" | "--state" => {
                let states = words.next().unwrap_or_default();
                let means = |wanted| states.split(',').any(|state| state == wanted) != is_not;
                rule.conditions.push(Condition::State { new: means("NEW"), established: means("ESTABLISHED") });
            }
            "-j" | "-g" => {
                rule.action = action(word == "-g", words.next().unwrap_or_default());
                // What follows is how it is done.
                break;
            }
            _ => rule.conditions.push(Condition::Other),
        }
        is_not = false;
    }
    rule
}

fn action(goes: bool, target: &str) -> Action {
    match target {
        "ACCEPT" => Action::Accept,
        "DROP" | "REJECT" => Action::Drop,
        "RETURN" => Action::Return,
        "" | "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TCPMSS" => Action::Nothing,
        "QUEUE" | "NFQUEUE" => Action::Other,
        chain if goes => Action::Goto(chain.to_owned()),
        chain => Action::Jump(chain.to_owned()),
    }
}

/// The words of a line, of which one in quotes may have spaces.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' if quoted => word.extend(letters.next()),
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            letter => word.push(letter),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_is_one() {
        assert_eq!(
            words(r#"-m comment --comment "a \"b\" c" -j X"#),
            ["-m", "comment", "--comment", "a \"b\" c", "-j", "X"]
        );
    }

    #[test]
    fn conditions_are_understood_as_far_as_they_name_devices_and_states() {
        let table = parse(
            "*filter\n:FORWARD DROP [1:2]\n-A FORWARD ! -i eth0.1 -p tcp -m state ! --state NEW -j LOG --log-prefix \"-j ACCEPT\"\nCOMMIT",
        );
        let device = Device { name: "eth0.1".into(), is_prefix: false, is_not: true };
        let conditions = vec![
            Condition::From(device),
            Condition::Other,
            Condition::Other,
            Condition::State { new: false, established: true },
        ];
        let chain = &table.chains["FORWARD"];
        assert_eq!(chain.rules, [Rule { conditions, action: Action::Nothing }]);
        assert_eq!(chain.base, Some(Base { hook: Hook::Forward, drops: true }));
    }
}
