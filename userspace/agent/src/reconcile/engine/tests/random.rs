//! Whatever is stored, in whatever order it is applied.

use proptest::{collection::vec, prelude::*, sample::subsequence};

use super::*;

/// A store: numbers are unique in it, as SQL keeps them.
fn stores() -> impl Strategy<Value = Vec<VipState<Ipv4Addr>>> {
    let algorithms = prop_oneof![Just(state::Algorithm::RoundRobin), Just(state::Algorithm::Maglev)];
    // By listener number: its VIP, and by backend number: its listener, host and health.
    let listeners = vec(prop::option::of((0..3_u8, algorithms)), 4);
    let backends = vec(prop::option::of((0..4_u32, 1..6_u8, prop::bool::weighted(0.7))), 6);
    // Rules have numbers after those of listeners, or a listener's that is not there, and each its own thousand of ports.
    let rules = vec(prop::option::of((0..3_u8, 0..3_u32, 0..1000_u16, 0..1000_u16, 1..6_u8)), 6);
    // By VIP: an elastic IP's number, which may be a rule's or a network's elsewhere, and guest. By number: a network's VIP.
    let elastics = vec(prop::option::of((subsequence(vec![4_u32, 5, 28, 29], 1), 1..4_u8)), 3);
    let networks = vec(prop::option::of((0..3_u8, 0..3_u8)), 4);
    let enabled = vec(prop::bool::weighted(0.8), 3);
    (listeners, backends, enabled, rules, elastics, networks).prop_map(|store| {
        let (listeners, backends, enabled, rules, elastics, networks) = store;
        let mut vips: Vec<VipState<Ipv4Addr>> = (0..3).map(|host| vip(host + 1, vec![])).collect();
        for (number, (host, algorithm)) in (0..).zip(&listeners).filter_map(|(n, l)| Some((n, (*l)?))) {
            let of_it = |(n, backend): (u32, &Option<_>)| {
                backend.and_then(|(of, host, healthy)| (of == number).then_some(((n, host), healthy)))
            };
            let (members, health): (Vec<(u32, u8)>, Vec<bool>) = (0..).zip(&backends).filter_map(of_it).unzip();
            let mut listener = listener(number, 80 + number as u16, algorithm, &members);
            listener.backends.iter_mut().zip(health).for_each(|(backend, healthy)| backend.healthy = healthy);
            vips[host as usize].listeners.push(listener);
        }
        for (number, (host, backend, one, other, guest)) in (0..).zip(rules).filter_map(|(n, rule)| Some((n, rule?))) {
            if listeners.get(number as usize).is_some_and(Option::is_some) {
                continue;
            }
            let first = 1000 * (number as u16 + 1);
            let ports = (first + one.min(other), first + one.max(other));
            vips[host as usize].forwards.push(forward(number, ports, 10 + 3 * number + backend, guest));
        }
        let mut used: BTreeSet<u32> = vips.iter().flat_map(|vip| &vip.forwards).map(|rule| rule.number).collect();
        let mut led = BTreeSet::new();
        for (vip, (numbers, guest)) in vips.iter_mut().zip(elastics).filter_map(|(vip, elastic)| Some((vip, elastic?)))
        {
            let number = numbers[0];
            if used.insert(number) {
                let leads = led.insert(guest);
                let guest = Ipv4Addr::new(10, 0, 1, guest);
                let backend = if number < 28 { 10 + 3 * number } else { number + 7 };
                vip.elastic =
                    Some(ElasticState { uuid: "eip".into(), number, backend, guest, device: "eth1".into(), leads });
            }
        }
        let mut seen = BTreeSet::new();
        for (number, (host, network)) in (28..).zip(networks).filter_map(|(n, network)| Some((n, network?))) {
            if used.insert(number) && seen.insert(network) {
                let backend = number + 7;
                vips[host as usize].masquerades.push(MasqueradeState { backend, ..masquerade(number, network) });
            }
        }
        vips.iter_mut().zip(enabled).for_each(|(vip, enabled)| vip.enabled = enabled);
        vips
    })
}

proptest! {
    #[test]
    fn whatever_is_stored_and_in_whatever_order_it_is_applied_no_half_state_shows(
        steps in vec((stores(), subsequence(vec![0_usize, 1, 2], 0..=3).prop_shuffle(), any::<bool>(), 3..5_u32), 1..8),
    ) {
        // Room enough for selection tables that rest.
        let selection = vec![u32::MAX; 1 << 16];
        let mut engine = Engine::new(Fake { selection, ..Fake::default() }).expect("new tables");
        let mut now = Instant::now();
        for (store, order, restart, device) in &steps {
            now += QUARANTINE + Duration::from_secs(1);
            if *restart {
                engine = Engine::new(engine.kernel).expect("opens");
            }
            for at in order {
                engine.apply(&compile(&store[*at], &devices(*device)), now).expect("applies");
            }
        }
        let Some((store, .., device)) = steps.last() else { return Ok(()) };
        for vip in store {
            engine.apply(&compile(vip, &devices(*device)), now).expect("applies");
        }
        assert_holds_by(&engine, store, *device);
        for vip in store {
            engine.remove(vip.address, now).expect("removes");
        }
        prop_assert!(engine.kernel.services.is_empty() && engine.kernel.snat_rules.is_empty());
        prop_assert_eq!(engine.arena.available(), 1 << 16);
        prop_assert!(engine.kernel.backends.iter().all(|backend| backend.addr == 0));
    }
}
