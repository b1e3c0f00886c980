//! A blob that an origin is still taking in: its pieces can be proved one after the other.
//!
//! A piece that cannot be proved yet is asked of nobody, as nothing unproved may be kept. An origin
//! knows of a piece before the hosts can prove it, so that its offer may come too early: it is kept
//! until then. The origin that takes the blob in asks no peer for anything.

use std::collections::BTreeSet;

use super::{Context, Swarm};
use crate::scheduler::config::Config;
use crate::scheduler::input::ConnId;

/// The pieces that cannot be proved yet.
#[derive(Debug)]
pub(super) struct Unproven {
    /// The first of them.
    from: u32,
    /// What was offered of them.
    offers: BTreeSet<(u32, ConnId)>,
}

impl Unproven {
    /// The metainfo is whole.
    pub(super) fn none() -> Self {
        Self {
            from: u32::MAX,
            offers: BTreeSet::new(),
        }
    }

    pub(super) fn contains(&self, piece: u32) -> bool {
        piece >= self.from
    }

    /// A neighbour left.
    pub(super) fn part(&mut self, conn: ConnId) {
        self.offers.retain(|(_, offering)| *offering != conn);
    }

    fn offered_by(&self, conn: ConnId) -> usize {
        let mut offers = self.offers.iter();
        offers.by_ref().filter(|(_, it)| *it == conn).count()
    }

    /// The offers of pieces below `from`.
    fn take_offers(&mut self) -> BTreeSet<(u32, ConnId)> {
        let later = self.offers.split_off(&(self.from, ConnId(0)));
        std::mem::replace(&mut self.offers, later)
    }
}

impl Swarm {
    /// So many pieces can be proved, from the first on.
    pub(crate) fn provable(&mut self, cx: &mut Context<'_>, pieces: u32) {
        let (before, count) = (self.unproven.from, self.have.len());
        self.unproven.from = if pieces < count { pieces } else { u32::MAX };
        // Said for the first time, right after the blob was opened.
        (pieces..before.min(count)).for_each(|piece| self.rarest.close(piece));
        (before..pieces.min(count)).for_each(|piece| self.reopen(piece));
        for (piece, conn) in self.unproven.take_offers() {
            // It was checked when it came.
            let _ = self.offered(cx, conn, piece);
        }
        self.fill_all(cx);
    }

    /// Whether there is nothing to ask for because the rest cannot be proved yet, or is not wanted.
    pub(super) fn awaits_more(&self) -> bool {
        let lacks_proofs = self.unproven.from < self.have.len();
        (lacks_proofs || self.parts.is_some()) && self.rarest.open_count() == 0
    }

    /// Keeps an offer for when the piece can be proved; false when it is to be answered now.
    pub(super) fn keep_offer(&mut self, config: &Config, conn: ConnId, piece: u32) -> bool {
        let keep = self.unproven.contains(piece)
            && !self.have.has(piece)
            && self.unproven.offered_by(conn) < config.max_uploads_per_peer;
        if keep {
            self.unproven.offers.insert((piece, conn));
        }
        keep
    }

    /// A piece came into the store from elsewhere.
    pub(crate) fn ingested(&mut self, cx: &mut Context<'_>, piece: u32) {
        if piece >= self.have.len() || !self.have.insert(piece) {
            return;
        }
        self.rarest.close(piece);
        self.note_news(cx, piece);
        if self.is_complete() {
            self.completed(cx);
        }
        self.offer(cx);
    }
}
