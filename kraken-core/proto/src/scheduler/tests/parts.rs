//! Blobs of which only parts are fetched.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::picker::readahead::ReadAhead;

const MANY: u32 = 64;
const BYTES: u64 = SIZE as u64;

fn large() -> BlobSpec {
    BlobSpec {
        length: u64::from(MANY) * BYTES,
        ..spec(b"blob")
    }
}

fn some(held: impl IntoIterator<Item = u32>) -> Bitfield {
    let mut have = Bitfield::empty(MANY);
    held.into_iter().for_each(|piece| {
        have.insert(piece);
    });
    have
}

fn fetch(extent: Extent) -> Input {
    let digest = blob();
    Input::Fetch { digest, extent }
}

fn read(reader: u64, pieces: Range<u32>) -> Input {
    Input::Read {
        digest: blob(),
        reader: ReaderId(reader),
        bytes: u64::from(pieces.start) * BYTES..u64::from(pieces.end) * BYTES,
    }
}

fn done(reader: u64) -> Input {
    let (digest, reader, pieces) = (blob(), ReaderId(reader), 0..0);
    Input::Want {
        digest,
        reader,
        pieces,
    }
}

fn asked(actions: &[Action]) -> Vec<u32> {
    requests(actions).iter().map(|(_, piece)| *piece).collect()
}

fn subscribes(actions: &[Action]) -> Vec<bool> {
    let said = |action: &Action| match action {
        Action::Send {
            message: Message::Subscribe { is_partial, .. },
            ..
        } => Some(*is_partial),
        _ => None,
    };
    actions.iter().filter_map(said).collect()
}

/// An agent that has these pieces of the blob and fetches parts of it.
fn partial(have: Bitfield) -> Bench {
    let config = Config {
        pipeline_agent: 80,
        pipeline_origin: 80,
        pipeline_unproven: 80,
        inflight: 80,
        inflight_most: 80,
        ..Config::lan()
    };
    let mut bench = Bench::idle(PeerRole::Agent, config);
    let spec = large();
    bench.feed(Input::Open { spec, have });
    bench.feed(fetch(Extent::Parts));
    bench
}

/// The same once an origin is there, and nobody else has come meanwhile.
fn with_origin(have: Bitfield) -> (Bench, ConnId) {
    let mut bench = partial(have);
    let (origin, _) = bench.neighbour(1, PeerRole::Origin, Bitfield::full(MANY));
    bench.wait(Config::lan().offer_wait);
    (bench, origin)
}

#[test]
fn nothing_is_asked_for_but_what_readers_want() {
    let mut bench = partial(some([]));
    let (origin, actions) = bench.neighbour(1, PeerRole::Origin, Bitfield::full(MANY));
    assert_eq!(subscribes(&actions), [true]);
    assert!(asked(&actions).is_empty());
    assert!(asked(&bench.wait(Duration::from_secs(5))).is_empty());
    assert_eq!(asked(&bench.feed(read(1, 20..22))), [20, 21]);
    assert!(asked(&bench.stored(origin, 20)).is_empty());
    assert!(asked(&bench.stored(origin, 21)).is_empty());
    assert!(asked(&bench.wait(Duration::from_secs(5))).is_empty());
    assert!(asked(&bench.feed(read(2, 20..22))).is_empty(), "it is here");
}

#[test]
fn who_reads_on_is_fed_ahead_in_order_and_who_reads_at_random_is_not() {
    let (mut bench, origin) = with_origin(some([]));
    for (reader, piece) in [40, 10, 60].into_iter().enumerate() {
        let actions = bench.feed(read(reader as u64, piece..piece + 1));
        assert_eq!(asked(&actions), [piece]);
        bench.stored(origin, piece);
    }
    assert_eq!(asked(&bench.feed(read(4, 0..1))), [0]);
    assert_eq!(asked(&bench.feed(read(5, 1..2))), [1, 2, 3]);
    assert_eq!(asked(&bench.feed(read(6, 2..3))), [4, 5]);
}

