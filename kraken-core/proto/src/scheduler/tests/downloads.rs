//! Whom a missing piece is asked of, and what becomes of those who do not send it.

use super::*;

#[test]
fn a_wrong_piece_is_asked_of_another() {
    let mut bench = Bench::greedy();
    let (liar, asked) = bench.agent(1, 0..8);
    assert_eq!(requests(&asked).len(), 8);
    let (other, asked) = bench.agent(2, 0..8);
    assert!(requests(&asked).is_empty());
    let digest = blob();
    assert!(bench.piece(liar, 5).contains(&Action::Store {
        conn: liar,
        digest,
        piece: 5
    }));
    let actions = bench.feed(Input::PieceRejected {
        digest,
        piece: 5,
        conn: liar,
    });
    assert!(
        banned(&actions, 1, CloseReason::WrongBytes)
            && closed(&actions, liar, CloseReason::WrongBytes)
    );
    let asked = requests(&actions);
    assert!(
        asked.len() == 8 && asked.iter().all(|(conn, _)| *conn == other),
        "{asked:?}"
    );
    let actions = bench.feed(Input::ConnUp {
        conn: ConnId(50),
        peer: id(1),
        dialled: false,
    });
    assert!(closed(&actions, ConnId(50), CloseReason::Banned));
}

#[test]
fn a_newcomer_is_asked_for_more_once_a_piece_of_its_has_verified() {
    let mut bench = Bench::with(pieces([]), Config::lan());
    let (conn, asked) = bench.agent(1, 0..8);
    let [(_, first)] = requests(&asked)[..] else {
        panic!("one request, not {asked:?}");
    };
    assert!(requests(&bench.piece(conn, first)).is_empty());
    let digest = blob();
    let piece = first;
    let actions = bench.feed(Input::PieceStored {
        digest,
        piece,
        conn,
    });
    // The only neighbour gets all that one may have asked for.
    assert_eq!(requests(&actions).len(), 7);
}

#[test]
fn a_liar_that_hangs_up_is_banned_all_the_same_and_once() {
    let mut bench = Bench::greedy();
    let (conn, _) = bench.agent(1, 0..8);
    bench.piece(conn, 5);
    bench.piece(conn, 6);
    bench.feed(Input::ConnDown { conn });
    let digest = blob();
    let actions = bench.feed(Input::PieceRejected {
        digest,
        piece: 5,
        conn,
    });
    assert!(banned(&actions, 1, CloseReason::WrongBytes));
    let actions = bench.feed(Input::PieceRejected {
        digest,
        piece: 6,
        conn,
    });
    assert!(
        !banned(&actions, 1, CloseReason::WrongBytes),
        "it counts as one lie"
    );
    let (_, asked) = bench.agent(2, 0..8);
    assert_eq!(requests(&asked).len(), 8);
}

#[test]
fn a_stalled_peer_is_helped_out_and_may_still_deliver() {
    let mut bench = Bench::greedy();
    let (slow, _) = bench.agent(1, 0..8);
    let (other, _) = bench.agent(2, 0..8);
    let digest = blob();
    let actions = bench.wait(Duration::from_secs(3));
    assert!(actions.contains(&Action::Event(Event::PeerStalled {
        digest,
        peer: id(1)
    })));
    assert_eq!(requests(&actions).len(), 8);
    let actions = bench.piece(slow, 2);
    assert!(actions.contains(&Action::Store {
        conn: slow,
        digest,
        piece: 2
    }));
    let message = Message::Cancel { digest, piece: 2 };
    assert!(actions.contains(&Action::Send {
        conn: other,
        message
    }));
    assert!(
        !banned(&bench.piece(other, 2), 2, CloseReason::Protocol),
        "it crossed the cancel"
    );
}

