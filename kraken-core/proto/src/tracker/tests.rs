//! The tracker's machine as its callers see it.

use std::collections::{BTreeMap, BTreeSet};

use super::AnnounceState::{self, Leeching, Left, Seeding};
use super::handout::{AnnounceError, Tracker, TrackerConfig};
use super::testing::{at, blob, no_origins, number, origin, peer, request, zoned};
use super::{AnnounceReply, AnnounceRequest, Progress};
use crate::blob::digest::Digest;
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
fn a_needy_host_with_enough_links_gets_those_who_have_most() {
    let config = TrackerConfig {
        sample: 64,
        ..TrackerConfig::default()
    };
    let mut tracker = Tracker::new(config, 7);
    for n in 0..30 {
        let mut says = request(peer(n), &[(0, Leeching, 3)]);
        says.blobs[0].progress = Some(Progress { have: n, of: 30 });
        if n == 4 {
            says.blobs[0].state = Seeding;
        }
        tracker.announce(at(0), &says, &no_origins).unwrap();
    }
    let mut asks = request(peer(99), &[(0, Leeching, 12)]);
    asks.blobs[0].needy = true;
    let reply = tracker.announce(at(0), &asks, &no_origins).unwrap();
    assert_eq!(handed(&reply), [4, 29, 28, 27, 26, 25]);
    asks.blobs[0].links = 1;
    let reply = tracker.announce(at(0), &asks, &no_origins).unwrap();
    assert_eq!(handed(&reply).len(), 11, "as many as it lacks");
}

#[test]
fn the_first_peers_of_a_handout_are_near_and_far_by_turns() {
    let mut tracker = tracker();
    for n in 0..60 {
        let host = zoned(n, if n < 20 { "a" } else { "b" });
        let says = request(host, &[(0, Leeching, 0)]);
        tracker.announce(at(0), &says, &no_origins).unwrap();
    }
    for _ in 0..20 {
        let asks = request(zoned(99, "a"), &[(0, Leeching, 0)]);
        let reply = tracker.announce(at(0), &asks, &no_origins).unwrap();
        let peers = handed(&reply);
        let near: Vec<_> = peers.iter().map(|n| *n < 20 || *n == 99).collect();
        assert_eq!(near[..6], [true, true, false, true, true, true]);
        assert_eq!(near.iter().filter(|near| **near).count(), 10);
    }
}

#[test]
fn a_tracker_may_ignore_zones() {
    let config = TrackerConfig {
        near_share: 0.0,
        ..TrackerConfig::default()
    };
    let answers = |zone: Option<&str>| {
        let mut tracker = Tracker::new(config.clone(), 3);
        let ask = |n| {
            let host = zone.map_or_else(|| peer(n), |zone| zoned(n, zone));
            let reply = tracker.announce(at(0), &request(host, &[(0, Leeching, 0)]), &no_origins);
            handed(&reply.unwrap())
        };
        (0..100).map(ask).collect::<Vec<_>>()
    };
    assert_eq!(answers(Some("a")), answers(None));
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
fn an_announce_may_leave_out_what_came_to_the_format_later() {
    let whole = request(peer(1), &[(0, Leeching, 3)]);
    let json = serde_json::to_string(&whole).unwrap();
    for later in ["zone", "progress", "needy"] {
        assert!(!json.contains(later), "{json}");
    }
    assert_eq!(
        serde_json::from_str::<AnnounceRequest>(&json).unwrap(),
        whole
    );
    let told = json.replace(
        r#""links":3"#,
        r#""links":3,"progress":{"have":7,"of":9},"needy":true"#,
    );
    let told: AnnounceRequest = serde_json::from_str(&told).unwrap();
    assert_eq!(told.blobs[0].progress, Some(Progress { have: 7, of: 9 }));
    assert!(told.blobs[0].needy);
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
