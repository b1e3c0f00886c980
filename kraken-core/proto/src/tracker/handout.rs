//! Whom a host should connect to: the tracker's machine.
//!
//! The graph of a swarm decides how long its slowest host takes. A good one is random and nearly
//! regular: everybody has about [`TrackerConfig::degree`] links. The tracker steers towards it
//! without knowing the graph: it draws a few members at random and hands out those with the
//! fewest links, as announced and as handed out since. Compared with handing out random members
//! this takes 6 % off the slowest of 2,600 simulated hosts.
//!
//! Where links between racks are oversubscribed, bytes should cross them once and not forty times.
//! A host that has a zone gets [`TrackerConfig::near_share`] of its peers from there, and as a rule
//! the rest from elsewhere, so that no zone is cut off. Balance goes before nearness.
//!
//! An announce of one blob costs O(sample + log peers), whatever the size of the swarm. Memory is
//! bounded by [`TrackerConfig::max_swarms`], [`TrackerConfig::max_swarm_peers`] and
//! [`TrackerConfig::max_peers`]: at a bound, what was heard of least recently goes. Whoever was
//! forgotten by mistake is back with its next announce.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::choice::Wish;
use super::hosts::Hosts;
use super::peers::Swarm;
use super::view::MemberView;
use super::{AnnounceBlob, AnnounceReply, AnnounceRequest, AnnounceState, Handout};
use crate::blob::digest::Digest;
use crate::peer::{PeerInfo, PeerRole};
use crate::rng::Rng;
use crate::time::Timestamp;

/// Knows the swarms and answers announces.
///
/// Call [`Tracker::announce`] for each request and [`Tracker::handle_timeout`] at the moment that
/// [`Tracker::poll_timeout`] names; the latter only frees memory early, because an announce never
/// hands out a member whose lease has ended.
///
/// Agents are members of swarms. Origins are not: they come from the ring through the `origins`
/// argument, for as long as they own the blob. An origin may announce to get a handout.
///
/// The machine believes what a request says of its own host. To check that against the identity
/// that the host proved is up to the caller, who alone knows the connection.
#[derive(Debug)]
pub struct Tracker {
    config: TrackerConfig,
    rng: Rng,
    hosts: Hosts,
    swarms: BTreeMap<Digest, Tracked>,
    /// The swarms by their last announce.
    heard: BTreeSet<(Timestamp, Digest)>,
    /// The swarms by the end of their first lease.
    due: BTreeSet<(Timestamp, Digest)>,
    stats: TrackerStats,
}

impl Tracker {
    /// A tracker that knows nobody. The same seed and calls give the same answers.
    pub fn new(config: TrackerConfig, seed: u64) -> Self {
        Self {
            config,
            rng: Rng::seeded(seed),
            hosts: Hosts::default(),
            swarms: BTreeMap::new(),
            heard: BTreeSet::new(),
            due: BTreeSet::new(),
            stats: TrackerStats::default(),
        }
    }

    /// Takes in what a host says of its blobs and answers whom to connect to, blob by blob in the
    /// order of the request. `origins` names the owners of a blob, the first owner in front; it
    /// is asked only for blobs that the host wants.
    ///
    /// # Errors
    /// The request is refused as a whole and nothing has changed.
    pub fn announce(
        &mut self,
        now: Timestamp,
        request: &AnnounceRequest,
        origins: &dyn Fn(&Digest) -> Vec<PeerInfo>,
    ) -> Result<AnnounceReply, AnnounceError> {
        if request.blobs.len() > AnnounceRequest::MAX_BLOBS {
            return Err(AnnounceError::TooManyBlobs(request.blobs.len()));
        }
        self.handle_timeout(now);
        self.stats.announces += 1;
        let mut interval = self.config.seeding_interval;
        let mut handouts = Vec::new();
        for blob in &request.blobs {
            self.note(now, &request.peer, blob);
            if blob.state == AnnounceState::Leeching {
                let peers = self.hand_out(&request.peer, blob, origins(&blob.digest));
                interval = interval.min(self.leeching_interval(blob, peers.len()));
                handouts.push(Handout {
                    digest: blob.digest,
                    peers,
                });
            }
        }
        Ok(AnnounceReply {
            interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
            handouts,
        })
    }

