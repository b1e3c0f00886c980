//! Whether two nodes hold the same blobs, for a few kilobytes when they do.
//!
//! The digests are put into 256 buckets by their first byte, and of each bucket the count and the
//! exclusive or of the digests is compared. Digests are SHA-256, so that two different sets of the
//! same size have the same print with a chance of one in 2¹²⁸; nobody who could choose the blobs
//! gains by a difference that is not seen, as the copies that there are stay.

use serde::{Deserialize, Serialize};

use crate::blob::digest::Digest;

/// How many buckets there are.
pub const BUCKETS: usize = 256;

/// The bucket of a digest.
pub fn bucket_of(digest: Digest) -> u8 {
    digest.as_bytes()[0]
}

/// What is compared of one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Print {
    count: u64,
    xor: [u64; 2],
}

/// The prints of a set of digests.
///
/// ```
/// use kraken_proto::Digest;
/// use kraken_proto::ring::compare::{Prints, bucket_of};
///
/// let [one, other] = [Digest::of(b"one"), Digest::of(b"other")];
/// let (both, first) = (Prints::of([one, other]), Prints::of([one]));
/// assert_eq!(both.differing(&first), [bucket_of(other)]);
/// assert!(both.differing(&Prints::of([other, one])).is_empty());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<Print>", into = "Vec<Print>")]
pub struct Prints {
    /// `BUCKETS` of them, or none when all are empty.
    buckets: Vec<Print>,
}

impl Prints {
    /// The prints of these digests, each there once.
    pub fn of(digests: impl IntoIterator<Item = Digest>) -> Self {
        let mut buckets = vec![Print::default(); BUCKETS];
        for digest in digests {
            let print = &mut buckets[usize::from(bucket_of(digest))];
            print.count += 1;
            let bytes = digest.as_bytes();
            for (word, at) in print.xor.iter_mut().zip([16, 24]) {
                let part = bytes[at..at + 8].try_into().expect("8 of 32 bytes");
                *word ^= u64::from_be_bytes(part);
            }
        }
        Self { buckets }
    }

    /// The buckets in which the two sets differ.
    pub fn differing(&self, other: &Self) -> Vec<u8> {
        let print = |prints: &Self, bucket: u8| {
            let print = prints.buckets.get(usize::from(bucket)).copied();
            print.unwrap_or_default()
        };
        let buckets = 0..=u8::MAX;
        buckets
            .filter(|bucket| print(self, *bucket) != print(other, *bucket))
            .collect()
    }
}

impl From<Prints> for Vec<Print> {
    fn from(prints: Prints) -> Self {
        prints.buckets
    }
}

impl TryFrom<Vec<Print>> for Prints {
    type Error = String;

    fn try_from(buckets: Vec<Print>) -> Result<Self, String> {
        match buckets.len() {
            0 | BUCKETS => Ok(Self { buckets }),
            len => Err(format!("there are {BUCKETS} prints, not {len}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn digest(number: u32) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    #[test]
    fn a_wrong_number_of_prints_is_refused() {
        let text = serde_json::to_string(&vec![Print::default(); 3]).unwrap();
        let error = serde_json::from_str::<Prints>(&text).unwrap_err();
        assert!(error.to_string().contains("256 prints"), "{error}");
        let none: Prints = serde_json::from_str("[]").unwrap();
        assert!(none.differing(&Prints::of([])).is_empty());
        assert_eq!(none.differing(&Prints::of([digest(1)])).len(), 1);
    }

    proptest! {
        /// Exactly the buckets of the symmetric difference differ.
        #[test]
        fn what_differs_is_found(
            one in proptest::collection::btree_set(0..2000_u32, 0..300),
            other in proptest::collection::btree_set(0..2000_u32, 0..300),
        ) {
            let prints = |set: &BTreeSet<u32>| Prints::of(set.iter().copied().map(digest));
            let expected: BTreeSet<u8> =
                one.symmetric_difference(&other).map(|it| bucket_of(digest(*it))).collect();
            let found = prints(&one).differing(&prints(&other));
            prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        }
    }
}
