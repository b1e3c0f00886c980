//! Peers that keep to no rule, in memory: without sockets, time can stand still.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kraken_proto::wire::codec;
use kraken_proto::{Message, PeerId};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::contract::{announced, eventually, piece, request};
use crate::tcp::IDLE_TIMEOUT;
use crate::tcp::conn::TcpConn;
use crate::tcp::endpoint::Shared;
use crate::tcp::link::Link;
use crate::tcp::outgoing::{MESSAGES, WINDOW, cost};
use crate::tcp::reader::Reader;
use crate::tcp::record::{HEAD, MAX_CHUNK, Record};
use crate::transport::{MAX_PIECES_IN_FLIGHT, NetError, PeerConn, SEND_STALL};

/// A connection in memory, and the side that keeps to no rule.
struct Hostile {
    conn: TcpConn,
    shared: Shared,
    far: DuplexStream,
}

impl Hostile {
    fn new() -> Self {
        let (near, far) = tokio::io::duplex(16 << 10);
        let shared = Shared::default();
        let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let conn = TcpConn::start(near, PeerId::from_bytes([7; 32]), remote, shared.clone());
        Self { conn, shared, far }
    }

    async fn say(&mut self, record: Record, body: &[u8]) {
        self.far.write_all(&record.encode()).await.unwrap();
        self.far.write_all(body).await.unwrap();
    }

    async fn begin(&mut self, stream: u32, len: usize) {
        let body = codec::encode(&announced(stream, len)).split_off(codec::PREFIX);
        let len = body.len();
        self.say(Record::Piece { stream, len }, &body).await;
    }

    async fn chunk(&mut self, stream: u32, bytes: &[u8]) {
        let len = bytes.len();
        self.say(Record::Chunk { stream, len }, bytes).await;
    }

    async fn message(&mut self, message: &Message) {
        let body = codec::encode(message).split_off(codec::PREFIX);
        self.say(Record::Message { len: body.len() }, &body).await;
    }

    /// The next record that is not a keep-alive, and its body.
    async fn hear(&mut self) -> (Record, Vec<u8>) {
        loop {
            let mut head = [0; HEAD];
            self.far.read_exact(&mut head).await.unwrap();
            let record = Record::decode(head).unwrap();
            let len = match record {
                Record::Empty => continue,
                Record::Message { len }
                | Record::Piece { len, .. }
                | Record::Chunk { len, .. }
                | Record::Close { len } => len,
                _ => 0,
            };
            let mut body = vec![0; len];
            self.far.read_exact(&mut body).await.unwrap();
            return (record, body);
        }
    }

    /// What the honest side makes of it all; the hostile one must hear the same.
    async fn breach(mut self) -> String {
        let what = match self.conn.recv().await.unwrap_err() {
            NetError::Protocol { what, .. } => what,
            other => panic!("a breach, not {other}"),
        };
        loop {
            let (record, body) = self.hear().await;
            if matches!(record, Record::Close { .. }) {
                assert_eq!(body, what.as_bytes());
                break;
            }
        }
        assert_eq!(self.shared.counters.snapshot().protocol_errors, 1);
        what
    }
}

#[tokio::test]
async fn records_out_of_bounds_close_the_connection() {
    for (head, expected) in [
        ([9, 0, 0, 0, 0, 0, 0, 0, 0], "not known"),
        ([1, 0, 0, 0, 0, 255, 255, 255, 255], "longer than 16384"),
        ([3, 0, 0, 0, 0, 0, 1, 0, 0], "longer than 65527"),
        ([6, 0, 0, 0, 0, 0, 0, 0, 1], "room for more"),
        ([7, 0, 0, 0, 0, 0, 0, 0, 1], "room for more"),
        ([4, 0, 0, 0, 0, 0, 0, 0, 0], "no such piece"),
        ([3, 0, 0, 0, 0, 0, 0, 0, 1], "bytes of no piece"),
    ] {
        let mut hostile = Hostile::new();
        hostile.far.write_all(&head).await.unwrap();
        let what = hostile.breach().await;
        assert!(what.contains(expected), "{what}");
    }
}

