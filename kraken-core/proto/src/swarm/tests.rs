use std::time::Duration;

use super::*;
use crate::blob::digest::Digest;
use crate::blob::metainfo::PieceLength;
use crate::blob::namespace::Namespace;
use crate::picker::window::ReaderId;

const PIECES: u32 = 8;
const SIZE: u32 = 256 << 10;
const A: ConnId = ConnId(1);
const B: ConnId = ConnId(2);

/// A swarm and all that its steps use.
struct Bench {
    swarm: Swarm,
    config: Config,
    rng: Rng,
    now: Timestamp,
}

impl Bench {
    fn new(have: Bitfield) -> Self {
        let spec = BlobSpec {
            namespace: Namespace::default(),
            digest: Digest::of(b"blob"),
            length: u64::from(PIECES * SIZE) - 10,
            piece_length: PieceLength::MIN,
        };
        let config = Config {
            pipeline_agent: 2,
            pipeline_unproven: 8,
            inflight: 0,
            ..Config::lan()
        };
        let rng = Rng::seeded(1);
        Self {
            swarm: Swarm::new(spec, have),
            config,
            rng,
            now: Timestamp::from_nanos(1),
        }
    }

    fn step<T>(&mut self, act: impl FnOnce(&mut Swarm, &mut Context<'_>) -> T) -> (T, Vec<Action>) {
        let mut out = VecDeque::new();
        let (config, rng) = (&self.config, &mut self.rng);
        let result = act(
            &mut self.swarm,
            &mut Context {
                now: self.now,
                config,
                rng,
                out: &mut out,
            },
        );
        (result, out.into())
    }

    fn meet(&mut self, conn: ConnId, role: PeerRole, have: Bitfield) -> Vec<u32> {
        let id = PeerId::from_bytes([conn.0 as u8; 32]);
        self.step(|swarm, cx| swarm.greet(cx, conn, id, role));
        let (result, actions) = self.step(|swarm, cx| swarm.subscribed(cx, conn, (have, false)));
        assert_eq!(result, Ok(()));
        requests(&actions)
    }
}

fn pieces(held: impl IntoIterator<Item = u32>) -> Bitfield {
    let mut have = Bitfield::empty(PIECES);
    held.into_iter().for_each(|piece| {
        have.insert(piece);
    });
    have
}

fn requests(actions: &[Action]) -> Vec<u32> {
    let request = |action: &Action| match action {
        Action::Send {
            message: Message::Request { piece, .. },
            ..
        } => Some(*piece),
        _ => None,
    };
    actions.iter().filter_map(request).collect()
}

#[test]
fn a_piece_counts_even_when_its_sender_is_gone() {
    let mut bench = Bench::new(pieces(0..7));
    assert_eq!(bench.meet(A, PeerRole::Origin, Bitfield::full(PIECES)), [7]);
    let (_, actions) = bench.step(|swarm, cx| swarm.arrived(cx, A, 7, SIZE - 10));
    assert!(
        actions
            .iter()
            .any(|action| matches!(action, Action::Store { piece: 7, .. }))
    );
    assert_eq!(bench.swarm.sender(7), Some(PeerId::from_bytes([1; 32])));
    bench.step(|swarm, cx| swarm.part(cx, A));
    let (_, actions) = bench.step(|swarm, cx| swarm.stored(cx, 7, A));
    let done = |action: &Action| {
        matches!(
            action,
            Action::Event(Event::PieceDone {
                piece: 7,
                role: PeerRole::Origin,
                ..
            })
        )
    };
    assert!(actions.iter().any(done));
    assert_eq!(bench.swarm.stats().from_origins, u64::from(SIZE - 10));
    assert!(bench.swarm.is_complete());
    let (_, actions) = bench.step(|swarm, cx| swarm.stored(cx, 7, A));
    assert!(actions.is_empty(), "told twice, done once");
}

#[test]
fn a_lost_piece_is_asked_for_again() {
    let mut bench = Bench::new(pieces(0..7));
    bench.meet(A, PeerRole::Agent, Bitfield::full(PIECES));
    bench
        .step(|swarm, cx| swarm.arrived(cx, A, 7, SIZE - 10))
        .0
        .unwrap();
    let (_, actions) = bench.step(|swarm, cx| swarm.lost(cx, 7));
    assert_eq!(requests(&actions), [7]);
    assert_eq!(bench.swarm.stats().rejected_pieces, 0);
}

#[test]
fn a_piece_that_was_written_in_an_earlier_stay_is_not_asked_for() {
    let mut bench = Bench::new(pieces([]));
    for piece in 0..6 {
        bench.step(|swarm, cx| swarm.stored(cx, piece, A));
    }
    let mut asked = bench.meet(B, PeerRole::Agent, Bitfield::full(PIECES));
    asked.sort_unstable();
    assert_eq!(asked, [6, 7]);
}

#[test]
fn news_before_the_greeting_is_ignored_and_nonsense_is_not() {
    let mut bench = Bench::new(pieces([]));
    let news = |bench: &mut Bench, piece| bench.step(|swarm, cx| swarm.has_more(cx, A, &[piece])).0;
    assert_eq!(
        news(&mut bench, 0),
        Ok(()),
        "from a peer that was parted from"
    );
    bench.step(|swarm, cx| swarm.greet(cx, A, PeerId::from_bytes([1; 32]), PeerRole::Agent));
    assert_eq!(news(&mut bench, 0), Ok(()));
    assert_eq!(bench.swarm.rarest.count(0), 0);
    assert_eq!(news(&mut bench, PIECES), Err(Violation));
    let short = Bitfield::empty(PIECES - 1);
    assert_eq!(
        bench
            .step(|swarm, cx| swarm.subscribed(cx, A, (short, false)))
            .0,
        Err(Violation)
    );
}

#[test]
fn counts_follow_greetings_news_refusals_and_partings() {
    let mut bench = Bench::new(pieces([]));
    bench.meet(A, PeerRole::Agent, pieces([0, 1]));
    bench.meet(B, PeerRole::Agent, pieces([1]));
    bench.meet(ConnId(3), PeerRole::Origin, Bitfield::full(PIECES));
    let counts = |bench: &Bench| {
        (0..3)
            .map(|piece| bench.swarm.rarest.count(piece))
            .collect::<Vec<_>>()
    };
    assert_eq!(counts(&bench), [1, 2, 0]);
    bench
        .step(|swarm, cx| swarm.has_more(cx, B, &[1, 2]))
        .0
        .unwrap();
    // Said again after two connections became one: only what is new counts.
    bench
        .step(|swarm, cx| swarm.subscribed(cx, B, (pieces([0, 1]), false)))
        .0
        .unwrap();
    assert_eq!(counts(&bench), [2, 2, 1]);
    bench.step(|swarm, cx| swarm.refused(cx, A, 0));
    assert_eq!(counts(&bench), [1, 2, 1]);
    bench.step(|swarm, cx| swarm.part(cx, B));
    assert_eq!(counts(&bench), [0, 1, 0]);
    assert_eq!(
        (
            bench.swarm.degree(PeerRole::Agent),
            bench.swarm.degree(PeerRole::Origin)
        ),
        (1, 1)
    );
}

#[test]
fn uploads_are_bounded_and_end() {
    let mut bench = Bench::new(pieces(0..4));
    bench.config.max_uploads_per_peer = 2;
    bench.meet(A, PeerRole::Agent, pieces([]));
    let digest = bench.swarm.spec().digest;
    let ask = |bench: &mut Bench, piece| bench.step(|swarm, cx| swarm.requested(cx, A, piece)).1;
    assert_eq!(
        ask(&mut bench, 0),
        [Action::SendPiece {
            conn: A,
            digest,
            piece: 0,
            first: true
        }]
    );
    assert!(ask(&mut bench, 0).is_empty(), "asked twice, sent once");
    ask(&mut bench, 1);
    let refusal = |piece| Action::Send {
        conn: A,
        message: Message::Refuse { digest, piece },
    };
    assert_eq!(ask(&mut bench, 2), [refusal(2)]);
    let cancelled = bench.step(|swarm, cx| swarm.cancelled(cx, A, 1)).1;
    assert_eq!(
        cancelled,
        [Action::CancelPiece {
            conn: A,
            digest,
            piece: 1
        }]
    );
    assert_eq!(
        bench.step(|swarm, cx| swarm.sent(cx, A, 1, false)).1,
        [refusal(1)]
    );
    assert!(
        bench
            .step(|swarm, cx| swarm.cancelled(cx, A, 1))
            .1
            .is_empty()
    );
    bench.step(|swarm, cx| swarm.sent(cx, A, 0, true));
    assert_eq!(bench.swarm.stats().sent, u64::from(SIZE));
    assert_eq!(
        ask(&mut bench, 2),
        [Action::SendPiece {
            conn: A,
            digest,
            piece: 2,
            first: true
        }]
    );
}

#[test]
fn a_tick_leaves_nothing_due() {
    let mut bench = Bench::new(pieces([]));
    bench.meet(A, PeerRole::Agent, Bitfield::full(PIECES));
    bench.meet(B, PeerRole::Agent, pieces([]));
    for step in 0..60 {
        bench.now = bench.now + Duration::from_millis(97 * step % 400);
        let (silent, _) = bench.step(|swarm, cx| swarm.tick(cx));
        silent
            .into_iter()
            .for_each(|conn| drop(bench.step(|swarm, cx| swarm.part(cx, conn))));
        let next = bench.swarm.next_tick(bench.now, &bench.config);
        assert!(
            next.is_none_or(|at| at > bench.now),
            "{next:?} at {:?}",
            bench.now
        );
    }
}

#[test]
fn a_reader_is_served_in_order_by_agents() {
    let mut bench = Bench::new(pieces([0]));
    bench.step(|swarm, cx| swarm.want(cx, ReaderId(1), 0..PIECES));
    assert_eq!(
        bench.meet(A, PeerRole::Agent, Bitfield::full(PIECES)),
        [1, 2]
    );
    bench.step(|swarm, cx| swarm.want(cx, ReaderId(1), 4..PIECES));
    assert_eq!(
        bench.meet(B, PeerRole::Agent, Bitfield::full(PIECES)),
        [4, 5]
    );
}

/// A piece that was asked of `conn` comes and is written; names what is asked for then.
fn deliver(bench: &mut Bench, conn: ConnId, piece: u32) -> Vec<u32> {
    let len = bench.swarm.spec.piece_size(piece) as u32;
    let (result, mut actions) = bench.step(|swarm, cx| swarm.arrived(cx, conn, piece, len));
    assert_eq!(result, Ok(()));
    actions.extend(bench.step(|swarm, cx| swarm.stored(cx, piece, conn)).1);
    requests(&actions)
}

/// B answers in 10 ms, A in as many times that; names what A is asked for when it has answered.
fn asked_after_a_slow_answer(times: u32) -> Vec<u32> {
    let mut bench = Bench::new(pieces([]));
    bench.config.pipeline_agent = 1;
    let from_a = bench.meet(A, PeerRole::Agent, Bitfield::full(PIECES));
    let mut from_b = bench.meet(B, PeerRole::Agent, Bitfield::full(PIECES));
    for _ in 0..times {
        bench.now = bench.now + Duration::from_millis(10);
        from_b = deliver(&mut bench, B, from_b[0]);
    }
    deliver(&mut bench, A, from_a[0])
}

#[test]
fn the_last_pieces_are_not_asked_of_a_slow_neighbour() {
    assert_eq!(asked_after_a_slow_answer(3).len(), 1, "four are missing");
    assert!(asked_after_a_slow_answer(5).is_empty(), "two are missing");
}

#[test]
fn a_slow_neighbour_is_asked_for_the_last_piece_when_the_others_fall_silent() {
    let mut bench = Bench::new(pieces(1..PIECES));
    bench.config.endgame_pieces = 0;
    assert_eq!(bench.meet(A, PeerRole::Agent, pieces([0])), [0]);
    bench.meet(B, PeerRole::Agent, pieces([]));
    bench.swarm.service = Duration::from_millis(10);
    for (conn, millis) in [(A, 10), (B, 500)] {
        let peer = bench.swarm.peers.get_mut(&conn).unwrap();
        peer.service = Duration::from_millis(millis);
    }
    let (_, actions) = bench.step(|swarm, cx| swarm.has_more(cx, B, &[0]));
    assert!(requests(&actions).is_empty(), "A has it in hand");
    bench.now = bench.now + Duration::from_secs(3);
    let (_, actions) = bench.step(|swarm, cx| swarm.tick(cx));
    assert_eq!(requests(&actions), [0]);
}

#[test]
fn a_slow_neighbour_is_asked_for_one_piece_at_a_time() {
    let asked_of_one_that_takes = |millis: u64| {
        let mut bench = Bench::new(pieces([]));
        bench.config.pipeline_agent = 1;
        bench.config.inflight = 4;
        bench.meet(A, PeerRole::Agent, pieces([]));
        bench.swarm.service = Duration::from_millis(10);
        let peer = bench.swarm.peers.get_mut(&A).unwrap();
        peer.service = Duration::from_millis(millis);
        let all: Vec<_> = (0..PIECES).collect();
        let (result, actions) = bench.step(|swarm, cx| swarm.has_more(cx, A, &all));
        assert_eq!(result, Ok(()));
        requests(&actions).len()
    };
    assert_eq!(asked_of_one_that_takes(20), 4);
    assert_eq!(asked_of_one_that_takes(40), 1);
}

#[test]
fn what_is_usual_is_what_most_neighbours_take() {
    let mut bench = Bench::new(pieces([]));
    for (number, millis) in [(1, 10), (2, 12), (3, 400)] {
        let conn = ConnId(number);
        assert!(
            !bench
                .meet(conn, PeerRole::Agent, Bitfield::full(PIECES))
                .is_empty()
        );
        let peer = bench.swarm.peers.get_mut(&conn).unwrap();
        peer.service = Duration::from_millis(millis);
    }
    bench.now = bench.now + bench.config.watch * 2;
    bench.step(|swarm, cx| swarm.tick(cx));
    assert_eq!(bench.swarm.service, Duration::from_millis(12));
}
