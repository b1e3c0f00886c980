//! Random events in random order.

use proptest::prelude::*;

use super::*;

/// What the shell owes the machine.
#[derive(Default)]
struct Owed {
    stores: Vec<(ConnId, Digest, u32)>,
    sends: Vec<(ConnId, Digest, u32)>,
    announces: Vec<Vec<Digest>>,
}

impl Owed {
    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Store {
                    conn,
                    digest,
                    piece,
                } => self.stores.push((conn, digest, piece)),
                Action::SendPiece {
                    conn,
                    digest,
                    piece,
                    ..
                } => self.sends.push((conn, digest, piece)),
                Action::Announce(request) => {
                    self.announces
                        .push(request.blobs.iter().map(|blob| blob.digest).collect());
                }
                _ => {}
            }
        }
    }
}

fn any_message(kind: u8, digest: Digest, piece: u32, bits: u8) -> Message {
    let have = pieces((0..PIECES).filter(|piece| bits >> piece & 1 == 1));
    let (role, piece_length) = (PeerRole::Agent, PieceLength::MIN);
    match kind % 11 {
        9 => Message::AskMetaInfo {
            digest,
            offset: piece,
        },
        10 => Message::metainfo_part(digest, &vec![bits; usize::from(bits) << 6], piece << 9),
        0 | 1 => Message::Hello {
            role,
            contact: None,
        },
        2 => Message::Subscribe {
            digest,
            piece_length,
            have,
            is_partial: bits >> 7 == 1,
        },
        3 => Message::Unsubscribe { digest },
        4 => Message::Have {
            digest,
            pieces: have.iter().collect(),
        },
        5 => Message::Request { digest, piece },
        6 => Message::Cancel { digest, piece },
        7 => Message::Refuse { digest, piece },
        _ => Message::Piece {
            digest,
            piece,
            len: SIZE,
        },
    }
}

fn any_input(op: (u8, u8, u32, u8), bench: &mut Bench, owed: &mut Owed) -> Option<Input> {
    let (kind, detail, piece, bits) = op;
    let spec = spec(&[b'a' + detail % 2]);
    let digest = spec.digest;
    let conn = ConnId(bench.conns.saturating_sub(u64::from(detail % 4)));
    Some(match kind {
        0 => Input::Open {
            spec,
            have: pieces((0..PIECES).filter(|it| bits >> it & 1 == 1)),
        },
        1 => Input::Forget { digest },
        2 => Input::Want {
            digest,
            reader: ReaderId(u64::from(bits % 3)),
            pieces: piece..PIECES,
        },
        3..6 => {
            bench.conns += 1;
            let peer = id(detail % 5);
            Input::ConnUp {
                conn: ConnId(bench.conns),
                peer,
                dialled: bits % 2 == 0,
            }
        }
        6 => Input::ConnDown { conn },
        7 if bits % 2 == 0 => Input::Seek {
            namespace: spec.namespace,
            digest,
        },
        7 => Input::DialFailed {
            peer: id(detail % 5),
        },
        8 => Input::Violation { conn },
        9 | 10 => {
            let (conn, digest, piece) = owed.stores.pop()?;
            Input::PieceStored {
                digest,
                piece,
                conn,
            }
        }
        11 => {
            let (conn, digest, piece) = owed.stores.pop()?;
            if bits % 2 == 0 {
                Input::PieceRejected {
                    digest,
                    piece,
                    conn,
                }
            } else {
                Input::PieceLost { digest, piece }
            }
        }
        12 => {
            let (conn, digest, piece) = owed.sends.pop()?;
            Input::PieceSent {
                digest,
                piece,
                conn,
                sent: bits % 2 == 0,
            }
        }
        13 => {
            let digests = owed.announces.pop()?;
            let peers = (0..5).map(|number| info(number, PeerRole::Agent)).collect();
            let handouts = vec![Handout { digest, peers }];
            let reply = AnnounceReply {
                interval_ms: u64::from(bits),
                handouts,
            };
            Input::Announced { digests, reply }
        }
        14 => Input::AnnounceFailed {
            digests: owed.announces.pop()?,
        },
        15 => Input::Found {
            digest,
            spec: (bits % 2 == 0).then_some(spec),
        },
        16 if bits == 0 => Input::Shutdown,
        17 => Input::Provable {
            digest,
            pieces: piece,
        },
        18 => Input::PieceIngested { digest, piece },
        19 => Input::Fetch {
            digest,
            extent: match bits % 3 {
                0 => Extent::Whole,
                _ => Extent::Parts,
            },
        },
        20 => Input::Read {
            digest,
            reader: ReaderId(u64::from(bits % 3)),
            bytes: u64::from(piece * SIZE)..u64::from(piece * SIZE) + (u64::from(bits) << 12),
        },
        _ => Input::Message {
            conn,
            message: any_message(bits, digest, piece, bits ^ detail),
        },
    })
}

proptest! {
    /// Nothing that happens, in whatever order, makes the machine panic or spin.
    #[test]
    fn any_order_of_events_is_survived(
        ops in prop::collection::vec(((0u8..40, any::<u8>(), 0..PIECES, any::<u8>()), 0u64..400), 0..300),
    ) {
        let mut bench = Bench::idle(PeerRole::Agent, Config::lan());
        let mut owed = Owed::default();
        for (op, millis) in ops {
            if millis < 300 {
                if let Some(input) = any_input(op, &mut bench, &mut owed) {
                    let actions = bench.feed(input);
                    owed.take(actions);
                }
            } else {
                let actions = bench.wait(Duration::from_millis((millis - 299) * 20));
                owed.take(actions);
            }
        }
    }
}