#[tokio::test]
async fn messages_in_the_wrong_place_close_the_connection() {
    let mut hostile = Hostile::new();
    hostile.message(&announced(0, 4)).await;
    assert!(hostile.breach().await.contains("among the messages"));

    let mut hostile = Hostile::new();
    hostile.say(Record::Message { len: 2 }, &[255; 2]).await;
    assert!(hostile.breach().await.contains("cannot be parsed"));

    let mut hostile = Hostile::new();
    let body = codec::encode(&request(0).message).split_off(codec::PREFIX);
    let len = body.len();
    let record = Record::Piece { stream: 0, len };
    hostile.say(record, &body).await;
    assert!(hostile.breach().await.contains("only pieces"));

    let mut hostile = Hostile::new();
    hostile.begin(1, 4).await;
    assert!(hostile.breach().await.contains("out of its order"));
}

#[tokio::test]
async fn more_messages_than_may_wait_close_the_connection() {
    let mut hostile = Hostile::new();
    let counters = hostile.shared.counters.clone();
    let message = request(1).message;
    while counters.snapshot().protocol_errors == 0 {
        hostile.message(&message).await;
    }
    let mut waited = 0;
    let error = loop {
        match hostile.conn.recv().await {
            Ok(frame) => assert_eq!(frame, request(1)),
            Err(error) => break error,
        }
        waited += 1;
    };
    assert!(waited * codec::encode(&message).len() <= MESSAGES as usize);
    assert!(error.to_string().contains("more messages"), "{error}");
}

#[tokio::test]
async fn pieces_pass_where_nobody_takes_messages() {
    let mut hostile = Hostile::new();
    let len = codec::encode(&request(1).message).len() - codec::PREFIX;
    for _ in 0..MESSAGES / cost(len) {
        hostile.message(&request(1).message).await;
    }
    // Our own piece goes on by the room that the other side gives.
    for index in 0..MAX_PIECES_IN_FLIGHT + 1 {
        let small = piece(index, Bytes::from_static(b"four"));
        let (sent, _) = tokio::join!(hostile.conn.send(small), async {
            hostile.far.write_all(&Record::Empty.encode()).await
        });
        sent.unwrap();
        for _ in 0..2 {
            let mut head = [0; HEAD];
            hostile.far.read_exact(&mut head).await.unwrap();
            let len = match Record::decode(head).unwrap() {
                Record::Piece { len, .. } | Record::Chunk { len, .. } => len,
                other => panic!("{other:?}"),
            };
            hostile.far.read_exact(&mut vec![0; len]).await.unwrap();
        }
        hostile.say(Record::Room { pieces: 1 }, &[]).await;
    }
    for _ in 0..MESSAGES / cost(len) {
        assert_eq!(hostile.conn.recv().await.unwrap(), request(1));
    }
    assert!(matches!(hostile.hear().await.0, Record::Heard { .. }));
}

#[tokio::test]
async fn a_piece_that_goes_on_closes_the_connection() {
    let mut hostile = Hostile::new();
    hostile.begin(0, 4).await;
    hostile.chunk(0, b"five!").await;
    assert_eq!(hostile.breach().await, "a piece of 4 bytes goes on");
}

#[tokio::test]
async fn too_many_pieces_close_the_connection() {
    let mut hostile = Hostile::new();
    for stream in 0..=MAX_PIECES_IN_FLIGHT {
        hostile.begin(stream, 16 << 20).await;
    }
    assert_eq!(hostile.breach().await, "more pieces at once than may be");
}

