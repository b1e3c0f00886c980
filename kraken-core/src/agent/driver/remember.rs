//! What the driver remembers of transfers: who sent what, for those who ask later.

use kraken_proto::history::{Begun, Teller};
use kraken_proto::{Bitfield, Input, MetaInfo, Namespace};

use super::Driver;
use crate::clock::unix_ms;

impl Driver {
    /// A blob is opened: one of which something is missing is on its way from now on.
    pub(super) fn remember_open(
        &mut self,
        meta: &MetaInfo,
        namespace: &Namespace,
        have: &Bitfield,
        (is_hearsay, ingest): (bool, bool),
    ) {
        if have.is_full() {
            return;
        }
        let told_by = match (ingest, is_hearsay) {
            (true, _) => Teller::Origin,
            (false, true) => Teller::Peer,
            (false, false) => Teller::Discovery,
        };
        let begun = Begun {
            digest: meta.digest(),
            namespace: namespace.to_string(),
            length: meta.length(),
            pieces: meta.piece_count(),
            had: have.count(),
            told_by,
        };
        self.history.begin(unix_ms(), begun);
    }

    /// What only an input tells.
    pub(super) fn remember_input(&mut self, input: &Input) {
        match *input {
            Input::PieceRejected { digest, conn, .. } => {
                if let Some(link) = self.links.get(&conn) {
                    self.history.rejected(unix_ms(), digest, link.peer());
                }
            }
            Input::ConnDown { conn } => {
                if let Some(peer) = self.links.get(&conn).map(super::Link::peer) {
                    let mut others = self.links.iter().filter(|(id, _)| **id != conn);
                    if !others.any(|(_, link)| link.peer() == peer) {
                        self.history.disconnected(peer);
                    }
                }
            }
            _ => {}
        }
    }
}