#[test]
fn a_stalled_peer_that_declines_is_asked_again() {
    let mut bench = Bench::greedy();
    let (slow, _) = bench.agent(1, [0, 1]);
    bench.wait(Duration::from_secs(3));
    let (other, _) = bench.agent(2, [0, 1]);
    bench.stored(other, 0);
    bench.stored(other, 1);
    let digest = blob();
    bench.say(slow, Message::Refuse { digest, piece: 0 });
    bench.say(slow, Message::Refuse { digest, piece: 1 });
    let actions = bench.say(
        slow,
        Message::Have {
            digest,
            pieces: vec![2],
        },
    );
    assert_eq!(requests(&actions), [(slow, 2)]);
}

#[test]
fn a_silent_peer_is_dropped() {
    let mut bench = Bench::greedy();
    let (conn, _) = bench.agent(1, 0..8);
    let actions = bench.wait(Duration::from_secs(21));
    assert!(closed(&actions, conn, CloseReason::Silent));
    assert!(
        !banned(&actions, 1, CloseReason::Silent),
        "silence is no lie"
    );
}

#[test]
fn the_end_game_asks_two_and_cancels_one() {
    let mut bench = Bench::with(pieces(0..7), Config::lan());
    let digest = blob();
    let (first, asked) = bench.agent(1, 0..8);
    assert_eq!(requests(&asked), [(first, 7)]);
    let (second, asked) = bench.agent(2, 0..8);
    assert!(requests(&asked).is_empty(), "not yet");
    assert_eq!(
        requests(&bench.wait(Duration::from_millis(160))),
        [(second, 7)]
    );
    let actions = bench.piece(first, 7);
    let message = Message::Cancel { digest, piece: 7 };
    assert!(actions.contains(&Action::Send {
        conn: second,
        message
    }));
    // The answer to the cancel does not mean that the second has it no more.
    bench.say(second, Message::Refuse { digest, piece: 7 });
    let actions = bench.feed(Input::PieceRejected {
        digest,
        piece: 7,
        conn: first,
    });
    assert_eq!(requests(&actions), [(second, 7)]);
}

#[test]
fn news_is_gathered_and_not_told_to_those_who_know() {
    let mut bench = Bench::greedy();
    let (full, _) = bench.agent(1, 0..8);
    let (empty, _) = bench.agent(2, []);
    let is_news = |action: &Action| {
        matches!(
            action,
            Action::Send {
                message: Message::Have { .. },
                ..
            }
        )
    };
    assert!(!bench.stored(full, 0).iter().any(is_news));
    assert!(!bench.stored(full, 1).iter().any(is_news));
    let told = bench.wait(Config::lan().have_delay);
    let message = Message::Have {
        digest: blob(),
        pieces: vec![0, 1],
    };
    assert_eq!(
        told,
        [Action::Send {
            conn: empty,
            message
        }]
    );
}

#[test]
fn an_origin_serves_a_fresh_reader_at_once_and_later_a_patient_one() {
    let mut bench = Bench::with(
        pieces([]),
        Config {
            pipeline_agent: 1,
            inflight: 0,
            ..Config::lan()
        },
    );
    let (_, asked) = bench.agent(1, 0..8);
    let busy = requests(&asked)[0].1;
    let (origin, asked) = bench.neighbour(2, PeerRole::Origin, Bitfield::full(PIECES));
    assert!(requests(&asked).is_empty(), "agents are sending");
    let (digest, reader) = (blob(), ReaderId(1));
    let first = (0..PIECES).find(|piece| *piece != busy).unwrap();
    let actions = bench.feed(Input::Want {
        digest,
        reader,
        pieces: first..PIECES,
    });
    assert_eq!(requests(&actions), [(origin, first)]);
    bench.stored(origin, first);
    let next = (first + 1..PIECES).find(|piece| *piece != busy).unwrap();
    let actions = bench.feed(Input::Want {
        digest,
        reader,
        pieces: next..PIECES,
    });
    assert!(requests(&actions).is_empty());
    assert!(requests(&bench.wait(Duration::from_millis(240))).is_empty());
    assert_eq!(
        requests(&bench.wait(Duration::from_millis(20))),
        [(origin, next)]
    );
}
