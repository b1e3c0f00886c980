//! Metainfo of a blob that an origin is still taking in.
//!
//! The chain's states become known in order, and each is final when it is: a piece whose states on
//! both sides are known can be proved, stored and passed on before anybody has the whole blob. What
//! the states cannot show before the last of them is that they lead to the digest. So a blob whose
//! bytes turn out wrong at the end is dropped by all who have pieces of it.

use super::digest::Digest;
use super::metainfo::{HEADER, MetaInfo, MetaInfoError, PieceLength};
use super::piece::ChainState;

/// Names the encoding of what has been added to an open metainfo.
const VERSION_MORE: u8 = 3;

impl MetaInfo {
    /// The metainfo of a blob of which nothing but name and length is known, at the piece length
    /// for its size. One piece is proved by the digest alone, so that up to there it is whole.
    ///
    /// # Errors
    /// The blob is too long, or empty with a digest that is not that of no bytes.
    pub fn open(digest: Digest, length: u64) -> Result<Self, MetaInfoError> {
        if length > Self::MAX_LENGTH {
            let pieces = PieceLength::MAX.pieces(length);
            return Err(MetaInfoError::TooManyPieces(pieces));
        }
        Self::with_states(digest, length, PieceLength::for_blob(length), Vec::new())
    }

    /// Whether all states are known.
    pub fn is_whole(&self) -> bool {
        self.states.len() as u64 == self.piece_length.pieces(self.length).saturating_sub(1)
    }

    /// How many states are known: those at the first boundaries between pieces.
    pub fn known_states(&self) -> u32 {
        u32::try_from(self.states.len()).expect("bounded by MAX_PIECES")
    }

    /// How many pieces can be proved, from the first on. The last one is proved by the digest.
    pub fn provable(&self) -> u32 {
        if self.is_whole() {
            self.piece_count()
        } else {
            self.known_states()
        }
    }

    /// The state in front of `piece`, which the states must reach.
    ///
    /// # Panics
    /// When that state is not known: an error of the caller.
    pub fn state_before(&self, piece: u32) -> ChainState {
        match piece.checked_sub(1) {
            None => ChainState::INITIAL,
            Some(boundary) => self.states[boundary as usize],
        }
    }

    /// The same with `states` at the next boundaries.
    ///
    /// # Errors
    /// These are more than the blob has.
    pub fn continued(
        &self,
        states: impl IntoIterator<Item = ChainState>,
    ) -> Result<Self, MetaInfoError> {
        let states = self.states.iter().copied().chain(states).collect();
        Self::with_states(self.digest, self.length, self.piece_length, states)
    }

    /// The same without its last state when it is whole: what may be told of a blob whose last piece
    /// has not been proved. `None` when the digest alone proves it, as that is whole at once.
    pub fn unfinished(&self) -> Option<Self> {
        if !self.is_whole() {
            return Some(self.clone());
        }
        let (_, states) = self.states.split_last()?;
        Some(Self {
            states: states.into(),
            ..self.clone()
        })
    }

    /// An encoding for somebody who knows the first `after` states: as that of [`MetaInfo::encode`]
    /// with version 3 in the header, then `after` (32-bit big-endian), then the states from the last
    /// known one on. That one shows whether both are of the same bytes. Without any known, or when
    /// fewer are known here, the encoding of all.
    pub fn encode_after(&self, after: u32) -> Vec<u8> {
        let states = after
            .checked_sub(1)
            .and_then(|last| self.states.get(last as usize..));
        let Some(states) = states.filter(|states| !states.is_empty()) else {
            return self.encode();
        };
        let mut bytes = self.header(VERSION_MORE, 4 + 32 * states.len());
        bytes.extend_from_slice(&after.to_be_bytes());
        bytes.extend(states.iter().flat_map(|state| state.to_bytes()));
        bytes
    }

    /// Reads what [`MetaInfo::encode_after`] wrote for somebody who knows `known`.
    ///
    /// # Errors
    /// As [`MetaInfo::decode`], and [`MetaInfoError::Contradiction`] when it does not go on from
    /// `known`.
    pub fn decode_after(bytes: &[u8], known: Option<&Self>) -> Result<Self, MetaInfoError> {
        if bytes.get(4) != Some(&VERSION_MORE) {
            return Self::decode(bytes);
        }
        let known = known.ok_or(MetaInfoError::Contradiction)?;
        let (header, rest) = bytes
            .split_at_checked(HEADER)
            .ok_or(MetaInfoError::Truncated)?;
        let (after, states) = rest.split_first_chunk().ok_or(MetaInfoError::Truncated)?;
        let after = u32::from_be_bytes(*after) as usize;
        let ([last, more @ ..], []) = states.as_chunks::<32>() else {
            return Err(MetaInfoError::Truncated);
        };
        let last_known = after.checked_sub(1).and_then(|last| known.states.get(last));
        let same = last_known.is_some_and(|state| state.to_bytes() == *last);
        if header != known.header(VERSION_MORE, 0) || !same {
            return Err(MetaInfoError::Contradiction);
        }
        // What is known beyond `after` comes once more.
        let first = known.states[..after].iter().copied();
        let states = first.chain(more.iter().map(ChainState::from_bytes));
        Self::with_states(
            known.digest,
            known.length,
            known.piece_length,
            states.collect(),
        )
    }

