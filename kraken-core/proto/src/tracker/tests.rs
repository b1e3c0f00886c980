//! The tracker's machine as its callers see it.

use std::collections::{BTreeMap, BTreeSet};

use super::AnnounceState::{self, Leeching, Left, Seeding};
use super::handout::{AnnounceError, Tracker, TrackerConfig};
use super::testing::{at, blob, no_origins, number, origin, peer, request};
use super::{AnnounceReply, AnnounceRequest};
use crate::blob::digest::Digest;
use crate::rng::Rng;
use crate::time::Timestamp;

fn tracker() -> Tracker {
    Tracker::new(TrackerConfig::default(), 7)
}

/// One host announces blob 0.
fn announce(
    tracker: &mut Tracker,
    now: Timestamp,
    n: u32,
    state: AnnounceState,
    links: u32,
) -> AnnounceReply {
    tracker
        .announce(now, &request(peer(n), &[(0, state, links)]), &no_origins)
        .unwrap()
}

fn handed(reply: &AnnounceReply) -> Vec<u32> {
    reply.handouts[0].peers.iter().map(number).collect()
}

#[test]
fn a_leecher_gets_leechers_and_seeders_and_a_seeder_gets_nothing() {
    let mut tracker = tracker();
    assert!(
        announce(&mut tracker, at(0), 1, Seeding, 0)
            .handouts
            .is_empty()
    );
    assert_eq!(handed(&announce(&mut tracker, at(0), 2, Leeching, 0)), [1]);
    let mut third = handed(&announce(&mut tracker, at(0), 3, Leeching, 0));
    third.sort_unstable();
    assert_eq!(third, [1, 2]);
    assert_eq!(tracker.swarm_size(&blob(0)), 3);
}

#[test]
fn handouts_come_per_leeching_blob_in_the_order_of_the_request() {
    let mut tracker = tracker();
    let blobs = [
        (5, Leeching, 0),
        (1, Seeding, 0),
        (9, Left, 0),
        (3, Leeching, 0),
    ];
    let reply = tracker.announce(at(0), &request(peer(1), &blobs), &no_origins);
    let order: Vec<_> = reply.unwrap().handouts.iter().map(|it| it.digest).collect();
    assert_eq!(order, [blob(5), blob(3)]);
    assert_eq!((tracker.stats().swarms, tracker.stats().peers), (3, 3));
}

#[test]
fn owning_origins_come_last_and_take_turns_in_front() {
    let mut tracker = tracker();
    announce(&mut tracker, at(0), 1, Seeding, 0);
    let owners = |_: &Digest| (0..3).map(origin).collect::<Vec<_>>();
    let mut first = BTreeMap::new();
    for _ in 0..300 {
        let asks = request(peer(2), &[(0, Leeching, 0)]);
        let peers = tracker
            .announce(at(0), &asks, &owners)
            .unwrap()
            .handouts
            .remove(0)
            .peers;
        assert_eq!(peers.len(), 4);
        assert_eq!(peers[0], peer(1));
        *first.entry(number(&peers[1])).or_insert(0) += 1;
        assert_eq!(peers[1..].iter().collect::<BTreeSet<_>>().len(), 3);
    }
    // 100 expected each; five standard deviations are 41.
    assert!(
        first.len() == 3 && first.values().all(|n| *n > 59),
        "{first:?}"
    );
}

#[test]
fn a_host_with_enough_links_gets_origins_only() {
    let mut tracker = tracker();
    announce(&mut tracker, at(0), 1, Seeding, 0);
    let asks = request(peer(2), &[(0, Leeching, 12)]);
    let reply = tracker
        .announce(at(0), &asks, &|_| vec![origin(0)])
        .unwrap();
    assert_eq!(reply.handouts[0].peers, [origin(0)]);
}

#[test]
fn an_origin_is_no_member_and_is_not_handed_itself() {
    let mut tracker = tracker();
    announce(&mut tracker, at(0), 1, Seeding, 0);
    let owners = |_: &Digest| vec![origin(0), origin(1)];
    let asks = request(origin(0), &[(0, Leeching, 0)]);
    let reply = tracker.announce(at(0), &asks, &owners).unwrap();
    assert_eq!(reply.handouts[0].peers, [peer(1), origin(1)]);
    assert_eq!(tracker.stats().peers, 1);
}