    /// Takes in what a host says of its blobs to another tracker, so that this one can take its place at
    /// once. Nobody is handed out.
    ///
    /// # Errors
    /// As of [`Tracker::announce`].
    pub fn overhear(
        &mut self,
        now: Timestamp,
        request: &AnnounceRequest,
    ) -> Result<(), AnnounceError> {
        if request.blobs.len() > AnnounceRequest::MAX_BLOBS {
            return Err(AnnounceError::TooManyBlobs(request.blobs.len()));
        }
        self.handle_timeout(now);
        for blob in &request.blobs {
            self.note(now, &request.peer, blob);
        }
        Ok(())
    }

    /// Forgets the members whose lease has ended.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        while let Some(&(due, digest)) = self.due.first() {
            if due > now {
                break;
            }
            let expired = self.change(digest, None, |swarm, hosts, _| swarm.expire(hosts, now));
            self.stats.expired += expired as u64;
        }
    }

    /// When the next lease ends.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Sizes and counts, for metrics.
    pub fn stats(&self) -> TrackerStats {
        TrackerStats {
            swarms: self.swarms.len(),
            hosts: self.hosts.len(),
            ..self.stats
        }
    }

    /// The number of members of a blob's swarm.
    pub fn swarm_size(&self, digest: &Digest) -> usize {
        self.swarms
            .get(digest)
            .map_or(0, |tracked| tracked.swarm.len())
    }

    /// The sums of all swarms, see [`Tracker::swarms`].
    pub(super) fn sums(&self) -> impl Iterator<Item = (Digest, u32, u32, u64)> {
        self.swarms.iter().map(|(digest, tracked)| {
            let (members, ready, thousandths) = tracked.swarm.sums();
            (*digest, members, ready, thousandths)
        })
    }

    pub(super) fn sum(&self, digest: &Digest) -> Option<(u32, u32, u64)> {
        self.swarms.get(digest).map(|tracked| tracked.swarm.sums())
    }

    pub(super) fn each_member(&self, digest: &Digest) -> impl Iterator<Item = MemberView<'_>> {
        let tracked = self.swarms.get(digest);
        tracked
            .into_iter()
            .flat_map(|tracked| tracked.swarm.views(&self.hosts))
    }

    fn note(&mut self, now: Timestamp, peer: &PeerInfo, blob: &AnnounceBlob) {
        if peer.role == PeerRole::Origin {
            return;
        }
        // The lease is counted in the longest interval of the member's state, not in the one it
        // is told now: a host that announces one blob more often than another loses neither.
        let interval = match blob.state {
            AnnounceState::Left => {
                if self.swarms.contains_key(&blob.digest) {
                    self.change(blob.digest, None, |swarm, hosts, _| {
                        swarm.remove(hosts, &peer.id)
                    });
                }
                return;
            }
            AnnounceState::Leeching => self.config.leeching_interval,
            AnnounceState::Seeding => self.config.seeding_interval,
        };
        let expires = now + interval.saturating_mul(self.config.missed);
        let room = self.config.max_swarm_peers.max(1);
        self.make_room_for_swarm(&blob.digest);
        let evicted = self.change(blob.digest, Some(now), |swarm, hosts, _| {
            let full = swarm.len() >= room && !swarm.contains(hosts, &peer.id);
            if full {
                swarm.remove_first_to_expire(hosts);
            }
            swarm.announce(hosts, peer, blob, expires);
            full
        });
        self.stats.evicted += u64::from(evicted);
        self.bound_peers(&blob.digest);
    }

    /// Agents with the fewest links in front, near and far by turns, then the origins, one of them
    /// at random first.
    fn hand_out(
        &mut self,
        asker: &PeerInfo,
        blob: &AnnounceBlob,
        mut origins: Vec<PeerInfo>,
    ) -> Vec<PeerInfo> {
        let wish = self.config.wish(blob);
        let mut peers = Vec::new();
        if wish.want > 0 && self.swarms.contains_key(&blob.digest) {
            peers = self.change(blob.digest, None, |swarm, hosts, rng| {
                swarm.choose(hosts, asker, &wish, rng)
            });
        }
        origins.retain(|origin| origin.id != asker.id);
        let first = self.rng.below(origins.len());
        origins.rotate_left(first);
        self.stats.handed_out += (peers.len() + origins.len()) as u64;
        peers.append(&mut origins);
        peers
    }

    /// Grows from the shortest interval to the longest with the share of the links that the host
    /// could have and has, so that a swarm too small for the degree does not ask all the time.
    fn leeching_interval(&self, blob: &AnnounceBlob, handed_out: usize) -> Duration {
        let TrackerConfig {
            short_interval,
            leeching_interval,
            degree,
            ..
        } = self.config;
        let handed_out = u32::try_from(handed_out).unwrap_or(u32::MAX);
        let others = u32::try_from(self.swarm_size(&blob.digest)).unwrap_or(u32::MAX);
        let possible = degree.min(others.saturating_sub(1).max(handed_out)).max(1);
        let links = blob.links.min(possible);
        short_interval + leeching_interval.saturating_sub(short_interval) * links / possible
    }

    fn make_room_for_swarm(&mut self, digest: &Digest) {
        if !self.swarms.contains_key(digest) {
            while self.swarms.len() >= self.config.max_swarms.max(1) && self.evict_swarm(digest) {}
        }
    }

    fn bound_peers(&mut self, keep: &Digest) {
        while self.stats.peers > self.config.max_peers && self.evict_swarm(keep) {}
    }

    /// Forgets the swarm that was heard of least recently and says whether there was one.
    fn evict_swarm(&mut self, keep: &Digest) -> bool {
        let mut oldest = self.heard.iter().map(|(_, digest)| *digest);
        let Some(digest) = oldest.find(|digest| digest != keep) else {
            return false;
        };
        let evicted = self.change(digest, None, |swarm, hosts, _| swarm.clear(hosts));
        self.stats.evicted += evicted as u64;
        true
    }

    /// The one place where a swarm changes: it is taken out, changed, and put back with its
    /// orders unless it is empty. `heard` is the moment of an announce.
    fn change<T>(
        &mut self,
        digest: Digest,
        heard: Option<Timestamp>,
        change: impl FnOnce(&mut Swarm, &mut Hosts, &mut Rng) -> T,
    ) -> T {
        let mut tracked = self.swarms.remove(&digest).unwrap_or_default();
        self.heard.remove(&(tracked.heard, digest));
        if let Some(due) = tracked.swarm.next_expiry() {
            self.due.remove(&(due, digest));
        }
        self.stats.peers -= tracked.swarm.len();
        let result = change(&mut tracked.swarm, &mut self.hosts, &mut self.rng);
        self.stats.peers += tracked.swarm.len();
        if let Some(due) = tracked.swarm.next_expiry() {
            tracked.heard = heard.unwrap_or(tracked.heard);
            self.heard.insert((tracked.heard, digest));
            self.due.insert((due, digest));
            self.swarms.insert(digest, tracked);
        }
        result
    }
}

