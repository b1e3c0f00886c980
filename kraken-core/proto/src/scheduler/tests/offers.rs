//! What origins bring in of their own accord, and what is asked of them.

use super::*;

fn offer(piece: u32) -> Message {
    let digest = blob();
    Message::Offer { digest, piece }
}

fn offers(actions: &[Action]) -> Vec<(ConnId, u32)> {
    let offer = |action: &Action| match action {
        Action::Send {
            conn,
            message: Message::Offer { piece, .. },
        } => Some((*conn, *piece)),
        _ => None,
    };
    actions.iter().filter_map(offer).collect()
}

fn refusal(conn: ConnId, piece: u32) -> Action {
    let digest = blob();
    let message = Message::Refuse { digest, piece };
    Action::Send { conn, message }
}

/// An origin that has the blob.
fn origin() -> Bench {
    let config = Config {
        offer_copies: 1,
        ..Config::origin()
    };
    let mut bench = Bench::idle(PeerRole::Origin, config);
    bench.feed(Input::Open {
        spec: spec(b"blob"),
        have: Bitfield::full(PIECES),
    });
    bench
}

#[test]
fn an_offer_is_taken_up_unless_the_piece_comes_from_elsewhere() {
    let mut bench = Bench::greedy();
    let (_, asked) = bench.agent(1, 0..7);
    let asked_before = requests(&asked)[0].1;
    let (origin, asked) = bench.neighbour(2, PeerRole::Origin, Bitfield::full(PIECES));
    assert!(requests(&asked).is_empty(), "agents are sending");
    assert_eq!(requests(&bench.say(origin, offer(7))), [(origin, 7)]);
    let declined = bench.say(origin, offer(asked_before));
    assert_eq!(declined, [refusal(origin, asked_before)]);
    let actions = bench.say(origin, offer(PIECES));
    assert!(closed(&actions, origin, CloseReason::Protocol));
}

#[test]
fn an_agent_that_goes_offers_what_nobody_else_has() {
    let mut bench = Bench::with(pieces(0..6), Config::lan());
    let (first, _) = bench.agent(1, [0, 1, 2]);
    let (second, _) = bench.agent(2, [3]);
    assert_eq!(bench.machine.rare_pieces(), 2);
    let mut rare = vec![4, 5];
    let mut offered = offers(&bench.feed(Input::Leave));
    while let Some((conn, piece)) = offered.pop() {
        rare.retain(|it| *it != piece);
        let digest = blob();
        bench.say(conn, Message::Request { digest, piece });
        offered.extend(offers(&bench.feed(Input::PieceSent {
            digest,
            piece,
            conn,
            sent: true,
        })));
        let pieces = vec![piece];
        offered.extend(offers(&bench.say(conn, Message::Have { digest, pieces })));
    }
    assert!(rare.is_empty(), "nobody was offered {rare:?}");
    assert_eq!(bench.machine.rare_pieces(), 0);
    // What it still lacks it goes on asking for, and a refusal of that is no answer to an offer.
    let asked = requests(&bench.say(first, news(&[6])));
    assert_eq!(asked, [(first, 6)]);
    bench.say(second, news(&[6]));
    let digest = blob();
    let again = bench.say(first, Message::Refuse { digest, piece: 6 });
    assert_eq!(requests(&again), [(second, 6)]);
}

fn news(pieces: &[u32]) -> Message {
    Message::Have {
        digest: blob(),
        pieces: pieces.to_vec(),
    }
}

#[test]
fn an_agent_that_goes_and_has_everything_leaves_the_tracker_first() {
    let mut bench = Bench::with(Bitfield::full(PIECES), Config::lan());
    bench.agent(1, []);
    assert_eq!(bench.machine.rare_pieces(), PIECES as usize);
    let actions = bench.feed(Input::Leave);
    assert_eq!(offers(&actions).len(), 1);
    let left = actions.iter().any(|action| {
        matches!(action, Action::Announce(request)
            if request.blobs.iter().any(|it| it.state == AnnounceState::Left))
    });
    assert!(left, "{actions:?}");
    assert_eq!(announces(&bench.feed(Input::Leave)), 0);
}

