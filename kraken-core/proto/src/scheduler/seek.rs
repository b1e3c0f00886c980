//! Metainfo from peers: how a host learns what a blob consists of when no tracker tells, or none of
//! the origins behind it.
//!
//! It asks those that the tracker names, its neighbours, and peers that it met before, a few at a
//! time; from the first that has it, it takes the encoding part by part. A chain of states proves
//! itself only with the last piece, so whoever uses what came must be ready to drop it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::Scheduler;
use crate::blob::digest::Digest;
use crate::blob::metainfo::MetaInfo;
use crate::blob::namespace::Namespace;
use crate::peer::{PeerId, PeerInfo, PeerRole};
use crate::scheduler::action::Action;
use crate::scheduler::input::ConnId;
use crate::swarm::Violation;
use crate::time::Timestamp;
use crate::tracker::{AnnounceBlob, AnnounceState};
use crate::wire::message::Message;

/// How long a search goes on that nobody asks for again.
const LIFE: Duration = Duration::from_secs(15);
/// How long a peer may take to answer, and to send each further part.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a dial may take before others are dialled as well: a host that is gone says nothing.
const DIAL_PATIENCE: Duration = Duration::from_millis(500);
/// Peers asked at a time.
const ASKED_AT_ONCE: usize = 4;
/// Peers asked in one search: some of these are likely to take part when anybody near does.
const MAX_ASKED: usize = 64;
/// Searches at a time: what they gather is bounded by [`MetaInfo::MAX_ENCODED`] each.
const MAX_SEEKS: usize = 128;

/// The searches of one host.
#[derive(Debug, Default)]
pub(crate) struct Seeks {
    by_digest: BTreeMap<Digest, Seek>,
}

/// The search for the metainfo of one blob.
#[derive(Debug)]
struct Seek {
    namespace: Namespace,
    until: Timestamp,
    asked: BTreeSet<PeerId>,
    /// Peers that the tracker named and that were not asked yet.
    leads: VecDeque<PeerInfo>,
    /// Who is being dialled, and until when others are not dialled instead.
    dialled: BTreeMap<PeerId, Timestamp>,
    /// Who was asked and has not answered, and until when it may.
    waiting: BTreeMap<ConnId, Timestamp>,
    /// Who has it, beside the source.
    holders: VecDeque<ConnId>,
    source: Option<Source>,
    found: Option<(MetaInfo, PeerId)>,
    /// Somebody does not come: others are to be asked.
    is_behind: bool,
}

/// From whom the encoding comes.
#[derive(Debug)]
struct Source {
    conn: ConnId,
    total: u32,
    bytes: Vec<u8>,
    until: Timestamp,
}

impl Seek {
    fn new(namespace: Namespace, until: Timestamp) -> Self {
        Self {
            namespace,
            until,
            asked: BTreeSet::new(),
            leads: VecDeque::new(),
            dialled: BTreeMap::new(),
            waiting: BTreeMap::new(),
            holders: VecDeque::new(),
            source: None,
            found: None,
            is_behind: false,
        }
    }

    fn is_open(&self) -> bool {
        self.found.is_none()
    }

    /// When it has to be looked at next.
    fn next(&self) -> Timestamp {
        let waiting = self.waiting.values().chain(self.dialled.values()).copied();
        let source = self.source.as_ref().map(|it| it.until);
        waiting.chain(source).fold(self.until, Timestamp::min)
    }

    /// Gives up on whoever did not answer in time, or hung up.
    fn drop_silent(&mut self, is_silent: impl Fn(ConnId, Option<Timestamp>) -> bool) -> bool {
        let before = (self.waiting.len(), self.source.is_some());
        self.waiting.retain(|conn, at| !is_silent(*conn, Some(*at)));
        self.holders.retain(|conn| !is_silent(*conn, None));
        let source = self.source.take();
        self.source = source.filter(|it| !is_silent(it.conn, Some(it.until)));
        before != (self.waiting.len(), self.source.is_some())
    }
}

impl Seeks {
    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.by_digest.values().map(Seek::next).min()
    }

    /// Whether a blob's metainfo is being looked for.
    pub(crate) fn is_open(&self, digest: Digest) -> bool {
        self.by_digest.get(&digest).is_some_and(Seek::is_open)
    }

    /// What the tracker is told, so that it names peers.
    pub(crate) fn announce(&self, digest: Digest) -> Option<AnnounceBlob> {
        let seek = self.by_digest.get(&digest)?;
        Some(AnnounceBlob {
            namespace: seek.namespace.clone(),
            digest,
            state: AnnounceState::Leeching,
            links: 0,
            progress: None,
            needy: false,
        })
    }

    /// What was found is not told again: it may have turned out wrong.
    pub(crate) fn forget(&mut self, digest: Digest) {
        if self
            .by_digest
            .get(&digest)
            .is_some_and(|seek| !seek.is_open())
        {
            self.by_digest.remove(&digest);
        }
    }

    /// Ends all searches.
    pub(crate) fn take(&mut self) -> Vec<(Namespace, Digest)> {
        let all = std::mem::take(&mut self.by_digest).into_iter();
        all.map(|(digest, seek)| (seek.namespace, digest)).collect()
    }
}

