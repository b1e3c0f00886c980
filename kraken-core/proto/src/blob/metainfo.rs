//! What one must know of a blob to fetch it in pieces and prove each.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::digest::Digest;
use super::piece::{BLOCK, ChainState};

/// The distance between piece boundaries, in bytes: a power of two times [`PieceLength::MIN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceLength(u64);

impl PieceLength {
    /// 256 KiB: small blobs still split over several peers.
    pub const MIN: Self = Self(256 << 10);
    /// 16 MiB: a piece is held in memory while it is checked.
    pub const MAX: Self = Self(16 << 20);
    /// The most pieces that [`PieceLength::for_blob`] makes of a blob up to 256 GiB: bounds the
    /// metainfo to 512 KiB and a bitfield to 2 KiB.
    pub const MAX_PIECES: u32 = 1 << 14;

    /// The piece length for a blob of `length` bytes.
    ///
    /// 1 MiB is the size at which a simulated swarm of 2,600 hosts finishes within 2 % of the
    /// time that one host alone would need: a piece can be passed on only when it is whole, so
    /// long pieces make a deep pipeline. Small blobs take shorter pieces, so that several peers
    /// can serve one; very long blobs take longer ones, so that the metainfo stays small.
    pub const fn for_blob(length: u64) -> Self {
        let mut bytes = match length {
            0..0x80_0000 => Self::MIN.0,
            0x80_0000..0x400_0000 => 2 * Self::MIN.0,
            _ => 4 * Self::MIN.0,
        };
        while length.div_ceil(bytes) > Self::MAX_PIECES as u64 && bytes < Self::MAX.0 {
            bytes *= 2;
        }
        Self(bytes)
    }

    /// A piece length that came from outside.
    ///
    /// # Errors
    /// It is not a power of two between [`PieceLength::MIN`] and [`PieceLength::MAX`].
    pub fn new(bytes: u64) -> Result<Self, MetaInfoError> {
        let fits = bytes.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(&bytes);
        if fits {
            Ok(Self(bytes))
        } else {
            Err(MetaInfoError::PieceLength(bytes))
        }
    }

    /// The length in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// How many pieces a blob of `length` bytes has.
    pub const fn pieces(self, length: u64) -> u64 {
        length.div_ceil(self.0)
    }

    /// The pieces that cover the bytes `range` of a blob of `length` bytes.
    pub(crate) fn pieces_of(self, range: Range<u64>, length: u64) -> Range<u32> {
        let end = range.end.min(length);
        if range.start >= end {
            return 0..0;
        }
        let index = |at: u64| u32::try_from(at).expect("bounded by MAX_PIECES");
        index(range.start / self.0)..index(end.div_ceil(self.0))
    }
}

const _: () = assert!(PieceLength::MIN.0.is_multiple_of(BLOCK as u64));

/// Digest, length, piece length and the states of SHA-256 at every piece boundary.
///
/// While an origin takes a blob in, its metainfo is *open*: the states of what has passed are there
/// and final, the others come; see [`MetaInfo::open`].
///
/// Cheap to clone. See [`super::piece`] for what the states prove.
#[derive(Clone, PartialEq, Eq)]
pub struct MetaInfo {
    pub(super) digest: Digest,
    pub(super) length: u64,
    pub(super) piece_length: PieceLength,
    /// Between the pieces, from the first boundary on; fewer than there are while it is open.
    pub(super) states: Arc<[ChainState]>,
}

/// Names the encoding of a whole metainfo; a proof of another kind would take another number.
const VERSION: u8 = 1;
/// Names the encoding of an open one: a reader that knows only whole ones refuses it.
const VERSION_OPEN: u8 = 2;
pub(super) const HEADER: usize = 4 + 1 + 32 + 8 + 8;
const MAGIC: &[u8; 4] = b"KRKM";

impl MetaInfo {
    /// The longest blob: 4 PiB would pass the bound of [`MetaInfo::MAX_PIECES`] anyway.
    pub const MAX_LENGTH: u64 = PieceLength::MAX.0 * Self::MAX_PIECES as u64;
    /// The most pieces in a metainfo that is accepted from outside (an encoding of 2 MiB).
    pub const MAX_PIECES: u32 = 1 << 16;
    /// The longest encoding, in bytes.
    pub const MAX_ENCODED: usize = HEADER + 32 * (Self::MAX_PIECES as usize);

    /// Puts the parts together; `states` holds the state at each boundary *between* pieces.
    ///
    /// # Errors
    /// The parts do not fit each other.
    pub fn new(
        digest: Digest,
        length: u64,
        piece_length: PieceLength,
        states: Vec<ChainState>,
    ) -> Result<Self, MetaInfoError> {
        let pieces = piece_length.pieces(length);
        let found = states.len();
        let meta = Self::with_states(digest, length, piece_length, states)?;
        if meta.is_whole() {
            Ok(meta)
        } else {
            Err(MetaInfoError::States {
                pieces,
                states: found,
            })
        }
    }

