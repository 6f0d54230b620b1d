//! Messages of rtnetlink.

use super::*;

#[test]
fn attributes_are_read_as_they_are_written() {
    let options = attributes(&[(BPF_NAME, b"vipgate_tc\0"), (BPF_FLAGS, &1u32.to_ne_bytes())]);
    let all = attributes(&[(KIND, b"bpf\0"), (OPTIONS, &options)]);
    assert_eq!(text(&all, KIND).as_deref(), Some("bpf"));
    assert_eq!(value(&all, OPTIONS).and_then(|options| text(options, BPF_NAME)).as_deref(), Some("vipgate_tc"));
    assert_eq!(value(&all, BPF_FD), None);
}

#[test]
fn what_is_cut_off_is_no_answer() {
    let answer = [16u32.to_ne_bytes(), [0; 4], [0; 4]].concat();
    let mut seen = Seen::default();
    assert!(take_all(&answer, &mut seen, &mut |_, _| {}).is_err());
    take_all(&[], &mut seen, &mut |_, _| {}).expect("nothing is said");
    assert_eq!(seen, Seen::default());
}

/// A message without attributes.
fn message(kind: u16, flags: u16) -> Vec<u8> {
    let mut bytes = vec![0; 16 + HEADER];
    let mut message = NetlinkBuffer::new(&mut bytes);
    message.set_length(16 + HEADER as u32);
    message.set_message_type(kind);
    message.set_flags(flags);
    bytes
}

#[test]
fn a_list_that_changed_while_it_was_read_says_so_in_any_of_its_messages() {
    for flags in [[0, 0], [NLM_F_DUMP_INTR, 0], [0, NLM_F_DUMP_INTR]] {
        let answer = [message(libc::RTM_NEWQDISC, flags[0]), message(NLMSG_DONE, flags[1])].concat();
        let (mut seen, mut taken) = (Seen::default(), 0);
        take_all(&answer, &mut seen, &mut |_, _| taken += 1).expect("it is whole");
        assert_eq!((seen.end, seen.changed, taken), (true, flags != [0, 0], 1));
    }
}

#[test]
fn a_list_is_read_again_until_it_holds_still_but_not_for_ever() {
    let mut read = 0;
    let mut after = |calm: u32| {
        read = 0;
        undisturbed(|| {
            read += 1;
            Ok((read > calm).then_some(read))
        })
    };
    assert_eq!([after(0), after(3)].map(|found| found.expect("it held still")), [1, 4]);
    assert_eq!(after(u32::MAX - 1).expect_err("it never does").kind(), io::ErrorKind::ResourceBusy);
}
