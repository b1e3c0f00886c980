//! Which pieces of a blob somebody has.

use std::fmt;

use fixedbitset::FixedBitSet;

/// A set of piece indices of one blob, of a length fixed when it is made.
#[derive(Clone, PartialEq, Eq)]
pub struct Bitfield {
    bits: FixedBitSet,
    ones: u32,
}

impl Bitfield {
    /// No piece of `len`.
    pub fn empty(len: u32) -> Self {
        Self {
            bits: FixedBitSet::with_capacity(len as usize),
            ones: 0,
        }
    }

    /// Every piece of `len`.
    pub fn full(len: u32) -> Self {
        let mut bits = FixedBitSet::with_capacity(len as usize);
        bits.insert_range(..);
        Self { bits, ones: len }
    }

    /// The number of pieces of the blob.
    pub fn len(&self) -> u32 {
        u32::try_from(self.bits.len()).expect("made from a u32")
    }

    /// Whether the blob has no pieces at all.
    pub fn is_empty(&self) -> bool {
        self.bits.is_empty()
    }

    /// The number of pieces in the set.
    pub fn count(&self) -> u32 {
        self.ones
    }

    /// Whether every piece is in the set.
    pub fn is_full(&self) -> bool {
        self.ones == self.len()
    }

    /// Whether `piece` is in the set; an index past the end is not.
    pub fn has(&self, piece: u32) -> bool {
        self.bits.contains(piece as usize)
    }

    /// Puts `piece` in and says whether it is new. An index past the end changes nothing.
    pub fn insert(&mut self, piece: u32) -> bool {
        let new = piece < self.len() && !self.bits.put(piece as usize);
        self.ones += u32::from(new);
        new
    }

    /// Takes `piece` out and says whether it was in.
    pub fn remove(&mut self, piece: u32) -> bool {
        let held = self.has(piece);
        if held {
            self.bits.remove(piece as usize);
            self.ones -= 1;
        }
        held
    }

    /// Whether no piece is in both sets.
    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.bits.is_disjoint(&other.bits)
    }

    /// The pieces in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.bits
            .ones()
            .map(|bit| u32::try_from(bit).expect("made from a u32"))
    }

    /// The pieces that are missing, in order.
    pub fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        self.bits
            .zeroes()
            .map(|bit| u32::try_from(bit).expect("made from a u32"))
    }

    /// The set as bytes: piece `i` is bit `i % 8` of byte `i / 8`, low bit first.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bits.len().div_ceil(8)];
        for bit in self.bits.ones() {
            bytes[bit / 8] |= 1 << (bit % 8);
        }
        bytes
    }

    /// Reads what [`Bitfield::to_bytes`] wrote for a blob of `len` pieces.
    ///
    /// # Errors
    /// The number of bytes does not fit `len`, or a bit past the end is set.
    pub fn from_bytes(bytes: &[u8], len: u32) -> Result<Self, BitfieldError> {
        let expected = (len as usize).div_ceil(8);
        if bytes.len() != expected {
            return Err(BitfieldError::Length {
                expected,
                found: bytes.len(),
            });
        }
        let mut field = Self::empty(len);
        for (index, byte) in bytes.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                let piece = u32::try_from(index * 8 + bit).map_err(|_| BitfieldError::Spare)?;
                if !field.insert(piece) {
                    return Err(BitfieldError::Spare);
                }
            }
        }
        Ok(field)
    }
}

impl fmt::Debug for Bitfield {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bitfield({}/{})", self.count(), self.len())
    }
}

/// Why bytes are not the bitfield of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BitfieldError {
    /// The number of bytes does not fit the number of pieces.
    #[error("the bitfield should have {expected} bytes and has {found}")]
    Length {
        /// What the number of pieces asks for.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// A bit past the last piece is set.
    #[error("the bitfield names a piece past the end of the blob")]
    Spare,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(len in 0u32..200, ops in prop::collection::vec((any::<bool>(), 0u32..220), 0..200)) {
            let mut field = Bitfield::empty(len);
            let mut model = BTreeSet::new();
            for (put, piece) in ops {
                if put {
                    prop_assert_eq!(field.insert(piece), piece < len && model.insert(piece));
                } else {
                    prop_assert_eq!(field.remove(piece), model.remove(&piece));
                }
                prop_assert_eq!(field.count() as usize, model.len());
            }
            prop_assert_eq!(field.iter().collect::<BTreeSet<_>>(), model);
            prop_assert_eq!(field.missing().count() as u32, len - field.count());
            prop_assert_eq!(Bitfield::from_bytes(&field.to_bytes(), len), Ok(field));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..20), len in 0u32..160) {
            if let Ok(field) = Bitfield::from_bytes(&bytes, len) {
                prop_assert_eq!(field.to_bytes(), bytes);
            }
        }
    }

    #[test]
    fn full_and_spare_bits() {
        assert!(Bitfield::full(9).is_full());
        assert!(Bitfield::full(0).is_full());
        assert_eq!(Bitfield::from_bytes(&[0b10], 1), Err(BitfieldError::Spare));
        assert_eq!(
            Bitfield::from_bytes(&[0, 0], 3),
            Err(BitfieldError::Length {
                expected: 1,
                found: 2
            })
        );
    }
}
