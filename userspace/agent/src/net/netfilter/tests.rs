//! What chains do to packets that the programs leave to the stack.

use super::*;

const OUT: Packet<'_> = Packet { from: "priv0", to: Some("pub0"), is_new: true };
const IN: Packet<'_> = Packet { from: "pub0", to: Some("priv0"), is_new: true };
const OWN: Packet<'_> = Packet { from: "pub0", to: None, is_new: true };

/// What becomes of a packet, by rules as `iptables-save` prints them.
fn decision(rules: &str, packet: Packet<'_>) -> (bool, bool) {
    let filter = Filter::of_iptables(rules);
    let hook = if packet.to.is_some() { Hook::Forward } else { Hook::Input };
    let decisions = filter.decisions(hook, packet);
    let [Decision { drops, is_unsure, .. }] = decisions[..] else { panic!("{decisions:?}") };
    (drops, is_unsure)
}

#[test]
fn a_policy_decides_about_what_no_rule_does() {
    for (policy, drops) in [("ACCEPT", false), ("DROP", true)] {
        let rules = format!(":INPUT {policy} [0:0]\n:FORWARD {policy} [0:0]\n:OUTPUT DROP [0:0]");
        for packet in [OUT, IN, OWN] {
            assert_eq!(decision(&rules, packet), (drops, false));
        }
    }
}

#[test]
fn rules_that_name_devices_are_followed_also_through_chains() {
    let rules = ":FORWARD DROP [0:0]\n:ours - [0:0]\n:end - [0:0]\n\
             -A FORWARD -j ours\n-A FORWARD -o pub+ -g end\n-A FORWARD -j ACCEPT\n\
             -A ours -i priv0 -o pub0 -m comment --comment \"a b\" -j ACCEPT\n-A ours ! -i priv0 -j RETURN\n-A end -i x -j ACCEPT";
    assert_eq!(decision(rules, OUT), (false, false));
    assert_eq!(decision(rules, IN), (false, false), "by the last rule");
    assert_eq!(decision(rules, Packet { from: "priv1", ..OUT }), (true, false), "by the chain that it went to");
}

#[test]
fn a_chain_that_ends_by_a_refusal_is_as_one_whose_policy_drops() {
    let rules = ":FORWARD ACCEPT [0:0]\n-A FORWARD -i docker0 -j ACCEPT\n\
             -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited";
    assert_eq!(decision(rules, OUT), (true, false));
    assert_eq!(decision(rules, Packet { is_new: false, ..OUT }), (false, false));
}

#[test]
fn what_is_not_understood_makes_it_unsure() {
    let accepts = ":FORWARD DROP [0:0]\n-A FORWARD -s 10.2.0.0/24 -j ACCEPT";
    assert_eq!(decision(accepts, OUT), (true, true));
    let drops = ":FORWARD ACCEPT [0:0]\n-A FORWARD -i pub0 -d 10.2.0.0/24 -j DROP\n-A FORWARD -s 192.0.2.1/32 -j DROP";
    assert_eq!((decision(drops, IN), decision(drops, OUT)), ((false, true), (false, false)));
    let within = ":FORWARD DROP [0:0]\n:some - [0:0]\n-A FORWARD -s 10.2.0.0/24 -j some\n-A some -j ACCEPT";
    assert_eq!(decision(within, OUT), (true, true));
}

#[test]
fn chains_that_lead_to_each_other_end() {
    let rules = ":FORWARD DROP [0:0]\n:a - [0:0]\n:b - [0:0]\n-A FORWARD -j a\n-A a -j b\n-A b -j a";
    assert_eq!(decision(rules, OUT), (true, false));
}