#[test]
fn what_a_reader_no_longer_wants_is_asked_of_nobody() {
    let mut bench = partial(some([]));
    bench.feed(read(1, 3..6));
    bench.feed(read(2, 50..52));
    bench.feed(done(1));
    bench.neighbour(1, PeerRole::Origin, Bitfield::full(MANY));
    let actions = bench.wait(Config::lan().offer_wait);
    assert_eq!(asked(&actions), [50, 51]);
}

#[test]
fn pieces_come_from_agents_that_have_them_and_the_others_from_the_origin_a_moment_later() {
    let (mut bench, origin) = with_origin(some([]));
    let (agent, _) = bench.neighbour(2, PeerRole::Agent, some([7, 8]));
    let mut at_once = requests(&bench.feed(read(1, 7..10)));
    at_once.sort_unstable_by_key(|it| it.1);
    at_once.retain(|it| it.0 == agent);
    assert_eq!(at_once, [(agent, 7), (agent, 8)]);
    bench.wait(Config::lan().offer_wait);
    assert!(requests(&bench.stored(agent, 7)).is_empty());
    let asked_again = bench.piece(origin, 9);
    assert!(
        !banned(&asked_again, 1, CloseReason::Protocol),
        "it was asked"
    );
}

#[test]
fn hosts_that_read_the_same_in_the_same_moment_do_not_all_ask_the_origin() {
    let mut waits = Vec::new();
    for seed in 0..40 {
        let config = Config::lan();
        let now = Timestamp::ZERO + Duration::from_secs(1);
        let machine = Scheduler::new(now, info(100, PeerRole::Agent), config.clone(), seed);
        let mut bench = Bench {
            machine,
            now,
            conns: 0,
        };
        let (spec, have) = (large(), some([]));
        bench.feed(Input::Open { spec, have });
        bench.feed(fetch(Extent::Parts));
        bench.neighbour(1, PeerRole::Origin, Bitfield::full(MANY));
        for peer in 2..10 {
            bench.neighbour(peer, PeerRole::Agent, some([]));
        }
        bench.wait(config.offer_wait);
        let mut asked = asked(&bench.feed(read(1, 5..6)));
        let began = bench.now;
        while asked.is_empty() {
            asked = self::asked(&bench.wait(Duration::from_millis(1)));
        }
        assert_eq!(asked, [5]);
        waits.push(bench.now.since(began));
    }
    assert!(
        waits
            .iter()
            .all(|wait| *wait <= Config::lan().offer_wait * 2)
    );
    waits.sort_unstable();
    let first = waits[0];
    let soon = |wait: &&Duration| **wait <= first + Duration::from_millis(10);
    assert!(waits.iter().filter(soon).count() < 20, "{waits:?}");
}

#[test]
fn all_of_it_is_fetched_once_somebody_wants_all() {
    let (mut bench, origin) = with_origin(some([]));
    bench.feed(read(1, 20..22));
    bench.stored(origin, 20);
    let actions = bench.feed(fetch(Extent::Whole));
    assert_eq!(subscribes(&actions), [false], "offers are welcome now");
    let rest: BTreeSet<_> = asked(&actions).into_iter().collect();
    let expected = (0..MANY).filter(|piece| !(20..22).contains(piece));
    assert_eq!(rest, expected.collect(), "each of them once");
}

#[test]
fn offers_of_what_nobody_wants_are_declined() {
    let (mut bench, origin) = with_origin(some([]));
    let (digest, piece) = (blob(), 9);
    let actions = bench.say(origin, Message::Offer { digest, piece });
    let (conn, message) = (origin, Message::Refuse { digest, piece });
    assert_eq!(actions, [Action::Send { conn, message }]);
}

#[test]
fn an_origin_offers_nothing_to_whom_fetches_parts_and_has_room_for_many() {
    let mut bench = Bench::idle(PeerRole::Origin, Config::origin());
    let (spec, have) = (large(), Bitfield::full(MANY));
    bench.feed(Input::Open { spec, have });
    let hello = |bench: &mut Bench, peer: u8, is_partial: bool| {
        let conn = bench.connect(peer);
        let (role, contact) = (PeerRole::Agent, None);
        bench.say(conn, Message::Hello { role, contact });
        bench.say(
            conn,
            Message::Subscribe {
                digest: blob(),
                piece_length: PieceLength::MIN,
                have: some([]),
                is_partial,
            },
        )
    };
    let is_offer = |action: &Action| {
        let Action::Send { message, .. } = action else {
            return false;
        };
        matches!(message, Message::Offer { .. })
    };
    for peer in 1..=90 {
        let actions = hello(&mut bench, peer, true);
        assert_eq!(subscribes(&actions), [false], "{peer} is turned away");
        assert!(!actions.iter().any(is_offer));
    }
    assert_eq!(bench.machine.rare_pieces(), 0, "nobody takes them");
    let whole = hello(&mut bench, 91, false);
    assert!(whole.iter().any(is_offer), "{whole:?}");
}