#[tokio::test]
async fn pieces_that_nobody_takes_count_against_the_room() {
    let mut hostile = Hostile::new();
    for stream in 0..MAX_PIECES_IN_FLIGHT {
        hostile.begin(stream, 4).await;
        hostile.chunk(stream, b"four").await;
    }
    hostile.conn.recv().await.unwrap();
    let (record, _) = hostile.hear().await;
    assert_eq!(record, Record::Room { pieces: 1 });
    hostile.begin(MAX_PIECES_IN_FLIGHT, 4).await;
    hostile.begin(MAX_PIECES_IN_FLIGHT + 1, 4).await;
    let counters = hostile.shared.counters.clone();
    eventually(|| counters.snapshot().protocol_errors == 1).await;
    // What had come before is delivered.
    for _ in 1..MAX_PIECES_IN_FLIGHT {
        hostile.conn.recv().await.unwrap();
    }
    assert_eq!(hostile.breach().await, "more pieces at once than may be");
}

#[tokio::test]
async fn an_abandoned_piece_is_no_breach_and_leaves_its_room() {
    let mut hostile = Hostile::new();
    for stream in 0..4 * MAX_PIECES_IN_FLIGHT {
        hostile.begin(stream, 100).await;
        hostile.chunk(stream, b"some").await;
        hostile.say(Record::Abandoned { stream }, &[]).await;
        let (record, _) = hostile.hear().await;
        assert_eq!(record, Record::Room { pieces: 1 });
    }
    hostile.message(&request(9).message).await;
    assert_eq!(hostile.conn.recv().await.unwrap(), request(9));
    assert_eq!(hostile.shared.counters.snapshot().protocol_errors, 0);
}

#[tokio::test]
async fn more_than_the_window_closes_the_connection() {
    let mut hostile = Hostile::new();
    let limits = hostile.shared.throttle.clone();
    limits.download().set_rate(std::num::NonZeroU64::new(1));
    hostile.begin(0, 16 << 20).await;
    let bytes = vec![7; MAX_CHUNK];
    for _ in 0..WINDOW / MAX_CHUNK {
        hostile.chunk(0, &bytes).await;
    }
    // Messages pass as long as the window is kept.
    hostile.message(&request(9).message).await;
    assert_eq!(hostile.conn.recv().await.unwrap(), request(9));
    hostile.chunk(0, &bytes).await;
    assert_eq!(hostile.breach().await, "more bytes than the window takes");
}

