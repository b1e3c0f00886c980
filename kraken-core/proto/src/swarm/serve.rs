//! The sending side of a swarm: requests in, pieces out.

use super::peers::take;
use super::{Context, Swarm, Violation};
use crate::scheduler::action::{Action, Event};
use crate::scheduler::input::ConnId;
use crate::wire::message::Message;

impl Swarm {
    /// A neighbour asks for a piece.
    pub(crate) fn requested(
        &mut self,
        cx: &mut Context<'_>,
        conn: ConnId,
        piece: u32,
    ) -> Result<(), Violation> {
        let digest = self.spec.digest;
        if piece >= self.have.len() {
            return Err(Violation);
        }
        let room = cx.config.max_uploads_per_peer;
        let serves = self.have.has(piece);
        match self.peers.get_mut(&conn) {
            Some(peer) if serves && peer.subscribed && peer.uploads.len() < room => {
                if !peer.uploads.contains(&piece) {
                    peer.uploads.push(piece);
                    if let Some(offers) = self.offers.as_mut().filter(|_| peer.is_agent()) {
                        offers.asked(cx.now, piece, conn, cx.config);
                        self.watch_at.get_or_insert(cx.now + cx.config.watch);
                    }
                    cx.out.push_back(Action::SendPiece {
                        conn,
                        digest,
                        piece,
                        // What it says to have alone would let it claim to be new for ever.
                        first: peer.have.count().max(peer.served) < cx.config.newcomer_pieces,
                    });
                }
            }
            _ => {
                let message = Message::Refuse { digest, piece };
                cx.out.push_back(Action::Send { conn, message });
            }
        }
        Ok(())
    }

    /// A neighbour no longer wants a piece.
    pub(crate) fn cancelled(&mut self, cx: &mut Context<'_>, conn: ConnId, piece: u32) {
        let sending = self
            .peers
            .get(&conn)
            .is_some_and(|peer| peer.uploads.contains(&piece));
        if sending {
            cx.out.push_back(Action::CancelPiece {
                conn,
                digest: self.spec.digest,
                piece,
            });
        }
    }

    /// A piece went out, or could not be read.
    pub(crate) fn sent(&mut self, cx: &mut Context<'_>, conn: ConnId, piece: u32, sent: bool) {
        let digest = self.spec.digest;
        let Some(peer) = self.peers.get_mut(&conn) else {
            return;
        };
        if !take(&mut peer.uploads, piece) {
            return;
        }
        if let Some(offers) = &mut self.offers {
            offers.sent(cx.now, piece, conn, cx.config);
        }
        if sent {
            peer.served = peer.served.saturating_add(1);
            let bytes = self.spec.piece_size(piece);
            self.stats.sent += bytes;
            let event = Event::PieceSent {
                digest,
                piece,
                bytes,
                to: peer.id,
            };
            cx.out.push_back(Action::Event(event));
        } else {
            let message = Message::Refuse { digest, piece };
            cx.out.push_back(Action::Send { conn, message });
        }
        self.offer(cx);
    }
}
