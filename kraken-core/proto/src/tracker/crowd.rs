//! The graphs that come out when many hosts follow the tracker's handouts.

use std::collections::BTreeSet;

use super::AnnounceState::Leeching;
use super::handout::{Tracker, TrackerConfig};
use super::testing::{at, no_origins, number, peer, request, zoned};
use crate::peer::PeerInfo;
use crate::rng::Rng;
use crate::time::Timestamp;

/// Hosts that dial half of the degree, as agents do, and accept whoever dials them.
struct Crowd {
    hosts: Vec<PeerInfo>,
    links: Vec<BTreeSet<usize>>,
    tracker: Tracker,
}

impl Crowd {
    fn new(config: TrackerConfig, seed: u64) -> Self {
        Self {
            hosts: Vec::new(),
            links: Vec::new(),
            tracker: Tracker::new(config, seed),
        }
    }

    /// A host joins, in the zone of this number if there is one.
    fn join(&mut self, now: Timestamp, zone: Option<usize>) {
        let n = u32::try_from(self.hosts.len()).unwrap();
        self.hosts.push(match zone {
            Some(zone) => zoned(n, &format!("rack-{zone}")),
            None => peer(n),
        });
        self.links.push(BTreeSet::new());
        self.ask(now, self.hosts.len() - 1);
    }

    fn ask(&mut self, now: Timestamp, n: usize) {
        let links = self.links[n].len();
        let asks = request(
            self.hosts[n].clone(),
            &[(0, Leeching, u32::try_from(links).unwrap())],
        );
        let reply = self.tracker.announce(now, &asks, &no_origins).unwrap();
        let dials = 6_usize.saturating_sub(links);
        for other in reply.handouts[0].peers.iter().map(number).take(dials) {
            let other = other as usize;
            self.links[n].insert(other);
            self.links[other].insert(n);
        }
    }

    fn most_links(&self) -> usize {
        self.links.iter().map(BTreeSet::len).max().unwrap()
    }

    fn hosts_below(&self, links: usize) -> usize {
        self.links.iter().filter(|it| it.len() < links).count()
    }

    /// One piece, nobody with more links than `most`, and few with less than they dial.
    fn assert_healthy(&self, most: usize) {
        assert_eq!(self.reached(), self.hosts.len(), "the graph is in pieces");
        assert!(self.most_links() <= most, "{} links", self.most_links());
        let few = self.hosts_below(6);
        assert!(few <= 10, "{few} hosts have fewer than 6 links");
    }

    /// The share of links that stay in a zone.
    fn near_share(&self) -> f64 {
        let (mut near, mut all) = (0.0, 0.0);
        for (n, links) in self.links.iter().enumerate() {
            for other in links {
                all += 1.0;
                if self.hosts[n].zone == self.hosts[*other].zone {
                    near += 1.0;
                }
            }
        }
        near / all
    }

    /// How many hosts can be reached from the first one over links.
    fn reached(&self) -> usize {
        let (mut reached, mut next) = (BTreeSet::from([0]), vec![0]);
        while let Some(n) = next.pop() {
            let new = self.links[n].iter().filter(|other| reached.insert(**other));
            next.extend(new);
        }
        reached.len()
    }
}

const HOSTS: usize = 1000;

/// All join before anyone announces again.
fn at_once(config: TrackerConfig, seed: u64, zone: impl Fn(usize) -> Option<usize>) -> Crowd {
    let mut crowd = Crowd::new(config, seed);
    for n in 0..HOSTS {
        crowd.join(at(n as u64), zone(n));
    }
    crowd
}

/// All join, and whoever is there announces again now and then.
fn over_time(seed: u64, zone: impl Fn(usize) -> Option<usize>) -> Crowd {
    let mut crowd = Crowd::new(TrackerConfig::default(), seed);
    let mut rng = Rng::seeded(seed);
    for n in 0..HOSTS {
        let now = at(5 * n as u64);
        crowd.join(now, zone(n));
        for _ in 0..4 {
            let n = rng.below(crowd.hosts.len());
            crowd.ask(now, n);
        }
    }
    crowd
}