#[tokio::test(start_paused = true)]
async fn silence_is_a_loss_and_keep_alives_are_no_silence() {
    let mut hostile = Hostile::new();
    for _ in 0..5 {
        tokio::time::sleep(IDLE_TIMEOUT / 2).await;
        hostile.say(Record::Empty, &[]).await;
    }
    let mut head = [1; HEAD];
    hostile.far.read_exact(&mut head).await.unwrap();
    assert_eq!(Record::decode(head), Ok(Record::Empty));
    let error = hostile.conn.recv().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(error.to_string().contains("nothing arrived"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_piece_that_stands_still_closes_the_connection() {
    let mut hostile = Hostile::new();
    hostile.begin(0, 100).await;
    hostile.chunk(0, b"some").await;
    let alive = async {
        loop {
            hostile.far.write_all(&[0; HEAD]).await.unwrap();
            tokio::time::sleep(IDLE_TIMEOUT / 2).await;
        }
    };
    let error = tokio::select! {
        error = hostile.conn.recv() => error.unwrap_err(),
        () = alive => unreachable!("it never ends"),
    };
    assert!(matches!(error, NetError::Protocol { .. }), "{error}");
    assert!(error.to_string().contains("stood still"), "{error}");
}

/// Keeps a connection alive, reads everything and gives no credit.
async fn take_without_credit(far: &mut DuplexStream) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let pause = Duration::from_secs(1);
        match tokio::time::timeout(pause, far.read(&mut bytes)).await {
            Ok(Ok(1..)) => {}
            Ok(_) => return,
            Err(_) => far.write_all(&[0; HEAD]).await.unwrap(),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_left() {
    // It gives no window for the rest of a long piece.
    let mut hostile = Hostile::new();
    let long = piece(0, Bytes::from(vec![7; WINDOW + 1]));
    let sending = async { hostile.conn.send(long).await };
    let (sent, ()) = tokio::join!(sending, take_without_credit(&mut hostile.far));
    assert!(matches!(sent, Err(NetError::Closed)), "{sent:?}");

    // It has no room for more pieces.
    let mut hostile = Hostile::new();
    let sending = async {
        for index in 0..MAX_PIECES_IN_FLIGHT {
            let small = piece(index, Bytes::from_static(b"four"));
            hostile.conn.send(small).await.unwrap();
        }
        let one_more = piece(99, Bytes::from_static(b"four"));
        hostile.conn.send(one_more).await
    };
    let (sent, ()) = tokio::join!(sending, take_without_credit(&mut hostile.far));
    assert!(matches!(sent, Err(NetError::Closed)), "{sent:?}");

    // It reads nothing at all, and still talks.
    let mut hostile = Hostile::new();
    let long = piece(0, Bytes::from(vec![7; 1 << 20]));
    let talk = async {
        for _ in 0..2 * SEND_STALL.as_secs() {
            let _ = hostile.far.write_all(&[0; HEAD]).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let (sent, ()) = tokio::join!(hostile.conn.send(long), talk);
    assert!(matches!(sent, Err(NetError::Closed)), "{sent:?}");
}

#[tokio::test]
async fn a_piece_that_is_given_up_is_abandoned() {
    let mut hostile = Hostile::new();
    let long = piece(0, Bytes::from(vec![7; 1 << 20]));
    tokio::select! {
        sent = hostile.conn.send(long) => panic!("nobody has read: {sent:?}"),
        (record, _) = async {
            let mut head = [0; HEAD];
            hostile.far.read_exact(&mut head).await.unwrap();
            (Record::decode(head).unwrap(), ())
        } => assert!(matches!(record, Record::Piece { stream: 0, .. })),
    }
    let body = codec::encode(&announced(0, 1 << 20)).len() - codec::PREFIX;
    hostile.far.read_exact(&mut vec![0; body]).await.unwrap();
    hostile.conn.send(request(3)).await.unwrap();
    let (mut abandoned, mut heard) = (false, false);
    while !abandoned || !heard {
        match hostile.hear().await.0 {
            Record::Abandoned { stream: 0 } => abandoned = true,
            Record::Message { .. } => heard = true,
            Record::Chunk { .. } => assert!(!abandoned),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_reason_is_cut_and_cleaned() {
    let mut hostile = Hostile::new();
    let reason = b"bad\x1b[31m\xff reason";
    let len = reason.len();
    hostile.say(Record::Close { len }, reason).await;
    let error = hostile.conn.recv().await.unwrap_err();
    assert!(
        matches!(&error, NetError::Lost { reason, .. } if reason == "bad[31m\u{fffd} reason"),
        "{error}"
    );
}

#[tokio::test]
async fn garbage_never_panics() {
    for seed in 0..500_u64 {
        let mut random = seed;
        let bytes: Vec<u8> = (0..4096)
            .map(|index| {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let byte = (random >> 56) as u8;
                // Heads that are almost right go further.
                let kind = index % HEAD == 0;
                if kind { byte % 9 } else { byte * (byte % 2) }
            })
            .collect();
        let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let link = Link::new(PeerId::from_bytes([7; 32]), remote, Shared::default());
        let link = Arc::new(link);
        let (reader, inbox) = Reader::new(link.clone(), &bytes[..]);
        reader.run().await;
        assert!(link.ended.is_cancelled());
        drop(inbox);
    }
}

#[tokio::test]
async fn a_peer_that_vanishes_is_lost() {
    let mut hostile = Hostile::new();
    hostile.begin(0, 100).await;
    hostile.chunk(0, b"some").await;
    drop(hostile.far);
    let error = hostile.conn.recv().await.unwrap_err();
    assert!(matches!(error, NetError::Lost { .. }), "{error}");
    let error = hostile.conn.send(request(1)).await.unwrap_err();
    assert!(matches!(error, NetError::Lost { .. }), "{error}");
}
