//! What is remembered of the last transfers: which bytes of which blob came from whom, and when.
//!
//! A record of what has happened, beside the machines that decide. It never grows beyond
//! [`MOST_TRANSFERS`] transfers of [`MOST_SOURCES`] sources each; the oldest transfers that have ended
//! go first.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::blob::digest::Digest;
use crate::peer::{PeerId, PeerRole};
use crate::scheduler::action::Event;

/// Transfers that are remembered.
pub const MOST_TRANSFERS: usize = 512;
/// Sources that are told apart in one transfer; the bytes of further ones are in [`Transfer::others`].
pub const MOST_SOURCES: usize = 32;
/// Connected peers that are told apart.
pub const MOST_PEERS: usize = 1024;

/// One blob on its way to this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// The blob.
    pub digest: Digest,
    /// What it belongs to, as whoever opened it said.
    pub namespace: String,
    /// Its length in bytes.
    pub length: u64,
    /// Its pieces.
    pub pieces: u32,
    /// The pieces that were here before.
    pub had: u32,
    /// Who told what it consists of.
    pub told_by: Teller,
    /// When it began, in milliseconds since 1970.
    pub begun_ms: u64,
    /// How it ended.
    pub end: Option<End>,
    /// Who sent pieces of it.
    pub sources: Vec<Source>,
    /// Bytes of sources that are not told apart any more.
    pub others: u64,
    /// Bytes that came from no peer: at an origin, by a push, from another origin or the storage.
    pub ingested: u64,
}

/// Who told what a blob consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Teller {
    /// A tracker, or whatever else the discovery is.
    Discovery,
    /// A peer, as no tracker answered.
    Peer,
    /// This host itself: an origin that takes the blob in.
    Origin,
}

/// How a transfer ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Why it did not complete; it did when there is none.
    pub failed: Option<String>,
}

/// What one peer sent of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Who.
    pub peer: PeerId,
    /// Where it was connected.
    pub addr: Option<SocketAddr>,
    /// What it is there for; not known of one that sent nothing right.
    pub role: Option<PeerRole>,
    /// Pieces that were right.
    pub pieces: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Pieces whose bytes were wrong.
    pub rejected: u32,
    /// How often it owed pieces and was silent, so that others were asked.
    pub stalled: u32,
    /// Why it was banned, if it was.
    pub banned: Option<String>,
    /// When its first piece was stored.
    pub first_ms: u64,
    /// When its last piece was stored.
    pub last_ms: u64,
}

/// A peer that is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Who.
    pub peer: PeerId,
    /// Where.
    pub addr: SocketAddr,
    /// What it is there for, as far as that showed.
    pub role: Option<PeerRole>,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Bytes of pieces that came from it since then.
    pub received: u64,
    /// Bytes of pieces that went to it since then.
    pub sent: u64,
}

/// How a transfer begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// The blob.
    pub digest: Digest,
    /// What it belongs to.
    pub namespace: String,
    /// Its length in bytes.
    pub length: u64,
    /// Its pieces.
    pub pieces: u32,
    /// The pieces that are here.
    pub had: u32,
    /// Who told what it consists of.
    pub told_by: Teller,
}

/// The last transfers of a host, and who is connected. All times are milliseconds since 1970.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Those that began last are last.
    transfers: VecDeque<Transfer>,
    neighbours: BTreeMap<PeerId, Neighbour>,
}

impl History {
    /// A blob is being fetched, or taken in.
    pub fn begin(&mut self, now_ms: u64, begun: Begun) {
        if self.transfers.len() >= MOST_TRANSFERS {
            let ended = self.transfers.iter().position(|it| it.end.is_some());
            self.transfers.remove(ended.unwrap_or(0));
        }
        let Begun {
            digest,
            namespace,
            length,
            pieces,
            had,
            told_by,
        } = begun;
        self.transfers.push_back(Transfer {
            digest,
            namespace,
            length,
            pieces,
            had,
            told_by,
            begun_ms: now_ms,
            end: None,
            sources: Vec::new(),
            others: 0,
            ingested: 0,
        });
    }

    /// A piece came from no peer.
    pub fn ingested(&mut self, digest: Digest, bytes: u64) {
        if let Some(transfer) = self.running(digest) {
            transfer.ingested += bytes;
        }
    }

    /// The blob is whole, or `failed` says why it will not be. What has ended stays as it is.
    pub fn end(&mut self, now_ms: u64, digest: Digest, failed: Option<String>) {
        if let Some(transfer) = self.running(digest) {
            let at_ms = now_ms;
            transfer.end = Some(End { at_ms, failed });
        }
    }