/// The same crowd in both ways, with three seeds each.
fn crowds(zone: impl Fn(usize) -> Option<usize>) -> impl Iterator<Item = Crowd> {
    (0..3).flat_map(move |seed| {
        let at_once = at_once(TrackerConfig::default(), seed, &zone);
        [at_once, over_time(seed, &zone)]
    })
}

#[test]
fn degrees_stay_balanced_when_a_thousand_join_before_anyone_announces_again() {
    for seed in 0..5 {
        let crowd = at_once(TrackerConfig::default(), seed, |_| None);
        // 12 on average, 16 seen.
        assert!(crowd.most_links() <= 18, "{}", crowd.most_links());
    }
}

#[test]
fn without_balance_the_first_to_come_get_most_of_the_links() {
    for seed in 0..5 {
        let config = TrackerConfig {
            balanced: false,
            ..TrackerConfig::default()
        };
        let crowd = at_once(config, seed, |_| None);
        // 12 on average here too, between 40 and 50 seen.
        assert!(crowd.most_links() > 30, "{}", crowd.most_links());
    }
}

#[test]
fn degrees_stay_balanced_while_hosts_announce_again() {
    for seed in 0..5 {
        let crowd = over_time(seed, |_| None);
        let few = crowd.hosts_below(6);
        assert!(crowd.most_links() <= 18, "{}", crowd.most_links());
        assert!(few <= 10, "{few} of 1000 have fewer than 6 links");
    }
}

#[test]
fn one_zone_for_all_is_as_balanced_as_none() {
    for crowd in crowds(|_| Some(0)) {
        crowd.assert_healthy(20);
    }
}

#[test]
fn four_of_five_links_stay_in_the_rack_and_degrees_stay_balanced() {
    let all_racks_fill_together = |n| Some(n % 25);
    let one_after_another = |n| Some(n / 40);
    for crowd in crowds(all_racks_fill_together).chain(crowds(one_after_another)) {
        // A share of 0.77 seen: the first of a rack have no choice.
        crowd.assert_healthy(23);
        let share = crowd.near_share();
        assert!((0.74..0.80).contains(&share), "{share}");
    }
}

#[test]
fn small_zones_are_meshed_and_joined_by_far_links() {
    for crowd in crowds(|n| Some(n % 250)) {
        crowd.assert_healthy(21);
        // Three neighbours are all that a zone of four has.
        let share = crowd.near_share();
        assert!((0.24..0.26).contains(&share), "{share}");
    }
}

#[test]
fn degrees_stay_balanced_however_uneven_the_zones_are() {
    let many_sizes = |n: usize| match n {
        0..10 => 10 + n,
        10..60 => 20 + n % 5,
        60..160 => 30,
        160..400 => 40,
        _ => 50,
    };
    // 619 has no common divisor with 1000: a shuffle.
    let shuffled = move |n| Some(many_sizes(n * 619 % HOSTS));
    let ascending = move |n| Some(many_sizes(n));
    let descending = move |n| Some(many_sizes(HOSTS - 1 - n));
    let all_but_25_alone = |n| Some(if n % 40 == 0 { 1 + n } else { 0 });
    let the_25_come_first = |n| Some(if n < 25 { 1 + n } else { 0 });
    let one_of_ten_elsewhere = |n| Some(usize::from(n % 10 == 0));
    let half_say_nothing = |n| (n % 2 == 0).then_some(n % 20);
    let seen = crowds(shuffled)
        .chain(crowds(ascending))
        .chain(crowds(descending))
        .chain(crowds(all_but_25_alone))
        .chain(crowds(the_25_come_first))
        .chain(crowds(one_of_ten_elsewhere))
        .chain(crowds(half_say_nothing));
    for crowd in seen {
        // 17 to 22 links seen, 25 with one of ten outside of the zone of all others. If far members
        // did not leave their turn it would be up to 190.
        crowd.assert_healthy(26);
        let share = crowd.near_share();
        assert!(share > 0.58, "{share}");
    }
}
