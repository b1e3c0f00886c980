//! Announces out, handouts in, and whom of a handout to connect to.

use std::time::Duration;

use super::Scheduler;
use crate::blob::digest::Digest;
use crate::peer::{PeerId, PeerInfo, PeerRole};
use crate::scheduler::action::Action;
use crate::swarm::Swarm;
use crate::time::Timestamp;
use crate::tracker::{AnnounceBlob, AnnounceReply, AnnounceRequest, AnnounceState};

/// The tracker's interval is kept within these bounds, whatever it says.
const INTERVAL_MIN: Duration = Duration::from_millis(200);
const INTERVAL_MAX: Duration = Duration::from_secs(600);

/// Origins that a host connects to per blob: one to draw from, one to fall back on.
const ORIGINS_PER_BLOB: usize = 2;

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
                    }
                })
                .collect();
            for digest in self.announces.take_due(now, room) {
                blobs.extend(self.swarms.get(&digest).map(announce_of));
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
        }
        for digest in digests {
            let coming = self.conns.coming(*digest);
            let short = self.swarms.get(digest).is_some_and(|swarm| {
                let links = swarm.degree(PeerRole::Agent) + swarm.degree(PeerRole::Origin);
                !swarm.is_complete() && links + coming < self.config.target_degree
            });
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
    fn meet(&mut self, now: Timestamp, digest: Digest, peers: &[PeerInfo]) {
        for peer in peers {
            let Some(swarm) = self
                .swarms
                .get(&digest)
                .filter(|swarm| !swarm.is_complete())
            else {
                return;
            };
            let (links, enough) = match peer.role {
                PeerRole::Agent => (swarm.degree(peer.role), self.config.target_degree),
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

    fn approach(&mut self, now: Timestamp, digest: Digest, peer: &PeerInfo) {
        if let Some(conn) = self.conns.of_peer(peer.id) {
            match self.conns.get_mut(conn) {
                Some(it) if it.role.is_none() => drop(it.wanted.insert(digest)),
                _ => self.greet(now, conn, digest),
            }
        } else if !self.penalties.keeps_away(now, peer.id)
            && !self.stopping
            && self.conns.len() < self.config.max_conns
            && self.conns.want(peer, digest)
        {
            self.actions.push_back(Action::Dial(peer.clone()));
        }
    }
}

fn announce_of(swarm: &Swarm) -> AnnounceBlob {
    let links = swarm.degree(PeerRole::Agent);
    AnnounceBlob {
        namespace: swarm.spec().namespace.clone(),
        digest: swarm.spec().digest,
        state: if swarm.is_complete() {
            AnnounceState::Seeding
        } else {
            AnnounceState::Leeching
        },
        links: u32::try_from(links).unwrap_or(u32::MAX),
    }
}
