//! The members of one blob's swarm, as the tracker knows them.
//!
//! Members lie in a vector without gaps, so that drawing some at random costs what is drawn and
//! not what is there; a map finds a member's place by its identity, and an ordered set finds the
//! lease that ends first. Invariant: the three hold the same members.
//!
//! With `n` members and a sample of `s`, joining, renewing, leaving and expiring cost O(log n),
//! and choosing peers costs O(s log s).

use std::collections::{BTreeMap, BTreeSet};

use crate::peer::{PeerId, PeerInfo};
use crate::rng::Rng;
use crate::time::Timestamp;

/// The members of one swarm.
#[derive(Debug, Default)]
pub(super) struct Swarm {
    members: Vec<Member>,
    places: BTreeMap<PeerId, usize>,
    leases: BTreeSet<(Timestamp, PeerId)>,
}

impl Swarm {
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn contains(&self, id: &PeerId) -> bool {
        self.places.contains_key(id)
    }

    /// When the first lease ends.
    pub(super) fn next_expiry(&self) -> Option<Timestamp> {
        self.leases.first().map(|(expires, _)| *expires)
    }

    /// Adds a member or renews its lease, and notes how many links it says it has.
    pub(super) fn announce(&mut self, info: &PeerInfo, links: u32, expires: Timestamp) {
        if let Some(&place) = self.places.get(&info.id) {
            let member = &mut self.members[place];
            self.leases.remove(&(member.expires, info.id));
            member.info.clone_from(info);
            member.expires = expires;
            member.load.announced(links);
        } else {
            self.places.insert(info.id, self.members.len());
            self.members.push(Member {
                info: info.clone(),
                expires,
                load: Load { links, pending: 0 },
            });
        }
        self.leases.insert((expires, info.id));
    }

    /// Takes a member out and says whether it was in.
    pub(super) fn remove(&mut self, id: &PeerId) -> bool {
        let Some(place) = self.places.remove(id) else {
            return false;
        };
        let gone = self.members.swap_remove(place);
        self.leases.remove(&(gone.expires, gone.info.id));
        if let Some(moved) = self.members.get(place) {
            self.places.insert(moved.info.id, place);
        }
        true
    }

    /// Takes out the members whose lease has ended and says how many.
    pub(super) fn expire(&mut self, now: Timestamp) -> usize {
        let before = self.len();
        while self.next_expiry().is_some_and(|expires| expires <= now) {
            self.remove_first_to_expire();
        }
        before - self.len()
    }

    /// Takes out the member whose lease would end first.
    pub(super) fn remove_first_to_expire(&mut self) {
        if let Some(&(_, id)) = self.leases.first() {
            self.remove(&id);
        }
    }

    /// Chooses up to `want` members other than `asker`: of `sample` drawn at random, those with
    /// the fewest links, in that order, ties at random. They count as handed out.
    pub(super) fn choose(
        &mut self,
        asker: &PeerId,
        want: usize,
        sample: usize,
        rng: &mut Rng,
    ) -> Vec<PeerInfo> {
        let mut drawn = draw(self.len(), sample, rng);
        drawn.retain(|place| self.members[*place].info.id != *asker);
        rng.shuffle(&mut drawn);
        drawn.sort_by_key(|place| self.members[*place].load.expected());
        drawn.truncate(want);
        let mut chosen = Vec::with_capacity(drawn.len());
        for place in drawn {
            let member = &mut self.members[place];
            member.load.handed_out();
            chosen.push(member.info.clone());
        }
        chosen
    }
}

#[derive(Debug)]
struct Member {
    info: PeerInfo,
    expires: Timestamp,
    load: Load,
}

/// How many links a member has, as far as one can know between two of its announces.
#[derive(Debug, Default)]
struct Load {
    /// What it announced.
    links: u32,
    /// Handed out to others since, and perhaps not among its links yet.
    pending: u32,
}

impl Load {
    fn expected(&self) -> u32 {
        self.links.saturating_add(self.pending)
    }

    fn handed_out(&mut self) {
        self.pending = self.pending.saturating_add(1);
    }

    /// What has become a link since the last announce is no longer pending. Of the rest some is
    /// on its way and some was never dialled, so half of it is forgotten each time: the error
    /// dies out. A member that died never announces, so what it was handed out for stays and it
    /// sinks in the order.
    fn announced(&mut self, links: u32) {
        let gained = links.saturating_sub(self.links);
        self.pending = self.pending.saturating_sub(gained) / 2;
        self.links = links;
    }
}