    /// A piece did not verify.
    pub fn rejected(&mut self, now_ms: u64, digest: Digest, from: PeerId) {
        if let Some(source) = self.source(now_ms, digest, from) {
            source.rejected += 1;
        }
    }

    /// Something happened that the scheduler tells.
    pub fn event(&mut self, now_ms: u64, event: &Event) {
        match *event {
            Event::PieceDone {
                digest,
                bytes,
                from,
                role,
                ..
            } => self.received(now_ms, digest, (from, role), bytes),
            Event::PieceSent { bytes, to, .. } => {
                if let Some(neighbour) = self.neighbours.get_mut(&to) {
                    neighbour.sent += bytes;
                }
            }
            Event::PeerStalled { digest, peer } => {
                if let Some(source) = self.source(now_ms, digest, peer) {
                    source.stalled += 1;
                }
            }
            Event::PeerBanned { peer, reason } => {
                let running = self.transfers.iter_mut().filter(|it| it.end.is_none());
                let sources = running.flat_map(|it| &mut it.sources);
                for source in sources.filter(|source| source.peer == peer) {
                    source.banned = Some(reason.as_str().to_string());
                }
            }
            Event::BlobDone { .. } => {}
        }
    }

    fn received(&mut self, now_ms: u64, digest: Digest, by: (PeerId, PeerRole), bytes: u64) {
        let (from, role) = by;
        if let Some(neighbour) = self.neighbours.get_mut(&from) {
            neighbour.received += bytes;
            neighbour.role = Some(role);
        }
        match self.source(now_ms, digest, from) {
            Some(source) => {
                if source.pieces == 0 {
                    source.first_ms = now_ms;
                }
                source.role = Some(role);
                source.pieces += 1;
                source.bytes += bytes;
                source.last_ms = now_ms;
            }
            None => {
                if let Some(transfer) = self.running(digest) {
                    transfer.others += bytes;
                }
            }
        }
    }

    /// A connection stands.
    pub fn connected(&mut self, now_ms: u64, peer: PeerId, addr: SocketAddr) {
        if self.neighbours.len() < MOST_PEERS {
            self.neighbours.entry(peer).or_insert(Neighbour {
                peer,
                addr,
                role: None,
                since_ms: now_ms,
                received: 0,
                sent: 0,
            });
        }
    }

    /// The last connection to a peer is gone.
    pub fn disconnected(&mut self, peer: PeerId) {
        self.neighbours.remove(&peer);
    }

    /// The transfers of a blob, those that began first first.
    pub fn of(&self, digest: Digest) -> impl Iterator<Item = &Transfer> {
        self.transfers.iter().filter(move |it| it.digest == digest)
    }

    /// The transfers that have not ended.
    pub fn under_way(&self) -> impl Iterator<Item = &Transfer> {
        self.transfers.iter().filter(|it| it.end.is_none())
    }

    /// Who is connected.
    pub fn neighbours(&self) -> impl Iterator<Item = &Neighbour> {
        self.neighbours.values()
    }

    fn running(&mut self, digest: Digest) -> Option<&mut Transfer> {
        let last = self.transfers.iter_mut().rev();
        let mut of = last.filter(|it| it.digest == digest);
        of.next().filter(|it| it.end.is_none())
    }

    /// A peer's part in a transfer that runs; none when too many are told apart.
    fn source(&mut self, now_ms: u64, digest: Digest, peer: PeerId) -> Option<&mut Source> {
        let addr = self.neighbours.get(&peer).map(|it| it.addr);
        let sources = &mut self.running(digest)?.sources;
        let place = match sources.iter().position(|it| it.peer == peer) {
            Some(place) => place,
            None if sources.len() >= MOST_SOURCES => return None,
            None => {
                sources.push(Source {
                    peer,
                    addr,
                    role: None,
                    pieces: 0,
                    bytes: 0,
                    rejected: 0,
                    stalled: 0,
                    banned: None,
                    first_ms: now_ms,
                    last_ms: now_ms,
                });
                sources.len() - 1
            }
        };
        sources.get_mut(place)
    }
}

