//! What an origin brings into the swarm of its own accord.
//!
//! Left to themselves, the hosts of a flash crowd draw the same pieces out of an origin many times
//! before they have had the time to pass them on. So the origin chooses: it offers each piece that
//! no agent among its neighbours has, and that is not on its way to one, to one of them ("super-
//! seeding" in BitTorrent's terms; BEP 16). The neighbour asks for it, or declines when the piece
//! is on its way from elsewhere. The neighbours' news tell how far a piece has spread, whichever
//! origin brought it in, so that several origins share the work without talking to each other.

use std::time::Duration;

use crate::blob::bitfield::Bitfield;
use crate::picker::rarest::Rarest;
use crate::rng::Rng;
use crate::scheduler::config::Config;
use crate::scheduler::input::ConnId;
use crate::time::Timestamp;

/// The offers of one blob.
#[derive(Debug)]
pub(crate) struct Offers {
    /// Every piece, by how many agents among the neighbours have it or are about to.
    scarce: Rarest,
    claims: Vec<Claim>,
    /// Until when nothing is offered.
    rests_until: Timestamp,
}

/// After an agent has completed the blob, nothing is scarce for so long: the tracker hands it out
/// to those who come, and whoever does not reach it asks an origin by name.
const REST: Duration = Duration::from_secs(30);

/// A piece that is on its way to a neighbour.
#[derive(Debug)]
struct Claim {
    piece: u32,
    conn: ConnId,
    /// When it was offered or asked for.
    since: Timestamp,
    /// Whether it takes room: it is offered or being sent.
    open: bool,
    /// When it is forgotten: the neighbour has not done what was expected.
    until: Timestamp,
}

impl Offers {
    pub(crate) fn new(pieces: u32) -> Self {
        Self {
            scarce: Rarest::new(&Bitfield::empty(pieces)),
            claims: Vec::new(),
            rests_until: Timestamp::ZERO,
        }
    }

    /// An agent has every piece.
    pub(crate) fn rest(&mut self, now: Timestamp) {
        self.rests_until = now + REST;
    }

    /// Whether nothing is to be offered.
    pub(crate) fn rests(&self, now: Timestamp) -> bool {
        now < self.rests_until
    }

    /// An agent among the neighbours has `piece`; says since when it was on its way from here.
    pub(crate) fn more(&mut self, piece: u32, conn: ConnId) -> Option<Timestamp> {
        self.scarce.more(piece);
        self.end(piece, conn)
    }

    /// An agent among the neighbours left, or no longer has `piece`.
    pub(crate) fn fewer(&mut self, piece: u32) {
        self.scarce.fewer(piece);
    }

    /// A neighbour left.
    pub(crate) fn part(&mut self, conn: ConnId) {
        for claim in self.claims.extract_if(.., |it| it.conn == conn) {
            self.scarce.fewer(claim.piece);
        }
    }

    /// How many pieces are offered or being sent.
    pub(crate) fn open(&self) -> usize {
        self.claims.iter().filter(|it| it.open).count()
    }

    /// How many of these are for `conn`.
    pub(crate) fn open_for(&self, conn: ConnId) -> usize {
        let of_conn = self.claims.iter().filter(|it| it.conn == conn);
        of_conn.filter(|it| it.open).count()
    }

    /// Whether `piece` is on its way to `conn` already.
    pub(crate) fn is_claimed(&self, piece: u32, conn: ConnId) -> bool {
        let mut claims = self.claims.iter();
        claims.any(|it| it.piece == piece && it.conn == conn)
    }

    /// A piece that fewer than `copies` agents have or are about to have, the scarcest that
    /// `eligible` accepts; of several a random one.
    pub(crate) fn scarce(
        &self,
        copies: u16,
        rng: &mut Rng,
        eligible: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        self.scarce.pick(..copies, rng, eligible)
    }

    /// `piece` is offered to `conn`.
    pub(crate) fn offered(&mut self, now: Timestamp, piece: u32, conn: ConnId, config: &Config) {
        self.claim(piece, conn, true, now, now + config.offer_patience);
    }

    /// `conn` asked for `piece`, whether it was offered or not.
    pub(crate) fn asked(&mut self, now: Timestamp, piece: u32, conn: ConnId, config: &Config) {
        let since = self.end(piece, conn).unwrap_or(now);
        self.claim(piece, conn, true, since, now + config.drop_after);
    }

    /// `conn` declined: it gets the piece from elsewhere and will soon have it.
    pub(crate) fn declined(&mut self, now: Timestamp, piece: u32, conn: ConnId, config: &Config) {
        if let Some(since) = self.end(piece, conn) {
            self.claim(piece, conn, false, since, now + config.offer_patience);
        }
    }

    /// `piece` is on the wire, whole, or could not be sent.
    pub(crate) fn sent(&mut self, now: Timestamp, piece: u32, conn: ConnId, config: &Config) {
        if let Some(since) = self.end(piece, conn) {
            self.claim(piece, conn, false, since, now + config.stall_after);
        }
    }

    /// Forgets what has taken too long.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        for claim in self.claims.extract_if(.., |it| it.until <= now) {
            self.scarce.fewer(claim.piece);
        }
    }

    /// Whether anything can expire.
    pub(crate) fn is_idle(&self) -> bool {
        self.claims.is_empty()
    }

    fn claim(&mut self, piece: u32, conn: ConnId, open: bool, since: Timestamp, until: Timestamp) {
        self.scarce.more(piece);
        self.claims.push(Claim {
            piece,
            conn,
            since,
            open,
            until,
        });
    }

    /// The claim is over; says since when there was one.
    fn end(&mut self, piece: u32, conn: ConnId) -> Option<Timestamp> {
        let same = |it: &Claim| it.piece == piece && it.conn == conn;
        let place = self.claims.iter().position(same)?;
        let ended = self.claims.swap_remove(place);
        self.scarce.fewer(piece);
        Some(ended.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ConnId = ConnId(1);
    const B: ConnId = ConnId(2);

    fn scarce(offers: &Offers) -> Option<u32> {
        offers.scarce(1, &mut Rng::seeded(1), |_| true)
    }

    #[test]
    fn a_piece_is_scarce_until_somebody_has_it_or_will() {
        let (config, now) = (Config::origin(), Timestamp::ZERO);
        let mut offers = Offers::new(1);
        assert_eq!(scarce(&offers), Some(0));
        offers.offered(now, 0, A, &config);
        assert_eq!((scarce(&offers), offers.open_for(A)), (None, 1));
        offers.asked(now, 0, A, &config);
        offers.sent(now, 0, A, &config);
        assert_eq!((scarce(&offers), offers.open()), (None, 0));
        assert_eq!(offers.more(0, A), Some(now));
        assert!(offers.is_idle());
        assert_eq!(scarce(&offers), None);
        offers.fewer(0);
        assert_eq!(scarce(&offers), Some(0));
    }

    #[test]
    fn whoever_leaves_declines_or_is_silent_gives_the_piece_back() {
        let (config, now) = (Config::origin(), Timestamp::ZERO);
        let mut offers = Offers::new(1);
        offers.offered(now, 0, A, &config);
        offers.part(A);
        assert_eq!(scarce(&offers), Some(0));
        offers.offered(now, 0, B, &config);
        offers.declined(now, 0, B, &config);
        assert_eq!((scarce(&offers), offers.open()), (None, 0));
        offers.expire(now + config.offer_patience);
        assert_eq!(scarce(&offers), Some(0));
        offers.declined(now, 0, B, &config);
        assert!(offers.is_idle(), "nothing was offered");
    }
}
