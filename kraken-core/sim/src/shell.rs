//! What a host's shell does: tells its machine what happened, and does what the machine says.

use std::time::Duration;

use kraken_proto::{Action, ConnId, Digest, Event, Input, Message, ReaderId, Scheduler};

use crate::net::{End, Transfer, span};
use crate::world::{HANDLING, What, World};

impl World<'_> {
    /// Something happens to a host.
    pub(crate) fn feed(&mut self, host: usize, input: Input) {
        if self.hosts[host].scheduler.is_none() {
            return;
        }
        let (tag, a, b) = mark(&input);
        self.note(host, tag, a, b);
        let stored = self.before(host, &input);
        if let Some(scheduler) = self.hosts[host].scheduler.as_mut() {
            scheduler.handle(self.now, input);
        }
        self.drain(host);
        if let Some(blob) = stored {
            self.advance_reader(host, blob, false);
        }
    }

    /// Does what the machine says, and sets its alarm.
    pub(crate) fn drain(&mut self, host: usize) {
        let next = |it: &mut Self| it.hosts[host].scheduler.as_mut()?.poll_action();
        while let Some(action) = next(self) {
            self.perform(host, action);
        }
        let now = self.now;
        let due = self.hosts[host]
            .scheduler
            .as_ref()
            .and_then(|it: &Scheduler| it.poll_timeout(now));
        let Some(due) = due else { return };
        if self.hosts[host].timer.is_none_or(|timer| due < timer) {
            // A machine that is always due must not stop the clock.
            let at = due.max(now + Duration::from_nanos(1));
            self.hosts[host].timer = Some(at);
            self.after(at.since(now), What::Timer { host, at });
        }
    }

    /// Hands a host's interface its next piece.
    pub(crate) fn pump(&mut self, host: usize) {
        let Some(transfer) = self.net.begin(host) else {
            return;
        };
        let latency = self.net.latency(host, transfer.to);
        let epoch = self.hosts[host].epoch;
        self.after(
            self.net.wire_time(transfer.bytes),
            What::EgressDone { host, epoch },
        );
        self.after(latency, What::Arrive(transfer));
    }

    /// Moves a host's reader past the pieces that are there.
    pub(crate) fn advance_reader(&mut self, host: usize, blob: usize, fresh: bool) {
        if !self.plan.readers {
            return;
        }
        let store = &self.hosts[host].stores[blob];
        let (before, end) = (self.hosts[host].read[blob], store.len());
        let next = (before..end)
            .find(|piece| !store.has(*piece))
            .unwrap_or(end);
        if fresh || next != before {
            self.hosts[host].read[blob] = next;
            let digest = self.specs[blob].digest;
            self.feed(
                host,
                Input::Want {
                    digest,
                    reader: ReaderId(0),
                    pieces: next..end,
                },
            );
        }
    }

    /// The disk, before the machine hears of it; names the blob that a piece was written of.
    fn before(&mut self, host: usize, input: &Input) -> Option<usize> {
        let Input::PieceStored { digest, piece, .. } = input else {
            return None;
        };
        let blob = self.blobs[digest];
        let new = self.hosts[host].stores[blob].insert(*piece);
        let bytes = self.specs[blob].piece_size(*piece);
        self.checks
            .stored(self.now, (host, blob), *piece, bytes, new);
        Some(blob)
    }

    fn perform(&mut self, host: usize, action: Action) {
        match action {
            Action::Dial(peer) => {
                let (to, epoch) = (self.by_id[&peer.id], self.hosts[host].epoch);
                self.after(
                    self.net.latency(host, to),
                    What::Knock {
                        from: host,
                        epoch,
                        to,
                    },
                );
            }
            Action::Send { conn, message } => self.send(host, conn, message),
            Action::SendPiece {
                conn,
                digest,
                piece,
            } => self.send_piece(host, conn, digest, piece),
            Action::CancelPiece {
                conn,
                digest,
                piece,
            } => {
                let blob = self.blobs[&digest];
                let queue = &mut self.net.nics[host].queue;
                let same = |it: &Transfer| (it.conn, it.blob, it.piece) == (conn, blob, piece);
                if let Some(place) = queue.iter().position(same) {
                    queue.remove(place);
                    let input = Input::PieceSent {
                        digest,
                        piece,
                        conn,
                        sent: false,
                    };
                    self.tell(Duration::ZERO, host, input);
                }
            }
            Action::Store {
                conn,
                digest,
                piece,
            } => self.store(host, conn, digest, piece),
            Action::Close { conn, .. } => self.close(host, conn),
            Action::Announce(request) => {
                let epoch = self.hosts[host].epoch;
                let wait = self.net.latency(host, usize::MAX >> 32);
                self.after(
                    wait,
                    What::Tracker {
                        host,
                        epoch,
                        request,
                    },
                );
            }
            Action::Lookup { digest } => {
                let full = |blob: &&usize| self.hosts[host].stores[**blob].is_full();
                let spec = self
                    .blobs
                    .get(&digest)
                    .filter(full)
                    .map(|blob| self.specs[*blob].clone());
                self.tell(HANDLING, host, Input::Found { digest, spec });
            }
            Action::Event(event) => self.event(host, event),
        }
    }

    fn send(&mut self, host: usize, conn: ConnId, message: Message) {
        let Some((side, it)) = self.net.open_side(conn, host) else {
            return;
        };
        let wait = it.latency + HANDLING;
        self.messages += 1;
        self.after(
            wait,
            What::Deliver {
                conn,
                side: 1 - side,
                message,
            },
        );
    }

    fn send_piece(&mut self, host: usize, conn: ConnId, digest: Digest, piece: u32) {
        let blob = self.blobs[&digest];
        let has = self.hosts[host].stores[blob].has(piece);
        self.checks.hold(self.now, has, || {
            format!("{host} sends piece {piece}, which it has not")
        });
        let Some((side, it)) = self.net.open_side(conn, host) else {
            return;
        };
        let (to, epoch) = (it.hosts[1 - side], self.hosts[host].epoch);
        let bytes = self.specs[blob].piece_size(piece);
        let transfer = Transfer {
            conn,
            from: host,
            epoch,
            to,
            blob,
            piece,
            bytes,
        };
        self.net.nics[host].queue.push_back(transfer);
        self.pump(host);
    }

    /// Hashes and writes, one piece after the other.
    fn store(&mut self, host: usize, conn: ConnId, digest: Digest, piece: u32) {
        let Some((side, it)) = self.net.open_side(conn, host) else {
            return;
        };
        let from = it.hosts[1 - side];
        self.checks.takes(self.now, host, from);
        let bytes = self.specs[self.blobs[&digest]].piece_size(piece);
        let disk = &mut self.hosts[host].disk_free;
        *disk = (*disk).max(self.now) + span(bytes, self.plan.disk);
        let wait = disk.since(self.now);
        let input = if self.hosts[from].lies {
            Input::PieceRejected {
                digest,
                piece,
                conn,
            }
        } else {
            Input::PieceStored {
                digest,
                piece,
                conn,
            }
        };
        self.tell(wait, host, input);
    }

    fn close(&mut self, host: usize, conn: ConnId) {
        let Some((side, it)) = self.net.open_side(conn, host) else {
            return;
        };
        // In order behind what was sent before.
        let wait = it.latency + HANDLING;
        self.net.set(conn, side, End::Closed);
        self.net.nics[host]
            .queue
            .retain(|transfer| transfer.conn != conn);
        self.tell(Duration::ZERO, host, Input::ConnDown { conn });
        self.after(
            wait,
            What::Down {
                conn,
                side: 1 - side,
            },
        );
    }

    fn event(&mut self, host: usize, event: Event) {
        match event {
            Event::PieceDone { digest, bytes, .. } => {
                self.checks.told((host, self.blobs[&digest]), bytes);
            }
            Event::BlobDone { digest } => {
                let blob = self.blobs[&digest];
                let full = self.hosts[host].stores[blob].is_full();
                self.checks.done(self.now, (host, blob), full);
                if self.hosts[host].is_complete() {
                    self.completed(host);
                }
            }
            Event::PeerBanned { peer, .. } => {
                let number = self.by_id[&peer];
                let span = self.plan.agent.ban;
                self.checks
                    .ban(self.now, host, &self.hosts[number], number, span);
            }
            _ => {}
        }
    }
}

