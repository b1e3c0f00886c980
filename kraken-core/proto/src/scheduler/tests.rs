mod downloads;
mod gossip;
mod offers;
mod open;
mod parts;
mod properties;
mod seek;

use std::time::Duration;

use super::*;
use crate::blob::metainfo::PieceLength;
use crate::blob::namespace::Namespace;
use crate::tracker::{AnnounceReply, AnnounceRequest, AnnounceState, Handout};

const PIECES: u32 = 8;
const SIZE: u32 = 256 << 10;

fn id(number: u8) -> PeerId {
    PeerId::from_bytes([number; 32])
}

fn info(number: u8, role: PeerRole) -> PeerInfo {
    PeerInfo {
        id: id(number),
        addr: "[::1]:7600".parse().unwrap(),
        role,
        zone: None,
    }
}

fn spec(name: &[u8]) -> BlobSpec {
    BlobSpec {
        namespace: Namespace::default(),
        digest: Digest::of(name),
        length: u64::from(PIECES * SIZE),
        piece_length: PieceLength::MIN,
    }
}

fn blob() -> Digest {
    spec(b"blob").digest
}

fn pieces(held: impl IntoIterator<Item = u32>) -> Bitfield {
    let mut have = Bitfield::empty(PIECES);
    held.into_iter().for_each(|piece| {
        have.insert(piece);
    });
    have
}

fn requests(actions: &[Action]) -> Vec<(ConnId, u32)> {
    let request = |action: &Action| match action {
        Action::Send {
            conn,
            message: Message::Request { piece, .. },
        } => Some((*conn, *piece)),
        _ => None,
    };
    actions.iter().filter_map(request).collect()
}

fn announces(actions: &[Action]) -> usize {
    actions
        .iter()
        .filter(|action| matches!(action, Action::Announce(_)))
        .count()
}

fn dials(actions: &[Action]) -> Vec<PeerId> {
    let dial = |action: &Action| match action {
        Action::Dial(peer) => Some(peer.id),
        _ => None,
    };
    actions.iter().filter_map(dial).collect()
}

fn closed(actions: &[Action], conn: ConnId, reason: CloseReason) -> bool {
    actions.contains(&Action::Close { conn, reason })
}

fn banned(actions: &[Action], peer: u8, reason: CloseReason) -> bool {
    actions.contains(&Action::Event(Event::PeerBanned {
        peer: id(peer),
        reason,
    }))
}

/// One machine and its clock.
struct Bench {
    machine: Scheduler,
    now: Timestamp,
    conns: u64,
}

impl Bench {
    fn idle(role: PeerRole, config: Config) -> Self {
        let now = Timestamp::ZERO + Duration::from_secs(1);
        let machine = Scheduler::new(now, info(100, role), config, 1);
        Self {
            machine,
            now,
            conns: 0,
        }
    }

    /// An agent in the swarm of one blob.
    fn with(have: Bitfield, config: Config) -> Self {
        let mut bench = Self::idle(PeerRole::Agent, config);
        bench.feed(Input::Open {
            spec: spec(b"blob"),
            have,
        });
        bench
    }

    /// An agent that has nothing and asks of each peer as much as it can.
    fn greedy() -> Self {
        Self::with(
            pieces([]),
            Config {
                pipeline_agent: 8,
                pipeline_origin: 8,
                pipeline_unproven: 8,
                ..Config::lan()
            },
        )
    }

    fn drain(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.machine.poll_action()).collect()
    }

    fn feed(&mut self, input: Input) -> Vec<Action> {
        self.machine.handle(self.now, input);
        self.drain()
    }

    fn say(&mut self, conn: ConnId, message: Message) -> Vec<Action> {
        self.feed(Input::Message { conn, message })
    }

    fn piece(&mut self, conn: ConnId, piece: u32) -> Vec<Action> {
        self.say(
            conn,
            Message::Piece {
                digest: blob(),
                piece,
                len: SIZE,
            },
        )
    }

    fn stored(&mut self, conn: ConnId, piece: u32) -> Vec<Action> {
        self.piece(conn, piece);
        self.feed(Input::PieceStored {
            digest: blob(),
            piece,
            conn,
        })
    }

    fn wait(&mut self, span: Duration) -> Vec<Action> {
        let end = self.now + span;
        let mut actions = Vec::new();
        while let Some(at) = self.machine.poll_timeout(self.now).filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.machine.handle_timeout(self.now);
            actions.extend(self.drain());
            assert!(
                self.machine
                    .poll_timeout(self.now)
                    .is_none_or(|at| at > self.now)
            );
        }
        self.now = end;
        actions
    }

    fn connect(&mut self, peer: u8) -> ConnId {
        self.conns += 1;
        let conn = ConnId(self.conns);
        self.feed(Input::ConnUp {
            conn,
            peer: id(peer),
            dialled: false,
        });
        conn
    }

    fn greet(&mut self, conn: ConnId, role: PeerRole, have: Bitfield) -> Vec<Action> {
        let contact = None;
        let mut actions = self.say(conn, Message::Hello { role, contact });
        actions.extend(self.subscribe(conn, have));
        actions
    }

    fn subscribe(&mut self, conn: ConnId, have: Bitfield) -> Vec<Action> {
        let (digest, piece_length) = (blob(), PieceLength::MIN);
        self.say(
            conn,
            Message::Subscribe {
                digest,
                piece_length,
                have,
                is_partial: false,
            },
        )
    }

    fn neighbour(&mut self, peer: u8, role: PeerRole, have: Bitfield) -> (ConnId, Vec<Action>) {
        let conn = self.connect(peer);
        let actions = self.greet(conn, role, have);
        (conn, actions)
    }

    fn agent(&mut self, peer: u8, have: impl IntoIterator<Item = u32>) -> (ConnId, Vec<Action>) {
        self.neighbour(peer, PeerRole::Agent, pieces(have))
    }
}