    /// The same with as many states as are known.
    pub(super) fn with_states(
        digest: Digest,
        length: u64,
        piece_length: PieceLength,
        states: Vec<ChainState>,
    ) -> Result<Self, MetaInfoError> {
        let pieces = piece_length.pieces(length);
        if pieces > u64::from(Self::MAX_PIECES) {
            return Err(MetaInfoError::TooManyPieces(pieces));
        }
        if states.len() as u64 > pieces.saturating_sub(1) {
            return Err(MetaInfoError::States {
                pieces,
                states: states.len(),
            });
        }
        if length == 0 && digest != Digest::of(b"") {
            return Err(MetaInfoError::EmptyBlob);
        }
        Ok(Self {
            digest,
            length,
            piece_length,
            states: states.into(),
        })
    }

    /// Hashes `bytes` whole.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = super::piece::ChainHasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The blob's name.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The blob's length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The distance between piece boundaries.
    pub fn piece_length(&self) -> PieceLength {
        self.piece_length
    }

    /// The number of pieces; an empty blob has none.
    pub fn piece_count(&self) -> u32 {
        u32::try_from(self.piece_length.pieces(self.length)).expect("checked when made")
    }

    /// Where in the blob `piece` lies; empty past the last piece.
    pub fn piece_range(&self, piece: u32) -> Range<u64> {
        let start = (u64::from(piece) * self.piece_length.0).min(self.length);
        start..(start + self.piece_length.0).min(self.length)
    }

    /// The length of `piece` in bytes; zero past the last piece.
    pub fn piece_size(&self, piece: u32) -> u32 {
        let range = self.piece_range(piece);
        u32::try_from(range.end - range.start).expect("bounded by PieceLength::MAX")
    }

    /// The pieces that cover the bytes `range`; empty when it lies past the end.
    pub fn pieces_of(&self, range: Range<u64>) -> Range<u32> {
        self.piece_length.pieces_of(range, self.length)
    }

    /// Checks that `bytes` are `piece`: alone, in any order, in one pass of SHA-256.
    ///
    /// # Errors
    /// The index, the length or the bytes are wrong, or the metainfo is open and has no proof of
    /// the piece yet.
    pub fn verify(&self, piece: u32, bytes: &[u8]) -> Result<(), PieceError> {
        let count = self.piece_count();
        if piece >= count {
            return Err(PieceError::Index { piece, count });
        }
        let expected = self.piece_size(piece);
        if bytes.len() != expected as usize {
            return Err(PieceError::Length {
                piece,
                expected,
                found: bytes.len(),
            });
        }
        if piece >= self.provable() {
            return Err(PieceError::Unproven { piece });
        }
        let index = piece as usize;
        let before = self.state_before(piece);
        let right = if piece + 1 == count {
            before.finish(bytes, self.length) == self.digest
        } else {
            before.advance(bytes) == self.states[index]
        };
        if right {
            Ok(())
        } else {
            Err(PieceError::Bytes { piece })
        }
    }

    /// The canonical encoding: magic, version (1, or 2 of an open one), digest, length, piece length
    /// (both 64-bit big-endian), then the states that are known.
    pub fn encode(&self) -> Vec<u8> {
        let version = if self.is_whole() {
            VERSION
        } else {
            VERSION_OPEN
        };
        let mut bytes = self.header(version, 32 * self.states.len());
        bytes.extend(self.states.iter().flat_map(|state| state.to_bytes()));
        bytes
    }

    /// The length of [`MetaInfo::encode`] in bytes: the more states are known, the longer.
    pub fn encoded_len(&self) -> usize {
        HEADER + 32 * self.states.len()
    }

    /// Up to `most` bytes of [`MetaInfo::encode`] from `from` on, without making all of it.
    pub fn encoded_part(&self, from: usize, most: usize) -> Vec<u8> {
        let version = if self.is_whole() {
            VERSION
        } else {
            VERSION_OPEN
        };
        let first = from.saturating_sub(HEADER) / 32;
        let states = self.states.get(first..).unwrap_or_default();
        let bytes = states.iter().flat_map(|state| state.to_bytes());
        let header = self.header(version, 0);
        if from < HEADER {
            header
                .into_iter()
                .chain(bytes)
                .skip(from)
                .take(most)
                .collect()
        } else {
            bytes.skip((from - HEADER) % 32).take(most).collect()
        }
    }

