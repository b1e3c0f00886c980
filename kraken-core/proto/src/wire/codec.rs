//! Bytes ↔ [`Message`]: a 32-bit big-endian length, then a protobuf body.
//!
//! Protobuf lets an old peer skip a field that a new one added. Nothing here allocates more than
//! the frame that came, and a frame is at most [`MAX_FRAME`] bytes.

use prost::Message as _;

use super::message::{Contact, Message};
use crate::blob::bitfield::{Bitfield, BitfieldError};
use crate::blob::digest::Digest;
use crate::blob::metainfo::{MetaInfo, PieceLength};
use crate::peer::{PeerId, PeerInfo, PeerRole};
use crate::zone::Zone;

/// The longest body of a frame, in bytes: a bitfield of the most pieces (8 KiB) or a full `Have`
/// (5 KiB), with room to spare.
pub const MAX_FRAME: usize = 16 << 10;

/// Bytes of the length in front of a body.
pub const PREFIX: usize = 4;

/// The message as one frame, length included.
pub fn encode(message: &Message) -> Vec<u8> {
    let body = Envelope {
        body: Some(to_body(message)),
    };
    let len = body.encoded_len();
    debug_assert!(len <= MAX_FRAME, "our own messages are bounded");
    let mut frame = Vec::with_capacity(PREFIX + len);
    frame.extend_from_slice(&u32::try_from(len).expect("at most MAX_FRAME").to_be_bytes());
    body.encode(&mut frame).expect("a Vec grows");
    frame
}

/// How many bytes [`encode`] makes of the message, without making them for the frequent kinds.
pub fn frame_len(message: &Message) -> usize {
    // A tag of one byte, a length of one byte, and the digest itself.
    const DIGEST: usize = 2 + 32;
    let field = |value: u32| if value == 0 { 0 } else { 1 + varint_len(value) };
    let body = match message {
        Message::Have { pieces, .. } if !pieces.is_empty() => {
            let packed: usize = pieces.iter().copied().map(varint_len).sum();
            DIGEST + 1 + varint_len(u32::try_from(packed).unwrap_or(u32::MAX)) + packed
        }
        Message::Request { piece, .. }
        | Message::Cancel { piece, .. }
        | Message::Refuse { piece, .. }
        | Message::Offer { piece, .. } => DIGEST + field(*piece),
        _ => return encode(message).len(),
    };
    PREFIX + 1 + varint_len(u32::try_from(body).unwrap_or(u32::MAX)) + body
}