#[test]
fn an_idle_host_looks_for_nobody_and_a_lonely_reader_at_once() {
    let mut bench = partial(some([3]));
    let reply = |bench: &mut Bench, peers: Vec<PeerInfo>| {
        let digest = blob();
        let handouts = vec![Handout { digest, peers }];
        let reply = AnnounceReply {
            interval_ms: 10_000,
            handouts,
        };
        let digests = vec![digest];
        bench.feed(Input::Announced { digests, reply })
    };
    let others = vec![info(2, PeerRole::Agent), info(3, PeerRole::Agent)];
    assert_eq!(dials(&reply(&mut bench, others)).len(), 2, "it has nobody");
    assert_eq!(announces(&bench.wait(Duration::from_secs(9))), 0);
    assert_eq!(announces(&bench.feed(read(1, 0..1))), 1);
    assert_eq!(announces(&bench.feed(read(2, 9..10))), 0, "under way");
    let (agent, _) = bench.neighbour(2, PeerRole::Agent, Bitfield::full(MANY));
    bench.stored(agent, 0);
    bench.stored(agent, 9);
    let others = vec![info(4, PeerRole::Agent), info(5, PeerRole::Agent)];
    assert!(dials(&reply(&mut bench, others)).is_empty());
    let said = bench.wait(Duration::from_secs(11));
    let links = said.iter().find_map(|action| match action {
        Action::Announce(request) => Some(request.blobs[0].links),
        _ => None,
    });
    let enough = u32::try_from(Config::lan().target_degree).unwrap();
    assert_eq!(links, Some(enough));
    assert_eq!(announces(&said), 1);
}

proptest! {
    /// Whoever reads whatever, and pieces come or are lost in whatever order: no piece is asked for that
    /// neither a reader wants nor lies ahead of one, and all that readers want comes.
    #[test]
    fn just_what_is_wanted_is_asked_for(
        ops in prop::collection::vec((0u8..5, 0u64..4, 0..MANY, 1u32..6), 1..80),
    ) {
        let (mut bench, origin) = with_origin(some([1, 2, 30]));
        let (mut shadow, mut wanted) = (ReadAhead::default(), [const { 0..0 }; 4]);
        let (mut owed, mut held) = (BTreeSet::new(), BTreeSet::from([1, 2, 30]));
        for (kind, reader, piece, len) in ops {
            let end = (piece + len).min(MANY);
            let actions = match kind {
                0 | 1 => {
                    let bytes = u64::from(piece) * BYTES..u64::from(end) * BYTES;
                    shadow.read(bytes, &large(), Config::lan().ahead_most);
                    wanted[reader as usize] = piece..end;
                    bench.feed(read(reader, piece..end))
                }
                2 => {
                    wanted[reader as usize] = 0..0;
                    bench.feed(done(reader))
                }
                _ => match owed.pop_first() {
                    Some(piece) if kind == 3 => {
                        held.insert(piece);
                        bench.stored(origin, piece)
                    }
                    Some(piece) => {
                        bench.piece(origin, piece);
                        bench.feed(Input::PieceLost { digest: blob(), piece })
                    }
                    None => bench.wait(Duration::from_millis(10)),
                },
            };
            for piece in asked(&actions) {
                let is_wanted = wanted.iter().any(|it| it.contains(&piece));
                prop_assert!(is_wanted || shadow.contains(piece), "{piece} is asked for");
                prop_assert!(owed.insert(piece) && !held.contains(&piece), "{piece} twice");
            }
            for piece in wanted.iter().cloned().flatten() {
                prop_assert!(owed.contains(&piece) || held.contains(&piece), "{piece} is late");
            }
        }
    }
}
