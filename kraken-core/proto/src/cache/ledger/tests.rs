use proptest::prelude::*;

use super::*;

fn blob(number: u8) -> Digest {
    Digest::from_bytes([number; 32])
}

/// With a low mark of 95 % and nothing above it.
fn ceiling(most: u64) -> Ceiling {
    Ceiling::of(most)
        .with_marks(most, most - most / 20)
        .unwrap()
}

fn ledger(most: u64, sizes: &[u64]) -> Ledger {
    let mut ledger = Ledger::new(Some(ceiling(most)), Order::Recent);
    for (number, bytes) in (0..).zip(sizes) {
        ledger.keep(blob(number), *bytes, 0);
    }
    ledger
}

#[test]
fn what_was_not_used_for_the_longest_time_goes_first_and_some_more_than_must() {
    let mut ledger = ledger(1000, &[100; 10]);
    ledger.touch(blob(0), 0);
    let going = vec![blob(1), blob(2)];
    assert_eq!(ledger.room_for(100, |_| true), Room::After(going.clone()));
    assert_eq!(ledger.room_for(1, |_| true), Room::After(vec![blob(1)]));
    going.into_iter().for_each(|blob| ledger.forget(blob));
    assert_eq!(ledger.used(), 800);
    assert_eq!(ledger.room_for(200, |_| true), Room::Free);
}

#[test]
fn what_may_not_go_stays_and_its_room_is_not_promised() {
    let ledger = ledger(100, &[40, 40]);
    let spared = |kept| move |other| other != blob(kept);
    assert_eq!(ledger.room_for(30, spared(0)), Room::After(vec![blob(1)]));
    assert_eq!(ledger.room_for(61, spared(0)), Room::None);
    assert_eq!(ledger.room_for(30, |_| false), Room::None);
    assert_eq!(ledger.room_for(20, |_| false), Room::Free);
}

#[test]
fn a_blob_as_large_as_the_disk_fits_alone() {
    let ledger = ledger(100, &[10]);
    assert_eq!(ledger.room_for(100, |_| true), Room::After(vec![blob(0)]));
    assert_eq!(ledger.room_for(101, |_| true), Room::None);
    assert_eq!(ledger.room_for(u64::MAX, |_| true), Room::None);
}

#[test]
fn what_is_held_takes_room_and_never_goes() {
    let mut ledger = ledger(100, &[40]);
    ledger.hold(50);
    assert_eq!(ledger.room_for(10, |_| true), Room::Free);
    assert_eq!(ledger.room_for(50, |_| true), Room::After(vec![blob(0)]));
    assert_eq!(ledger.room_for(51, |_| true), Room::None);
    ledger.release(50);
    assert_eq!(ledger.used(), 40);
    ledger.release(1);
    assert_eq!(ledger.used(), 40, "no more than was held");
}

#[test]
fn a_volume_that_is_full_before_its_ceiling_gets_room_too() {
    let ledger = ledger(1000, &[30, 30, 30]);
    let two = vec![blob(0), blob(1)];
    assert_eq!(ledger.making_room(31, |_| true), Room::After(two));
    assert_eq!(ledger.making_room(91, |_| true), Room::None);
    assert_eq!(ledger.making_room(31, |other| other == blob(2)), Room::None);
}

#[test]
fn there_is_a_surplus_above_the_high_mark_until_the_low_one() {
    let mut ledger = Ledger::new(Some(Ceiling::of(1000)), Order::Recent);
    for number in 0..9 {
        ledger.keep(blob(number), 105, 0);
    }
    assert_eq!(ledger.surplus(|_| true), [], "945 of 950");
    ledger.hold(10);
    assert_eq!(ledger.surplus(|_| true), [blob(0)], "down to 900");
    assert_eq!(ledger.surplus(|it| it != blob(0)), [blob(1)]);
    let all = (0..9).map(blob).collect::<Vec<_>>();
    assert_eq!(ledger.down_to(0, |_| true), all, "as far as it goes");
    assert_eq!(ledger.down_to(5000, |_| true), []);
}

#[test]
fn marks_that_contradict_each_other_are_refused() {
    let ceiling = Ceiling::of(100);
    assert_eq!(ceiling.with_marks(101, 50), None);
    assert_eq!(ceiling.with_marks(50, 51), None);
    let marked = ceiling.with_marks(80, 40).unwrap();
    assert_eq!((marked.most(), marked.high(), marked.low()), (100, 80, 40));
}

#[test]
fn what_is_pinned_stays() {
    let mut ledger = ledger(100, &[40, 40]);
    ledger.pin(blob(0), true);
    assert_eq!(ledger.room_for(30, |_| true), Room::After(vec![blob(1)]));
    assert_eq!(ledger.down_to(0, |_| true), [blob(1)]);
    let second = Lifetimes {
        to_live: Some(Duration::from_secs(1)),
        to_idle: None,
    };
    assert_eq!(ledger.expired(second, 5000, None, 9), (vec![blob(1)], None));
    ledger.pin(blob(0), false);
    assert_eq!(ledger.room_for(30, |_| true), Room::After(vec![blob(0)]));
}

