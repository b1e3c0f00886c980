//! The suites that every store and backend passes, and a backend that can be switched off.
//!
//! Each suite needs a tokio runtime and panics with what is wrong. `make` is called once for each case and gives an empty
//! store each time:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use kraken_storage::{MemStore, testkit};
//!
//! testkit::conforms(async || MemStore::new()).await;
//! testkit::uploads_conform(async || MemStore::new()).await;
//! # }
//! ```

mod backends;
#[cfg(feature = "fs")]
pub mod crash;
mod flaky;
mod pieces;
mod proxy;
mod uploads;

use kraken_proto::MetaInfo;

pub use self::backends::{
    backend_conforms, backend_lists, backend_survives_faults, read_only_backend_conforms,
};
pub use self::flaky::FlakyBackend;
pub use self::pieces::conforms;
pub use self::proxy::{Fault, FaultyProxy};
pub use self::uploads::uploads_conform;
#[cfg(feature = "fs")]
pub use crate::fs::tape::{Recording, Survival, Tape, Writes};

/// `len` bytes that `seed` chooses, of no pattern that a wrong offset would leave unseen.
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    // SplitMix64 (Steele, Lea, Flood 2014).
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    });
    let mut bytes: Vec<u8> = words
        .take(len.div_ceil(8))
        .flat_map(u64::to_le_bytes)
        .collect();
    bytes.truncate(len);
    bytes
}

/// A blob of `len` bytes that `seed` chooses, and its metainfo.
pub fn blob(len: usize, seed: u64) -> (Vec<u8>, MetaInfo) {
    let bytes = bytes(len, seed);
    let meta = MetaInfo::of(&bytes);
    (bytes, meta)
}

/// The bytes of `piece` in the blob `bytes`.
///
/// # Panics
/// `bytes` is shorter than the blob.
pub fn piece(bytes: &[u8], meta: &MetaInfo, piece: u32) -> bytes::Bytes {
    let range = meta.piece_range(piece);
    let index = |at: u64| usize::try_from(at).expect("the blob is in memory");
    bytes::Bytes::copy_from_slice(&bytes[index(range.start)..index(range.end)])
}