/// `count` different numbers below `len`, or all of them when there are fewer, every such set
/// equally likely (Floyd's algorithm; Bentley, "Programming Pearls: a sample of brilliance",
/// CACM 30(9), 1987).
fn draw(len: usize, count: usize, rng: &mut Rng) -> Vec<usize> {
    let mut drawn = Vec::with_capacity(count.min(len));
    let mut seen = BTreeSet::new();
    for last in len.saturating_sub(count)..len {
        let candidate = rng.below(last + 1);
        let new = if seen.insert(candidate) {
            candidate
        } else {
            seen.insert(last);
            last
        };
        drawn.push(new);
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::testing::peer;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    fn swarm(members: u32) -> Swarm {
        let mut swarm = Swarm::default();
        for n in 0..members {
            swarm.announce(&peer(n), 0, at(10));
        }
        swarm
    }

    fn check(swarm: &Swarm) {
        assert_eq!(swarm.members.len(), swarm.places.len());
        assert_eq!(swarm.members.len(), swarm.leases.len());
        for (place, member) in swarm.members.iter().enumerate() {
            assert_eq!(swarm.places.get(&member.info.id), Some(&place));
            assert!(swarm.leases.contains(&(member.expires, member.info.id)));
        }
    }

    #[test]
    fn joining_leaving_and_expiring_keep_the_three_views_equal() {
        let mut swarm = swarm(20);
        for n in [19, 0, 7, 7, 100] {
            swarm.remove(&peer(n).id);
            check(&swarm);
        }
        assert_eq!(swarm.len(), 17);
        swarm.announce(&peer(3), 5, at(20));
        check(&swarm);
        assert_eq!(swarm.next_expiry(), Some(at(10)));
        assert_eq!(swarm.expire(at(9)), 0);
        assert_eq!(swarm.expire(at(10)), 16);
        check(&swarm);
        assert!(swarm.contains(&peer(3).id));
        swarm.remove_first_to_expire();
        assert_eq!(swarm.len(), 0);
        check(&swarm);
    }

    #[test]
    fn a_new_address_replaces_the_old_one() {
        let mut swarm = swarm(1);
        let mut moved = peer(0);
        moved.addr.set_port(9);
        swarm.announce(&moved, 0, at(10));
        let chosen = swarm.choose(&peer(1).id, 5, 64, &mut Rng::seeded(0));
        assert_eq!(chosen, [moved]);
    }

    #[test]
    fn the_least_linked_come_first_and_then_wait_for_their_turn() {
        let mut rng = Rng::seeded(2);
        let mut swarm = Swarm::default();
        for n in 0..6 {
            swarm.announce(&peer(n), n, at(10));
        }
        let mut choose = |swarm: &mut Swarm| swarm.choose(&peer(9).id, 2, 64, &mut rng);
        assert_eq!(choose(&mut swarm), [peer(0), peer(1)]);
        // Loads are now 1, 2, 2, 3, 4, 5: the first is followed by one of the two equals.
        let second = choose(&mut swarm);
        assert_eq!(second[0], peer(0));
        assert!(second[1] == peer(1) || second[1] == peer(2), "{second:?}");
    }

    #[test]
    fn what_became_a_link_is_not_counted_twice() {
        let mut load = Load {
            links: 2,
            pending: 6,
        };
        load.announced(6);
        assert_eq!(load.expected(), 6 + 1);
        load.announced(6);
        assert_eq!(load.expected(), 6);
        load.announced(1);
        assert_eq!(load.expected(), 1);
        load.announced(u32::MAX);
        load.handed_out();
        assert_eq!(load.expected(), u32::MAX);
    }

    #[test]
    fn every_member_is_drawn_equally_often() {
        let mut rng = Rng::seeded(3);
        let mut hits = [0; 100];
        for _ in 0..10_000 {
            let drawn = draw(100, 10, &mut rng);
            let unique: BTreeSet<_> = drawn.iter().collect();
            assert_eq!(unique.len(), 10);
            drawn.iter().for_each(|place| hits[*place] += 1);
        }
        // 1000 expected each; five standard deviations are 150.
        assert!(hits.iter().all(|n| (850..1150).contains(n)), "{hits:?}");
        assert_eq!(draw(3, 10, &mut rng).len(), 3);
        assert!(draw(0, 10, &mut rng).is_empty() && draw(9, 0, &mut rng).is_empty());
    }
}
