//! What a tracker knows, for people who look on.

use super::handout::Tracker;
use crate::blob::digest::Digest;
use crate::peer::PeerInfo;

/// A swarm as a whole, as its members announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SwarmView {
    /// The blob.
    pub digest: Digest,
    /// How many hosts take part.
    pub members: u32,
    /// How many of them have all of it.
    pub ready: u32,
    /// The sum of what each of them has, in thousandths of the blob.
    pub thousandths: u64,
}

/// A member of a swarm, as it announced.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct MemberView<'a> {
    /// Who.
    pub info: &'a PeerInfo,
    /// How much of the blob it has, in thousandths.
    pub done: u16,
    /// How many peers it is connected to for this blob.
    pub links: u32,
}

impl Tracker {
    /// All swarms, at the cost of one step for each.
    pub fn swarms(&self) -> impl Iterator<Item = SwarmView> {
        let view = |(digest, members, ready, thousandths)| SwarmView {
            digest,
            members,
            ready,
            thousandths,
        };
        self.sums().map(view)
    }

    /// One swarm; `None` when nobody takes part.
    pub fn swarm(&self, digest: &Digest) -> Option<SwarmView> {
        let (members, ready, thousandths) = self.sum(digest)?;
        Some(SwarmView {
            digest: *digest,
            members,
            ready,
            thousandths,
        })
    }

    /// The members of a swarm, in no particular order; none when nobody takes part.
    pub fn members(&self, digest: &Digest) -> impl Iterator<Item = MemberView<'_>> {
        self.each_member(digest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tracker::AnnounceState::{self, Leeching, Left, Seeding};
    use crate::tracker::handout::TrackerConfig;
    use crate::tracker::testing::{at, blob, no_origins, peer, request};
    use crate::tracker::{AnnounceBlob, Progress};

    fn announced(host: u32, number: u32, state: AnnounceState, have: u32) -> (u32, AnnounceBlob) {
        let mut request = request(peer(host), &[(number, state, 3)]);
        let mut blob = request.blobs.remove(0);
        blob.progress = Some(Progress { have, of: 8 });
        (host, blob)
    }

    proptest! {
        #[test]
        fn the_sums_of_a_swarm_are_those_of_its_members(
            steps in proptest::collection::vec((0_u32..12, 0_u32..3, 0_u8..3, 0_u32..=8, 0_u64..40_000), 1..80)
        ) {
            let config = TrackerConfig { max_swarm_peers: 6, max_peers: 10, ..TrackerConfig::default() };
            let mut tracker = Tracker::new(config, 1);
            let mut now = 0;
            for (host, number, state, have, wait) in steps {
                now += wait;
                let state = [Leeching, Seeding, Left][usize::from(state)];
                let (host, blob) = announced(host, number, state, have);
                let mut request = request(peer(host), &[]);
                request.blobs.push(blob);
                tracker.announce(at(now), &request, &no_origins).unwrap();
                for view in tracker.swarms() {
                    let members: Vec<_> = tracker.members(&view.digest).collect();
                    prop_assert_eq!(view.members as usize, members.len());
                    prop_assert_eq!(view.ready as usize, members.iter().filter(|it| it.done == 1000).count());
                    prop_assert_eq!(view.thousandths, members.iter().map(|it| u64::from(it.done)).sum::<u64>());
                    prop_assert_eq!(tracker.swarm(&view.digest), Some(view));
                }
            }
        }
    }

    #[test]
    fn a_swarm_that_nobody_is_in_is_none() {
        let mut tracker = Tracker::new(TrackerConfig::default(), 1);
        assert_eq!(tracker.swarm(&blob(0)), None);
        let asks = request(peer(1), &[(0, Seeding, 2)]);
        tracker.announce(at(0), &asks, &no_origins).unwrap();
        let members: Vec<_> = tracker.members(&blob(0)).collect();
        assert_eq!((members[0].done, members[0].links), (1000, 2));
        assert_eq!(members[0].info, &peer(1));
        assert_eq!(tracker.members(&blob(1)).count(), 0);
    }
}