#[test]
fn hello_comes_first() {
    let mut bench = Bench::greedy();
    let actions = bench.feed(Input::ConnUp {
        conn: ConnId(9),
        peer: id(1),
        dialled: false,
    });
    let message = Message::Hello {
        role: PeerRole::Agent,
        contact: Some(Contact {
            addr: info(100, PeerRole::Agent).addr,
            zone: None,
        }),
    };
    assert_eq!(
        actions,
        [Action::Send {
            conn: ConnId(9),
            message: message.clone()
        }]
    );
    let actions = bench.say(
        ConnId(9),
        Message::Request {
            digest: blob(),
            piece: 0,
        },
    );
    assert!(closed(&actions, ConnId(9), CloseReason::Protocol));
    let (conn, _) = bench.agent(2, []);
    assert!(
        closed(&bench.say(conn, message), conn, CloseReason::Protocol),
        "hello twice"
    );
}

#[test]
fn a_blob_in_no_swarm_is_looked_up() {
    let config = Config {
        offers: 0,
        ..Config::origin()
    };
    let mut bench = Bench::idle(PeerRole::Origin, config);
    let (conn, actions) = bench.agent(1, []);
    assert_eq!(actions, [Action::Lookup { digest: blob() }]);
    let actions = bench.feed(Input::Found {
        digest: blob(),
        spec: None,
    });
    let message = Message::Unsubscribe { digest: blob() };
    assert_eq!(actions, [Action::Send { conn, message }]);
    let (conn, _) = bench.agent(2, []);
    let actions = bench.feed(Input::Found {
        digest: blob(),
        spec: Some(spec(b"blob")),
    });
    let (digest, piece_length, have) = (blob(), PieceLength::MIN, Bitfield::full(PIECES));
    let message = Message::Subscribe {
        digest,
        piece_length,
        have,
        is_partial: false,
    };
    assert_eq!(
        actions,
        [Action::Send { conn, message }],
        "and an origin announces nothing"
    );
}

#[test]
fn only_what_is_held_is_served() {
    let mut bench = Bench::with(pieces([3]), Config::lan());
    let (conn, _) = bench.agent(1, []);
    let digest = blob();
    let actions = bench.say(conn, Message::Request { digest, piece: 3 });
    assert_eq!(
        actions,
        [Action::SendPiece {
            conn,
            digest,
            piece: 3,
            first: true
        }]
    );
    let message = Message::Refuse { digest, piece: 4 };
    let refusal = [Action::Send { conn, message }];
    assert_eq!(
        bench.say(conn, Message::Request { digest, piece: 4 }),
        refusal
    );
    let actions = bench.say(
        conn,
        Message::Request {
            digest,
            piece: PIECES,
        },
    );
    assert!(banned(&actions, 1, CloseReason::Protocol));
}

#[test]
fn a_piece_asked_for_in_an_earlier_stay_is_no_offence() {
    let mut bench = Bench::greedy();
    let (conn, _) = bench.agent(1, 0..8);
    bench.feed(Input::Forget { digest: blob() });
    bench.feed(Input::Open {
        spec: spec(b"blob"),
        have: pieces([]),
    });
    let hello_again = Message::Subscribe {
        digest: blob(),
        piece_length: PieceLength::MIN,
        have: pieces([]),
        is_partial: false,
    };
    bench.say(conn, hello_again);
    let actions = bench.piece(conn, 0);
    assert!(!banned(&actions, 1, CloseReason::Protocol), "{actions:?}");
    bench.wait(Config::lan().drop_after);
    let actions = bench.piece(conn, 0);
    assert!(banned(&actions, 1, CloseReason::Protocol), "{actions:?}");
}