/// What the trace says of an input.
fn mark(input: &Input) -> (u8, u64, u64) {
    match input {
        Input::Open { have, .. } => (2, u64::from(have.count()), 0),
        Input::Forget { .. } => (3, 0, 0),
        Input::Want { pieces, .. } => (4, pieces.start.into(), pieces.end.into()),
        Input::ConnUp { conn, dialled, .. } => (5, conn.0, u64::from(*dialled)),
        Input::ConnDown { conn } => (6, conn.0, 0),
        Input::DialFailed { peer } => (7, u64::from(peer.as_bytes()[0]), 0),
        Input::Message { conn, message } => mark_message(*conn, message),
        Input::Violation { conn } => (8, conn.0, 0),
        Input::PieceStored { piece, conn, .. } => (9, conn.0, u64::from(*piece)),
        Input::PieceRejected { piece, conn, .. } => (10, conn.0, u64::from(*piece)),
        Input::PieceLost { piece, .. } => (11, 0, u64::from(*piece)),
        Input::PieceSent {
            piece, conn, sent, ..
        } => (12 + u8::from(*sent), conn.0, u64::from(*piece)),
        Input::Announced { reply, .. } => (14, reply.interval_ms, reply.handouts.len() as u64),
        Input::AnnounceFailed { digests } => (15, digests.len() as u64, 0),
        Input::Found { spec, .. } => (16, u64::from(spec.is_some()), 0),
        Input::Shutdown => (17, 0, 0),
    }
}

fn mark_message(conn: ConnId, message: &Message) -> (u8, u64, u64) {
    let (tag, detail) = match message {
        Message::Hello { .. } => (32, 0),
        Message::Subscribe { have, .. } => (33, u64::from(have.count())),
        Message::Unsubscribe { .. } => (34, 0),
        Message::Have { pieces, .. } => (
            35,
            pieces.iter().fold(0, |sum: u64, piece| {
                sum.wrapping_mul(31).wrapping_add(u64::from(*piece) + 1)
            }),
        ),
        Message::Request { piece, .. } => (36, u64::from(*piece)),
        Message::Cancel { piece, .. } => (37, u64::from(*piece)),
        Message::Refuse { piece, .. } => (38, u64::from(*piece)),
        Message::Piece { piece, .. } => (39, u64::from(*piece)),
    };
    (tag, conn.0, detail)
}
