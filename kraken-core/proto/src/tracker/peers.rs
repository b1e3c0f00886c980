//! The members of one blob's swarm, as the tracker knows them.
//!
//! Members lie in a vector without gaps, so that drawing some at random costs what is drawn and
//! not what is there; a map finds a member's place by its host, an ordered set finds the
//! lease that ends first, and an index by zone finds who is near. Invariant: the first three hold
//! the same members, the last those that have a zone.
//!
//! With `n` members and a sample of `s`, joining, renewing, leaving and expiring cost O(log n),
//! and choosing peers costs O(s log s).

use std::collections::{BTreeMap, BTreeSet};

use super::choice::{Candidate, Wish};
use super::hosts::{HostId, Hosts};
use super::view::MemberView;
use super::zones::Zones;
use super::{AnnounceBlob, AnnounceState};
use crate::peer::{PeerId, PeerInfo};
use crate::rng::Rng;
use crate::time::Timestamp;
use crate::zone::Zone;

/// The members of one swarm.
#[derive(Debug, Default)]
pub(super) struct Swarm {
    members: Vec<Member>,
    places: BTreeMap<HostId, u32>,
    leases: BTreeSet<(Timestamp, HostId)>,
    zones: Zones,
    done: Done,
}

/// How far the members are together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Done {
    /// How many have all of the blob.
    ready: u32,
    thousandths: u64,
}

impl Done {
    fn enter(&mut self, done: u16) {
        self.ready += u32::from(done == 1000);
        self.thousandths += u64::from(done);
    }

    fn leave(&mut self, done: u16) {
        self.ready -= u32::from(done == 1000);
        self.thousandths -= u64::from(done);
    }
}

impl Swarm {
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// How many members there are, how many of them have all of the blob, and the sum of what each has in
    /// thousandths.
    pub(super) fn sums(&self) -> (u32, u32, u64) {
        let members = u32::try_from(self.members.len()).unwrap_or(u32::MAX);
        (members, self.done.ready, self.done.thousandths)
    }

    pub(super) fn views<'a>(&'a self, hosts: &'a Hosts) -> impl Iterator<Item = MemberView<'a>> {
        self.members.iter().map(|member| MemberView {
            info: hosts.info(member.host),
            done: member.done,
            links: member.load.links,
        })
    }

    pub(super) fn contains(&self, hosts: &Hosts, id: &PeerId) -> bool {
        let host = hosts.find(id);
        host.is_some_and(|host| self.places.contains_key(&host))
    }

    /// When the first lease ends.
    pub(super) fn next_expiry(&self) -> Option<Timestamp> {
        self.leases.first().map(|(expires, _)| *expires)
    }

    /// Adds a member or renews its lease, and notes what it says of itself.
    pub(super) fn announce(
        &mut self,
        hosts: &mut Hosts,
        info: &PeerInfo,
        blob: &AnnounceBlob,
        expires: Timestamp,
    ) {
        let known = hosts.find(&info.id);
        let place = known.and_then(|host| self.places.get(&host).copied());
        let host = match (known, place) {
            (Some(host), Some(place)) => {
                hosts.heard(host, info);
                self.renew(place, info.zone.as_ref(), blob, expires);
                host
            }
            _ => {
                let host = hosts.join(info);
                let place = u32::try_from(self.members.len()).expect("bounded by the config");
                self.places.insert(host, place);
                self.done.enter(thousandths(blob));
                self.members.push(Member {
                    host,
                    zone: info.zone.clone(),
                    expires,
                    seat: self.zones.enter(info.zone.as_ref(), place),
                    load: Load {
                        links: blob.links,
                        pending: 0,
                    },
                    done: thousandths(blob),
                });
                host
            }
        };
        self.leases.insert((expires, host));
    }

