//! The head in front of everything on the connection: a kind, a stream and a number.

use kraken_proto::wire::codec;

/// Bytes of a head: the kind (8 bits), the stream and a number (32 bits each, big-endian). A field
/// that a kind does not use is zero.
pub(super) const HEAD: usize = 9;

/// The most bytes of a piece in one record. With its head, a record fills four of TLS exactly.
pub(super) const MAX_CHUNK: usize = (64 << 10) - HEAD;

/// The longest reason of a close, in bytes.
pub(super) const MAX_REASON: usize = 256;

/// What a record is, and how many bytes of body follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    /// Nothing: begins a connection and keeps it alive.
    Empty,
    /// A message of `len` bytes follows.
    Message { len: usize },
    /// A piece begins on a new stream; its message of `len` bytes follows.
    Piece { stream: u32, len: usize },
    /// The next `len` bytes of a piece follow.
    Chunk { stream: u32, len: usize },
    /// The sender will not finish a piece.
    Abandoned { stream: u32 },
    /// So many bytes more of a piece may come.
    Window { stream: u32, bytes: u32 },
    /// So many pieces more may come.
    Room { pieces: u32 },
    /// Messages of so many bytes more may come.
    Heard { bytes: u32 },
    /// The other side closes the connection; its reason of `len` bytes follows.
    Close { len: usize },
}

impl Record {
    /// The head.
    pub(super) fn encode(self) -> [u8; HEAD] {
        let number = |len: usize| u32::try_from(len).expect("bodies are bounded");
        let (kind, stream, number) = match self {
            Self::Empty => (0, 0, 0),
            Self::Message { len } => (1, 0, number(len)),
            Self::Piece { stream, len } => (2, stream, number(len)),
            Self::Chunk { stream, len } => (3, stream, number(len)),
            Self::Abandoned { stream } => (4, stream, 0),
            Self::Window { stream, bytes } => (5, stream, bytes),
            Self::Room { pieces } => (6, 0, pieces),
            Self::Heard { bytes } => (7, 0, bytes),
            Self::Close { len } => (8, 0, number(len)),
        };
        let mut head = [0; HEAD];
        head[0] = kind;
        head[1..5].copy_from_slice(&stream.to_be_bytes());
        head[5..].copy_from_slice(&number.to_be_bytes());
        head
    }

    /// The record that a head announces.
    ///
    /// # Errors
    /// The rule that it breaks: every length has a bound, and what is not used is zero.
    pub(super) fn decode(head: [u8; HEAD]) -> Result<Self, String> {
        let [kind, s0, s1, s2, s3, n0, n1, n2, n3] = head;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        let number = u32::from_be_bytes([n0, n1, n2, n3]);
        let len = number as usize;
        let record = match kind {
            0 => Self::Empty,
            1 => Self::Message {
                len: at_most(len, codec::MAX_FRAME)?,
            },
            2 => Self::Piece {
                stream,
                len: at_most(len, codec::MAX_FRAME)?,
            },
            3 if len > 0 => Self::Chunk {
                stream,
                len: at_most(len, MAX_CHUNK)?,
            },
            4 => Self::Abandoned { stream },
            5 if number > 0 => Self::Window {
                stream,
                bytes: number,
            },
            6 if number > 0 => Self::Room { pieces: number },
            7 if number > 0 => Self::Heard { bytes: number },
            8 => Self::Close {
                len: at_most(len, MAX_REASON)?,
            },
            3 | 5 | 6 | 7 => return Err(format!("a record of kind {kind} about nothing")),
            _ => return Err(format!("a record of kind {kind} is not known here")),
        };
        if record.encode() == head {
            Ok(record)
        } else {
            Err(format!("a record of kind {kind} with more in its head"))
        }
    }
}

fn at_most(len: usize, most: usize) -> Result<usize, String> {
    if len <= most {
        Ok(len)
    } else {
        Err(format!("a record of {len} bytes is longer than {most}"))
    }
}

/// Takes bytes for what a connection sends: heads, each with the body that it announces behind it.
///
/// # Panics
/// A head is taken that is not written the same again, or whose body has no bound.
#[cfg(feature = "fuzzing")]
pub fn fuzz(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some((head, after)) = rest.split_first_chunk() {
        let Ok(record) = Record::decode(*head) else {
            return;
        };
        assert_eq!(record.encode(), *head);
        let len = match record {
            Record::Message { len }
            | Record::Piece { len, .. }
            | Record::Chunk { len, .. }
            | Record::Close { len } => len,
            _ => 0,
        };
        assert!(len <= codec::MAX_FRAME.max(MAX_CHUNK));
        rest = after.get(len..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip() {
        let (stream, len) = (u32::MAX, MAX_REASON);
        let records = [
            Record::Empty,
            Record::Message { len },
            Record::Piece { stream, len },
            Record::Chunk {
                stream,
                len: MAX_CHUNK,
            },
            Record::Abandoned { stream },
            Record::Window {
                stream,
                bytes: u32::MAX,
            },
            Record::Room { pieces: 1 },
            Record::Heard { bytes: 1 },
            Record::Close { len },
        ];
        for record in records {
            assert_eq!(Record::decode(record.encode()), Ok(record));
        }
        assert_eq!(Record::Empty.encode(), [0; HEAD]);
    }

    #[test]
    fn bounds_are_named() {
        let refused = |kind: u8, stream: u8, number: u32| {
            let mut head = [kind, 0, 0, 0, stream, 0, 0, 0, 0];
            head[5..].copy_from_slice(&number.to_be_bytes());
            Record::decode(head).unwrap_err()
        };
        assert!(refused(1, 0, 16385).contains("longer than 16384"));
        assert!(refused(2, 1, u32::MAX).contains("longer than 16384"));
        assert!(refused(3, 1, 65536).contains("longer than 65527"));
        assert!(refused(8, 0, 257).contains("longer than 256"));
        for kind in [3, 5, 6, 7] {
            assert!(refused(kind, 0, 0).contains("about nothing"));
        }
        for (kind, stream, number) in [(0, 1, 0), (0, 0, 1), (1, 1, 1), (4, 1, 1), (8, 1, 1)] {
            assert!(refused(kind, stream, number).contains("more in its head"));
        }
        assert!(refused(9, 0, 0).contains("not known"));
    }

    #[test]
    fn any_head_is_refused_or_bounded() {
        let mut random = 1_u64;
        let mut byte = || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 56) as u8
        };
        for round in 0..20_000 {
            let mut head: [u8; HEAD] = std::array::from_fn(|_| byte());
            head[0] %= 10;
            // Most numbers would be out of bounds by far.
            head[5..8 - round % 3].fill(0);
            if let Ok(record) = Record::decode(head) {
                assert_eq!(record.encode(), head);
                if let Record::Message { len } | Record::Chunk { len, .. } = record {
                    assert!(len < 64 << 10);
                }
            }
        }
    }
}
