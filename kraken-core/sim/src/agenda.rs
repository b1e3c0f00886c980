//! What will happen, in order of time.
//!
//! A calendar queue (Brown, "Calendar queues: a fast O(1) priority queue implementation for the
//! simulation event set problem", CACM 31(10), 1988) with a heap for what lies beyond its last
//! day: millions of events wait here at once, and a tree of them would miss the cache at every
//! step down. Events of the same moment happen in the order in which they were planned.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use kraken_proto::Timestamp;

/// Nanoseconds of a day, as a power of two: a day holds some dozen events of a large swarm.
const DAY_BITS: u32 = 13;
/// Days in the calendar, a power of two: half a second.
const DAYS: u64 = 1 << 16;
const NONE: u32 = u32::MAX;

/// The events to come.
#[derive(Debug)]
pub(crate) struct Agenda<T> {
    /// The first event of each day; the others follow by `next`.
    days: Vec<u32>,
    /// The day that is being lived through.
    today: u64,
    /// Its events, the last first.
    rest: Vec<(Timestamp, u64, u32)>,
    /// What lies more than `DAYS` ahead.
    far: BinaryHeap<Reverse<(Timestamp, u64, u32)>>,
    /// The events themselves; places are used again.
    places: Vec<Place<T>>,
    free: Vec<u32>,
    planned: u64,
    /// The number of the event that was taken last.
    taken: u64,
    in_days: usize,
}

#[derive(Debug)]
struct Place<T> {
    at: Timestamp,
    number: u64,
    next: u32,
    what: Option<T>,
}

fn day(at: Timestamp) -> u64 {
    at.as_nanos() >> DAY_BITS
}

fn slot(day: u64) -> usize {
    usize::try_from(day % DAYS).expect("less than DAYS")
}

impl<T> Agenda<T> {
    pub(crate) fn new() -> Self {
        Self {
            days: vec![NONE; slot(DAYS - 1) + 1],
            today: 0,
            rest: Vec::new(),
            far: BinaryHeap::new(),
            places: Vec::new(),
            free: Vec::new(),
            planned: 0,
            taken: 0,
            in_days: 0,
        }
    }

    /// Plans an event, not before the last one taken.
    pub(crate) fn add(&mut self, at: Timestamp, what: T) {
        let number = self.planned;
        self.planned += 1;
        self.add_as(number, at, what);
    }

    /// Plans the event that was taken last once more, for later. It keeps its place among those of
    /// the same moment: what was sent on a connection before stays before, whatever held it up.
    pub(crate) fn postpone(&mut self, at: Timestamp, what: T) {
        self.add_as(self.taken, at, what);
    }

    fn add_as(&mut self, number: u64, at: Timestamp, what: T) {
        let place = Place {
            at,
            number,
            next: NONE,
            what: Some(what),
        };
        let index = if let Some(index) = self.free.pop() {
            self.places[index as usize] = place;
            index
        } else {
            self.places.push(place);
            u32::try_from(self.places.len() - 1).expect("fewer than 2^32 events wait")
        };
        self.put(at, number, index);
    }

    /// Takes the next event, when it is not after `end`.
    pub(crate) fn pop(&mut self, end: Timestamp) -> Option<(Timestamp, T)> {
        while self.rest.is_empty() {
            self.turn_page()?;
        }
        let (at, number, index) = self.rest.last().copied().filter(|(at, ..)| *at <= end)?;
        self.rest.pop();
        self.taken = number;
        self.free.push(index);
        let what = self.places[index as usize].what.take()?;
        Some((at, what))
    }

    fn put(&mut self, at: Timestamp, number: u64, index: u32) {
        let day = day(at).max(self.today);
        if day == self.today {
            let place = self
                .rest
                .partition_point(|(other, late, _)| (*other, *late) > (at, number));
            self.rest.insert(place, (at, number, index));
        } else if day - self.today < DAYS {
            let first = &mut self.days[slot(day)];
            self.places[index as usize].next = std::mem::replace(first, index);
            self.in_days += 1;
        } else {
            self.far.push(Reverse((at, number, index)));
        }
    }

    /// Goes on to the next day; none when nothing is planned any more.
    fn turn_page(&mut self) -> Option<()> {
        if self.in_days == 0 {
            // Nothing for as far as the calendar goes: straight to the first far event.
            self.today = day(self.far.peek()?.0.0);
        } else {
            self.today += 1;
        }
        while let Some(Reverse((at, number, index))) = self.far.peek().copied()
            && day(at) < self.today + DAYS
        {
            self.far.pop();
            self.put(at, number, index);
        }
        let mut next = std::mem::replace(&mut self.days[slot(self.today)], NONE);
        while let Some(place) = self.places.get(next as usize) {
            self.rest.push((place.at, place.number, next));
            self.in_days -= 1;
            next = place.next;
        }
        self.rest.sort_unstable_by(|a, b| b.cmp(a));
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use kraken_proto::rng::Rng;

    use super::*;

    #[test]
    fn events_come_in_the_order_of_time_and_then_of_planning() {
        let mut agenda = Agenda::new();
        let mut rng = Rng::seeded(4);
        let mut model = Vec::new();
        let (mut now, mut number) = (0_u64, 0_u64);
        for _ in 0..20_000 {
            if rng.below(5) < 3 || model.is_empty() {
                // Near, far and at the very same moment.
                let wait = [0, 700, 90_000, 40_000_000, 3_000_000_000][rng.below(5)];
                let at = now + rng.below(wait + 1) as u64;
                agenda.add(Timestamp::from_nanos(at), number);
                model.push((at, number));
                number += 1;
            } else {
                let first = *model.iter().min().unwrap();
                model.retain(|it| *it != first);
                let (at, what) = agenda.pop(Timestamp::from_nanos(u64::MAX)).unwrap();
                assert_eq!((at.as_nanos(), what), first);
                now = first.0;
            }
        }
        while let Some((at, what)) = agenda.pop(Timestamp::from_nanos(u64::MAX)) {
            let first = *model.iter().min().unwrap();
            assert_eq!((at.as_nanos(), what), first);
            model.retain(|it| *it != first);
        }
        assert!(model.is_empty());
    }

    #[test]
    fn what_comes_after_the_end_stays() {
        let mut agenda = Agenda::new();
        agenda.add(Timestamp::from_nanos(50), 'a');
        assert_eq!(agenda.pop(Timestamp::from_nanos(49)), None);
        let at = Timestamp::from_nanos(50);
        assert_eq!(agenda.pop(at), Some((at, 'a')));
        assert_eq!(agenda.pop(at), None);
    }

    #[test]
    fn what_is_postponed_stays_before_what_was_planned_after_it() {
        let at = Timestamp::from_nanos;
        let mut agenda = Agenda::new();
        agenda.add(at(10), 'a');
        agenda.add(at(90), 'b');
        let first = agenda.pop(at(10)).unwrap().1;
        agenda.postpone(at(90), first);
        let order: Vec<_> = std::iter::from_fn(|| agenda.pop(at(90))).collect();
        assert_eq!(order, [(at(90), 'a'), (at(90), 'b')]);
    }
}