    fn renew(&mut self, place: u32, zone: Option<&Zone>, blob: &AnnounceBlob, expires: Timestamp) {
        let member = &mut self.members[place as usize];
        self.leases.remove(&(member.expires, member.host));
        member.expires = expires;
        member.load.announced(blob.links);
        self.done.leave(member.done);
        member.done = thousandths(blob);
        self.done.enter(member.done);
        if member.zone.as_ref() != zone {
            let seat = member.seat;
            let before = std::mem::replace(&mut member.zone, zone.cloned());
            self.leave_zone(before.as_ref(), seat);
            self.members[place as usize].seat = self.zones.enter(zone, place);
        }
    }

    /// Takes a member out and says whether it was in.
    pub(super) fn remove(&mut self, hosts: &mut Hosts, id: &PeerId) -> bool {
        let host = hosts.find(id);
        host.is_some_and(|host| self.remove_host(hosts, host))
    }

    fn remove_host(&mut self, hosts: &mut Hosts, host: HostId) -> bool {
        let Some(place) = self.places.remove(&host) else {
            return false;
        };
        let gone = &self.members[place as usize];
        self.leases.remove(&(gone.expires, host));
        self.done.leave(gone.done);
        let (zone, seat) = (gone.zone.clone(), gone.seat);
        self.leave_zone(zone.as_ref(), seat);
        self.members.swap_remove(place as usize);
        if let Some(moved) = self.members.get(place as usize) {
            self.places.insert(moved.host, place);
            self.zones.moved(moved.zone.as_ref(), moved.seat, place);
        }
        // What a large swarm took is not kept by a small one.
        if self.members.len() < self.members.capacity() / 4 {
            self.members.shrink_to(self.members.len() * 2);
        }
        hosts.leave(host);
        true
    }

    fn leave_zone(&mut self, zone: Option<&Zone>, seat: u32) {
        if let Some(moved) = self.zones.leave(zone, seat) {
            self.members[moved as usize].seat = seat;
        }
    }

    /// Takes out the members whose lease has ended and says how many.
    pub(super) fn expire(&mut self, hosts: &mut Hosts, now: Timestamp) -> usize {
        let before = self.len();
        while self.next_expiry().is_some_and(|expires| expires <= now) {
            self.remove_first_to_expire(hosts);
        }
        before - self.len()
    }

    /// Takes out the member whose lease would end first.
    pub(super) fn remove_first_to_expire(&mut self, hosts: &mut Hosts) {
        if let Some(&(_, host)) = self.leases.first() {
            self.remove_host(hosts, host);
        }
    }

    /// Takes out all members, and says how many.
    pub(super) fn clear(&mut self, hosts: &mut Hosts) -> usize {
        let gone = std::mem::take(self);
        gone.members
            .iter()
            .for_each(|member| hosts.leave(member.host));
        gone.members.len()
    }

    /// Chooses members other than `asker` of those drawn at random, see [`Wish::choose`]. They
    /// count as handed out.
    pub(super) fn choose(
        &mut self,
        hosts: &Hosts,
        asker: &PeerInfo,
        wish: &Wish,
        rng: &mut Rng,
    ) -> Vec<PeerInfo> {
        let asking = hosts.find(&asker.id);
        let zone = asker.zone.as_ref().filter(|_| wish.near_share > 0.0);
        let drawn = draw(self.len(), wish.sample, rng);
        let mut anywhere = self.candidates(asking, zone, drawn);
        rng.shuffle(&mut anywhere);
        let mates = zone.map_or(&[][..], |zone| self.zones.members(zone));
        let drawn = draw(mates.len(), wish.sample_of_zone(mates.len()), rng);
        let drawn = drawn.into_iter().map(|seat| mates[seat] as usize).collect();
        let mut near = self.candidates(asking, zone, drawn);
        rng.shuffle(&mut near);
        let mut chosen = Vec::with_capacity(wish.want);
        for place in wish.choose(near, anywhere) {
            let member = &mut self.members[place];
            member.load.handed_out();
            chosen.push(hosts.info(member.host).clone());
        }
        chosen
    }

