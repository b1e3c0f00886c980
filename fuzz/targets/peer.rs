//! A hostile neighbour: messages in any order to a host that wants one blob and seeds another, with
//! connections that come and go. The machine never panics, asks only for pieces that exist, and takes
//! only pieces that it asked for.
//!
//! The input is a list of steps: one byte of what happens, and for a message two bytes of length and
//! the frame's body.

#![no_main]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use kraken_proto::wire::codec;
use kraken_proto::{
    Action, Bitfield, BlobSpec, Config, ConnId, Digest, Input, Message, PeerId, PeerInfo, PeerRole,
    PieceLength, Scheduler, Timestamp,
};
use libfuzzer_sys::fuzz_target;

const PIECES: u32 = 12;
/// More steps show nothing that fewer do not.
const STEPS: usize = 512;

fuzz_target!(|bytes: &[u8]| {
    let mut host = Host::new();
    let mut rest = bytes;
    for _ in 0..STEPS {
        let Some((&what, after)) = rest.split_first() else {
            break;
        };
        rest = host.step(what, after);
    }
});

struct Host {
    machine: Scheduler,
    now: Timestamp,
    open: BTreeSet<ConnId>,
    asked: BTreeSet<(ConnId, Digest, u32)>,
    connections: u64,
}

fn spec(name: &str) -> BlobSpec {
    BlobSpec {
        namespace: "team/app".parse().expect("a namespace"),
        digest: Digest::of(name.as_bytes()),
        length: u64::from(PIECES) * PieceLength::MIN.bytes(),
        piece_length: PieceLength::MIN,
    }
}

fn peer(number: u8) -> PeerId {
    PeerId::from_bytes([number; 32])
}

impl Host {
    fn new() -> Self {
        let now = Timestamp::ZERO;
        let local = PeerInfo {
            id: peer(0),
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 7611)),
            role: PeerRole::Agent,
            zone: None,
        };
        let mut host = Self {
            machine: Scheduler::new(now, local, Config::lan(), 1),
            now,
            open: BTreeSet::new(),
            asked: BTreeSet::new(),
            connections: 0,
        };
        for (name, have) in [
            ("wanted", Bitfield::empty(PIECES)),
            ("held", Bitfield::full(PIECES)),
        ] {
            host.feed(Input::Open {
                spec: spec(name),
                have,
            });
        }
        host
    }

    /// Does what the byte says, and returns what is left of the input.
    fn step<'a>(&mut self, what: u8, rest: &'a [u8]) -> &'a [u8] {
        let number = what >> 3;
        let conn = ConnId(u64::from(number) % self.connections.max(1));
        match what & 7 {
            0 => self.connect(1 + number % 4, number & 4 != 0),
            1 if self.open.remove(&conn) => self.feed(Input::ConnDown { conn }),
            2 => {
                self.now = self.now + Duration::from_millis(1 << (number % 16));
                self.machine.handle_timeout(self.now);
                self.drain();
            }
            3 if self.open.contains(&conn) => self.feed(Input::Violation { conn }),
            4.. => return self.message(conn, rest),
            _ => {}
        }
        rest
    }

    fn connect(&mut self, number: u8, dialled: bool) {
        let conn = ConnId(self.connections);
        self.connections += 1;
        self.open.insert(conn);
        let peer = peer(number);
        self.feed(Input::ConnUp {
            conn,
            peer,
            dialled,
        });
    }

    fn message<'a>(&mut self, conn: ConnId, rest: &'a [u8]) -> &'a [u8] {
        let Some((len, rest)) = rest.split_first_chunk() else {
            return &[];
        };
        let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
        let (body, rest) = rest.split_at(len);
        if self.open.contains(&conn) {
            match codec::decode(body) {
                Ok(message) => self.feed(Input::Message { conn, message }),
                Err(_) => self.feed(Input::Violation { conn }),
            }
        }
        rest
    }

    fn feed(&mut self, input: Input) {
        self.machine.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Send {
                    conn,
                    message: Message::Request { digest, piece },
                } => {
                    assert!(piece < PIECES && self.open.contains(&conn));
                    self.asked.insert((conn, digest, piece));
                }
                Action::Store {
                    conn,
                    digest,
                    piece,
                } => {
                    assert!(
                        self.asked.contains(&(conn, digest, piece)),
                        "nobody asked for it"
                    );
                    let stored = Input::PieceStored {
                        digest,
                        piece,
                        conn,
                    };
                    self.machine.handle(self.now, stored);
                }
                Action::SendPiece {
                    conn,
                    digest,
                    piece,
                    ..
                } => {
                    assert!(
                        self.machine
                            .have(digest)
                            .is_some_and(|have| have.has(piece))
                    );
                    let sent = true;
                    let sent = Input::PieceSent {
                        digest,
                        piece,
                        conn,
                        sent,
                    };
                    self.machine.handle(self.now, sent);
                }
                Action::Dial(info) => {
                    self.machine
                        .handle(self.now, Input::DialFailed { peer: info.id });
                }
                Action::Close { conn, .. } => {
                    if self.open.remove(&conn) {
                        self.machine.handle(self.now, Input::ConnDown { conn });
                    }
                }
                Action::Announce(request) => {
                    let digests = request.blobs.iter().map(|blob| blob.digest).collect();
                    self.machine
                        .handle(self.now, Input::AnnounceFailed { digests });
                }
                Action::Lookup { digest } => {
                    self.machine
                        .handle(self.now, Input::Found { digest, spec: None });
                }
                _ => {}
            }
        }
    }
}
