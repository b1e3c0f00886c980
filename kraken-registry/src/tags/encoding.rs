//! Registers as bytes, for the disk.
//!
//! Version, promised and accepted ballot, whether it was voted for, the number of records; then of
//! each record its version, cluster, and digest if it has one. Numbers are in little endian.

use std::collections::VecDeque;

use kraken_proto::Digest;
use kraken_proto::tags::record::{Record, TagState, Version};
use kraken_proto::tags::register::{Ballot, Register};

/// Names this encoding.
const FORMAT: u8 = 1;

pub(super) fn encode(register: &Register) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    for ballot in [register.promised, register.accepted] {
        bytes.extend_from_slice(&ballot.round.to_le_bytes());
        bytes.extend_from_slice(&ballot.proposer.to_le_bytes());
    }
    bytes.push(u8::from(register.voted));
    let records: Vec<_> = register.state.iter().flat_map(TagState::records).collect();
    bytes.push(u8::try_from(records.len()).expect("the history is bounded"));
    for record in records {
        bytes.extend_from_slice(&record.version.get().to_le_bytes());
        bytes.push(u8::try_from(record.cluster.len()).expect("names are at most 255 bytes"));
        bytes.extend_from_slice(record.cluster.as_bytes());
        bytes.push(u8::from(record.digest.is_some()));
        if let Some(digest) = &record.digest {
            bytes.extend_from_slice(digest.as_bytes());
        }
    }
    bytes
}

/// `None` when the bytes are not a register.
pub(super) fn decode(bytes: &[u8]) -> Option<Register> {
    let mut rest = Rest(bytes);
    if rest.byte()? != FORMAT {
        return None;
    }
    let (promised, accepted) = (rest.ballot()?, rest.ballot()?);
    let voted = rest.byte()? != 0;
    let mut records = VecDeque::new();
    for _ in 0..rest.byte()? {
        records.push_back(rest.record()?);
    }
    let state = records.pop_front().map(|now| TagState {
        now,
        before: records,
    });
    rest.0.is_empty().then_some(Register {
        promised,
        accepted,
        state,
        voted,
    })
}

struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn ballot(&mut self) -> Option<Ballot> {
        Some(Ballot {
            round: self.number()?,
            proposer: self.number()?,
        })
    }

    fn record(&mut self) -> Option<Record> {
        let version = Version::new(self.number()?);
        let len = usize::from(self.byte()?);
        let (cluster, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        let cluster = str::from_utf8(cluster).ok()?.to_owned();
        let digest = match self.byte()? {
            0 => None,
            _ => Some(Digest::from_bytes(self.array()?)),
        };
        Some(Record {
            version,
            cluster,
            digest,
        })
    }
}

/// Takes bytes for a register on the disk.
///
/// # Panics
/// What was read is written as another one.
#[cfg(feature = "fuzzing")]
pub fn fuzz(bytes: &[u8]) {
    if let Some(register) = decode(bytes) {
        assert_eq!(decode(&encode(&register)), Some(register));
    }
}

#[cfg(test)]
mod tests {
    use kraken_proto::tags::record::{Change, Condition};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_register_is_read_as_it_was_written_and_nothing_else_is() {
        let mut register = Register::default();
        assert_eq!(decode(&encode(&register)), Some(register.clone()));
        for number in 0..20_u8 {
            let change = Change::Set {
                digest: (number % 4 > 0).then(|| Digest::of(&[number])),
                condition: Condition::Any,
                is_immutable: false,
                attempted: Vec::new(),
                millis: u64::from(number),
                cluster: "c".repeat(usize::from(number) + 1),
            };
            let state = change.apply(register.state.as_ref()).unwrap();
            let ballot = Ballot {
                round: u64::from(number) + 1,
                proposer: 7,
            };
            register.accept(ballot, state).unwrap();
            let bytes = encode(&register);
            assert_eq!(decode(&bytes), Some(register.clone()));
            for cut in 0..bytes.len() {
                assert_eq!(decode(&bytes[..cut]), None);
            }
            assert_eq!(decode(&[&bytes[..], &[0]].concat()), None);
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }
    }
}