    /// The members at these places without the asker; those in `zone` are near.
    fn candidates(
        &self,
        asker: Option<HostId>,
        zone: Option<&Zone>,
        places: Vec<usize>,
    ) -> Vec<Candidate> {
        let candidate = |place: usize| {
            let member = &self.members[place];
            (Some(member.host) != asker).then(|| Candidate {
                place,
                near: zone.is_some() && member.zone.as_ref() == zone,
                links: member.load.expected(),
                done: member.done.into(),
            })
        };
        places.into_iter().filter_map(candidate).collect()
    }
}

#[derive(Debug)]
struct Member {
    host: HostId,
    /// Where it is in its zone.
    seat: u32,
    /// The zone in which it has its seat: another than its host's, until it announces again.
    zone: Option<Zone>,
    expires: Timestamp,
    load: Load,
    /// How much of the blob it has, in thousandths.
    done: u16,
}

/// How much of a blob a host says that it has. One that does not say counts as empty.
fn thousandths(blob: &AnnounceBlob) -> u16 {
    match (blob.state, blob.progress) {
        (AnnounceState::Seeding, _) => 1000,
        (_, Some(progress)) if progress.of > 0 => {
            let share = u64::from(progress.have) * 1000 / u64::from(progress.of);
            u16::try_from(share).map_or(1000, |share| share.min(1000))
        }
        _ => 0,
    }
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
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Rng;
    use crate::tracker::Progress;
    use crate::tracker::testing::{number, peer, request, zoned};

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    /// A swarm and its hosts.
    #[derive(Default)]
    struct Lab {
        swarm: Swarm,
        hosts: Hosts,
    }

    impl Lab {
        fn announce(&mut self, info: &PeerInfo, blob: &AnnounceBlob, expires: Timestamp) {
            self.swarm.announce(&mut self.hosts, info, blob, expires);
        }
        fn remove(&mut self, id: &PeerId) -> bool {
            self.swarm.remove(&mut self.hosts, id)
        }
        fn expire(&mut self, now: Timestamp) -> usize {
            self.swarm.expire(&mut self.hosts, now)
        }
        fn choose(&mut self, asker: &PeerInfo, wish: &Wish, rng: &mut Rng) -> Vec<PeerInfo> {
            self.swarm.choose(&self.hosts, asker, wish, rng)
        }
    }

    fn swarm(members: u32) -> Lab {
        let mut swarm = Lab::default();
        for n in 0..members {
            swarm.announce(&peer(n), &with_links(0), at(10));
        }
        swarm
    }

    fn with_links(links: u32) -> AnnounceBlob {
        let mut request = request(peer(0), &[(0, AnnounceState::Leeching, links)]);
        request.blobs.remove(0)
    }

    fn wish(want: usize) -> Wish {
        Wish {
            want,
            sample: 64,
            balanced: true,
            near_share: 2.0 / 3.0,
            degree: 12,
            needy: false,
        }
    }

    fn check(Lab { swarm, hosts }: &Lab) {
        assert_eq!(swarm.members.len(), hosts.len());
        assert_eq!(swarm.members.len(), swarm.places.len());
        assert_eq!(swarm.members.len(), swarm.leases.len());
        for (place, member) in swarm.members.iter().enumerate() {
            let place = u32::try_from(place).unwrap();
            assert_eq!(swarm.places.get(&member.host), Some(&place));
            assert!(swarm.leases.contains(&(member.expires, member.host)));
            if let Some(zone) = &member.zone {
                assert_eq!(swarm.zones.members(zone)[member.seat as usize], place);
            }
        }
        let zoned = swarm.members.iter().filter(|it| it.zone.is_some());
        let seats: Vec<_> = swarm.zones.iter().map(|(_, seats)| seats.len()).collect();
        assert_eq!(seats.iter().sum::<usize>(), zoned.count());
        assert!(!seats.contains(&0), "a zone is empty");
    }

    #[test]
    fn joining_leaving_and_expiring_keep_the_three_views_equal() {
        let mut swarm = swarm(20);
        for n in [19, 0, 7, 7, 100] {
            swarm.remove(&peer(n).id);
            check(&swarm);
        }
        assert_eq!(swarm.swarm.len(), 17);
        swarm.announce(&peer(3), &with_links(5), at(20));
        check(&swarm);
        assert_eq!(swarm.swarm.next_expiry(), Some(at(10)));
        assert_eq!(swarm.expire(at(9)), 0);
        assert_eq!(swarm.expire(at(10)), 16);
        check(&swarm);
        assert!(swarm.swarm.contains(&swarm.hosts, &peer(3).id));
        swarm.swarm.remove_first_to_expire(&mut swarm.hosts);
        assert_eq!(swarm.swarm.len(), 0);
        check(&swarm);
    }

    proptest! {
        #[test]
        fn whoever_comes_moves_and_goes_all_views_hold_the_same(
            steps in prop::collection::vec((0_u32..12, prop::option::of(0..4), 0_u64..9, 0..4), 0..80),
        ) {
            let mut swarm = Lab::default();
            for (n, zone, expires, what) in steps {
                match what {
                    0 => drop(swarm.remove(&peer(n).id)),
                    1 => drop(swarm.expire(at(expires))),
                    _ => {
                        let host = zone.map_or_else(|| peer(n), |zone| zoned(n, &format!("z{zone}")));
                        swarm.announce(&host, &with_links(n), at(10 + expires));
                    }
                }
                check(&swarm);
            }
        }
    }

    #[test]
    fn whoever_moves_to_another_zone_is_near_there_and_far_here() {
        let mut swarm = Lab::default();
        for (n, zone) in [(1, "a"), (2, "b"), (1, "b")] {
            swarm.announce(&zoned(n, zone), &with_links(0), at(10));
            check(&swarm);
        }
        swarm.announce(&peer(3), &with_links(0), at(10));
        let mut choose = |asker| {
            let chosen = swarm.choose(&asker, &wish(9), &mut Rng::seeded(0));
            chosen.iter().map(number).collect::<Vec<_>>()
        };
        let near_b = choose(zoned(2, "b"));
        assert_eq!(near_b, [1, 3]);
        let near_a = choose(zoned(4, "a"));
        assert_eq!(near_a.len(), 3);
    }

    #[test]
    fn progress_is_a_share_and_nonsense_is_bounded() {
        let says = |have, of| {
            let mut blob = with_links(0);
            blob.progress = Some(Progress { have, of });
            blob
        };
        let shares = [(0, 5), (1, 3), (5, 5), (9, 5), (u32::MAX, 1), (3, 0)];
        let done = shares.map(|(have, of)| thousandths(&says(have, of)));
        assert_eq!(done, [0, 333, 1000, 1000, 1000, 0]);
        assert_eq!(thousandths(&with_links(0)), 0);
        let mut seeds = says(1, 3);
        seeds.state = AnnounceState::Seeding;
        assert_eq!(thousandths(&seeds), 1000);
    }

    #[test]
    fn a_new_address_replaces_the_old_one() {
        let mut swarm = swarm(1);
        let mut moved = peer(0);
        moved.addr.set_port(9);
        swarm.announce(&moved, &with_links(0), at(10));
        let chosen = swarm.choose(&peer(1), &wish(5), &mut Rng::seeded(0));
        assert_eq!(chosen, [moved]);
    }

    #[test]
    fn the_least_linked_come_first_and_then_wait_for_their_turn() {
        let mut rng = Rng::seeded(2);
        let mut swarm = Lab::default();
        for n in 0..6 {
            swarm.announce(&peer(n), &with_links(n), at(10));
        }
        let mut choose = |swarm: &mut Lab| swarm.choose(&peer(9), &wish(2), &mut rng);
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
