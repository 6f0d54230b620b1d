//! A bounded run of the fuzz target's harness: inputs that are kept, and random ones.

use std::{cell::Cell, error::Error, fs, path::Path};

use proptest::{
    collection::vec,
    prelude::{Just, ProptestConfig, Strategy, any},
    prop_oneof,
    sample::select,
    test_runner::TestRunner,
};
use vipgate_fuzz::{Tally, input::Case, run};

/// Random inputs of one run.
const CASES: u32 = 2000;

/// A shape's bytes: mostly TCP flags that occur in connections, and the operands that the second byte announces.
fn shape() -> impl Strategy<Value = Vec<u8>> {
    const OPERANDS: [usize; 8] = [1, 2, 2, 1, 1, 0, 4, 0];
    let flags = prop_oneof![9 => select(vec![0x02, 0x12, 0x10, 0x18, 0x11, 0x04]), 1 => any::<u8>()];
    let has = prop_oneof![6 => select(vec![0]), 2 => select(vec![1, 2, 4, 8, 16, 32]), 1 => any::<u8>()];
    (flags, has, vec(any::<u8>(), 11)).prop_map(|(flags, has, operands): (u8, u8, Vec<u8>)| {
        let length = OPERANDS.iter().enumerate().map(|(bit, length)| usize::from(has >> bit & 1) * length).sum();
        [&[flags, has], &operands[..length]].concat()
    })
}

/// A step's bytes.
fn step(number: u8, operands: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    operands.prop_map(move |operands| [&[number], &operands[..]].concat())
}

/// The bytes of a step that ends in a shape.
fn packet(number: u8, operands: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (step(number, operands), shape()).prop_map(|(step, shape)| [step, shape].concat())
}

