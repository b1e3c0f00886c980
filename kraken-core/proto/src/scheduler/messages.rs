//! What peers say, routed to the swarm that it concerns.

use super::{MAX_LOOKUPS, Scheduler};
use crate::blob::bitfield::Bitfield;
use crate::blob::digest::Digest;
use crate::blob::metainfo::PieceLength;
use crate::peer::{PeerInfo, PeerRole};
use crate::scheduler::action::{Action, CloseReason};
use crate::scheduler::input::{BlobSpec, ConnId};
use crate::swarm::Violation;
use crate::time::Timestamp;
use crate::wire::message::{Contact, Message};

/// What a peer says of a blob first: its pieces' length, which of them it has, and whether it fetches
/// only parts.
pub(super) type Greeting = (PieceLength, Bitfield, bool);

/// Neighbours of an origin that fetch parts of a blob, for each that may fetch all of it.
const PARTIAL_PER_WHOLE: usize = 16;

impl Scheduler {
    pub(super) fn message(&mut self, now: Timestamp, conn: ConnId, message: Message) {
        if self.conns.get(conn).is_none() {
            return;
        }
        if self.route(now, conn, message).is_err() {
            self.punish(now, conn, CloseReason::Protocol);
        }
    }

    fn route(&mut self, now: Timestamp, conn: ConnId, message: Message) -> Result<(), Violation> {
        let greeted = self.conns.get(conn).and_then(|conn| conn.role);
        let result = match (message, greeted) {
            (Message::Hello { role, contact }, None) => {
                self.hello(now, conn, role, contact);
                Some(Ok(()))
            }
            (Message::Hello { .. }, Some(_)) | (_, None) => Some(Err(Violation)),
            (
                Message::Subscribe {
                    digest,
                    piece_length,
                    have,
                    is_partial,
                },
                Some(_),
            ) => Some(self.subscribe(now, conn, digest, (piece_length, have, is_partial))),
            (Message::Unsubscribe { digest }, Some(_)) => {
                self.unsubscribe(now, conn, digest);
                Some(Ok(()))
            }
            (Message::Have { digest, pieces }, Some(_)) => {
                self.with_swarm(now, digest, |swarm, cx| swarm.has_more(cx, conn, &pieces))
            }
            (Message::Request { digest, piece }, Some(_)) => {
                let result =
                    self.with_swarm(now, digest, |swarm, cx| swarm.requested(cx, conn, piece));
                if result.is_none() {
                    let message = Message::Refuse { digest, piece };
                    self.actions.push_back(Action::Send { conn, message });
                }
                result
            }
            (Message::Cancel { digest, piece }, Some(_)) => {
                self.with_swarm(now, digest, |swarm, cx| swarm.cancelled(cx, conn, piece));
                Some(Ok(()))
            }
            (Message::Refuse { digest, piece }, Some(_)) => {
                self.with_swarm(now, digest, |swarm, cx| swarm.refused(cx, conn, piece));
                Some(Ok(()))
            }
            // Of an origin, or an agent that goes soon.
            (Message::Offer { digest, piece }, Some(_)) => {
                self.with_swarm(now, digest, |swarm, cx| swarm.offered(cx, conn, piece))
            }

            (Message::AskPeers { digest }, Some(_)) => {
                self.tell_peers(conn, digest);
                Some(Ok(()))
            }
            (Message::Peers { digest, peers }, Some(_)) => {
                self.told_peers(now, digest, &peers);
                Some(Ok(()))
            }
            (Message::AskMetaInfo { digest, offset }, Some(_)) => {
                self.tell_metainfo(conn, digest, offset);
                Some(Ok(()))
            }
            (
                Message::MetaInfo {
                    digest,
                    total,
                    offset,
                    part,
                },
                Some(_),
            ) => Some(self.told_metainfo(now, conn, digest, (total, offset), &part)),
            (Message::Piece { digest, piece, len }, Some(_)) => {
                self.with_swarm(now, digest, |swarm, cx| swarm.arrived(cx, conn, piece, len))
            }
        };
        // A blob that is in no swarm (any more): what the peer says of it crossed our leaving.
        result.unwrap_or(Ok(()))
    }

    fn hello(&mut self, now: Timestamp, id: ConnId, role: PeerRole, contact: Option<Contact>) {
        let Some(conn) = self.conns.get_mut(id) else {
            return;
        };
        conn.role = Some(role);
        let (peer, wanted) = (conn.peer, std::mem::take(&mut conn.wanted));
        if let Some(Contact { addr, zone }) = contact {
            let info = PeerInfo {
                id: peer,
                addr,
                role,
                zone,
            };
            self.met(id, info);
        }
        for digest in wanted {
            self.greet(now, id, digest);
            self.ask_metainfo(now, id, digest);
        }
    }

