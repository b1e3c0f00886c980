//! A blob that an origin is still taking in.

use super::*;

fn provable(pieces: u32) -> Input {
    let digest = blob();
    Input::Provable { digest, pieces }
}

fn ingested(piece: u32) -> Input {
    let digest = blob();
    Input::PieceIngested { digest, piece }
}

fn offer(piece: u32) -> Message {
    let digest = blob();
    Message::Offer { digest, piece }
}

fn offered(actions: &[Action]) -> Vec<u32> {
    let offer = |action: &Action| match action {
        Action::Send {
            message: Message::Offer { piece, .. },
            ..
        } => Some(*piece),
        _ => None,
    };
    actions.iter().filter_map(offer).collect()
}

fn is_refused(actions: &[Action]) -> bool {
    let refusal = |action: &Action| {
        matches!(
            action,
            Action::Send {
                message: Message::Refuse { .. },
                ..
            }
        )
    };
    actions.iter().any(refusal)
}

#[test]
fn only_what_can_be_proved_is_asked_for() {
    let mut bench = Bench::greedy();
    bench.feed(provable(0));
    let (agent, asked) = bench.agent(1, 0..PIECES);
    assert!(requests(&asked).is_empty());
    let asked = bench.feed(provable(2));
    let mut asked: Vec<_> = requests(&asked).iter().map(|it| it.1).collect();
    asked.sort_unstable();
    assert_eq!(asked, [0, 1]);
    bench.stored(agent, 0);
    let asked = requests(&bench.feed(provable(PIECES)));
    assert_eq!(asked.len(), 6, "the rest, and nothing twice: {asked:?}");
}

#[test]
fn what_is_lost_or_left_behind_is_asked_again_only_if_it_can_be_proved() {
    let mut bench = Bench::greedy();
    bench.feed(provable(1));
    let (agent, asked) = bench.agent(1, 0..PIECES);
    assert_eq!(requests(&asked), [(agent, 0)]);
    bench.feed(Input::ConnDown { conn: agent });
    let (other, asked) = bench.agent(2, 0..PIECES);
    assert_eq!(requests(&asked), [(other, 0)]);
}

#[test]
fn an_offer_that_comes_before_its_proof_is_taken_up_with_it() {
    let mut bench = Bench::greedy();
    bench.feed(provable(1));
    let (agent, _) = bench.agent(1, 0..1);
    let (origin, _) = bench.neighbour(2, PeerRole::Origin, pieces(0..5));
    for piece in [1, 3] {
        let actions = bench.say(origin, offer(piece));
        assert!(requests(&actions).is_empty() && !is_refused(&actions));
    }
    let asked = requests(&bench.feed(provable(2)));
    assert!(asked.contains(&(origin, 1)), "{asked:?}");
    // One whose peer has gone is forgotten.
    bench.feed(Input::ConnDown { conn: origin });
    let asked = requests(&bench.feed(provable(PIECES)));
    assert!(asked.iter().all(|it| it.0 == agent), "{asked:?}");
}

#[test]
fn no_peer_can_have_more_offers_kept_than_requests() {
    let config = Config {
        max_uploads_per_peer: 2,
        ..Config::lan()
    };
    let mut bench = Bench::with(pieces([]), config);
    bench.feed(provable(0));
    let (origin, _) = bench.neighbour(2, PeerRole::Origin, Bitfield::full(PIECES));
    let refused = (0..PIECES).filter(|piece| is_refused(&bench.say(origin, offer(*piece))));
    assert_eq!(refused.count() as u32, PIECES - 2);
}

#[test]
fn waiting_for_proofs_is_no_hunger() {
    let mut bench = Bench::greedy();
    bench.feed(provable(1));
    let (agent, _) = bench.agent(1, 0..1);
    let (origin, _) = bench.neighbour(2, PeerRole::Origin, pieces(0..5));
    bench.stored(agent, 0);
    let idle = bench.wait(Config::lan().offer_wait * 4);
    assert!(requests(&idle).is_empty());
    let asked = requests(&bench.feed(provable(3)));
    assert!(asked.is_empty(), "the origin first offers it: {asked:?}");
    let asked = requests(&bench.wait(Config::lan().offer_wait));
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|it| it.0 == origin), "then it is asked");
}

#[test]
fn an_origin_offers_and_serves_what_it_has_taken_in_and_asks_for_nothing() {
    let mut bench = Bench::idle(PeerRole::Origin, Config::origin());
    bench.feed(Input::Open {
        spec: spec(b"blob"),
        have: pieces([]),
    });
    bench.feed(provable(0));
    let (agent, actions) = bench.agent(1, 5..6);
    assert!(offered(&actions).is_empty() && requests(&actions).is_empty());
    let actions = bench.feed(ingested(0));
    assert_eq!(offered(&actions), [0]);
    let digest = blob();
    let actions = bench.say(agent, Message::Request { digest, piece: 0 });
    assert!(
        actions
            .iter()
            .any(|it| matches!(it, Action::SendPiece { .. }))
    );
    let actions = bench.say(agent, Message::Request { digest, piece: 1 });
    assert!(is_refused(&actions), "it has not come yet");
    let told = bench.wait(Duration::from_secs(1));
    let news = |action: &Action| match action {
        Action::Send {
            message: Message::Have { pieces, .. },
            ..
        } => pieces.clone(),
        _ => Vec::new(),
    };
    assert_eq!(told.iter().flat_map(news).collect::<Vec<_>>(), [0]);
    let mut last = Vec::new();
    for piece in 1..PIECES {
        last = bench.feed(ingested(piece));
        assert!(requests(&last).is_empty());
    }
    let done = Action::Event(Event::BlobDone { digest: blob() });
    assert!(last.contains(&done));
    assert!(bench.feed(ingested(3)).is_empty(), "it is there already");
}