impl Scheduler {
    /// Looks for the metainfo of a blob.
    pub(super) fn seek(&mut self, now: Timestamp, namespace: Namespace, digest: Digest) {
        let seeks = &mut self.seeks.by_digest;
        if self.stopping || (seeks.len() >= MAX_SEEKS && !seeks.contains_key(&digest)) {
            let found = None;
            self.actions.push_back(Action::Sought { digest, found });
            return;
        }
        let is_new = !seeks.contains_key(&digest);
        let seek = seeks
            .entry(digest)
            .or_insert_with(|| Seek::new(namespace.clone(), now));
        if let Some((meta, from)) = &seek.found {
            let found = Some((meta.clone(), *from));
            self.actions.push_back(Action::Sought { digest, found });
        } else if seek.waiting.is_empty() && seek.source.is_none() {
            // Whoever did not have it, or did not answer, may by now.
            seek.asked.clear();
        }
        seek.until = now + LIFE;
        if is_new && self.local.role == PeerRole::Agent && !self.swarms.contains_key(&digest) {
            self.announces.now(now, digest, &self.config);
        }
        self.seek_on(now, digest);
    }

    /// The tracker named peers of a blob.
    pub(super) fn seek_among(&mut self, now: Timestamp, digest: Digest, peers: &[PeerInfo]) {
        let Some(seek) = self.seeks.by_digest.get_mut(&digest) else {
            return;
        };
        let fresh = peers.iter().filter(|it| !seek.asked.contains(&it.id));
        seek.leads = fresh.take(MAX_ASKED).cloned().collect();
        self.seek_on(now, digest);
    }

    /// Asks further peers, while few are being asked.
    pub(super) fn seek_on(&mut self, now: Timestamp, digest: Digest) {
        while self.seeks.is_open(digest) {
            let Some(seek) = self.seeks.by_digest.get_mut(&digest) else {
                return;
            };
            if seek.source.is_none()
                && let Some(conn) = seek.holders.pop_front()
            {
                self.ask_metainfo(now, conn, digest);
                continue;
            }
            let coming = seek.dialled.values().filter(|until| **until > now).count();
            let busy = seek.waiting.len() + usize::from(seek.source.is_some()) + coming;
            if busy >= ASKED_AT_ONCE || seek.asked.len() >= MAX_ASKED {
                return;
            }
            let Some(peer) = self.next_lead(now, digest) else {
                return;
            };
            self.call_on(now, digest, &peer);
        }
    }

    /// Who is to be asked next: whom the tracker named, then whom there is a connection to, then
    /// whom this host met before.
    fn next_lead(&mut self, now: Timestamp, digest: Digest) -> Option<PeerInfo> {
        let seek = self.seeks.by_digest.get_mut(&digest)?;
        while let Some(peer) = seek.leads.pop_front() {
            if !seek.asked.contains(&peer.id) && peer.id != self.local.id {
                return Some(peer);
            }
        }
        let fresh = |peer: &PeerId| !seek.asked.contains(peer) && *peer != self.local.id;
        let mut near: Vec<_> = self.conns.infos().filter(|info| fresh(&info.id)).collect();
        if near.is_empty() {
            let away = |peer: &PeerId| self.penalties.keeps_away(now, *peer);
            let known = self.known.iter();
            near = known
                .filter(|info| fresh(&info.id) && !away(&info.id))
                .collect();
        }
        let at = (!near.is_empty()).then(|| self.rng.below(near.len()))?;
        Some(near[at].clone())
    }

    /// Asks a peer, over the connection to it or a new one.
    fn call_on(&mut self, now: Timestamp, digest: Digest, peer: &PeerInfo) {
        if let Some(conn) = self.conns.of_peer(peer.id) {
            self.ask_metainfo(now, conn, digest);
        } else if let Some(seek) = self.seeks.by_digest.get_mut(&digest) {
            seek.asked.insert(peer.id);
            seek.dialled.insert(peer.id, now + DIAL_PATIENCE);
            self.dial_for(now, digest, peer);
        }
    }

    /// Asks a connected peer, once it has said hello.
    pub(super) fn ask_metainfo(&mut self, now: Timestamp, conn: ConnId, digest: Digest) {
        let seek = self.seeks.by_digest.get_mut(&digest);
        let Some(seek) = seek.filter(|seek| seek.is_open()) else {
            return;
        };
        let Some(it) = self.conns.get_mut(conn) else {
            return;
        };
        seek.asked.insert(it.peer);
        seek.dialled.remove(&it.peer);
        seek.waiting.insert(conn, now + PATIENCE);
        if it.role.is_none() {
            it.wanted.insert(digest);
            return;
        }
        let message = Message::AskMetaInfo { digest, offset: 0 };
        self.actions.push_back(Action::Send { conn, message });
    }

