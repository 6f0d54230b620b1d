//! Elements of ABI 8 and ours.

use vipgate_abi::flow::{FLAG_OUTWARD, FLAG_REPLY};

use super::*;

#[test]
fn a_word_of_version_8_is_of_the_same_round_and_time_in_the_state_of_that_name() {
    let raw = |state: u64| 77 << 32 | 0xabcd << 16 | 9 << 8 | state;
    let states = [
        State::Empty,
        State::Busy,
        State::Closed,
        State::Opening,
        State::Answered,
        State::Datagrams,
        State::Closing,
        State::Established,
        State::Busy,
    ];
    for (number, state) in (0..).zip(states) {
        let word = word(raw(number));
        assert_eq!((word.state(), word.version(), word.seen()), (state, 9, 77));
    }
}

#[test]
fn a_flow_of_version_8_keeps_whom_it_is_between_and_what_was_counted_of_it() {
    let old = Flow8 {
        src: 1,
        dst: 2,
        sport: 3,
        dport: 4,
        protocol: 6,
        new_src: 5,
        new_dst: 6,
        new_sport: 7,
        new_dport: 8,
        port: 9,
        next_hop: [1; 6],
        epoch: 10,
        generation: 11,
        backend: 12,
        peer: 13,
        packets: 14,
        mark: u32::from(FLAG_REPLY | FLAG_OUTWARD) << 24 | 7,
        bytes: 15,
        ..Flow8::default()
    };
    let word = word(1 << 8 | 7);
    let flow = old.ours(word);
    let FlowKey { src, dst, sport, dport, protocol, .. } = flow.key;
    assert_eq!((src, dst, sport, dport, protocol), (1, 2, 3, 4, 6));
    assert_eq!((flow.new_src, flow.new_dst, flow.new_sport, flow.new_dport), (5, 6, 7, 8));
    assert_eq!((flow.generation, flow.backend(), flow.peer), (11, 12, 13));
    assert_eq!((flow.packets, flow.bytes(), flow.from), (14, 15, 0));
    assert!(flow.mark.is_reply() && flow.mark.is_outward() && flow.mark.state() == State::Established);
    assert!(!flow.hop.is_of(10, 9), "its way is asked for anew");
}