#[derive(Debug, Default)]
struct Tracked {
    swarm: Swarm,
    heard: Timestamp,
}

/// How a tracker steers its swarms.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TrackerConfig {
    /// How many links a host should have per blob. 12 by default: in a simulated swarm of 2,600
    /// hosts 5 links leave stragglers, and more than 16 cost messages and gain nothing.
    pub degree: u32,
    /// The most agents in one handout, 12 by default. Owning origins come on top.
    pub max_handout: usize,
    /// How many members are drawn to choose from, 64 by default, and as many again in the asker's
    /// zone: the more, the more regular the graph, and the dearer an announce.
    pub sample: usize,
    /// Whether a handout prefers members with few links, true by default. Set it to false only to
    /// measure what that is worth: members are then handed out at random, as the original Kraken
    /// does, and some hosts end up with several times the links of others.
    pub balanced: bool,
    /// Which share of a handout comes from the asker's own zone, for a host that has one, as far
    /// as there are members in the zone and outside of it; 0.8 by default, so that a host that
    /// dials 6 stays in its zone with 5. In simulated racks of 40 hosts behind uplinks
    /// oversubscribed 4:1 that is faster than two thirds, and a third less crosses racks. At 0 zones play no role. At 1 only origins connect the zones.
    pub near_share: f64,
    /// When a leecher without a link should announce again, 1 s by default.
    pub short_interval: Duration,
    /// When a leecher with enough links should announce again, 10 s by default: the load of a
    /// tracker is the number of hosts over this.
    pub leeching_interval: Duration,
    /// When a host that only seeds should announce again, 30 s by default.
    pub seeding_interval: Duration,
    /// A member is forgotten when it has missed this many intervals, 3 by default: 30 s for a
    /// leecher, 90 s for a seeder.
    pub missed: u32,
    /// The most swarms, 65,536 by default.
    pub max_swarms: usize,
    /// The most members of one swarm, 16,384 by default.
    pub max_swarm_peers: usize,
    /// The most members of all swarms together, 2^20 by default, each about 110 bytes, and 250 for each
    /// host. A single
    /// swarm may reach [`TrackerConfig::max_swarm_peers`] whatever this says.
    pub max_peers: usize,
}

