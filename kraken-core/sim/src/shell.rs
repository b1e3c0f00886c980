//! What a host's shell does: tells its machine what happened, and does what the machine says.

use std::collections::BTreeMap;
use std::time::Duration;

use kraken_proto::blob::piece::ChainState;
use kraken_proto::wire::codec;
use kraken_proto::{
    Action, AnnounceRequest, ConnId, Digest, Event, Input, Message, MetaInfo, ReaderId,
};

use crate::net::{End, Transfer, span};
use crate::trace::mark;
use crate::world::{HANDLING, What, World};

/// How long a client waits after it was told that nobody knows a blob.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl World<'_> {
    /// Something happens to a host.
    pub(crate) fn feed(&mut self, host: u32, input: Input) {
        let Some(scheduler) = self.hosts[host as usize].scheduler.as_mut() else {
            return;
        };
        let (tag, a, b) = mark(&input);
        self.trace.note(self.now, host, tag, a, b);
        scheduler.handle(self.now, input);
        self.drain(host);
    }

    /// Does what the machine says, and sets its alarm.
    pub(crate) fn drain(&mut self, host: u32) {
        let next = |it: &mut Self| it.hosts[host as usize].scheduler.as_mut()?.poll_action();
        while let Some(action) = next(self) {
            self.perform(host, action);
        }
        let now = self.now;
        let it = &mut self.hosts[host as usize];
        let due = it.scheduler.as_ref().and_then(|it| it.poll_timeout(now));
        let Some(due) = due else { return };
        if it.timer.is_none_or(|timer| due < timer) {
            // A machine that is always due must not stop the clock.
            let at = due.max(now + Duration::from_nanos(1));
            it.timer = Some(at);
            self.agenda.add(at, What::Timer { host, at });
        }
    }

    /// Hands a host's interface its next piece.
    pub(crate) fn pump(&mut self, host: u32) {
        let Some(departure) = self.net.begin(self.now, host) else {
            return;
        };
        let epoch = self.hosts[host as usize].epoch;
        self.agenda
            .add(departure.free, What::Departed { host, epoch });
        let next = if departure.crosses {
            What::Cross(departure.transfer)
        } else {
            What::Arrive(departure.transfer)
        };
        self.agenda.add(departure.begins + HANDLING, next);
    }

    /// Moves a host's reader past the pieces that are there.
    pub(crate) fn advance_reader(&mut self, host: u32, blob: u32, fresh: bool) {
        if !self.plan.readers {
            return;
        }
        let it = &mut self.hosts[host as usize];
        let store = &it.stores[blob as usize];
        let (before, end) = (it.read[blob as usize], store.len());
        let next = (before..end)
            .find(|piece| !store.has(*piece))
            .unwrap_or(end);
        if fresh || next != before {
            it.read[blob as usize] = next;
            let (digest, reader) = (self.specs[blob as usize].digest, ReaderId(0));
            let pieces = next..end;
            self.feed(
                host,
                Input::Want {
                    digest,
                    reader,
                    pieces,
                },
            );
        }
    }

    /// A piece was verified and written, or was not what it should be.
    pub(crate) fn stored(&mut self, host: u32, conn: ConnId, blob: u32, piece: u32, good: bool) {
        let spec = &self.specs[blob as usize];
        let (digest, bytes) = (spec.digest, spec.piece_size(piece));
        if !good {
            self.feed(
                host,
                Input::PieceRejected {
                    digest,
                    piece,
                    conn,
                },
            );
            return;
        }
        let it = &mut self.hosts[host as usize];
        let new = it.stores[blob as usize].insert(piece);
        it.wrote(self.now);
        self.tally.stored_bytes += bytes;
        self.checks.stored(self.now, host, blob, piece, bytes, new);
        self.feed(
            host,
            Input::PieceStored {
                digest,
                piece,
                conn,
            },
        );
        self.advance_reader(host, blob, false);
    }

    fn perform(&mut self, host: u32, action: Action) {
        match action {
            Action::Dial(peer) => {
                let (to, epoch) = (self.by_id[&peer.id], self.hosts[host as usize].epoch);
                let wait = self.net.latency(host, to);
                let from = host;
                self.after(wait, What::Knock { from, epoch, to });
            }
            Action::Send { conn, message } => self.send(host, conn, message),
            Action::SendPiece {
                conn,
                digest,
                piece,
                first,
            } => self.send_piece(host, conn, digest, piece, first),
            Action::CancelPiece {
                conn,
                digest,
                piece,
            } => {
                let blob = self.blobs[&digest];
                if self.net.cancel(host, conn, blob, piece) {
                    let sent = false;
                    let input = Input::PieceSent {
                        digest,
                        piece,
                        conn,
                        sent,
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
            Action::Announce(request) => self.announce(host, request),
            Action::Lookup { digest } => {
                let stores = &self.hosts[host as usize].stores;
                let full = |blob: &&u32| stores[**blob as usize].is_full();
                let blob = self.blobs.get(&digest).filter(full);
                let spec = blob.map(|blob| self.specs[*blob as usize].clone());
                self.tell(HANDLING, host, Input::Found { digest, spec });
            }
            Action::TellMetaInfo {
                conn,
                digest,
                offset,
            } => self.tell_metainfo(host, conn, digest, offset),
            Action::Sought { digest, found } => {
                let blob = self.blobs[&digest];
                match found {
                    Some(_) => self.join(host, blob),
                    // A client that asks again.
                    None => {
                        let epoch = self.hosts[host as usize].epoch;
                        self.after(ASK_AGAIN, What::Open { host, epoch, blob });
                    }
                }
            }
            Action::Event(event) => self.event(host, event),
        }
    }

    /// Whoever has begun with a blob, or holds it, knows what it consists of.
    fn tell_metainfo(&mut self, host: u32, conn: ConnId, digest: Digest, offset: u32) {
        let spec = &self.specs[self.blobs[&digest] as usize];
        let it = &self.hosts[host as usize];
        let blob = self.blobs[&digest] as usize;
        let joined = it
            .scheduler
            .as_ref()
            .is_some_and(|it| it.have(digest).is_some());
        let encoding = if joined || it.stores[blob].is_full() {
            let states = vec![ChainState::INITIAL; spec.piece_count().saturating_sub(1) as usize];
            let meta = MetaInfo::new(digest, spec.length, spec.piece_length, states);
            meta.map(|meta| meta.encode()).unwrap_or_default()
        } else {
            Vec::new()
        };
        let message = Message::metainfo_part(digest, &encoding, offset);
        self.send(host, conn, message);
    }

    fn send(&mut self, host: u32, conn: ConnId, message: Message) {
        let Some((side, _)) = self.net.open_side(conn, host) else {
            return;
        };
        self.tally.messages += 1;
        self.tally.control_bytes += codec::frame_len(&message) as u64;
        let at = self.net.message(self.now, conn, side) + HANDLING;
        let side = u8::from(side == 0);
        self.agenda.add(
            at,
            What::Deliver {
                conn,
                side,
                message,
            },
        );
    }

    /// Tells each blob's tracker.
    fn announce(&mut self, host: u32, request: AnnounceRequest) {
        let epoch = self.hosts[host as usize].epoch;
        let mut by_tracker: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for blob in request.blobs {
            let tracker = self.blobs[&blob.digest] % crate::world::index(self.trackers.len());
            by_tracker.entry(tracker).or_default().push(blob);
        }
        for (tracker, blobs) in by_tracker {
            let peer = request.peer.clone();
            let request = Box::new(AnnounceRequest { peer, blobs });
            let wait = self.net.latency(host, u32::MAX - tracker);
            self.after(
                wait,
                What::Tracker {
                    host,
                    epoch,
                    tracker,
                    request,
                },
            );
        }
    }

    fn send_piece(&mut self, host: u32, conn: ConnId, digest: Digest, piece: u32, first: bool) {
        let blob = self.blobs[&digest];
        let it = &self.hosts[host as usize];
        let has = it.stores[blob as usize].has(piece);
        self.checks.hold(self.now, has, || {
            format!("{host} sends piece {piece}, which it has not")
        });
        let Some((side, conn_there)) = self.net.open_side(conn, host) else {
            return;
        };
        let bytes = self.specs[blob as usize].piece_size(piece);
        let transfer = Transfer {
            conn,
            from: host,
            epoch: it.epoch,
            to: conn_there.hosts[1 - side],
            blob,
            piece,
            bytes: 0,
            left: bytes,
            rank: 0,
        };
        self.net.queue(transfer, first);
        self.pump(host);
    }

    /// Hashes and writes, one piece after the other.
    fn store(&mut self, host: u32, conn: ConnId, digest: Digest, piece: u32) {
        let Some((side, it)) = self.net.open_side(conn, host) else {
            return;
        };
        let from = it.hosts[1 - side];
        self.checks.takes(self.now, host, from);
        let blob = self.blobs[&digest];
        let bytes = self.specs[blob as usize].piece_size(piece);
        let good = !self.hosts[from as usize].lies;
        let it = &mut self.hosts[host as usize];
        it.disk_free = it.disk_free.max(self.now) + span(bytes, self.plan.network.disk);
        let (at, epoch) = (it.disk_free, it.epoch);
        self.agenda.add(
            at,
            What::Stored {
                host,
                epoch,
                conn,
                blob,
                piece,
                good,
            },
        );
    }

    fn close(&mut self, host: u32, conn: ConnId) {
        let Some((side, _)) = self.net.open_side(conn, host) else {
            return;
        };
        // In order behind what was sent before.
        let at = self.net.message(self.now, conn, side) + HANDLING;
        self.net.set(conn, side, End::Closed);
        self.net.cut_off(host, conn);
        self.tell(Duration::ZERO, host, Input::ConnDown { conn });
        let side = u8::from(side == 0);
        self.agenda.add(at, What::Down { conn, side });
    }

    fn event(&mut self, host: u32, event: Event) {
        match event {
            Event::PieceDone { digest, bytes, .. } => {
                self.checks.told(host, self.blobs[&digest], bytes);
            }
            Event::BlobDone { digest } => self.blob_done(host, self.blobs[&digest]),
            Event::PeerBanned { peer, .. } => {
                let number = self.by_id[&peer];
                let span = self.plan.agent.ban;
                let liar = self.hosts[number as usize].lies;
                self.checks.ban(self.now, host, number, liar, span);
            }
            _ => {}
        }
    }

    fn blob_done(&mut self, host: u32, blob: u32) {
        let it = &mut self.hosts[host as usize];
        let full = it.stores[blob as usize].is_full();
        it.done[blob as usize].get_or_insert(self.now);
        it.lacks = it.lacks.saturating_sub(1);
        let all = it.lacks == 0;
        self.checks.done(self.now, host, blob, full);
        if all {
            self.completed(host);
        }
    }
}
