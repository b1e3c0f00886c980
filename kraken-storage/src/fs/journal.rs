//! The partial blob's record of its pieces: their indices, four bytes each, in the order of
//! writing.
//!
//! A record is appended when the piece's bytes are in the file and is not synced: after a loss of
//! power it may claim a piece whose bytes never reached the disk. Hence what a journal says is a
//! claim to verify, and it needs no checksum of its own.

use std::fs::File;
use std::io;

use kraken_proto::Bitfield;

use super::disk;

const RECORD: usize = 4;

/// How far a journal is written. A record that was cut short lies past the end and is overwritten
/// by the next.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct JournalEnd(u64);

impl JournalEnd {
    /// Adds `piece`; on an error the journal is as before.
    pub(super) fn append(&mut self, file: &File, piece: u32) -> io::Result<()> {
        disk::write_small(file, &piece.to_le_bytes(), self.0)?;
        self.0 += RECORD as u64;
        Ok(())
    }
}

/// The pieces that a journal claims of a blob of `pieces`; indices past the end and a torn tail
/// are passed over.
pub(super) fn claims(bytes: &[u8], pieces: u32) -> Bitfield {
    let mut claimed = Bitfield::empty(pieces);
    for record in bytes.as_chunks::<RECORD>().0 {
        claimed.insert(u32::from_le_bytes(*record));
    }
    claimed
}

/// The journal of exactly these pieces.
pub(super) fn encode(have: &Bitfield) -> (Vec<u8>, JournalEnd) {
    let bytes: Vec<u8> = have.iter().flat_map(u32::to_le_bytes).collect();
    let end = JournalEnd(bytes.len() as u64);
    (bytes, end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cut_journal_claims_a_prefix(
            pieces in prop::collection::vec(0_u32..80, 0..60),
            cut in 0_usize..240,
            more in prop::collection::vec(0_u32..64, 0..4),
        ) {
            let mut file = tempfile::tempfile().unwrap();
            let mut end = JournalEnd::default();
            for piece in &pieces {
                end.append(&file, *piece).unwrap();
            }
            file.set_len(cut.min(pieces.len() * RECORD) as u64).unwrap();
            let whole = (cut / RECORD).min(pieces.len());
            let mut model = Bitfield::empty(64);
            for piece in &pieces[..whole] {
                model.insert(*piece);
            }
            let read = |file: &mut File| {
                let len = file.metadata().unwrap().len() as usize;
                disk::read_at(file, 0, len).unwrap()
            };
            prop_assert_eq!(&claims(&read(&mut file), 64), &model);

            // What comes after a torn tail is read back as written.
            let mut end = JournalEnd((whole * RECORD) as u64);
            for piece in more {
                end.append(&file, piece).unwrap();
                model.insert(piece);
            }
            prop_assert_eq!(claims(&read(&mut file), 64), model);
        }

        #[test]
        fn encoding_round_trips(pieces in prop::collection::btree_set(0_u32..500, 0..100)) {
            let mut have = Bitfield::empty(500);
            for piece in pieces {
                have.insert(piece);
            }
            let (bytes, end) = encode(&have);
            prop_assert_eq!(claims(&bytes, 500), have);
            prop_assert_eq!(end, JournalEnd(bytes.len() as u64));
        }
    }
}