    /// Begins to talk to a connected peer about a blob.
    pub(super) fn greet(&mut self, now: Timestamp, conn: ConnId, digest: Digest) {
        let Some((peer, role)) = self
            .conns
            .get(conn)
            .and_then(|it| Some((it.peer, it.role?)))
        else {
            return;
        };
        let greeted = self.with_swarm(now, digest, |swarm, cx| swarm.greet(cx, conn, peer, role));
        if greeted.is_some() {
            self.conns.used(now, conn, digest, true);
        }
    }

    fn subscribe(
        &mut self,
        now: Timestamp,
        conn: ConnId,
        digest: Digest,
        (piece_length, have, is_partial): Greeting,
    ) -> Result<(), Violation> {
        let Some(swarm) = self.swarms.get(&digest) else {
            self.look_up(conn, digest, (piece_length, have, is_partial));
            return Ok(());
        };
        let role = self
            .conns
            .get(conn)
            .and_then(|conn| conn.role)
            .unwrap_or(PeerRole::Agent);
        // Who fetches parts takes nobody's place, and asks for little.
        let most = match (is_partial, self.local.role) {
            (true, PeerRole::Origin) => self.config.max_degree * PARTIAL_PER_WHOLE,
            _ => self.config.max_degree,
        };
        let full = !swarm.has_peer(conn) && swarm.degree_of(role, is_partial) >= most;
        let useless = !swarm.has_peer(conn) && swarm.is_complete() && have.is_full();
        if full || useless || swarm.spec().piece_length != piece_length {
            self.turn_away(now, conn, digest);
            return Ok(());
        }
        self.greet(now, conn, digest);
        self.with_swarm(now, digest, |swarm, cx| {
            swarm.subscribed(cx, conn, (have, is_partial))
        })
        .unwrap_or(Ok(()))
    }

    fn unsubscribe(&mut self, now: Timestamp, conn: ConnId, digest: Digest) {
        let was_neighbour = self.with_swarm(now, digest, |swarm, cx| {
            let neighbour = swarm.has_peer(conn);
            swarm.part(cx, conn);
            neighbour && !swarm.is_complete()
        });
        self.conns.used(now, conn, digest, false);
        if let Some(waiting) = self.lookups.get_mut(&digest) {
            waiting.remove(&conn);
        }
        if was_neighbour == Some(true) {
            let peer = self.conns.get(conn).map(|conn| conn.peer);
            if let Some(peer) = peer {
                self.turned_away(now, digest, peer);
                self.ask_whoever_is_full(conn, digest, peer);
            }
            self.announces.hurry(now, digest);
        }
    }

    fn look_up(&mut self, conn: ConnId, digest: Digest, greeting: Greeting) {
        let waiting = self
            .lookups
            .values()
            .filter(|waiting| waiting.contains_key(&conn))
            .count();
        if self.lookups.len() >= MAX_LOOKUPS || waiting >= MAX_LOOKUPS / 16 {
            let message = Message::Unsubscribe { digest };
            self.actions.push_back(Action::Send { conn, message });
            return;
        }
        let greetings = self.lookups.entry(digest).or_default();
        if greetings.is_empty() {
            self.actions.push_back(Action::Lookup { digest });
        }
        greetings.insert(conn, greeting);
    }

    pub(super) fn found(&mut self, now: Timestamp, digest: Digest, spec: Option<BlobSpec>) {
        let greetings = self.lookups.remove(&digest).unwrap_or_default();
        let wanted = !greetings.is_empty() && !self.stopping;
        if let Some(spec) = spec.filter(|_| wanted && !self.swarms.contains_key(&digest)) {
            let have = Bitfield::full(spec.piece_count());
            self.open(now, spec, have);
        }
        for (conn, greeting) in greetings {
            if !self.swarms.contains_key(&digest) {
                self.turn_away(now, conn, digest);
            } else if self.subscribe(now, conn, digest, greeting).is_err() {
                self.punish(now, conn, CloseReason::Protocol);
            }
        }
    }

    fn turn_away(&mut self, now: Timestamp, conn: ConnId, digest: Digest) {
        self.with_swarm(now, digest, |swarm, cx| swarm.part(cx, conn));
        self.conns.used(now, conn, digest, false);
        self.actions.push_back(Action::Send {
            conn,
            message: Message::Unsubscribe { digest },
        });
    }
}
