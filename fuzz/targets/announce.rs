//! Announces to a tracker, as JSON, one in each line. It hands out only agents that have announced
//! that blob, never the asker itself, and its answers can be read.

#![no_main]

use std::time::Duration;

use kraken_proto::tracker::handout::{Tracker, TrackerConfig};
use kraken_proto::{AnnounceReply, AnnounceRequest, Timestamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut tracker = Tracker::new(TrackerConfig::default(), 1);
    let mut now = Timestamp::ZERO;
    for line in bytes.split(|byte| *byte == b'\n').take(64) {
        now = now + Duration::from_secs(1);
        let Ok(request) = serde_json::from_slice::<AnnounceRequest>(line) else {
            continue;
        };
        let Ok(reply) = tracker.announce(now, &request, &|_| Vec::new()) else {
            continue;
        };
        for handout in &reply.handouts {
            assert!(handout.peers.iter().all(|peer| peer.id != request.peer.id));
            assert!(handout.peers.len() <= tracker.swarm_size(&handout.digest));
        }
        let told = serde_json::to_vec(&reply).expect("it can be told");
        let read: AnnounceReply = serde_json::from_slice(&told).expect("and read");
        assert_eq!(read, reply);
    }
});
