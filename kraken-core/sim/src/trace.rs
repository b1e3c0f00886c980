//! What a run did, as one hash: equal hashes mean that the same things happened at the same times.

use kraken_proto::{ConnId, Extent, Input, Message, Timestamp};
use sha2::{Digest as _, Sha256};

/// SHA-256 over the time, the host and the content of everything that happened to a host.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: Sha256,
    lines: Vec<u8>,
}

const BATCH: usize = 1 << 16;

impl Trace {
    pub(crate) fn new() -> Self {
        Self {
            hash: Sha256::new(),
            lines: Vec::with_capacity(BATCH + 64),
        }
    }

    pub(crate) fn note(&mut self, now: Timestamp, host: u32, tag: u8, a: u64, b: u64) {
        let mut line = [0; 29];
        line[..8].copy_from_slice(&now.as_nanos().to_be_bytes());
        line[8..12].copy_from_slice(&host.to_be_bytes());
        line[12] = tag;
        line[13..21].copy_from_slice(&a.to_be_bytes());
        line[21..].copy_from_slice(&b.to_be_bytes());
        self.lines.extend_from_slice(&line);
        if self.lines.len() >= BATCH {
            self.hash.update(&self.lines);
            self.lines.clear();
        }
    }

    pub(crate) fn finish(mut self) -> String {
        self.hash.update(&self.lines);
        hex::encode(self.hash.finalize())
    }
}

/// What the trace says of an input.
pub(crate) fn mark(input: &Input) -> (u8, u64, u64) {
    match input {
        Input::Open { have, .. } => (2, u64::from(have.count()), 0),
        Input::Provable { pieces, .. } => (19, u64::from(*pieces), 0),
        Input::PieceIngested { piece, .. } => (20, u64::from(*piece), 0),
        Input::Forget { .. } => (3, 0, 0),
        Input::Known { peers } => (18, peers.len() as u64, 0),
        Input::Want { pieces, .. } => (4, pieces.start.into(), pieces.end.into()),
        Input::Read { bytes, .. } => (24, bytes.start, bytes.end),
        Input::Fetch { extent, .. } => (25, u64::from(*extent == Extent::Parts), 0),
        Input::ConnUp { conn, dialled, .. } => (5, conn.0, u64::from(*dialled)),
        Input::ConnDown { conn } => (6, conn.0, 0),
        Input::DialFailed { peer } => (7, u64::from(peer.as_bytes()[0]), 0),
        Input::Message { conn, message } => mark_message(*conn, message),
        Input::Violation { conn } => (8, conn.0, 0),
        Input::PieceStored { piece, conn, .. } => (9, conn.0, u64::from(*piece)),
        Input::PieceRejected { piece, conn, .. } => (10, conn.0, u64::from(*piece)),
        Input::PieceLost { piece, .. } => (11, 0, u64::from(*piece)),
        Input::PieceSent {
            piece, conn, sent, ..
        } => (12 + u8::from(*sent), conn.0, u64::from(*piece)),
        Input::Announced { reply, .. } => (14, reply.interval_ms, reply.handouts.len() as u64),
        Input::AnnounceFailed { digests } => (15, digests.len() as u64, 0),
        Input::Found { spec, .. } => (16, u64::from(spec.is_some()), 0),
        Input::Shutdown => (17, 0, 0),
        Input::Seek { .. } => (21, 0, 0),
        Input::Leave => (22, 0, 0),
        Input::Unsought { .. } => (23, 0, 0),
    }
}

fn mark_message(conn: ConnId, message: &Message) -> (u8, u64, u64) {
    let (tag, detail) = match message {
        Message::Hello { .. } => (32, 0),
        Message::Subscribe { have, .. } => (33, u64::from(have.count())),
        Message::Unsubscribe { .. } => (34, 0),
        Message::Have { pieces, .. } => (
            35,
            pieces.iter().fold(0, |sum: u64, piece| {
                sum.wrapping_mul(31).wrapping_add(u64::from(*piece) + 1)
            }),
        ),
        Message::Request { piece, .. } => (36, u64::from(*piece)),
        Message::Cancel { piece, .. } => (37, u64::from(*piece)),
        Message::Refuse { piece, .. } => (38, u64::from(*piece)),
        Message::Offer { piece, .. } => (40, u64::from(*piece)),
        Message::AskPeers { .. } => (41, 0),
        Message::Peers { peers, .. } => (42, peers.len() as u64),
        Message::AskMetaInfo { offset, .. } => (43, u64::from(*offset)),
        Message::MetaInfo { total, offset, .. } => {
            (44, u64::from(*total) << 32 | u64::from(*offset))
        }
        Message::Piece { piece, .. } => (39, u64::from(*piece)),
    };
    (tag, conn.0, detail)
}