    /// What every encoding begins with; `rest` bytes are to follow.
    pub(super) fn header(&self, version: u8, rest: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + rest);
        bytes.extend_from_slice(MAGIC);
        bytes.push(version);
        bytes.extend_from_slice(self.digest.as_bytes());
        bytes.extend_from_slice(&self.length.to_be_bytes());
        bytes.extend_from_slice(&self.piece_length.0.to_be_bytes());
        bytes
    }

    /// Reads what [`MetaInfo::encode`] wrote.
    ///
    /// # Errors
    /// [`MetaInfoError`] says which part is wrong; nothing larger than the input is allocated.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetaInfoError> {
        let (header, states) = bytes
            .split_at_checked(HEADER)
            .ok_or(MetaInfoError::Truncated)?;
        if &header[..4] != MAGIC {
            return Err(MetaInfoError::Magic);
        }
        let make = match header[4] {
            VERSION => Self::new,
            VERSION_OPEN => Self::with_states,
            other => return Err(MetaInfoError::Version(other)),
        };
        let number =
            |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        let digest = Digest::from_bytes(header[5..37].try_into().expect("32 bytes"));
        let (states, rest) = states.as_chunks::<32>();
        if !rest.is_empty() {
            return Err(MetaInfoError::Truncated);
        }
        let states = states.iter().map(ChainState::from_bytes).collect();
        let meta = make(digest, number(37), PieceLength::new(number(45))?, states)?;
        if header[4] == VERSION_OPEN && meta.is_whole() {
            return Err(MetaInfoError::NotOpen);
        }
        Ok(meta)
    }

    /// SHA-256 over the canonical encoding: two metainfos with one info hash are the same.
    pub fn info_hash(&self) -> Digest {
        Digest::of(&self.encode())
    }
}

impl fmt::Debug for MetaInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetaInfo")
            .field("digest", &self.digest)
            .field("length", &self.length)
            .field("pieces", &self.piece_count())
            .field("provable", &self.provable())
            .finish_non_exhaustive()
    }
}

/// Why a metainfo is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetaInfoError {
    /// The encoding ends inside a field.
    #[error("the metainfo is cut off")]
    Truncated,
    /// The bytes are something else.
    #[error("these bytes are no metainfo")]
    Magic,
    /// A version that this build cannot read.
    #[error("metainfo version {0} is not known here")]
    Version(u8),
    /// Not a power of two in the allowed range.
    #[error("piece length {0} is not a power of two between 256 KiB and 16 MiB")]
    PieceLength(u64),
    /// More than [`MetaInfo::MAX_PIECES`].
    #[error("{0} pieces are more than 65536")]
    TooManyPieces(u64),
    /// The number of states does not fit the number of pieces.
    #[error("a blob of {pieces} pieces has one state fewer than pieces, not {states}")]
    States {
        /// From length and piece length.
        pieces: u64,
        /// What came.
        states: usize,
    },
    /// A continuation of a metainfo that is not the one at hand.
    #[error("the metainfo does not go on from the one that is known")]
    Contradiction,
    /// An encoding that says it is open and has all states: a metainfo has one encoding.
    #[error("an open metainfo that lacks no state")]
    NotOpen,
    /// Length 0 with a digest that is not that of no bytes.
    #[error("an empty blob with a digest that is not that of no bytes")]
    EmptyBlob,
}

