//! Announces out, handouts in, and whom of a handout to connect to.

use std::time::Duration;

use super::Scheduler;
use crate::blob::digest::Digest;
use crate::peer::{PeerId, PeerInfo, PeerRole};
use crate::scheduler::action::Action;
use crate::scheduler::config::Config;
use crate::swarm::Swarm;
use crate::time::Timestamp;
use crate::tracker::{AnnounceBlob, AnnounceReply, AnnounceRequest, AnnounceState, Progress};

/// The tracker's interval is kept within these bounds, whatever it says.
const INTERVAL_MIN: Duration = Duration::from_millis(200);
const INTERVAL_MAX: Duration = Duration::from_secs(600);

/// Origins that a host connects to per blob: one to draw from, one to fall back on.
const ORIGINS_PER_BLOB: usize = 3;

impl Scheduler {
    pub(super) fn announce_due(&mut self, now: Timestamp) {
        while self.announces.next_due(now).is_some_and(|at| at <= now) {
            let left = self.announces.take_left(AnnounceRequest::MAX_BLOBS);
            let room = AnnounceRequest::MAX_BLOBS - left.len();
            let mut blobs: Vec<_> = left
                .into_iter()
                .map(|(namespace, digest)| {
                    let state = AnnounceState::Left;
                    AnnounceBlob {
                        namespace,
                        digest,
                        state,
                        links: 0,
                        progress: None,
                        needy: false,
                    }
                })
                .collect();
            for digest in self.announces.take_due(now, room) {
                let swarm = self.swarms.get(&digest);
                let swarm = swarm.map(|swarm| announce_of(now, swarm, &self.config));
                blobs.extend(swarm.or_else(|| self.seeks.announce(digest)));
            }
            if !blobs.is_empty() {
                let request = AnnounceRequest {
                    peer: self.local.clone(),
                    blobs,
                };
                self.actions.push_back(Action::Announce(request));
            }
        }
    }

    pub(super) fn announced(&mut self, now: Timestamp, digests: &[Digest], reply: &AnnounceReply) {
        let interval = Duration::from_millis(reply.interval_ms).clamp(INTERVAL_MIN, INTERVAL_MAX);
        for handout in &reply.handouts {
            self.meet(now, handout.digest, &handout.peers);
            self.seek_among(now, handout.digest, &handout.peers);
            if let Some(swarm) = self.swarms.get_mut(&handout.digest) {
                swarm.count_handout();
            }
        }
        for digest in digests {
            let coming = self.conns.coming(*digest);
            let short = self.swarms.get(digest).is_some_and(|swarm| {
                let links = swarm.degree(PeerRole::Agent) + swarm.degree(PeerRole::Origin);
                let few = links + coming < self.config.target_degree;
                let wants = !swarm.is_complete() && !swarm.is_idle();
                wants && (few || swarm.is_needy(now, &self.config))
            });
            let short = short || self.seeks.is_open(*digest);
            self.announces
                .answered(now, *digest, interval, short, &self.config);
        }
    }

    /// The peer did not want us as a neighbour: it is not asked again for a while.
    pub(super) fn turned_away(&mut self, now: Timestamp, digest: Digest, peer: PeerId) {
        let until = now + self.config.retry * 4;
        self.shy.insert((digest, peer), until);
        self.shy.retain(|_, until| *until > now);
    }

    /// Connects to the peers of a handout, first come first, until the blob has enough.
    pub(super) fn meet(&mut self, now: Timestamp, digest: Digest, peers: &[PeerInfo]) {
        for peer in peers {
            let Some(swarm) = self
                .swarms
                .get(&digest)
                .filter(|swarm| !swarm.is_complete() && !rests(swarm))
            else {
                return;
            };
            let (links, enough) = match peer.role {
                PeerRole::Agent => (swarm.degree(peer.role), self.dial_degree(now, swarm)),
                PeerRole::Origin => (swarm.degree(peer.role), ORIGINS_PER_BLOB),
            };
            let coming = self.conns.coming_of(digest, peer.role);
            let shy = self
                .shy
                .get(&(digest, peer.id))
                .is_some_and(|until| *until > now);
            if links + coming < enough && !shy && peer.id != self.local.id {
                self.approach(now, digest, peer);
            }
        }
    }

    /// Up to how many neighbours to dial: few at first, because as many dial us; when these do not
    /// come, more; and some on top when those that are there are of no use.
    fn dial_degree(&self, now: Timestamp, swarm: &Swarm) -> usize {
        let (first, target) = (self.config.dial_degree, self.config.target_degree);
        if swarm.is_needy(now, &self.config) {
            target.midpoint(self.config.max_degree)
        } else if swarm.handouts() == 0 {
            first
        } else {
            target.max(first)
        }
    }

    pub(super) fn approach(&mut self, now: Timestamp, digest: Digest, peer: &PeerInfo) {
        if let Some(conn) = self.conns.of_peer(peer.id) {
            match self.conns.get_mut(conn) {
                Some(it) if it.role.is_none() => drop(it.wanted.insert(digest)),
                _ => self.greet(now, conn, digest),
            }
        } else {
            self.dial_for(now, digest, peer);
        }
    }

    /// Dials a peer for a blob, unless it is to be left alone or there are too many connections.
    pub(super) fn dial_for(&mut self, now: Timestamp, digest: Digest, peer: &PeerInfo) {
        if !self.penalties.keeps_away(now, peer.id)
            && !self.stopping
            && self.conns.len() < self.config.max_conns
            && self.conns.want(peer, digest)
        {
            self.actions.push_back(Action::Dial(peer.clone()));
        }
    }
}

/// Whether a swarm looks for nobody: nothing is wanted, and there is somebody to ask when it is.
fn rests(swarm: &Swarm) -> bool {
    swarm.is_idle() && swarm.conns().next().is_some()
}

fn announce_of(now: Timestamp, swarm: &Swarm, config: &Config) -> AnnounceBlob {
    let mut links = swarm.degree(PeerRole::Agent);
    if rests(swarm) {
        // As one that has all the peers that it wants.
        links = links.max(config.target_degree);
    }
    AnnounceBlob {
        namespace: swarm.spec().namespace.clone(),
        digest: swarm.spec().digest,
        state: if swarm.is_complete() {
            AnnounceState::Seeding
        } else {
            AnnounceState::Leeching
        },
        links: u32::try_from(links).unwrap_or(u32::MAX),
        progress: Some(Progress {
            have: swarm.have().count(),
            of: swarm.have().len(),
        }),
        needy: swarm.is_needy(now, config),
    }
}
