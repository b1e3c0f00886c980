//! A piece's proof: the chain of SHA-256 itself.
//!
//! SHA-256 reads a message in blocks of 64 bytes and carries a state of 32 bytes from one to the
//! next. Whoever hashed the blob once can record the state at every piece boundary. A piece that
//! leads from the recorded state in front of it to the recorded state behind it is the right one,
//! whatever order the pieces come in, and when all of them are, the blob has its digest: the chain
//! starts at the standard's initial value and ends in the digest (FIPS 180-4, section 6.2).
//!
//! The states are public: nothing here is secret. docs/security.md has the argument.

use sha2::block_api::compress256;

use super::digest::Digest;
use super::metainfo::{MetaInfo, PieceLength};

/// Bytes in one SHA-256 block; piece boundaries are multiples of it.
pub const BLOCK: usize = 64;

/// The state of SHA-256 at a block boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChainState([u32; 8]);

impl ChainState {
    /// The state before the first byte (FIPS 180-4, section 5.3.3).
    pub const INITIAL: Self = Self([
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ]);

    /// The state after `bytes`, whose length must be a multiple of [`BLOCK`].
    ///
    /// # Panics
    /// When the length is not a multiple of [`BLOCK`]: an error of the caller.
    #[must_use]
    pub fn advance(mut self, bytes: &[u8]) -> Self {
        let (blocks, rest) = bytes.as_chunks::<BLOCK>();
        assert!(rest.is_empty(), "the chain advances by whole blocks");
        compress256(&mut self.0, blocks);
        self
    }

    /// The digest of a message of `total` bytes that ends with `tail`, when `self` is the state
    /// before `tail`: appends the padding of FIPS 180-4, section 5.1.1.
    #[must_use]
    pub fn finish(mut self, tail: &[u8], total: u64) -> Digest {
        let (blocks, rest) = tail.as_chunks::<BLOCK>();
        compress256(&mut self.0, blocks);
        let mut padding = [0_u8; 2 * BLOCK];
        padding[..rest.len()].copy_from_slice(rest);
        padding[rest.len()] = 0x80;
        let end = if rest.len() + 9 > BLOCK {
            2 * BLOCK
        } else {
            BLOCK
        };
        padding[end - 8..end].copy_from_slice(&total.wrapping_mul(8).to_be_bytes());
        compress256(&mut self.0, padding[..end].as_chunks::<BLOCK>().0);
        Digest::from_bytes(self.to_bytes())
    }

    /// The state as 32 bytes, words in big-endian order as in a digest.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(self.0) {
            chunk.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// A state from what [`ChainState::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut words = [0; 8];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_be_bytes(*chunk);
        }
        Self(words)
    }
}

/// Hashes a blob in one pass, of a length not known yet, and keeps the chain's states, so that the
/// digest and the metainfo are there when the last byte is.
///
/// States are recorded every [`PieceLength::MIN`] bytes at first; whenever there are more than any
/// final piece length could need, every second one is dropped. Memory stays under 1 MiB for a blob
/// of any size.
#[derive(Debug, Clone)]
pub struct ChainHasher {
    state: ChainState,
    length: u64,
    /// The bytes since the last block boundary.
    partial: Vec<u8>,
    /// Distance between recorded states, in bytes.
    step: u64,
    /// The states at `step`, 2 × `step`, …
    states: Vec<ChainState>,
}

impl Default for ChainHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl ChainHasher {
    /// A hasher that has seen nothing.
    pub fn new() -> Self {
        Self {
            state: ChainState::INITIAL,
            length: 0,
            partial: Vec::with_capacity(BLOCK),
            step: PieceLength::MIN.bytes(),
            states: Vec::new(),
        }
    }