impl Default for TrackerConfig {
    fn default() -> Self {
        Self {
            degree: 12,
            max_handout: 12,
            sample: 20,
            balanced: true,
            near_share: 0.8,
            short_interval: Duration::from_secs(1),
            leeching_interval: Duration::from_secs(10),
            seeding_interval: Duration::from_secs(30),
            missed: 3,
            max_swarms: 1 << 16,
            max_swarm_peers: 1 << 14,
            max_peers: 1 << 20,
        }
    }
}

impl TrackerConfig {
    fn wish(&self, blob: &AnnounceBlob) -> Wish {
        Wish {
            want: self.wanted(blob),
            sample: self.sample,
            balanced: self.balanced,
            near_share: self.near_share.min(1.0),
            degree: self.degree,
            needy: blob.needy,
        }
    }

    /// How many agents a host should be handed: the links it lacks, and a few more because some
    /// will be its neighbours already or full. None when it lacks nothing, unless it is needy:
    /// then the same few, to take the place of neighbours that are of no use.
    fn wanted(&self, blob: &AnnounceBlob) -> usize {
        let lacks = self.degree.saturating_sub(blob.links);
        if lacks == 0 && !blob.needy {
            return 0;
        }
        (lacks.max(self.degree / 2) as usize).min(self.max_handout)
    }
}

/// What a tracker holds and has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TrackerStats {
    /// Swarms with at least one member.
    pub swarms: usize,
    /// Hosts that are members of any swarm.
    pub hosts: usize,
    /// Members of all swarms; a host counts once per blob.
    pub peers: usize,
    /// Announces that were answered.
    pub announces: u64,
    /// Peers in all handouts, origins included.
    pub handed_out: u64,
    /// Members forgotten because they fell silent.
    pub expired: u64,
    /// Members forgotten because a bound was reached.
    pub evicted: u64,
}

/// Why an announce is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnnounceError {
    /// More blobs than [`AnnounceRequest::MAX_BLOBS`]: split the announce.
    #[error("an announce names at most 256 blobs, not {0}")]
    TooManyBlobs(usize),
}
