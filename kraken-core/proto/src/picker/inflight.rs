//! The requests that are on their way: which piece, of whom, since when.
//!
//! Invariant: every request is in both maps. A request is *late* once its peer has been silent for
//! too long: it may still be answered, but no longer keeps the piece from being asked of others.

use std::collections::BTreeMap;

use crate::scheduler::input::ConnId;
use crate::time::Timestamp;

/// The requests of one blob.
#[derive(Debug, Default)]
pub(crate) struct Inflight {
    by_piece: BTreeMap<u32, BTreeMap<ConnId, Request>>,
    by_conn: BTreeMap<ConnId, BTreeMap<u32, Timestamp>>,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    since: Timestamp,
    late: bool,
}

impl Inflight {
    /// How many pieces are asked for.
    pub(crate) fn pieces(&self) -> usize {
        self.by_piece.len()
    }

    /// How many pieces are asked of `conn`.
    pub(crate) fn asked_of(&self, conn: ConnId) -> usize {
        self.by_conn.get(&conn).map_or(0, BTreeMap::len)
    }

    /// When the oldest request to `conn` was made.
    pub(crate) fn oldest_of(&self, conn: ConnId) -> Option<Timestamp> {
        self.by_conn.get(&conn)?.values().min().copied()
    }

    /// `piece` is asked of `conn`.
    pub(crate) fn add(&mut self, now: Timestamp, piece: u32, conn: ConnId) {
        self.by_piece.entry(piece).or_default().insert(
            conn,
            Request {
                since: now,
                late: false,
            },
        );
        self.by_conn.entry(conn).or_default().insert(piece, now);
    }

    /// The request ended; says whether there was one.
    pub(crate) fn remove(&mut self, piece: u32, conn: ConnId) -> bool {
        remove_from(&mut self.by_conn, &conn, &piece);
        remove_from(&mut self.by_piece, &piece, &conn)
    }

    /// Whether `piece` is asked of somebody who still answers.
    pub(crate) fn is_held(&self, piece: u32) -> bool {
        self.by_piece
            .get(&piece)
            .is_some_and(|asked| asked.values().any(|request| !request.late))
    }

    /// Whether `piece` is asked of `conn`.
    pub(crate) fn has(&self, piece: u32, conn: ConnId) -> bool {
        self.by_conn
            .get(&conn)
            .is_some_and(|asked| asked.contains_key(&piece))
    }

    /// Everybody of whom `piece` is asked.
    pub(crate) fn holders(&self, piece: u32) -> Vec<ConnId> {
        self.by_piece
            .get(&piece)
            .map(|asked| asked.keys().copied().collect())
            .unwrap_or_default()
    }

    /// Ends all requests to `conn` and names their pieces.
    pub(crate) fn drop_conn(&mut self, conn: ConnId) -> Vec<u32> {
        let pieces: Vec<_> = self
            .by_conn
            .remove(&conn)
            .unwrap_or_default()
            .into_keys()
            .collect();
        for piece in &pieces {
            remove_from(&mut self.by_piece, piece, &conn);
        }
        pieces
    }

    /// Marks all requests to `conn` late and names the pieces that were not so before.
    pub(crate) fn mark_late(&mut self, conn: ConnId) -> Vec<u32> {
        let Some(asked) = self.by_conn.get(&conn) else {
            return Vec::new();
        };
        let mut newly = Vec::new();
        for piece in asked.keys() {
            let request = self
                .by_piece
                .get_mut(piece)
                .and_then(|asked| asked.get_mut(&conn));
            if let Some(request) = request.filter(|request| !request.late) {
                request.late = true;
                newly.push(*piece);
            }
        }
        newly
    }

    /// A piece that may be asked of one more: of those that fewer than `copies` are asked for, all
    /// before `before`, the one waited for longest that `eligible` accepts.
    pub(crate) fn duplicate(
        &self,
        before: Timestamp,
        copies: usize,
        eligible: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        self.by_piece
            .iter()
            .filter(|(piece, asked)| asked.len() < copies && eligible(**piece))
            .filter_map(|(piece, asked)| Some((asked.values().map(|it| it.since).max()?, *piece)))
            .filter(|(since, _)| *since <= before)
            .min()
            .map(|(_, piece)| piece)
    }

    /// When the first request was made of those that could be doubled after it has aged.
    pub(crate) fn oldest_single(&self, copies: usize) -> Option<Timestamp> {
        self.by_piece
            .values()
            .filter(|asked| asked.len() < copies)
            .filter_map(|asked| asked.values().map(|it| it.since).max())
            .min()
    }
}

fn remove_from<K: Ord, V: Ord, T>(
    map: &mut BTreeMap<K, BTreeMap<V, T>>,
    key: &K,
    value: &V,
) -> bool {
    let Some(inner) = map.get_mut(key) else {
        return false;
    };
    let found = inner.remove(value).is_some();
    if inner.is_empty() {
        map.remove(key);
    }
    found
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn both_maps_follow_each_other() {
        let mut inflight = Inflight::default();
        inflight.add(at(0), 7, ConnId(1));
        inflight.add(at(1), 7, ConnId(2));
        inflight.add(at(2), 8, ConnId(1));
        assert_eq!((inflight.pieces(), inflight.asked_of(ConnId(1))), (2, 2));
        assert_eq!(inflight.holders(7), [ConnId(1), ConnId(2)]);
        assert_eq!(inflight.oldest_of(ConnId(1)), Some(at(0)));
        assert!(inflight.remove(7, ConnId(1)));
        assert!(!inflight.remove(7, ConnId(1)));
        assert_eq!(inflight.drop_conn(ConnId(1)), [8]);
        assert_eq!(inflight.pieces(), 1);
        assert!(inflight.remove(7, ConnId(2)));
        assert!(inflight.by_conn.is_empty() && inflight.by_piece.is_empty());
    }

    #[test]
    fn a_late_request_holds_its_piece_no_longer() {
        let mut inflight = Inflight::default();
        inflight.add(at(0), 3, ConnId(1));
        assert!(inflight.is_held(3));
        assert_eq!(inflight.mark_late(ConnId(1)), [3]);
        assert!(inflight.mark_late(ConnId(1)).is_empty());
        assert!(!inflight.is_held(3) && inflight.has(3, ConnId(1)));
        assert!(inflight.mark_late(ConnId(9)).is_empty());
    }

    #[test]
    fn duplicates_are_old_few_and_the_oldest_first() {
        let mut inflight = Inflight::default();
        inflight.add(at(0), 1, ConnId(1));
        inflight.add(at(10), 2, ConnId(1));
        inflight.add(at(90), 3, ConnId(1));
        assert_eq!(inflight.oldest_single(2), Some(at(0)));
        assert_eq!(inflight.duplicate(at(50), 2, |_| true), Some(1));
        assert_eq!(inflight.duplicate(at(50), 2, |piece| piece != 1), Some(2));
        inflight.add(at(20), 1, ConnId(2));
        assert_eq!(inflight.duplicate(at(50), 2, |_| true), Some(2));
        assert_eq!(inflight.duplicate(at(50), 2, |piece| piece == 3), None);
    }
}