    /// How many bytes it has seen.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Takes the next bytes of the blob.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let to_boundary = self.step - self.length % self.step;
            let take = usize::try_from(to_boundary)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            let (now, later) = bytes.split_at(take);
            self.absorb(now);
            bytes = later;
            if self.length.is_multiple_of(self.step) {
                self.record();
            }
        }
    }

    fn absorb(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if !self.partial.is_empty() {
            let fill = (BLOCK - self.partial.len()).min(bytes.len());
            self.partial.extend_from_slice(&bytes[..fill]);
            bytes = &bytes[fill..];
            if self.partial.len() < BLOCK {
                return;
            }
            self.state = self.state.advance(&self.partial);
            self.partial.clear();
        }
        let whole = bytes.len() / BLOCK * BLOCK;
        self.state = self.state.advance(&bytes[..whole]);
        self.partial.extend_from_slice(&bytes[whole..]);
    }

    fn record(&mut self) {
        self.states.push(self.state);
        if self.states.len() > 2 * PieceLength::MAX_PIECES as usize {
            let mut index = 0;
            self.states.retain(|_| {
                index += 1;
                index % 2 == 0
            });
            self.step *= 2;
        }
    }

    /// The finished blob's digest, length and chain, at the piece length for its size.
    pub fn finish(self) -> MetaInfo {
        let digest = self.state.finish(&self.partial, self.length);
        let piece_length = PieceLength::for_blob(self.length);
        let stride = usize::try_from(piece_length.bytes() / self.step).expect("a small ratio");
        let interior = usize::try_from(piece_length.pieces(self.length))
            .expect("bounded")
            .saturating_sub(1);
        let states = self
            .states
            .iter()
            .skip(stride - 1)
            .step_by(stride)
            .take(interior)
            .copied();
        MetaInfo::new(digest, self.length, piece_length, states.collect())
            .expect("the hasher records what the metainfo asks for")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// FIPS 180-4 examples, and the lengths at which the padding changes shape.
    #[test]
    fn vectors_of_the_standard() {
        let hash = |bytes: &[u8]| {
            let mut hasher = ChainHasher::new();
            hasher.update(bytes);
            hasher.finish().digest().hex()
        };
        assert_eq!(
            hash(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            hash(b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
        );
        assert_eq!(
            hash(&vec![b'a'; 1_000_000]),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
        );
        for len in [0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 129] {
            let bytes = vec![0xa5; len];
            assert_eq!(hash(&bytes), Digest::of(&bytes).hex(), "length {len}");
        }
    }

    proptest! {
        #[test]
        fn any_split_gives_the_plain_sha256(
            bytes in prop::collection::vec(any::<u8>(), 0..5000),
            cuts in prop::collection::vec(0usize..5000, 0..8),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut hasher = ChainHasher::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                hasher.update(&bytes[from..cut]);
                from = cut;
            }
            prop_assert_eq!(hasher.length(), bytes.len() as u64);
            prop_assert_eq!(hasher.finish().digest(), Digest::of(&bytes));
        }

        #[test]
        fn a_state_round_trips(bytes in prop::array::uniform32(any::<u8>())) {
            prop_assert_eq!(ChainState::from_bytes(&bytes).to_bytes(), bytes);
        }

        #[test]
        fn a_chain_can_be_entered_at_any_block(blocks in 0usize..40, tail in 0usize..200) {
            let bytes: Vec<u8> = (0..blocks * BLOCK + tail).map(|i| (i * 7 + i / 256) as u8).collect();
            let state = ChainState::INITIAL.advance(&bytes[..blocks * BLOCK]);
            prop_assert_eq!(state.finish(&bytes[blocks * BLOCK..], bytes.len() as u64), Digest::of(&bytes));
        }
    }

    #[test]
    fn states_are_thinned_and_still_right() {
        // 40,000 recorded states are more than a blob may keep: the step doubles once.
        let chunk = vec![0x3c; PieceLength::MIN.bytes() as usize];
        let mut hasher = ChainHasher::new();
        // The hash of that much data would take long, so drive `record` as `update` would.
        hasher.update(&chunk);
        while hasher.step == PieceLength::MIN.bytes() {
            hasher.length += hasher.step;
            hasher.record();
        }
        assert_eq!(hasher.states.len(), PieceLength::MAX_PIECES as usize);
        assert_eq!(
            hasher.length,
            (2 * u64::from(PieceLength::MAX_PIECES) + 1) * PieceLength::MIN.bytes()
        );
    }
}
