//! Metainfo from peers.

use super::*;
use crate::blob::metainfo::MetaInfo;
use crate::blob::piece::ChainState;

/// Longer than one part.
fn meta() -> MetaInfo {
    let pieces: u32 = 1000;
    let length = u64::from(pieces) * PieceLength::MIN.bytes();
    let states = vec![ChainState::INITIAL; pieces as usize - 1];
    MetaInfo::new(blob(), length, PieceLength::MIN, states).unwrap()
}

fn none(offset: u32) -> Message {
    Message::MetaInfo {
        digest: blob(),
        total: 0,
        offset,
        part: Vec::new(),
    }
}

fn seeking(bench: &mut Bench) -> Vec<Action> {
    bench.feed(Input::Seek {
        namespace: Namespace::default(),
        digest: blob(),
    })
}

/// A host in no swarm, with peers that have said how they are reached.
fn bench(neighbours: u8) -> (Bench, Vec<ConnId>) {
    let mut bench = Bench::idle(PeerRole::Agent, Config::lan());
    let conns = (1..=neighbours).map(|number| {
        let conn = bench.connect(number);
        let addr = info(number, PeerRole::Agent).addr;
        let contact = Some(Contact { addr, zone: None });
        let role = PeerRole::Agent;
        bench.say(conn, Message::Hello { role, contact });
        conn
    });
    let conns = conns.collect();
    (bench, conns)
}

fn asks(actions: &[Action]) -> Vec<(ConnId, u32)> {
    let ask = |action: &Action| match action {
        Action::Send {
            conn,
            message: Message::AskMetaInfo { offset, .. },
        } => Some((*conn, *offset)),
        _ => None,
    };
    actions.iter().filter_map(ask).collect()
}

fn sought(actions: &[Action]) -> Option<&Option<(MetaInfo, PeerId)>> {
    actions.iter().find_map(|action| match action {
        Action::Sought { found, .. } => Some(found),
        _ => None,
    })
}

/// The peer answers every question of `actions` to it until it is asked no more.
fn answer(
    bench: &mut Bench,
    conn: ConnId,
    encoding: &[u8],
    mut actions: Vec<Action>,
) -> Vec<Action> {
    while let Some((_, offset)) = asks(&actions).into_iter().find(|(to, _)| *to == conn) {
        actions = bench.say(conn, Message::metainfo_part(blob(), encoding, offset));
    }
    actions
}

#[test]
fn the_first_that_has_it_gives_it_part_by_part() {
    let (mut bench, conns) = bench(2);
    let asked = seeking(&mut bench);
    assert_eq!(announces(&asked), 1, "the tracker may name others");
    let mut to: Vec<_> = asks(&asked);
    to.sort_unstable();
    assert_eq!(to, [(conns[0], 0), (conns[1], 0)]);
    assert!(asks(&bench.say(conns[0], none(0))).is_empty());
    let encoding = meta().encode();
    assert!(encoding.len() > 3 * Message::MAX_PART);
    let done = answer(&mut bench, conns[1], &encoding, asked);
    assert_eq!(sought(&done), Some(&Some((meta(), id(2)))));
    // Whoever asks a moment later is told at once, and nobody is asked.
    let again = seeking(&mut bench);
    assert_eq!(sought(&again), Some(&Some((meta(), id(2)))));
    assert!(asks(&again).is_empty());
}

#[test]
fn another_goes_on_for_whoever_hangs_up_or_is_silent() {
    for hangs_up in [true, false] {
        let (mut bench, conns) = bench(2);
        let asked = seeking(&mut bench);
        let encoding = meta().encode();
        let first = |offset| Message::metainfo_part(blob(), &encoding, offset);
        assert_eq!(asks(&bench.say(conns[0], first(0))).len(), 1);
        // The second has it as well, and waits for its turn.
        assert!(asks(&bench.say(conns[1], first(0))).is_empty());
        let next = if hangs_up {
            bench.feed(Input::ConnDown { conn: conns[0] })
        } else {
            bench.wait(Duration::from_secs(3))
        };
        assert_eq!(asks(&next), [(conns[1], 0)]);
        let done = answer(&mut bench, conns[1], &encoding, next);
        assert_eq!(sought(&done), Some(&Some((meta(), id(2)))));
        drop(asked);
    }
}

#[test]
fn peers_that_the_tracker_names_are_called_before_those_met_earlier() {
    let (mut bench, _) = bench(0);
    let peers = (20..30).map(|it| info(it, PeerRole::Agent)).collect();
    bench.feed(Input::Known { peers });
    let dialled = dials(&seeking(&mut bench));
    assert_eq!(dialled.len(), 4, "a few at a time");
    let reply = AnnounceReply {
        interval_ms: 1000,
        handouts: vec![Handout {
            digest: blob(),
            peers: vec![info(5, PeerRole::Agent), info(100, PeerRole::Agent)],
        }],
    };
    let digests = vec![blob()];
    bench.feed(Input::Announced { digests, reply });
    let next = bench.feed(Input::DialFailed { peer: dialled[0] });
    assert_eq!(dials(&next), [id(5)], "and never this host itself");
    // It is asked when it has said hello.
    bench.conns += 1;
    let (conn, peer, dialled) = (ConnId(bench.conns), id(5), true);
    assert!(
        asks(&bench.feed(Input::ConnUp {
            conn,
            peer,
            dialled
        }))
        .is_empty()
    );
    let (role, contact) = (PeerRole::Agent, None);
    let asked = bench.say(conn, Message::Hello { role, contact });
    assert_eq!(asks(&asked), [(conn, 0)]);
    let done = answer(&mut bench, conn, &meta().encode(), asked);
    assert_eq!(sought(&done), Some(&Some((meta(), id(5)))));
}