    /// A peer told a part of a metainfo, or that it has none.
    pub(super) fn told_metainfo(
        &mut self,
        now: Timestamp,
        conn: ConnId,
        digest: Digest,
        (total, offset): (u32, u32),
        part: &[u8],
    ) -> Result<(), Violation> {
        let seek = self.seeks.by_digest.get_mut(&digest);
        let Some(seek) = seek.filter(|seek| seek.is_open()) else {
            return Ok(());
        };
        let is_answer = seek.waiting.remove(&conn).is_some();
        if is_answer && total > 0 {
            if seek.source.is_none() {
                seek.source = Some(Source {
                    conn,
                    total,
                    bytes: Vec::new(),
                    until: now,
                });
            } else {
                seek.holders.push_back(conn);
            }
        }
        let outcome = self.take_part(now, conn, digest, (total, offset), part);
        self.seek_on(now, digest);
        outcome
    }

    /// Takes a part from the source, and asks it for the next.
    fn take_part(
        &mut self,
        now: Timestamp,
        conn: ConnId,
        digest: Digest,
        (total, offset): (u32, u32),
        part: &[u8],
    ) -> Result<(), Violation> {
        let Some(seek) = self.seeks.by_digest.get_mut(&digest) else {
            return Ok(());
        };
        let Some(source) = seek.source.as_mut().filter(|it| it.conn == conn) else {
            return Ok(());
        };
        if total != source.total {
            // It dropped the blob.
            seek.source = None;
            return Ok(());
        }
        if offset as usize != source.bytes.len() {
            return Ok(());
        }
        // With less at a time it could hold the search up.
        let left = total as usize - source.bytes.len();
        if part.len() < left.min(Message::MAX_PART) {
            seek.source = None;
            return Err(Violation);
        }
        source.bytes.extend_from_slice(part);
        source.until = now + PATIENCE;
        if source.bytes.len() < total as usize {
            let offset = u32::try_from(source.bytes.len()).map_err(|_| Violation)?;
            let message = Message::AskMetaInfo { digest, offset };
            self.actions.push_back(Action::Send { conn, message });
            return Ok(());
        }
        let bytes = seek.source.take().map(|it| it.bytes).unwrap_or_default();
        let meta = MetaInfo::decode(&bytes).map_err(|_| Violation)?;
        let from = self.conns.get(conn).map(|it| it.peer).ok_or(Violation)?;
        if meta.digest() != digest {
            return Err(Violation);
        }
        seek.found = Some((meta.clone(), from));
        seek.waiting.clear();
        seek.dialled.clear();
        seek.holders.clear();
        let found = Some((meta, from));
        self.actions.push_back(Action::Sought { digest, found });
        Ok(())
    }

    /// A peer asks for a metainfo: the shell has it.
    pub(super) fn tell_metainfo(&mut self, conn: ConnId, digest: Digest, offset: u32) {
        self.actions.push_back(Action::TellMetaInfo {
            conn,
            digest,
            offset,
        });
    }

    /// Ends the searches whose time is over, and asks others where somebody does not answer.
    pub(super) fn seek_timeout(&mut self, now: Timestamp) {
        if self.seeks.next().is_none_or(|at| at > now) {
            return;
        }
        let over = |seek: &Seek| seek.until <= now;
        let ended: Vec<_> = self
            .seeks
            .by_digest
            .extract_if(.., |_, seek| over(seek))
            .collect();
        for (digest, seek) in ended {
            if seek.is_open() {
                let found = None;
                self.actions.push_back(Action::Sought { digest, found });
            }
            if !self.swarms.contains_key(&digest) {
                self.announces.leave(seek.namespace, digest);
            }
        }
        for seek in self.seeks.by_digest.values_mut() {
            // It may still come about; but nobody waits for it.
            let before = seek.dialled.len();
            seek.dialled.retain(|_, until| *until > now);
            seek.is_behind |= before != seek.dialled.len();
        }
        self.seek_elsewhere(now, |_, until| until.is_some_and(|at| at <= now));
    }

    /// A dial came to nothing.
    pub(super) fn seek_undialled(&mut self, now: Timestamp, digest: Digest, peer: PeerId) {
        if let Some(seek) = self.seeks.by_digest.get_mut(&digest) {
            seek.dialled.remove(&peer);
        }
        self.seek_on(now, digest);
    }

    /// A connection is gone.
    pub(super) fn seek_without(&mut self, now: Timestamp, gone: ConnId) {
        self.seek_elsewhere(now, |conn, _| conn == gone);
    }

    fn seek_elsewhere(
        &mut self,
        now: Timestamp,
        is_silent: impl Fn(ConnId, Option<Timestamp>) -> bool,
    ) {
        let seeks = self.seeks.by_digest.iter_mut();
        let touched = seeks
            .filter_map(|(digest, seek)| {
                let lost = seek.drop_silent(&is_silent);
                (lost || std::mem::take(&mut seek.is_behind)).then_some(*digest)
            })
            .collect::<Vec<_>>();
        for digest in touched {
            self.seek_on(now, digest);
        }
    }
}
