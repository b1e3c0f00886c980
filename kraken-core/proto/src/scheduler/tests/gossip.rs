//! Peers from peers.

use super::*;
use crate::zone::Zone;

fn contact(number: u8) -> Contact {
    let zone: Zone = "rack-1".parse().unwrap();
    Contact {
        addr: info(number, PeerRole::Agent).addr,
        zone: Some(zone),
    }
}

/// A neighbour that says how it is reached.
fn neighbour(bench: &mut Bench, number: u8) -> ConnId {
    let conn = bench.connect(number);
    let (role, contact) = (PeerRole::Agent, Some(contact(number)));
    bench.say(conn, Message::Hello { role, contact });
    bench.subscribe(conn, pieces([]));
    conn
}

fn failed(bench: &mut Bench) -> Vec<Action> {
    let digests = vec![blob()];
    bench.feed(Input::AnnounceFailed { digests })
}

fn asks(actions: &[Action]) -> Vec<ConnId> {
    let ask = |action: &Action| match action {
        Action::Send {
            conn,
            message: Message::AskPeers { .. },
        } => Some(*conn),
        _ => None,
    };
    actions.iter().filter_map(ask).collect()
}

#[test]
fn whoever_asks_is_told_of_the_other_neighbours() {
    let mut bench = Bench::greedy();
    let first = neighbour(&mut bench, 1);
    neighbour(&mut bench, 2);
    let digest = blob();
    let actions = bench.say(first, Message::AskPeers { digest });
    let zone = contact(2).zone;
    let peers = vec![PeerInfo {
        zone,
        ..info(2, PeerRole::Agent)
    }];
    let message = Message::Peers { digest, peers };
    let conn = first;
    assert_eq!(actions, [Action::Send { conn, message }]);
    let digest = Digest::of(b"another");
    let actions = bench.say(first, Message::AskPeers { digest });
    let peers = Vec::new();
    let message = Message::Peers { digest, peers };
    assert_eq!(actions, [Action::Send { conn, message }]);
}

#[test]
fn neighbours_are_asked_when_no_tracker_answers_and_only_then() {
    let mut bench = Bench::greedy();
    let conn = neighbour(&mut bench, 1);
    let digest = blob();
    let peers: Vec<_> = (10..40).map(|it| info(it, PeerRole::Agent)).collect();
    let told = Message::Peers { digest, peers };
    assert!(
        dials(&bench.say(conn, told.clone())).is_empty(),
        "not asked"
    );
    assert_eq!(asks(&failed(&mut bench)), [conn]);
    let dialled = dials(&bench.say(conn, told));
    assert_eq!(dialled.len(), Config::lan().dial_degree - 1);
}

#[test]
fn peers_met_before_lead_into_a_swarm() {
    let mut bench = Bench::greedy();
    let mut peers: Vec<_> = (1..=9).map(|it| info(it, PeerRole::Agent)).collect();
    peers.push(info(50, PeerRole::Origin));
    bench.feed(Input::Known { peers });
    let dialled = dials(&failed(&mut bench));
    assert_eq!(dialled.len(), 5);
    assert!(dialled.contains(&id(50)));
    // One of them has no room, and knows somebody who may.
    let peer = dialled[0];
    bench.conns += 1;
    let (conn, dialled) = (ConnId(bench.conns), true);
    bench.feed(Input::ConnUp {
        conn,
        peer,
        dialled,
    });
    let (role, contact) = (PeerRole::Agent, None);
    bench.say(conn, Message::Hello { role, contact });
    let digest = blob();
    let turned_away = bench.say(conn, Message::Unsubscribe { digest });
    assert_eq!(asks(&turned_away), [conn]);
}

#[test]
fn whoever_was_met_is_remembered() {
    let mut bench = Bench::greedy();
    neighbour(&mut bench, 3);
    let known: Vec<_> = bench.machine.known_peers().map(|it| it.id).collect();
    assert_eq!(known, [id(3)]);
}