#[test]
fn pieces_that_nobody_asked_for_are_punished() {
    let mut bench = Bench::greedy();
    let (conn, _) = bench.agent(1, []);
    let actions = bench.piece(conn, 0);
    assert!(
        banned(&actions, 1, CloseReason::Protocol) && closed(&actions, conn, CloseReason::Protocol)
    );
    let (conn, _) = bench.agent(2, 0..8);
    let actions = bench.say(
        conn,
        Message::Piece {
            digest: blob(),
            piece: 0,
            len: SIZE - 1,
        },
    );
    assert!(
        banned(&actions, 2, CloseReason::Protocol),
        "a piece of the wrong length"
    );
}

#[test]
fn two_who_have_everything_part() {
    let mut bench = Bench::with(pieces(0..7), Config::lan());
    let (conn, _) = bench.agent(1, 0..8);
    let digest = blob();
    let actions = bench.stored(conn, 7);
    let goodbye = Action::Send {
        conn,
        message: Message::Unsubscribe { digest },
    };
    assert!(actions.contains(&Action::Event(Event::BlobDone { digest })));
    assert!(actions.contains(&goodbye));
    let (conn, actions) = bench.agent(2, 0..8);
    assert_eq!(
        actions,
        [Action::Send {
            conn,
            message: Message::Unsubscribe { digest }
        }]
    );
    let idle = bench.wait(Duration::from_secs(40));
    assert!(closed(&idle, conn, CloseReason::Idle));
}

#[test]
fn a_handout_fills_the_degree_and_no_more() {
    let mut bench = Bench::greedy();
    let mut peers: Vec<_> = (1..=20)
        .map(|number| info(number, PeerRole::Agent))
        .collect();
    peers.insert(0, info(100, PeerRole::Agent));
    peers.extend((30..33).map(|number| info(number, PeerRole::Origin)));
    let handouts = vec![Handout {
        digest: blob(),
        peers,
    }];
    let reply = AnnounceReply {
        interval_ms: 10_000,
        handouts,
    };
    let told = || Input::Announced {
        digests: vec![blob()],
        reply: reply.clone(),
    };
    let dialled = |actions: &[Action], role| {
        let meant = |action: &&Action| matches!(action, Action::Dial(peer) if peer.role == role);
        actions.iter().filter(meant).count()
    };
    let config = Config::lan();
    let actions = bench.feed(told());
    assert_eq!(dialled(&actions, PeerRole::Agent), config.dial_degree);
    assert_eq!(dialled(&actions, PeerRole::Origin), 3);
    // Nobody dialled us meanwhile: the rest of the degree is dialled as well.
    let rest = bench.feed(told());
    let missing = config.target_degree - config.dial_degree;
    assert_eq!(dialled(&rest, PeerRole::Agent), missing);
    assert_eq!(dialled(&bench.feed(told()), PeerRole::Agent), 0);
    let own = |action: &Action| matches!(action, Action::Dial(peer) if peer.id == id(100));
    assert!(!actions.iter().any(own));
}

#[test]
fn failed_announces_back_off() {
    let mut bench = Bench::idle(PeerRole::Agent, Config::lan());
    let opened = bench.feed(Input::Open {
        spec: spec(b"blob"),
        have: pieces([]),
    });
    assert_eq!(announces(&opened), 1);
    for (none, one) in [(240, 270), (490, 520), (990, 1020)] {
        bench.feed(Input::AnnounceFailed {
            digests: vec![blob()],
        });
        assert_eq!(announces(&bench.wait(Duration::from_millis(none))), 0);
        assert_eq!(announces(&bench.wait(Duration::from_millis(one))), 1);
    }
}

#[test]
fn a_stop_says_goodbye() {
    let mut bench = Bench::greedy();
    let (conn, _) = bench.agent(1, 0..8);
    let actions = bench.feed(Input::Shutdown);
    assert!(closed(&actions, conn, CloseReason::Shutdown));
    let left = |action: &Action| match action {
        Action::Announce(AnnounceRequest { blobs, .. }) => blobs
            .iter()
            .all(|it| it.state == AnnounceState::Left && it.digest == blob()),
        _ => false,
    };
    assert!(actions.iter().any(left));
    assert_eq!(bench.machine.poll_timeout(bench.now), None);
    let actions = bench.feed(Input::ConnUp {
        conn: ConnId(9),
        peer: id(2),
        dialled: false,
    });
    assert!(closed(&actions, ConnId(9), CloseReason::Shutdown));
}

#[test]
fn a_peer_that_connects_again_is_greeted_in_the_same_swarms() {
    let mut bench = Bench::greedy();
    let (old, _) = bench.agent(1, 0..8);
    let new = ConnId(40);
    let actions = bench.feed(Input::ConnUp {
        conn: new,
        peer: id(1),
        dialled: false,
    });
    assert!(closed(&actions, old, CloseReason::Duplicate));
    let actions = bench.greet(new, PeerRole::Agent, pieces(0..8));
    let greeting = |action: &Action| matches!(action, Action::Send { conn, message: Message::Subscribe { .. } } if *conn == new);
    assert_eq!(actions.iter().filter(|action| greeting(action)).count(), 1);
    assert_eq!(requests(&actions).len(), 8);
}