#[test]
fn without_agents_an_origin_is_asked_at_once_and_with_idle_ones_after_a_while() {
    let mut bench = Bench::greedy();
    let (_, asked) = bench.neighbour(1, PeerRole::Origin, Bitfield::full(PIECES));
    assert_eq!(requests(&asked).len(), 8);
    let mut bench = Bench::greedy();
    bench.agent(2, []);
    let (origin, asked) = bench.neighbour(1, PeerRole::Origin, Bitfield::full(PIECES));
    assert!(requests(&asked).is_empty());
    let asked = requests(&bench.wait(Config::lan().offer_wait));
    assert_eq!(asked.len(), 8);
    assert!(asked.iter().all(|(conn, _)| *conn == origin));
}

#[test]
fn an_origin_offers_each_piece_once_and_again_when_it_is_lost() {
    let mut bench = origin();
    let (first, actions) = bench.agent(1, []);
    // A neighbour that has had nothing yet takes one at a time.
    let [(_, piece)] = offers(&actions)[..] else {
        panic!("one offer, not {actions:?}");
    };
    let (second, actions) = bench.agent(2, []);
    let [(_, other)] = offers(&actions)[..] else {
        panic!("one offer, not {actions:?}");
    };
    assert_ne!(piece, other);
    let digest = blob();
    let request = Message::Request { digest, piece };
    bench.say(first, request);
    let (conn, sent) = (first, true);
    let next = offers(&bench.feed(Input::PieceSent {
        digest,
        piece,
        conn,
        sent,
    }));
    assert!(
        next.iter()
            .all(|(conn, it)| *conn == first && *it != piece && *it != other)
    );
    assert!(!next.is_empty());
    let pieces = (0..PIECES).filter(|it| *it != other).collect();
    bench.say(first, Message::Have { digest, pieces });
    let declined = bench.say(
        second,
        Message::Refuse {
            digest,
            piece: other,
        },
    );
    assert!(offers(&declined).is_empty(), "all have spread or will");
    // The only agent that has them leaves.
    let gone = offers(&bench.feed(Input::ConnDown { conn: first }));
    assert_eq!(gone.len(), 1);
    assert_eq!(gone[0].0, second);
}

#[test]
fn an_offer_that_is_not_answered_or_declined_for_nothing_is_made_again() {
    let mut bench = origin();
    let (first, actions) = bench.agent(1, 1..8);
    assert_eq!(offers(&actions), [(first, 0)]);
    let again = |bench: &mut Bench| offers(&bench.wait(Config::origin().offer_patience * 2));
    assert!(again(&mut bench).contains(&(first, 0)), "not answered");
    let (digest, piece) = (blob(), 0);
    let declined = bench.say(first, Message::Refuse { digest, piece });
    assert!(offers(&declined).is_empty(), "it comes from elsewhere");
    assert!(again(&mut bench).contains(&(first, 0)), "it did not come");
}

#[test]
fn a_small_blob_is_offered_to_several_of_a_crowd() {
    let mut bench = Bench::idle(PeerRole::Origin, Config::origin());
    bench.feed(Input::Open {
        spec: spec(b"blob"),
        have: Bitfield::full(PIECES),
    });
    let offered = |bench: &mut Bench, numbers: Range<u8>| {
        let actions = numbers.flat_map(|number| bench.agent(number, 1..8).1);
        offers(&actions.collect::<Vec<_>>()).len()
    };
    assert_eq!(offered(&mut bench, 1..8), 1, "a copy for up to 7");
    assert_eq!(offered(&mut bench, 8..12), 1, "one more for up to 11");
    assert_eq!(offered(&mut bench, 12..14), 1);
    // One of them has the whole blob: it seeds to whoever comes.
    let (digest, pieces) = (blob(), vec![0]);
    bench.say(ConnId(1), Message::Have { digest, pieces });
    assert_eq!(offered(&mut bench, 14..40), 0);
}
