//! What holds of the tracker's machine whatever comes in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::AnnounceRequest;
use super::AnnounceState::{self, Leeching, Left, Seeding};
use super::handout::{Tracker, TrackerConfig};
use super::testing::{at, blob, no_origins, number, peer, request, zoned};
use crate::time::Timestamp;

#[derive(Debug, Clone, Copy)]
enum Step {
    Announce {
        n: u32,
        blob: u32,
        state: AnnounceState,
        links: u32,
        zone: Option<u8>,
        needy: bool,
    },
    Wait(u64),
    Timeout,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let state = prop_oneof![3 => Just(Leeching), 1 => Just(Seeding), 1 => Just(Left)];
    let who = (0_u32..30, prop::option::of(0_u8..4));
    let what = (0_u32..3, state, 0_u32..20, any::<bool>());
    let announce =
        (who, what).prop_map(|((n, zone), (blob, state, links, needy))| Step::Announce {
            n,
            blob,
            state,
            links,
            zone,
            needy,
        });
    let step = prop_oneof![
        8 => announce,
        1 => (0_u64..20_000).prop_map(Step::Wait),
        1 => Just(Step::Timeout),
    ];
    prop::collection::vec(step, 1..200)
}

fn announce(
    n: u32,
    zone: Option<u8>,
    blob: (u32, AnnounceState, u32),
    needy: bool,
) -> AnnounceRequest {
    let host = zone.map_or_else(|| peer(n), |zone| zoned(n, &format!("z{zone}")));
    let mut request = request(host, &[blob]);
    request.blobs[0].needy = needy;
    request
}

/// What the tracker should know: who is in which swarm, and until when.
#[derive(Default)]
struct Model(BTreeMap<(u32, u32), u64>);

impl Model {
    fn apply(&mut self, now: u64, n: u32, blob: u32, state: AnnounceState) {
        self.0.retain(|_, expires| *expires > now);
        match state {
            Left => self.0.remove(&(blob, n)),
            Leeching => self.0.insert((blob, n), now + 30_000),
            Seeding => self.0.insert((blob, n), now + 90_000),
        };
    }
}

proptest! {
    #[test]
    fn only_members_that_are_alive_are_handed_out_and_nobody_to_himself(steps in steps(), seed in any::<u64>()) {
        let mut tracker = Tracker::new(TrackerConfig::default(), seed);
        let mut model = Model::default();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Wait(millis) => now += millis,
                Step::Timeout => tracker.handle_timeout(at(now)),
                Step::Announce { n, blob: which, state, links, zone, needy } => {
                    let asks = announce(n, zone, (which, state, links), needy);
                    let reply = tracker.announce(at(now), &asks, &no_origins).unwrap();
                    model.apply(now, n, which, state);
                    let peers: Vec<_> = reply.handouts.iter().flat_map(|it| &it.peers).map(number).collect();
                    prop_assert!(peers.len() <= 12);
                    prop_assert_eq!(peers.iter().collect::<BTreeSet<_>>().len(), peers.len());
                    prop_assert!(peers.iter().all(|other| *other != n && model.0.contains_key(&(which, *other))));
                    prop_assert_eq!(tracker.stats().peers, model.0.len());
                    let next = model.0.values().min().map(|millis| at(*millis));
                    prop_assert_eq!(tracker.poll_timeout(), next);
                }
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_answers(steps in steps(), seed in any::<u64>()) {
        let run = || {
            let mut tracker = Tracker::new(TrackerConfig::default(), seed);
            let mut now = Timestamp::ZERO;
            let mut replies = Vec::new();
            for step in &steps {
                match *step {
                    Step::Wait(millis) => now = now + Duration::from_millis(millis),
                    Step::Timeout => tracker.handle_timeout(now),
                    Step::Announce { n, blob, state, links, zone, needy } => {
                        let asks = announce(n, zone, (blob, state, links), needy);
                        replies.push(tracker.announce(now, &asks, &no_origins));
                    }
                }
            }
            replies
        };
        prop_assert_eq!(run(), run());
    }

    #[test]
    fn the_bounds_hold_whatever_comes(steps in steps(), swarms in 1_usize..4, each in 1_usize..8, all in 1_usize..12) {
        let mut config = TrackerConfig::default();
        (config.max_swarms, config.max_swarm_peers, config.max_peers) = (swarms, each, all);
        let mut tracker = Tracker::new(config, 0);
        for step in steps {
            if let Step::Announce { n, blob: which, state, links, zone, needy } = step {
                let asks = announce(n, zone, (which, state, links), needy);
                tracker.announce(at(0), &asks, &no_origins).unwrap();
                let stats = tracker.stats();
                prop_assert!(stats.swarms <= swarms && stats.peers <= all.max(each), "{:?}", stats);
                prop_assert!(tracker.swarm_size(&blob(which)) <= each);
                let sizes: usize = (0..3).map(|n| tracker.swarm_size(&blob(n))).sum();
                prop_assert_eq!(sizes, stats.peers);
            }
        }
    }
}