    /// Whether this is of the same blob, cut alike, and knows everything that `earlier` knows.
    pub fn continues(&self, earlier: &Self) -> bool {
        self.digest == earlier.digest
            && self.length == earlier.length
            && self.piece_length == earlier.piece_length
            && self.states.starts_with(&earlier.states)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::metainfo::PieceError;

    const PIECE: usize = 256 << 10;

    fn bytes() -> Vec<u8> {
        (0..3 * PIECE + 99)
            .map(|at| (at ^ (at >> 9)) as u8)
            .collect()
    }

    /// As an origin does it: piece by piece, one state each.
    fn grown(bytes: &[u8]) -> Vec<MetaInfo> {
        let mut metas = vec![MetaInfo::open(Digest::of(bytes), bytes.len() as u64).expect("fits")];
        for piece in bytes.chunks_exact(PIECE) {
            let meta = metas.last().expect("one is there");
            let state = meta.state_before(meta.known_states()).advance(piece);
            metas.push(meta.continued([state]).expect("there is one more"));
        }
        metas
    }

    #[test]
    fn it_proves_what_has_passed_and_ends_as_the_whole_one() {
        let bytes = bytes();
        let metas = grown(&bytes);
        for (known, meta) in metas.iter().enumerate() {
            let whole = known == 3;
            assert_eq!(meta.is_whole(), whole);
            assert_eq!(meta.provable() as usize, if whole { 4 } else { known });
            for (piece, part) in bytes.chunks(PIECE).enumerate() {
                let number = piece as u32;
                let proved = if piece < meta.provable() as usize {
                    Ok(())
                } else {
                    Err(PieceError::Unproven { piece: number })
                };
                assert_eq!(meta.verify(number, part), proved, "{known} {piece}");
            }
            assert!(metas[..=known].iter().all(|it| meta.continues(it)));
            assert!(!metas[known + 1..].iter().any(|it| meta.continues(it)));
        }
        assert_eq!(metas[3], MetaInfo::of(&bytes));
        assert_eq!(metas[3].unfinished().as_ref(), Some(&metas[2]));
        assert_eq!(metas[1].unfinished().as_ref(), Some(&metas[1]));
        assert_eq!(MetaInfo::of(b"one piece").unfinished(), None);
        assert!(metas[3].continued([ChainState::INITIAL]).is_err());
    }

    #[test]
    fn a_chain_of_other_bytes_does_not_continue_it_and_never_proves_its_end() {
        let bytes = bytes();
        let mut others = bytes.clone();
        others[PIECE + 7] ^= 1;
        let meta = MetaInfo::open(Digest::of(&bytes), bytes.len() as u64).unwrap();
        let mut wrong = meta.clone();
        for piece in others.chunks_exact(PIECE) {
            let state = wrong.state_before(wrong.known_states()).advance(piece);
            wrong = wrong.continued([state]).unwrap();
        }
        assert_eq!(wrong.verify(1, &others[PIECE..2 * PIECE]), Ok(()));
        assert_eq!(
            wrong.verify(3, &others[3 * PIECE..]),
            Err(PieceError::Bytes { piece: 3 })
        );
        assert!(!MetaInfo::of(&bytes).continues(&wrong));
        assert!(wrong.continues(&meta));
    }

    #[test]
    fn encodings_tell_open_from_whole() {
        for meta in grown(&bytes()) {
            let encoding = meta.encode();
            assert_eq!(encoding[4], if meta.is_whole() { 1 } else { 2 });
            assert_eq!(MetaInfo::decode(&encoding), Ok(meta.clone()));
            let mut other = encoding;
            other[4] = 3 - other[4];
            let wrong = MetaInfo::decode(&other).unwrap_err();
            let expected = match (meta.is_whole(), meta.known_states() as usize) {
                (true, _) => MetaInfoError::NotOpen,
                (false, states) => MetaInfoError::States { pieces: 4, states },
            };
            assert_eq!(wrong, expected);
        }
    }

    #[test]
    fn what_was_added_is_read_by_whoever_knows_the_rest_and_nobody_else() {
        let metas = grown(&bytes());
        let others = grown(&vec![7; 3 * PIECE + 99]);
        for (known, later) in [(0, 2), (1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 1)] {
            let (before, now) = (&metas[known], &metas[later]);
            let encoding = now.encode_after(before.known_states());
            let read = MetaInfo::decode_after(&encoding, Some(before));
            assert_eq!(read.as_ref(), Ok(now), "{known} {later}");
            if encoding[4] == VERSION_MORE {
                assert_eq!(encoding.len(), HEADER + 4 + 32 * (later - known + 1));
                for stranger in [None, Some(&others[known]), Some(&metas[0])] {
                    let read = MetaInfo::decode_after(&encoding, stranger);
                    assert_eq!(read, Err(MetaInfoError::Contradiction));
                }
                for cut in 0..encoding.len() {
                    let read = MetaInfo::decode_after(&encoding[..cut], Some(before));
                    assert!(
                        read.is_err() || (cut - HEADER - 4).is_multiple_of(32),
                        "{cut}"
                    );
                }
            }
        }
        let encoding = metas[3].encode_after(1);
        let mut long = encoding.clone();
        long.extend_from_slice(&encoding[HEADER + 4..]);
        assert!(MetaInfo::decode_after(&long, Some(&metas[2])).is_err());
    }

    #[test]
    fn small_ones_are_whole_at_once_and_long_ones_are_bounded() {
        let digest = Digest::of(b"x");
        assert!(MetaInfo::open(digest, 1).unwrap().is_whole());
        assert_eq!(MetaInfo::open(digest, 1).unwrap().provable(), 1);
        assert!(MetaInfo::open(Digest::of(b""), 0).unwrap().is_whole());
        assert_eq!(MetaInfo::open(digest, 0), Err(MetaInfoError::EmptyBlob));
        let long = MetaInfo::open(digest, 100_000_000_000).unwrap();
        assert_eq!((long.is_whole(), long.provable()), (false, 0));
        assert!(MetaInfo::open(digest, u64::MAX).is_err());
        assert!(MetaInfo::open(digest, MetaInfo::MAX_LENGTH).is_ok());
    }
}
