//! The requests that are on their way: which piece, of whom, since when.
//!
//! A host has a few dozen of them at most, so that one flat list beats every index. A request is
//! *late* once its peer has been silent for too long: it may still be answered, but no longer
//! keeps the piece from being asked of others.

use crate::peer::PeerRole;
use crate::scheduler::input::ConnId;
use crate::time::Timestamp;

/// The requests of one blob.
#[derive(Debug, Default)]
pub(crate) struct Inflight {
    requests: Vec<Request>,
}

/// One piece that is asked of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) piece: u32,
    pub(crate) conn: ConnId,
    pub(crate) role: PeerRole,
    pub(crate) since: Timestamp,
    pub(crate) late: bool,
}

impl Inflight {
    /// Whether nothing is asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// How many requests that are not late were made after `since`.
    pub(crate) fn made_after(&self, since: Timestamp) -> usize {
        self.iter()
            .filter(|it| it.since > since && !it.late)
            .count()
    }

    /// All requests.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Request> {
        self.requests.iter()
    }

    /// How many pieces are asked of `conn`.
    pub(crate) fn asked_of(&self, conn: ConnId) -> usize {
        self.iter().filter(|it| it.conn == conn).count()
    }

    /// How many requests there are.
    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    /// How many requests that are not late have gone to peers of a role.
    pub(crate) fn asked_of_role(&self, role: PeerRole) -> usize {
        self.iter().filter(|it| it.role == role && !it.late).count()
    }

    /// When the oldest request to `conn` was made.
    pub(crate) fn oldest_of(&self, conn: ConnId) -> Option<Timestamp> {
        let of_conn = self.iter().filter(|it| it.conn == conn);
        of_conn.map(|it| it.since).min()
    }

    /// `piece` is asked of `conn`, whose peer has this role.
    pub(crate) fn add(&mut self, now: Timestamp, piece: u32, conn: ConnId, role: PeerRole) {
        self.requests.push(Request {
            piece,
            conn,
            role,
            since: now,
            late: false,
        });
    }

    /// The request ended; gives it back if there was one.
    pub(crate) fn remove(&mut self, piece: u32, conn: ConnId) -> Option<Request> {
        let same = |it: &Request| it.piece == piece && it.conn == conn;
        let place = self.requests.iter().position(same)?;
        Some(self.requests.swap_remove(place))
    }

    /// Whether `piece` is asked of somebody who still answers.
    pub(crate) fn is_held(&self, piece: u32) -> bool {
        self.iter().any(|it| it.piece == piece && !it.late)
    }

    /// Whether `piece` is asked of `conn`.
    pub(crate) fn has(&self, piece: u32, conn: ConnId) -> bool {
        self.iter().any(|it| it.piece == piece && it.conn == conn)
    }

    /// Ends all requests for `piece` and names of whom it was asked.
    pub(crate) fn drop_piece(&mut self, piece: u32) -> Vec<ConnId> {
        let held = self.requests.extract_if(.., |it| it.piece == piece);
        held.map(|it| it.conn).collect()
    }

    /// Ends all requests to `conn` and names their pieces.
    pub(crate) fn drop_conn(&mut self, conn: ConnId) -> Vec<u32> {
        let asked = self.requests.extract_if(.., |it| it.conn == conn);
        asked.map(|it| it.piece).collect()
    }

    /// Marks all requests to `conn` late and names the pieces that were not so before.
    pub(crate) fn mark_late(&mut self, conn: ConnId) -> Vec<u32> {
        let asked = self.requests.iter_mut();
        let newly = asked.filter(|it| it.conn == conn && !it.late);
        newly
            .map(|it| {
                it.late = true;
                it.piece
            })
            .collect()
    }

    /// A piece that may be asked of one more: of those that fewer than `copies` are asked for, all
    /// before `before`, the one waited for longest that `eligible` accepts.
    pub(crate) fn duplicate(
        &self,
        before: Timestamp,
        copies: usize,
        eligible: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        self.latest(copies)
            .filter(|it| it.since <= before && eligible(it.piece))
            .min_by_key(|it| (it.since, it.piece))
            .map(|it| it.piece)
    }

    /// When the first request was made of those that could be doubled after it has aged.
    pub(crate) fn oldest_single(&self, copies: usize) -> Option<Timestamp> {
        self.latest(copies).map(|it| it.since).min()
    }

    /// Of each piece that fewer than `copies` are asked for, the latest request.
    fn latest(&self, copies: usize) -> impl Iterator<Item = &Request> {
        self.iter().filter(move |it| {
            let same = || self.iter().filter(|other| other.piece == it.piece);
            let latest = same().max_by_key(|other| (other.since, other.conn));
            same().count() < copies && latest == Some(it)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(millis)
    }

    fn inflight(requests: &[(u64, u32, u64)]) -> Inflight {
        let mut inflight = Inflight::default();
        for (millis, piece, conn) in requests {
            inflight.add(at(*millis), *piece, ConnId(*conn), PeerRole::Agent);
        }
        inflight
    }

    #[test]
    fn requests_are_found_by_piece_and_by_peer() {
        let mut inflight = inflight(&[(0, 7, 1), (1, 7, 2), (2, 8, 1)]);
        assert_eq!(inflight.made_after(at(0)), 2);
        inflight.add(at(3), 9, ConnId(3), PeerRole::Origin);
        assert_eq!(inflight.asked_of(ConnId(1)), 2);
        assert_eq!(inflight.asked_of_role(PeerRole::Agent), 3);
        assert_eq!(inflight.asked_of_role(PeerRole::Origin), 1);
        assert_eq!(inflight.oldest_of(ConnId(1)), Some(at(0)));
        let removed = inflight.remove(7, ConnId(1)).unwrap();
        assert_eq!((removed.since, removed.late), (at(0), false));
        assert_eq!(inflight.remove(7, ConnId(1)), None);
        assert_eq!(inflight.drop_conn(ConnId(1)), [8]);
        assert_eq!(inflight.drop_piece(7), [ConnId(2)]);
        assert_eq!(inflight.drop_piece(9), [ConnId(3)]);
        assert!(inflight.is_empty());
    }

    #[test]
    fn a_late_request_holds_its_piece_no_longer() {
        let mut inflight = inflight(&[(0, 3, 1)]);
        assert!(inflight.is_held(3));
        assert_eq!(inflight.mark_late(ConnId(1)), [3]);
        assert!(inflight.mark_late(ConnId(1)).is_empty());
        assert!(!inflight.is_held(3) && inflight.has(3, ConnId(1)));
        assert_eq!(inflight.asked_of_role(PeerRole::Agent), 0);
        assert!(inflight.mark_late(ConnId(9)).is_empty());
    }

    #[test]
    fn duplicates_are_old_few_and_the_oldest_first() {
        let mut inflight = inflight(&[(0, 1, 1), (10, 2, 1), (90, 3, 1)]);
        assert_eq!(inflight.oldest_single(2), Some(at(0)));
        assert_eq!(inflight.duplicate(at(50), 2, |_| true), Some(1));
        assert_eq!(inflight.duplicate(at(50), 2, |piece| piece != 1), Some(2));
        inflight.add(at(20), 1, ConnId(2), PeerRole::Agent);
        assert_eq!(inflight.duplicate(at(50), 2, |_| true), Some(2));
        assert_eq!(inflight.duplicate(at(50), 2, |piece| piece == 3), None);
    }
}