/// An input in which most steps refer to what earlier ones left.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let some = |length| vec(any::<u8>(), length);
    let ask =
        (0..3u8, 0..3u8, select(vec![0, 8, 1, 9, 2])).prop_map(|(client, port, service)| vec![client, port, service]);
    // A packet's first fragment, and later fragments of this or another packet.
    let fragments =
        (0..3u8, select(vec![0, 8]), 0..2u8, vec((0..2u8, 1..9u8), 0..4)).prop_map(|(client, service, id, later)| {
            let fragment = |id, cut| vec![10, client, 0, service, 2, 2, id, cut];
            let later = later.into_iter().map(|(id, offset)| fragment(id, offset));
            std::iter::once(fragment(id, 0x80)).chain(later).flatten().collect::<Vec<u8>>()
        });
    let handshake = || {
        (0..2u8, 0..8u8, select(vec![0, 1])).prop_map(|(client, port, service)| {
            vec![10, client, port, service, 0x02, 0, 11, 0, 0x12, 0, 12, 1, 0x10, 0]
        })
    };
    // Connections that fill a small table, and more connections after those have been idle for too long.
    let idle = (vec(handshake(), 5..9), 0..2u8, vec(handshake(), 1..4)).prop_map(|(first, long, later)| {
        let [low, high] = (15_000 + 2000 * u16::from(long)).to_le_bytes();
        [first.concat(), vec![7, low, high], later.concat()].concat()
    });
    // A connection that is ended, and packets of both sides afterwards.
    let ended =
        (handshake(), any::<bool>(), vec(prop_oneof![packet(11, vec(0..2u8, 1)), packet(12, vec(0..2u8, 1))], 1..4))
            .prop_map(|(handshake, swept, after)| {
                let end: Vec<u8> = (1..5).flat_map(|backend| [3, backend]).collect();
                let sweep = if swept { vec![21, 0xff, 0xff] } else { Vec::new() };
                [handshake, end, sweep, after.concat()].concat()
            });
    // A connection that is reset, and after about a second a segment of each side, or a SYN.
    let resets =
        (0..2u8, 200..300u16, select(vec![0x10, 0x02, 0x12, 0x04]), 0..2u8).prop_map(|(service, wait, next, last)| {
            let opened = [10, 0, 0, service, 0x02, 0, 11, 0, 0x12, 0, 12, 1, 0x10, 0];
            let [low, high] = wait.to_le_bytes();
            let reset = [12, 0, 0x04, 0, 7, low, high];
            [&opened[..], &reset, &[12, 0, 0x10, 0, 11, 0, next, 0, 12, last, 0x10, 0, 12, 1, 0x02, 0]].concat()
        });
    // Answered datagrams of more clients than the service may have.
    let crowd = (1..3u8, vec((0..4u8, 0..3u8), 2..4)).prop_map(|(most, clients)| {
        let answered = |(client, port)| [10, client, port, 8, 0, 0, 11, 0, 0, 0];
        [vec![19, 8, most], clients.into_iter().flat_map(answered).collect()].concat()
    });
    let ring = (any::<u8>(), 0..32u8, vec(0..8u8, 0..8))
        .prop_map(|(service, what, ring)| [&[service & 25, (ring.len() as u8) << 5 | what], &ring[..]].concat());
    // Guests with and without their network's neighbours; destinations outside, inside, and VIPs.
    let guests = || select(vec![0x20, 0x21, 0x22]);
    let ends = || {
        let from = prop_oneof![4 => guests(), 1 => select(vec![0, 1])];
        let to = select(vec![0, 1, 0xc1, 0xc1, 0x61, 0x22, 0x25, 0xe0, 0xe1, 0xe2]);
        let what = prop_oneof![2 => 0..4u8, 1 => any::<u8>()];
        // Guests are where the private device leads.
        (from, to, 0..32u8, what).prop_map(|(from, to, ports, what)| vec![from, to, ports, what ^ from & 0x20])
    };
    let way_out = || {
        let elastic = (16..20u8, 8..12u8, guests(), prop_oneof![4 => Just(1), 1 => 0..8u8])
            .prop_map(|(service, backend, guest, what)| vec![service, backend, guest, what]);
        let network =
            prop_oneof![4 => Just([0x20, 24]), 1 => (any::<u8>(), 0..33u8).prop_map(|(source, bits)| [source, bits])];
        let masquerade = (0..4u8, 12..16u8, network, prop_oneof![4 => 0..2u8, 1 => 0..8u8])
            .prop_map(|(service, backend, [source, bits], what)| vec![service, backend, source, bits, what]);
        prop_oneof![step(22, elastic), step(23, masquerade)]
    };
    // A guest's answered connection to the gateway's network, and the same of another guest.
    let rivals = (0..8u8, 0..4u8).prop_map(|(ports, what)| {
        let begin = |guest| vec![25, guest, 0xc1, ports, what | 0x20, 0x02, 0];
        [begin(0x20), vec![11, 0, 0x12, 0, 12, 1, 0x10, 0], begin(0x21)].concat()
    });
    let unmask = (guests(), select(vec![24, 32]), 0..2u8).prop_map(|(source, bits, what)| vec![source, bits, what * 2]);
    let limits = || {
        let what = prop_oneof![4 => 0..2u8, 1 => 2..4u8, 1 => 0..16u8];
        let limit =
            (1..13u8, 0..7u8, 0..8u8, what).prop_map(|(backend, limit, rate, what)| vec![backend, limit, rate, what]);
        step(29, limit)
    };
    let steps = prop_oneof![
        12 => packet(10, ask),
        8 => packet(11, vec(0..4u8, 1)),
        8 => packet(12, vec(0..4u8, 1)),
        2 => fragments,
        4 => handshake(),
        4 => resets,
        1 => crowd,
        1 => idle,
        1 => ended,
        4 => step(13, (0..3u8, 0..3u8, 0..4u8, 20..80u8).prop_map(|(a, b, c, d)| vec![a, b, c, d])),
        1 => step(14, (0..3u8, 0..4u8, 20..80u8).prop_map(|(a, b, c)| vec![a, b, c])),
        3 => step(16, (0..8u8, some(4)).prop_map(|(what, tags)| [vec![what], tags].concat())),
        1 => step(17, (0..4u8, 0..8u8, some(4)).prop_map(|(port, what, tags)| [vec![port, what], tags].concat())),
        1 => step(0, ring),
        1 => prop_oneof![step(1, some(1)), step(2, some(3)), step(3, some(1))],
        1 => prop_oneof![step(4, some(2)), step(5, some(3)), step(6, some(1))],
        1 => prop_oneof![step(7, some(2)), step(8, some(2)), step(9, vec(0..9u8, 1))],
        2 => step(19, (select(vec![0, 8, 1, 9, 2]), 0..4u8).prop_map(|(service, most)| vec![service, most])),
        2 => step(20, (0..90u8).prop_map(|first| vec![first, 0])),
        1 => step(21, vec(any::<u8>(), 2)),
        2 => way_out(),
        2 => rivals,
        1 => step(24, unmask),
        1 => step(27, vec(0..4u8, 1)),
        1 => step(28, vec(0..16u8, 1)),
        3 => limits(),
        2 => step(30, (select(vec![0, 0, 1, 2, 5, 6, 7, 8]), select(vec![0, 0x10, 0x20, 0x30])).prop_map(|(from, by)| vec![from | by])),
        18 => packet(25, ends()),
        5 => packet(26, ends()),
        2 => step(31, (0u8..4, select(vec![0, 0, 0x80])).prop_map(|(port, loose)| vec![port | loose])),
        1 => some(40),
    ];
    (some(2), vec(way_out(), 0..3), vec(limits(), 0..6), vec(steps, 0..48)).prop_map(
        |(start, ways_out, limits, steps)| [start, ways_out.concat(), limits.concat(), steps.concat()].concat(),
    )
}

#[test]
fn what_must_hold_holds_whatever_comes() -> Result<(), Box<dyn Error>> {
    let total = Cell::new(Tally::default());
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config).run(&input(), |input| {
        total.set(total.get() + run(&input));
        Ok(())
    })?;
    // Inputs that reach nothing would prove nothing.
    let Tally { packets, sent, errors_translated, outbound, stopped, limited, revived, reset, gave_way, idle, refused } =
        total.get();
    assert!(
        sent > packets / 4
            && errors_translated > sent / 100
            && outbound > sent / 20
            && stopped > packets / 400
            && limited > sent / 25
            && revived > sent / 400
            && reset > packets / 1000
            && gave_way > sent / 1000
            && idle > 0
            && refused > packets / 1000,
        "{sent} of {packets} packets were forwarded, {outbound} of connections that guests began, {limited} counted against a limit, \
         {errors_translated} errors translated, {stopped} of the stack's packets stopped, {revived} connections revived, \
         {reset} packets reset, {gave_way} connections evicted, {idle} idle ones evicted, {refused} packets refused by the stack"
    );
    Ok(())
}

#[test]
fn kept_inputs_hold() -> Result<(), Box<dyn Error>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in fs::read_dir(directory.join("regressions"))?.chain(fs::read_dir(directory.join("seeds"))?) {
        let path = entry?.path();
        let input = fs::read(&path)?;
        println!("{}: {:?}", path.display(), Case::decode(&input));
        run(&input);
    }
    Ok(())
}