/// The bytes of a number in protobuf.
fn varint_len(value: u32) -> usize {
    (u32::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

/// The length of the body that follows the prefix.
///
/// # Errors
/// It is longer than [`MAX_FRAME`].
pub fn body_len(prefix: [u8; PREFIX]) -> Result<usize, CodecError> {
    let len = u32::from_be_bytes(prefix) as usize;
    if len > MAX_FRAME {
        Err(CodecError::TooLong(len))
    } else {
        Ok(len)
    }
}

/// The message in a body (without its length).
///
/// # Errors
/// [`CodecError`] says what is wrong with it. The peer that sent it is broken or hostile.
pub fn decode(body: &[u8]) -> Result<Message, CodecError> {
    if body.len() > MAX_FRAME {
        return Err(CodecError::TooLong(body.len()));
    }
    let envelope = Envelope::decode(body).map_err(|_| CodecError::Malformed)?;
    from_body(envelope.body.ok_or(CodecError::Unknown)?)
}

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The frame is longer than [`MAX_FRAME`].
    #[error("a frame of {0} bytes is longer than 16384")]
    TooLong(usize),
    /// Not protobuf of the expected shape.
    #[error("the frame cannot be parsed")]
    Malformed,
    /// A kind of message that this version does not know.
    #[error("a message of a kind that is not known here")]
    Unknown,
    /// A digest of a length other than 32 bytes.
    #[error("a digest has 32 bytes, not {0}")]
    Digest(usize),
    /// A role outside the known ones.
    #[error("role {0} is not known")]
    Role(i32),
    /// A piece length or a piece count out of bounds.
    #[error("a swarm with an impossible piece length or piece count")]
    Swarm,
    /// The bitfield does not fit the piece count.
    #[error(transparent)]
    Bitfield(#[from] BitfieldError),
    /// An index that no blob has.
    #[error("piece {0} is past the last piece that any blob can have")]
    Piece(u32),
    /// A `Have` with too many pieces.
    #[error("{0} pieces in one message are more than 1024")]
    TooManyHaves(usize),
    /// An address, zone or identity that is none.
    #[error("a peer whose address, zone or identity cannot be read")]
    Contact,
    /// A `Peers` with too many peers.
    #[error("{0} peers in one message are more than 16")]
    TooManyPeers(usize),
    /// A part of a metainfo that no metainfo can have.
    #[error("a part of a metainfo that lies outside of it, or is longer than 8192 bytes")]
    MetaInfo,
    /// A piece longer than the longest piece length, or of no bytes.
    #[error("a piece of {0} bytes is impossible")]
    PieceLen(u32),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Envelope {
    #[prost(oneof = "Body", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13")]
    body: Option<Body>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Body {
    #[prost(message, tag = "1")]
    Hello(Hello),
    #[prost(message, tag = "2")]
    Subscribe(Subscribe),
    #[prost(message, tag = "3")]
    Unsubscribe(Blob),
    #[prost(message, tag = "4")]
    Have(Have),
    #[prost(message, tag = "5")]
    Request(BlobPiece),
    #[prost(message, tag = "6")]
    Cancel(BlobPiece),
    #[prost(message, tag = "7")]
    Refuse(BlobPiece),
    #[prost(message, tag = "8")]
    Piece(BlobPiece),
    #[prost(message, tag = "9")]
    Offer(BlobPiece),
    #[prost(message, tag = "10")]
    AskPeers(Blob),
    #[prost(message, tag = "11")]
    Peers(Peers),
    #[prost(message, tag = "12")]
    AskMetaInfo(MetaInfoPart),
    #[prost(message, tag = "13")]
    MetaInfo(MetaInfoPart),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Hello {
    #[prost(int32, tag = "1")]
    role: i32,
    #[prost(string, tag = "2")]
    addr: String,
    #[prost(string, tag = "3")]
    zone: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Peers {
    #[prost(bytes = "vec", tag = "1")]
    digest: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    peers: Vec<Peer>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Peer {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(string, tag = "2")]
    addr: String,
    #[prost(string, tag = "3")]
    zone: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Subscribe {
    #[prost(bytes = "vec", tag = "1")]
    digest: Vec<u8>,
    #[prost(uint64, tag = "2")]
    piece_length: u64,
    #[prost(uint32, tag = "3")]
    pieces: u32,
    #[prost(bytes = "vec", tag = "4")]
    have: Vec<u8>,
    #[prost(bool, tag = "5")]
    is_partial: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Blob {
    #[prost(bytes = "vec", tag = "1")]
    digest: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Have {
    #[prost(bytes = "vec", tag = "1")]
    digest: Vec<u8>,
    #[prost(uint32, repeated, tag = "2")]
    pieces: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BlobPiece {
    #[prost(bytes = "vec", tag = "1")]
    digest: Vec<u8>,
    #[prost(uint32, tag = "2")]
    piece: u32,
    #[prost(uint32, tag = "3")]
    len: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MetaInfoPart {
    #[prost(bytes = "vec", tag = "1")]
    digest: Vec<u8>,
    #[prost(uint32, tag = "2")]
    offset: u32,
    #[prost(uint32, tag = "3")]
    total: u32,
    #[prost(bytes = "vec", tag = "4")]
    part: Vec<u8>,
}

fn to_body(message: &Message) -> Body {
    let bytes = |digest: &Digest| digest.as_bytes().to_vec();
    let at = |digest: &Digest, piece: u32| BlobPiece {
        digest: bytes(digest),
        piece,
        len: 0,
    };
    match message {
        Message::Hello { role, contact } => Body::Hello(Hello {
            role: if *role == PeerRole::Agent { 1 } else { 2 },
            addr: contact
                .as_ref()
                .map_or_else(String::new, |it| it.addr.to_string()),
            zone: zone_text(contact.as_ref().and_then(|it| it.zone.as_ref())),
        }),
        Message::Subscribe {
            digest,
            piece_length,
            have,
            is_partial,
        } => Body::Subscribe(Subscribe {
            digest: bytes(digest),
            piece_length: piece_length.bytes(),
            pieces: have.len(),
            have: have.to_bytes(),
            is_partial: *is_partial,
        }),
        Message::Unsubscribe { digest } => Body::Unsubscribe(Blob {
            digest: bytes(digest),
        }),
        Message::Have { digest, pieces } => Body::Have(Have {
            digest: bytes(digest),
            pieces: pieces.clone(),
        }),
        Message::Request { digest, piece } => Body::Request(at(digest, *piece)),
        Message::Cancel { digest, piece } => Body::Cancel(at(digest, *piece)),
        Message::Refuse { digest, piece } => Body::Refuse(at(digest, *piece)),
        Message::Offer { digest, piece } => Body::Offer(at(digest, *piece)),
        Message::AskPeers { digest } => Body::AskPeers(Blob {
            digest: bytes(digest),
        }),
        Message::Peers { digest, peers } => Body::Peers(Peers {
            digest: bytes(digest),
            peers: peers.iter().map(to_peer).collect(),
        }),
        Message::AskMetaInfo { digest, offset } => Body::AskMetaInfo(MetaInfoPart {
            digest: bytes(digest),
            offset: *offset,
            ..MetaInfoPart::default()
        }),
        Message::MetaInfo {
            digest,
            total,
            offset,
            part,
        } => Body::MetaInfo(MetaInfoPart {
            digest: bytes(digest),
            offset: *offset,
            total: *total,
            part: part.clone(),
        }),
        Message::Piece { digest, piece, len } => Body::Piece(BlobPiece {
            digest: bytes(digest),
            piece: *piece,
            len: *len,
        }),
    }
}

fn from_body(body: Body) -> Result<Message, CodecError> {
    Ok(match body {
        Body::Hello(it) => Message::Hello {
            role: match it.role {
                1 => PeerRole::Agent,
                2 => PeerRole::Origin,
                role => return Err(CodecError::Role(role)),
            },
            contact: contact(&it.addr, &it.zone)?,
        },
        Body::Subscribe(it) => {
            let piece_length = PieceLength::new(it.piece_length).map_err(|_| CodecError::Swarm)?;
            if it.pieces > MetaInfo::MAX_PIECES {
                return Err(CodecError::Swarm);
            }
            let have = Bitfield::from_bytes(&it.have, it.pieces)?;
            Message::Subscribe {
                digest: digest(&it.digest)?,
                piece_length,
                have,
                is_partial: it.is_partial,
            }
        }
        Body::Unsubscribe(it) => Message::Unsubscribe {
            digest: digest(&it.digest)?,
        },
        Body::Have(it) => {
            if it.pieces.len() > Message::MAX_HAVES {
                return Err(CodecError::TooManyHaves(it.pieces.len()));
            }
            it.pieces
                .iter()
                .try_for_each(|index| piece(*index).map(drop))?;
            Message::Have {
                digest: digest(&it.digest)?,
                pieces: it.pieces,
            }
        }
        Body::Request(it) => Message::Request {
            digest: digest(&it.digest)?,
            piece: piece(it.piece)?,
        },
        Body::Cancel(it) => Message::Cancel {
            digest: digest(&it.digest)?,
            piece: piece(it.piece)?,
        },
        Body::Refuse(it) => Message::Refuse {
            digest: digest(&it.digest)?,
            piece: piece(it.piece)?,
        },
        Body::Offer(it) => Message::Offer {
            digest: digest(&it.digest)?,
            piece: piece(it.piece)?,
        },
        Body::AskPeers(it) => Message::AskPeers {
            digest: digest(&it.digest)?,
        },
        Body::Peers(it) => {
            if it.peers.len() > Message::MAX_PEERS {
                return Err(CodecError::TooManyPeers(it.peers.len()));
            }
            Message::Peers {
                digest: digest(&it.digest)?,
                peers: it.peers.iter().map(peer).collect::<Result<_, _>>()?,
            }
        }
        Body::AskMetaInfo(it) => Message::AskMetaInfo {
            digest: digest(&it.digest)?,
            offset: it.offset,
        },
        Body::MetaInfo(it) => {
            let end = u64::from(it.offset) + it.part.len() as u64;
            let fits = it.total as usize <= MetaInfo::MAX_ENCODED && end <= u64::from(it.total);
            if !fits || it.part.len() > Message::MAX_PART {
                return Err(CodecError::MetaInfo);
            }
            Message::MetaInfo {
                digest: digest(&it.digest)?,
                total: it.total,
                offset: it.offset,
                part: it.part,
            }
        }
        Body::Piece(it) => {
            if it.len == 0 || u64::from(it.len) > PieceLength::MAX.bytes() {
                return Err(CodecError::PieceLen(it.len));
            }
            Message::Piece {
                digest: digest(&it.digest)?,
                piece: piece(it.piece)?,
                len: it.len,
            }
        }
    })
}

fn zone_text(zone: Option<&Zone>) -> String {
    zone.map_or_else(String::new, |zone| zone.as_str().to_owned())
}

fn to_peer(info: &PeerInfo) -> Peer {
    Peer {
        id: info.id.as_bytes().to_vec(),
        addr: info.addr.to_string(),
        zone: zone_text(info.zone.as_ref()),
    }
}

/// How a host is reached, unless it says nothing.
fn contact(addr: &str, zone: &str) -> Result<Option<Contact>, CodecError> {
    if addr.is_empty() {
        return Ok(None);
    }
    let addr = addr.parse().map_err(|_| CodecError::Contact)?;
    let zone = (!zone.is_empty()).then(|| zone.parse());
    let zone = zone.transpose().map_err(|_| CodecError::Contact)?;
    Ok(Some(Contact { addr, zone }))
}

/// Only agents are passed on: origins come from the ring.
fn peer(it: &Peer) -> Result<PeerInfo, CodecError> {
    let id = it.id.as_slice().try_into();
    let id = id.map_err(|_| CodecError::Contact)?;
    let Contact { addr, zone } = contact(&it.addr, &it.zone)?.ok_or(CodecError::Contact)?;
    Ok(PeerInfo {
        id: PeerId::from_bytes(id),
        addr,
        role: PeerRole::Agent,
        zone,
    })
}

fn digest(bytes: &[u8]) -> Result<Digest, CodecError> {
    let bytes = bytes
        .try_into()
        .map_err(|_| CodecError::Digest(bytes.len()))?;
    Ok(Digest::from_bytes(bytes))
}

fn piece(index: u32) -> Result<u32, CodecError> {
    if index < MetaInfo::MAX_PIECES {
        Ok(index)
    } else {
        Err(CodecError::Piece(index))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_contact() -> impl Strategy<Value = Contact> {
        let zone = prop::option::of("[a-z0-9][a-z0-9-]{0,20}");
        (any::<std::net::SocketAddr>(), zone).prop_map(|(mut addr, zone)| {
            // Flow labels and scopes have no text form that is read back.
            if let std::net::SocketAddr::V6(v6) = &mut addr {
                v6.set_flowinfo(0);
                v6.set_scope_id(0);
            }
            let zone = zone.map(|it| it.parse().unwrap());
            Contact { addr, zone }
        })
    }

    fn any_peer() -> impl Strategy<Value = PeerInfo> {
        (prop::array::uniform32(any::<u8>()), any_contact()).prop_map(|(id, contact)| PeerInfo {
            id: PeerId::from_bytes(id),
            addr: contact.addr,
            role: PeerRole::Agent,
            zone: contact.zone,
        })
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let digest = prop::array::uniform32(any::<u8>()).prop_map(Digest::from_bytes);
        let piece = 0..MetaInfo::MAX_PIECES;
        let have = (0u32..3000, prop::collection::vec(0u32..3000, 0..50)).prop_map(|(len, set)| {
            let mut field = Bitfield::empty(len);
            for piece in set {
                field.insert(piece);
            }
            field
        });
        prop_oneof![
            (
                prop_oneof![Just(PeerRole::Agent), Just(PeerRole::Origin)],
                prop::option::of(any_contact())
            )
                .prop_map(|(role, contact)| Message::Hello { role, contact }),
            digest
                .clone()
                .prop_map(|digest| Message::AskPeers { digest }),
            (
                digest.clone(),
                prop::collection::vec(any_peer(), 0..=Message::MAX_PEERS)
            )
                .prop_map(|(digest, peers)| Message::Peers { digest, peers }),
            (digest.clone(), any::<u32>())
                .prop_map(|(digest, offset)| Message::AskMetaInfo { digest, offset }),
            (
                digest.clone(),
                0..u32::try_from(MetaInfo::MAX_ENCODED - Message::MAX_PART).unwrap(),
                prop::collection::vec(any::<u8>(), 0..=Message::MAX_PART)
            )
                .prop_map(|(digest, offset, part)| Message::MetaInfo {
                    digest,
                    total: offset + u32::try_from(part.len()).unwrap(),
                    offset,
                    part,
                }),
            (digest.clone(), piece.clone())
                .prop_map(|(digest, piece)| Message::Offer { digest, piece }),
            (digest.clone(), 18u32..=24, have, any::<bool>()).prop_map(
                |(digest, power, have, is_partial)| {
                    let piece_length = PieceLength::new(1 << power).unwrap();
                    Message::Subscribe {
                        digest,
                        piece_length,
                        have,
                        is_partial,
                    }
                }
            ),
            digest
                .clone()
                .prop_map(|digest| Message::Unsubscribe { digest }),
            (
                digest.clone(),
                prop::collection::vec(piece.clone(), 0..=Message::MAX_HAVES)
            )
                .prop_map(|(digest, pieces)| Message::Have { digest, pieces }),
            (digest.clone(), piece.clone())
                .prop_map(|(digest, piece)| Message::Request { digest, piece }),
            (digest.clone(), piece.clone())
                .prop_map(|(digest, piece)| Message::Cancel { digest, piece }),
            (digest.clone(), piece.clone())
                .prop_map(|(digest, piece)| Message::Refuse { digest, piece }),
            (digest, piece, 1u32..=16 << 20).prop_map(|(digest, piece, len)| Message::Piece {
                digest,
                piece,
                len
            }),
        ]
    }

    proptest! {
        #[test]
        fn messages_round_trip(message in any_message()) {
            let frame = encode(&message);
            let (prefix, body) = frame.split_first_chunk::<PREFIX>().unwrap();
            prop_assert_eq!(body_len(*prefix), Ok(body.len()));
            prop_assert_eq!(frame_len(&message), frame.len());
            prop_assert_eq!(decode(body), Ok(message));
        }

        #[test]
        fn garbage_is_refused_without_a_panic(body in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&body);
        }

        #[test]
        fn a_damaged_message_is_refused_or_still_bounded(message in any_message(), at in any::<usize>(), with in any::<u8>()) {
            let mut body = encode(&message).split_off(PREFIX);
            let at = at % body.len().max(1);
            if let Some(byte) = body.get_mut(at) {
                *byte = with;
            }
            if let Ok(Message::Have { pieces, .. }) = decode(&body) {
                prop_assert!(pieces.len() <= Message::MAX_HAVES);
            }
        }
    }

    #[test]
    fn the_largest_bitfield_fits_a_frame() {
        let message = Message::Subscribe {
            digest: Digest::of(b""),
            piece_length: PieceLength::MAX,
            have: Bitfield::full(MetaInfo::MAX_PIECES),
            is_partial: true,
        };
        assert_eq!(decode(&encode(&message)[PREFIX..]), Ok(message));
    }

    #[test]
    fn bounds_are_named() {
        let body = |body| Envelope { body: Some(body) }.encode_to_vec();
        let digest = vec![7; 32];
        let at = |piece, len| BlobPiece {
            digest: digest.clone(),
            piece,
            len,
        };
        assert_eq!(body_len([0, 1, 0, 0]), Err(CodecError::TooLong(65536)));
        assert_eq!(decode(&[]), Err(CodecError::Unknown));
        assert_eq!(
            decode(&body(Body::Hello(Hello {
                role: 9,
                ..Hello::default()
            }))),
            Err(CodecError::Role(9))
        );
        assert_eq!(
            decode(&body(Body::Unsubscribe(Blob {
                digest: vec![1; 31]
            }))),
            Err(CodecError::Digest(31))
        );
        assert_eq!(
            decode(&body(Body::Request(at(1 << 16, 0)))),
            Err(CodecError::Piece(1 << 16))
        );
        assert_eq!(
            decode(&body(Body::Piece(at(0, 0)))),
            Err(CodecError::PieceLen(0))
        );
        assert_eq!(
            decode(&body(Body::Piece(at(0, u32::MAX)))),
            Err(CodecError::PieceLen(u32::MAX))
        );
        for (offset, total, len) in [
            (0, 9, 10),
            (u32::MAX, 10, 1),
            (0, u32::MAX, 0),
            (0, 8193, 8193),
        ] {
            let part = MetaInfoPart {
                digest: digest.clone(),
                offset,
                total,
                part: vec![0; len],
            };
            assert_eq!(
                decode(&body(Body::MetaInfo(part))),
                Err(CodecError::MetaInfo)
            );
        }
        let too_many = Have {
            digest: digest.clone(),
            pieces: vec![0; 1025],
        };
        assert_eq!(
            decode(&body(Body::Have(too_many))),
            Err(CodecError::TooManyHaves(1025))
        );
        let swarm = Subscribe {
            digest,
            piece_length: 1 << 20,
            pieces: u32::MAX,
            is_partial: false,
            have: vec![],
        };
        assert_eq!(
            decode(&body(Body::Subscribe(swarm))),
            Err(CodecError::Swarm)
        );
    }
}