#[test]
fn who_leaves_is_gone_at_once() {
    let mut tracker = tracker();
    announce(&mut tracker, at(0), 1, Leeching, 0);
    announce(&mut tracker, at(0), 1, Left, 0);
    assert!(handed(&announce(&mut tracker, at(0), 2, Leeching, 0)).is_empty());
    // To leave what one never joined makes no swarm.
    tracker
        .announce(at(0), &request(peer(3), &[(8, Left, 0)]), &no_origins)
        .unwrap();
    assert_eq!(tracker.stats().swarms, 1);
}

#[test]
fn who_falls_silent_for_three_intervals_is_forgotten() {
    let mut tracker = tracker();
    announce(&mut tracker, at(0), 1, Leeching, 0);
    announce(&mut tracker, at(0), 2, Seeding, 0);
    assert_eq!(tracker.poll_timeout(), Some(at(30_000)));
    tracker.handle_timeout(at(29_999));
    assert_eq!(tracker.stats().peers, 2);
    // An announce alone is enough: the caller may be late with the timeout.
    assert_eq!(
        handed(&announce(&mut tracker, at(30_000), 3, Leeching, 0)),
        [2]
    );
    announce(&mut tracker, at(30_000), 3, Left, 0);
    assert_eq!(tracker.poll_timeout(), Some(at(90_000)));
    tracker.handle_timeout(at(90_000));
    assert_eq!(tracker.poll_timeout(), None);
    let stats = tracker.stats();
    assert_eq!((stats.swarms, stats.peers, stats.expired), (0, 0, 2));
}

#[test]
fn the_interval_grows_with_the_links_that_are_possible() {
    let mut tracker = tracker();
    let interval = |reply: AnnounceReply| reply.interval_ms;
    assert_eq!(
        interval(announce(&mut tracker, at(0), 1, Leeching, 0)),
        1000
    );
    assert_eq!(
        interval(announce(&mut tracker, at(0), 2, Leeching, 0)),
        1000
    );
    assert_eq!(
        interval(announce(&mut tracker, at(0), 2, Leeching, 1)),
        10_000
    );
    assert_eq!(
        interval(announce(&mut tracker, at(0), 2, Seeding, 1)),
        30_000
    );
    for n in 3..30 {
        announce(&mut tracker, at(0), n, Leeching, 0);
    }
    assert_eq!(
        interval(announce(&mut tracker, at(0), 2, Leeching, 6)),
        5500
    );
    assert_eq!(
        interval(announce(&mut tracker, at(0), 2, Leeching, 40)),
        10_000
    );
    // The neediest blob counts.
    let blobs = [(0, Seeding, 0), (0, Leeching, 12), (0, Leeching, 4)];
    let reply = tracker.announce(at(0), &request(peer(2), &blobs), &no_origins);
    assert_eq!(interval(reply.unwrap()), 4000);
}

#[test]
fn an_announce_of_too_many_blobs_changes_nothing() {
    let mut tracker = tracker();
    let blobs: Vec<_> = (0..257).map(|n| (n, Seeding, 0)).collect();
    let most = AnnounceRequest::MAX_BLOBS;
    let ask = |blobs: &[_]| request(peer(1), blobs);
    assert_eq!(
        tracker.announce(at(0), &ask(&blobs), &no_origins),
        Err(AnnounceError::TooManyBlobs(257))
    );
    assert_eq!(tracker.stats().peers, 0);
    assert!(
        tracker
            .announce(at(0), &ask(&blobs[..most]), &no_origins)
            .is_ok()
    );
    assert_eq!(tracker.stats().peers, 256);
}