#[test]
fn others_are_dialled_when_the_first_do_not_come() {
    let (mut bench, _) = bench(0);
    let peers = (20..30).map(|it| info(it, PeerRole::Agent)).collect();
    bench.feed(Input::Known { peers });
    let first = dials(&seeking(&mut bench));
    let next = dials(&bench.wait(Duration::from_millis(600)));
    assert_eq!((first.len(), next.len()), (4, 4));
    assert!(next.iter().all(|it| !first.contains(it)));
    // One of the first comes all the same, and is asked.
    bench.conns += 1;
    let (conn, peer, dialled) = (ConnId(bench.conns), first[0], true);
    bench.feed(Input::ConnUp {
        conn,
        peer,
        dialled,
    });
    let (role, contact) = (PeerRole::Agent, None);
    let asked = bench.say(conn, Message::Hello { role, contact });
    assert_eq!(asks(&asked), [(conn, 0)]);
}

#[test]
fn what_nobody_has_is_given_up_and_the_tracker_told() {
    let (mut bench, conns) = bench(1);
    seeking(&mut bench);
    bench.say(conns[0], none(0));
    let ended = bench.wait(Duration::from_secs(16));
    assert_eq!(sought(&ended), Some(&None));
    let left = |action: &Action| match action {
        Action::Announce(request) => request.blobs[0].state == AnnounceState::Left,
        _ => false,
    };
    assert!(ended.iter().any(left), "{ended:?}");
    assert!(
        bench.wait(Duration::from_secs(60)).iter().all(|it| {
            // Only the connection that nothing uses.
            matches!(it, Action::Close { .. })
        }),
        "nothing goes on"
    );
}

#[test]
fn what_turned_out_wrong_is_not_told_again() {
    let (mut bench, conns) = bench(2);
    let asked = seeking(&mut bench);
    answer(&mut bench, conns[0], &meta().encode(), asked);
    let (spec, have) = (
        BlobSpec::of(&meta(), Namespace::default()),
        Bitfield::empty(1000),
    );
    bench.feed(Input::Open { spec, have });
    bench.feed(Input::Forget { digest: blob() });
    let again = seeking(&mut bench);
    assert_eq!(sought(&again), None);
    assert_eq!(asks(&again).len(), 2);
}

#[test]
fn those_that_had_nothing_are_asked_again_later() {
    let (mut bench, conns) = bench(1);
    seeking(&mut bench);
    bench.say(conns[0], none(0));
    assert_eq!(asks(&seeking(&mut bench)), [(conns[0], 0)]);
}

#[test]
fn whoever_makes_things_up_is_sent_away() {
    let other = MetaInfo::of(&vec![1; 3 << 20]).encode();
    let mut broken = meta().encode();
    broken[0] ^= 1;
    for lie in [&other, &broken] {
        let (mut bench, conns) = bench(2);
        let asked = seeking(&mut bench);
        let caught = answer(&mut bench, conns[0], lie, asked.clone());
        assert!(banned(&caught, 1, CloseReason::Protocol), "{caught:?}");
        assert_eq!(sought(&caught), None);
        let done = answer(&mut bench, conns[1], &meta().encode(), asked);
        assert_eq!(sought(&done), Some(&Some((meta(), id(2)))));
    }
}

#[test]
fn a_part_that_nobody_asked_for_changes_nothing() {
    let (mut bench, conns) = bench(2);
    let encoding = meta().encode();
    let part = |offset| Message::metainfo_part(blob(), &encoding, offset);
    assert!(bench.say(conns[0], part(0)).is_empty());
    seeking(&mut bench);
    bench.say(conns[0], part(0));
    assert!(bench.say(conns[0], part(0)).is_empty(), "said twice");
    assert!(asks(&bench.say(conns[1], part(0))).is_empty());
    // A part of nothing would go on for ever.
    let stuck = Message::MetaInfo {
        digest: blob(),
        total: u32::try_from(encoding.len()).unwrap(),
        offset: 8192,
        part: Vec::new(),
    };
    assert!(banned(
        &bench.say(conns[0], stuck),
        1,
        CloseReason::Protocol
    ));
}

#[test]
fn questions_are_the_shells() {
    let (mut bench, conns) = bench(1);
    let (conn, digest, offset) = (conns[0], blob(), 8192);
    let told = bench.say(conn, Message::AskMetaInfo { digest, offset });
    assert_eq!(
        told,
        [Action::TellMetaInfo {
            conn,
            digest,
            offset
        }]
    );
}
