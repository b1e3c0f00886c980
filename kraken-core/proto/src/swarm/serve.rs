//! The sending side of a swarm: requests in, pieces out.

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
                if peer.uploads.insert(piece) {
                    cx.out.push_back(Action::SendPiece {
                        conn,
                        digest,
                        piece,
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
        if !peer.uploads.remove(&piece) {
            return;
        }
        if sent {
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
    }
}