/// Why bytes are not a piece of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PieceError {
    /// The blob has no such piece.
    #[error("piece {piece} does not exist, the blob has {count}")]
    Index {
        /// The piece asked for.
        piece: u32,
        /// How many the blob has.
        count: u32,
    },
    /// Too many or too few bytes.
    #[error("piece {piece} has {expected} bytes, not {found}")]
    Length {
        /// Which piece.
        piece: u32,
        /// From the metainfo.
        expected: u32,
        /// What came.
        found: usize,
    },
    /// The metainfo is open, and the state behind the piece is not known yet.
    #[error("piece {piece} cannot be proved yet")]
    Unproven {
        /// Which piece.
        piece: u32,
    },
    /// The right number of bytes, and not these.
    #[error("piece {piece} holds wrong bytes")]
    Bytes {
        /// Which piece.
        piece: u32,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blob(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
    }

    #[test]
    fn parts_of_an_encoding_are_those_of_all_of_it() {
        let meta = MetaInfo::of(&vec![7; 3 << 20]);
        let all = meta.encode();
        assert_eq!(meta.encoded_len(), all.len());
        for from in 0..=all.len() + 40 {
            for most in [0, 1, 31, 32, 100, 4096] {
                let start = from.min(all.len());
                let end = (start + most).min(all.len());
                assert_eq!(
                    meta.encoded_part(from, most),
                    all[start..end],
                    "{from} {most}"
                );
            }
        }
    }

    #[test]
    fn every_piece_is_proved_alone_and_no_other_bytes_are() {
        let bytes = blob(3 * 262_144 + 1000);
        let meta = MetaInfo::of(&bytes);
        assert_eq!(meta.piece_count(), 4);
        assert_eq!(meta.digest(), Digest::of(&bytes));
        for piece in (0..4).rev() {
            let range = meta.piece_range(piece);
            let mut part = bytes[range.start as usize..range.end as usize].to_vec();
            assert_eq!(meta.verify(piece, &part), Ok(()));
            part[77] ^= 1;
            assert_eq!(meta.verify(piece, &part), Err(PieceError::Bytes { piece }));
            part.pop();
            let expected = meta.piece_size(piece);
            let found = part.len();
            assert_eq!(
                meta.verify(piece, &part),
                Err(PieceError::Length {
                    piece,
                    expected,
                    found
                })
            );
        }
        assert_eq!(
            meta.verify(4, &[]),
            Err(PieceError::Index { piece: 4, count: 4 })
        );
    }

    #[test]
    fn a_boundary_at_the_end_makes_no_extra_piece() {
        for pieces in 1..4 {
            let bytes = blob(pieces * 262_144);
            let meta = MetaInfo::of(&bytes);
            assert_eq!(meta.piece_count() as usize, pieces);
            assert_eq!(
                meta.verify(meta.piece_count() - 1, &bytes[(pieces - 1) * 262_144..]),
                Ok(())
            );
        }
        let empty = MetaInfo::of(b"");
        assert_eq!((empty.piece_count(), empty.length()), (0, 0));
        assert_eq!(MetaInfo::decode(&empty.encode()), Ok(empty));
    }

    #[test]
    fn piece_lengths_grow_with_the_blob() {
        let length = |bytes: u64| PieceLength::for_blob(bytes).bytes() >> 10;
        assert_eq!(length(1), 256);
        assert_eq!(length(8 << 20), 512);
        assert_eq!(length(64 << 20), 1024);
        assert_eq!(length(16 << 30), 1024);
        assert_eq!(length((16 << 30) + 1), 2048);
        assert_eq!(length(100_000_000_000), 8192);
        assert!(PieceLength::for_blob(100_000_000_000).pieces(100_000_000_000) <= 16384);
        assert_eq!(
            PieceLength::new(3 << 18),
            Err(MetaInfoError::PieceLength(3 << 18))
        );
        assert!(PieceLength::new(32 << 20).is_err());
    }

    #[test]
    fn byte_ranges_map_to_pieces() {
        let meta = MetaInfo::of(&blob(2 * 262_144 + 5));
        assert_eq!(meta.pieces_of(0..1), 0..1);
        assert_eq!(meta.pieces_of(262_143..262_145), 0..2);
        assert_eq!(meta.pieces_of(262_144..u64::MAX), 1..3);
        assert_eq!(meta.pieces_of(524_293..600_000), 0..0);
        assert_eq!(meta.pieces_of(5..5), 0..0);
    }

    #[test]
    fn wrong_encodings_name_what_is_wrong() {
        let meta = MetaInfo::of(&blob(600_000));
        let good = meta.encode();
        assert_eq!(
            MetaInfo::decode(&good).unwrap().info_hash(),
            meta.info_hash()
        );
        let mut other = good.clone();
        other[0] = b'X';
        assert_eq!(MetaInfo::decode(&other), Err(MetaInfoError::Magic));
        other = good.clone();
        other[4] = 9;
        assert_eq!(MetaInfo::decode(&other), Err(MetaInfoError::Version(9)));
        assert_eq!(
            MetaInfo::decode(&good[..good.len() - 1]),
            Err(MetaInfoError::Truncated)
        );
        assert_eq!(
            MetaInfo::decode(&good[..good.len() - 32]),
            Err(MetaInfoError::States {
                pieces: 3,
                states: 1
            })
        );
        other = good.clone();
        other[37] = 0xff;
        assert!(matches!(
            MetaInfo::decode(&other),
            Err(MetaInfoError::TooManyPieces(_))
        ));
        other = MetaInfo::of(b"").encode();
        other[5] ^= 1;
        assert_eq!(MetaInfo::decode(&other), Err(MetaInfoError::EmptyBlob));
    }

    proptest! {
        #[test]
        fn decoding_garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = MetaInfo::decode(&bytes);
        }

        #[test]
        fn decoding_a_damaged_encoding_never_panics(at in 0usize..117, with in any::<u8>()) {
            let mut bytes = MetaInfo::of(&blob(600_000)).encode();
            bytes[at] = with;
            if let Ok(meta) = MetaInfo::decode(&bytes) {
                prop_assert_eq!(meta.encode(), bytes);
            }
        }
    }
}