impl Transfer {
    /// Bytes that came by now, from wherever.
    pub fn came(&self) -> u64 {
        let peers: u64 = self.sources.iter().map(|it| it.bytes).sum();
        peers + self.others + self.ingested
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scheduler::action::CloseReason;

    fn digest(number: u16) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    fn peer(number: u8) -> PeerId {
        PeerId::from_bytes([number; 32])
    }

    fn addr(number: u8) -> SocketAddr {
        ([10, 0, 0, number], 7600).into()
    }

    fn begun(number: u16) -> Begun {
        Begun {
            digest: digest(number),
            namespace: "a".into(),
            length: 3 << 20,
            pieces: 3,
            had: 0,
            told_by: Teller::Discovery,
        }
    }

    fn piece(number: u16, from: u8, role: PeerRole) -> Event {
        Event::PieceDone {
            is_ahead: false,
            digest: digest(number),
            piece: 0,
            bytes: 1 << 20,
            from: peer(from),
            role,
        }
    }

    #[test]
    fn a_transfer_says_who_sent_what_and_when() {
        let mut history = History::default();
        history.connected(5, peer(1), addr(1));
        history.begin(10, begun(1));
        history.event(12, &piece(1, 1, PeerRole::Origin));
        history.event(20, &piece(1, 2, PeerRole::Agent));
        history.rejected(21, digest(1), peer(3));
        let (blob, silent) = (digest(1), peer(2));
        history.event(
            22,
            &Event::PeerStalled {
                digest: blob,
                peer: silent,
            },
        );
        let reason = CloseReason::WrongBytes;
        history.event(
            23,
            &Event::PeerBanned {
                peer: peer(3),
                reason,
            },
        );
        history.event(30, &piece(1, 1, PeerRole::Origin));
        history.end(31, digest(1), None);
        // What comes behind the end is of no transfer.
        history.end(40, digest(1), Some("late".into()));
        history.event(41, &piece(1, 1, PeerRole::Origin));

        let told: Vec<_> = history.of(digest(1)).collect();
        assert_eq!(told.len(), 1);
        let told = told[0];
        assert_eq!(
            told.end,
            Some(End {
                at_ms: 31,
                failed: None
            })
        );
        assert_eq!((told.came(), told.begun_ms), (3 << 20, 10));
        let [origin, agent, liar] = &told.sources[..] else {
            panic!("{told:?}")
        };
        assert_eq!(
            (origin.pieces, origin.first_ms, origin.last_ms),
            (2, 12, 30)
        );
        assert_eq!(
            (origin.addr, origin.role),
            (Some(addr(1)), Some(PeerRole::Origin))
        );
        assert_eq!((agent.addr, agent.stalled, agent.bytes), (None, 1, 1 << 20));
        assert_eq!((liar.rejected, liar.pieces, liar.role), (1, 0, None));
        assert_eq!(liar.banned.as_deref(), Some("wrong-bytes"));
        let neighbour = history.neighbours().next().unwrap();
        assert_eq!((neighbour.received, neighbour.since_ms), (3 << 20, 5));
        history.disconnected(peer(1));
        assert_eq!(history.neighbours().count(), 0);
    }

    #[test]
    fn a_blob_that_comes_again_is_another_transfer() {
        let mut history = History::default();
        for now in [1, 2] {
            history.begin(now, begun(1));
            history.ingested(digest(1), 7);
            history.end(now, digest(1), (now == 1).then(|| "no room".into()));
        }
        let ends: Vec<_> = history
            .of(digest(1))
            .map(|it| it.end.clone().unwrap())
            .collect();
        assert_eq!(ends[0].failed.as_deref(), Some("no room"));
        assert_eq!(ends[1].failed, None);
        assert!(history.of(digest(1)).all(|it| it.came() == 7));
        assert_eq!(history.under_way().count(), 0);
    }

    #[test]
    fn what_runs_stays_while_what_has_ended_goes() {
        let mut history = History::default();
        history.begin(0, begun(0));
        for number in 1..=1000 {
            history.begin(1, begun(number));
            history.end(2, digest(number), None);
        }
        assert_eq!(history.transfers.len(), MOST_TRANSFERS);
        assert_eq!(history.of(digest(0)).count(), 1);
        assert_eq!(history.of(digest(1000)).count(), 1);
        assert_eq!(history.of(digest(1)).count(), 0);
    }

    proptest! {
        /// No order of events makes it grow beyond its bounds, or lose a byte of a transfer that runs.
        #[test]
        fn it_is_bounded_and_counts_every_byte(steps in prop::collection::vec((0u16..700, 0u8..60), 0..3000)) {
            let mut history = History::default();
            history.begin(0, begun(9999));
            let mut bytes = 0;
            for (number, from) in steps {
                history.connected(1, peer(from), addr(from));
                history.begin(1, begun(number));
                history.end(1, digest(number), None);
                history.event(2, &piece(9999, from, PeerRole::Agent));
                bytes += 1 << 20;
            }
            prop_assert!(history.transfers.len() <= MOST_TRANSFERS);
            prop_assert!(history.neighbours.len() <= MOST_PEERS);
            let running: Vec<_> = history.of(digest(9999)).collect();
            prop_assert_eq!(running.len(), 1);
            prop_assert!(running[0].sources.len() <= MOST_SOURCES);
            prop_assert_eq!(running[0].came(), bytes);
        }
    }
}