#[test]
fn what_is_over_is_found_page_by_page() {
    let mut ledger = Ledger::new(None, Order::Recent);
    for number in 0..5 {
        ledger.restore(blob(number), 1, 1000 * u64::from(number), 10_000);
    }
    let secs = |secs| Some(Duration::from_secs(secs));
    let to_live = Lifetimes {
        to_live: secs(9),
        to_idle: None,
    };
    let page = ledger.expired(to_live, 12_000, None, 2);
    assert_eq!(page, (vec![blob(0), blob(1)], Some(blob(1))));
    let page = ledger.expired(to_live, 12_000, page.1, 9);
    assert_eq!(
        page,
        (vec![blob(2)], None),
        "exactly its time is not over it"
    );
    let to_idle = Lifetimes {
        to_live: None,
        to_idle: secs(5),
    };
    ledger.touch(blob(4), 13_000);
    let (over, _) = ledger.expired(to_idle, 16_000, None, 9);
    assert_eq!(over, [blob(0), blob(1), blob(2), blob(3)]);
    let none = Lifetimes::default();
    assert_eq!(ledger.expired(none, u64::MAX, None, 9), (vec![], None));
    // The clock was set back.
    assert_eq!(ledger.expired(to_idle, 0, None, 9), (vec![], None));
}

#[test]
fn what_was_used_is_told_once() {
    let mut ledger = ledger(100, &[1, 1, 1]);
    assert_eq!(ledger.take_used(None, 9), (vec![], None));
    ledger.touch(blob(0), 7);
    ledger.touch(blob(2), 9);
    assert_eq!(
        ledger.take_used(None, 2),
        (vec![(blob(0), 7)], Some(blob(1)))
    );
    let rest = ledger.take_used(Some(blob(1)), 2);
    assert_eq!(rest, (vec![(blob(2), 9)], None));
    assert_eq!(ledger.take_used(None, 9), (vec![], None));
}

#[test]
fn by_cost_small_and_busy_blobs_outlive_large_ones_but_not_for_ever() {
    const MIB: u64 = 1 << 20;
    let mut ledger = Ledger::new(Some(ceiling(100 * MIB)), Order::Cost);
    let (small, busy, large) = (blob(0), blob(1), blob(2));
    ledger.keep(small, MIB, 0);
    ledger.keep(busy, 40 * MIB, 0);
    ledger.touch(busy, ONE_USE);
    ledger.keep(large, 40 * MIB, 0);
    // Read in many steps, it is used once.
    (0..10_000).for_each(|_| ledger.touch(large, 1));
    let order: Vec<_> = ledger.down_to(0, |_| true);
    assert_eq!(order, [large, busy, small]);
    // Each that goes makes what comes new dearer than what is not used any more.
    let mut rounds = 0;
    while ledger.bytes_of(small) > 0 {
        rounds += 1;
        ledger.keep(blob(3), 40 * MIB, 0);
        for blob in ledger.down_to(0, |_| true).into_iter().take(1) {
            ledger.forget(blob);
        }
        assert!(rounds < 20, "the small one never goes");
    }
    assert!(rounds > 3, "{rounds}");
}

#[test]
fn without_a_ceiling_everything_fits() {
    let mut ledger = Ledger::new(None, Order::Recent);
    ledger.keep(blob(1), u64::MAX / 2, 0);
    assert_eq!(ledger.room_for(u64::MAX, |_| false), Room::Free);
}

#[test]
fn a_blob_is_counted_once() {
    let mut ledger = ledger(100, &[40]);
    ledger.keep(blob(0), 50, 0);
    assert_eq!(ledger.used(), 50);
    ledger.forget(blob(0));
    ledger.forget(blob(0));
    ledger.touch(blob(0), 0);
    assert_eq!(ledger.used(), 0);
    assert!(ledger.ranks.is_empty());
}

proptest! {
    /// Against a list, the least recently used first.
    #[test]
    fn the_order_is_that_of_a_naive_list(
        steps in proptest::collection::vec((0..4_u8, 0..8_u8, 0..400_u64), 1..200)
    ) {
        let mut ledger = Ledger::new(Some(ceiling(1000)), Order::Recent);
        let mut list: Vec<(Digest, u64)> = Vec::new();
        for (step, number, bytes) in steps {
            let (id, at) = (blob(number), list.iter().position(|it| it.0 == blob(number)));
            match (step, at) {
                (0, at) => {
                    if let Some(at) = at {
                        list.remove(at);
                    }
                    list.push((id, bytes));
                    ledger.keep(id, bytes, 0);
                }
                (1, Some(at)) => {
                    let entry = list.remove(at);
                    list.push(entry);
                    ledger.touch(id, 0);
                }
                (2, Some(at)) => {
                    list.remove(at);
                    ledger.forget(id);
                }
                _ => {
                    let used: u64 = list.iter().map(|it| it.1).sum();
                    prop_assert_eq!(ledger.used(), used);
                    match ledger.room_for(bytes, |_| true) {
                        Room::Free => prop_assert!(used + bytes <= 1000),
                        Room::After(going) => {
                            prop_assert!(used + bytes > 1000);
                            let first = list.iter().take(going.len());
                            let gone: u64 = first.clone().map(|it| it.1).sum();
                            let first: Vec<_> = first.map(|it| it.0).collect();
                            prop_assert_eq!(going, first);
                            prop_assert!(used - gone + bytes <= 1000);
                        }
                        Room::None => prop_assert!(false, "all may go"),
                    }
                }
            }
        }
    }
}