#[test]
fn memory_is_bounded_and_the_oldest_goes_first() {
    let mut config = TrackerConfig::default();
    (config.max_swarms, config.max_swarm_peers, config.max_peers) = (3, 4, 6);
    let mut tracker = Tracker::new(config, 0);
    let mut join = |millis, n, swarm| {
        let blobs = [(swarm, Leeching, 0)];
        tracker
            .announce(at(millis), &request(peer(n), &blobs), &no_origins)
            .unwrap();
        let stats = tracker.stats();
        assert!(stats.swarms <= 3 && stats.peers <= 6, "{stats:?}");
        (0..9)
            .map(|n| tracker.swarm_size(&blob(n)))
            .collect::<Vec<_>>()
    };
    for n in 0..4 {
        join(u64::from(n), n, 0);
    }
    assert_eq!(join(10, 4, 0)[0], 4, "a full swarm stays as large as it is");
    assert_eq!(join(11, 1, 0)[0], 4, "who is in needs no room");
    join(20, 1, 1);
    assert_eq!(join(21, 1, 2)[..4], [4, 1, 1, 0]);
    assert_eq!(
        join(22, 1, 3)[..4],
        [0, 1, 1, 1],
        "swarm 0 was the oldest of four"
    );
    for n in 2..7 {
        join(30, n, 3);
    }
    let sizes = join(40, 9, 2);
    assert_eq!(sizes[..4], [0, 0, 2, 4], "seven members are one too many");
}

#[test]
fn silence_is_measured_from_the_last_announce() {
    let config = TrackerConfig {
        max_swarm_peers: 2,
        ..TrackerConfig::default()
    };
    let mut tracker = Tracker::new(config, 0);
    announce(&mut tracker, at(0), 1, Leeching, 0);
    announce(&mut tracker, at(1), 2, Leeching, 0);
    announce(&mut tracker, at(2), 1, Leeching, 0);
    announce(&mut tracker, at(3), 3, Leeching, 0);
    let mut left = handed(&announce(&mut tracker, at(4), 1, Leeching, 0));
    left.sort_unstable();
    assert_eq!(left, [3]);
}

/// A crowd of hosts that dial half of the degree, as agents do, and accept whoever dials them.
struct Crowd {
    links: Vec<BTreeSet<u32>>,
    tracker: Tracker,
}

impl Crowd {
    fn new(seed: u64) -> Self {
        Self {
            links: Vec::new(),
            tracker: Tracker::new(TrackerConfig::default(), seed),
        }
    }

    fn join(&mut self, now: Timestamp) {
        self.links.push(BTreeSet::new());
        self.ask(now, u32::try_from(self.links.len() - 1).unwrap());
    }

    fn ask(&mut self, now: Timestamp, n: u32) {
        let links = self.links[n as usize].len();
        let reply = announce(
            &mut self.tracker,
            now,
            n,
            Leeching,
            u32::try_from(links).unwrap(),
        );
        for other in handed(&reply)
            .into_iter()
            .take(6_usize.saturating_sub(links))
        {
            self.links[n as usize].insert(other);
            self.links[other as usize].insert(n);
        }
    }

    fn most_links(&self) -> usize {
        self.links.iter().map(BTreeSet::len).max().unwrap()
    }
}

#[test]
fn degrees_stay_balanced_when_a_thousand_join_before_anyone_announces_again() {
    for seed in 0..5 {
        let mut crowd = Crowd::new(seed);
        for n in 0..1000 {
            crowd.join(at(n));
        }
        // 12 on average, 16 seen. With members handed out at random the most is above 40.
        assert!(crowd.most_links() <= 18, "{}", crowd.most_links());
    }
}

#[test]
fn degrees_stay_balanced_while_hosts_announce_again() {
    for seed in 0..5 {
        let mut crowd = Crowd::new(seed);
        let mut rng = Rng::seeded(seed);
        for joined in 0..1000 {
            crowd.join(at(5 * joined));
            for _ in 0..4 {
                let n = u32::try_from(rng.below(crowd.links.len())).unwrap();
                crowd.ask(at(5 * joined), n);
            }
        }
        let few = crowd.links.iter().filter(|links| links.len() < 6).count();
        assert!(crowd.most_links() <= 18, "{}", crowd.most_links());
        assert!(few <= 10, "{few} of 1000 have fewer than 6 links");
    }
}
