//! What happens to hosts, connections and the trackers.

use std::time::Duration;

use kraken_proto::rng::Rng;
use kraken_proto::{AnnounceRequest, ConnId, Digest, Input, Message, Timestamp};

use crate::net::{End, Transfer};
use crate::world::{What, World, index};

/// After how long the other sides notice that a host is silently gone.
const SILENCE: Duration = Duration::from_secs(5);
/// After how long a dial to such a host is given up.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// What a tracker takes to answer, and how much longer for each blob.
const TRACKER_ANSWERS: Duration = Duration::from_millis(1);
const TRACKER_PER_BLOB: Duration = Duration::from_micros(20);

impl World<'_> {
    pub(crate) fn happen(&mut self, what: What) {
        if let Some(until) = self.held_up(&what) {
            self.agenda.postpone(until, what);
            return;
        }
        match what {
            What::Start { host } => self.start(host),
            What::Open { host, epoch, blob } => {
                if self.hosts[host as usize].epoch == epoch {
                    self.open(host, blob);
                }
            }
            What::Leave { host } => self.feed(host, Input::Leave),
            What::Crash { host, silent } => self.crash(host, silent),
            What::Pause { host } => self.pause(host),
            What::Cut { heals } => self.cut(heals),
            What::Knock { from, epoch, to } => self.knock(from, epoch, to),
            What::Up { conn, side } => self.up(conn, side),
            What::Down { conn, side } => self.down(conn, side),
            What::Deliver {
                conn,
                side,
                message,
            } => self.deliver(conn, side, message),
            What::Cross(transfer) => {
                let at = self.net.cross(self.now, &transfer);
                self.agenda.add(at, What::Arrive(transfer));
            }
            What::Arrive(transfer) => {
                let host = transfer.to;
                self.net.arrive(transfer);
                self.take_in(host);
            }
            What::TakenIn { host, epoch } => self.taken_in(host, epoch),
            What::Departed { host, epoch } => self.departed(host, epoch),
            What::Stored {
                host,
                epoch,
                conn,
                blob,
                piece,
                good,
            } => {
                if self.hosts[host as usize].epoch == epoch {
                    self.stored(host, conn, blob, piece, good);
                }
            }
            What::Tracker {
                host,
                epoch,
                tracker,
                request,
            } => self.at_tracker(host, epoch, tracker, &request),
            What::Tell { host, epoch, input } => {
                if self.hosts[host as usize].epoch == epoch {
                    self.feed(host, *input);
                }
            }
            What::Timer { host, at } => self.timer(host, at),
        }
    }

    /// Until when an event has to wait: its host stands still, or a cut lies in its way.
    fn held_up(&self, what: &What) -> Option<Timestamp> {
        if self.plan.network.pauses.is_none() && self.cut.is_none() {
            return None;
        }
        let (host, from) = match what {
            What::Deliver { conn, side, .. } => {
                let hosts = self.net.get(*conn)?.hosts;
                let side = usize::from(*side);
                (hosts[side], Some(hosts[1 - side]))
            }
            What::Arrive(it) => (it.to, Some(it.from)),
            What::Departed { host, .. }
            | What::TakenIn { host, .. }
            | What::Stored { host, .. }
            | What::Tell { host, .. }
            | What::Timer { host, .. } => (*host, None),
            _ => return None,
        };
        let heals = from.and_then(|from| self.cut_between(from, host));
        let paused = self.hosts[host as usize].paused;
        let until = heals.unwrap_or(paused).max(paused);
        (until > self.now).then_some(until)
    }

    fn start(&mut self, host: u32) {
        let it = &mut self.hosts[host as usize];
        if it.scheduler.is_some() {
            return;
        }
        let life = u64::from(it.epoch) << 32 | u64::from(host);
        let seed =
            Rng::seeded(self.plan.seed ^ life.wrapping_mul(0x9e37_79b9_7f4a_7c15)).next_u64();
        it.start(self.now, self.plan, seed);
        let (epoch, first) = (it.epoch, it.epoch == 0);
        if it.is_origin() {
            // It opens a blob when the first peer asks for it, as the product does.
            self.drain(host);
            return;
        }
        self.remember(host);
        for blob in 0..self.specs.len() {
            let after = self.plan.blobs[blob].after;
            if !self.hosts[host as usize].wants[blob] {
                continue;
            }
            let blob = index(blob);
            if first && !after.is_zero() {
                self.after(after, What::Open { host, epoch, blob });
            } else {
                self.open(host, blob);
            }
        }
    }

    /// The host knows peers from earlier pulls.
    fn remember(&mut self, host: u32) {
        let (agents, known) = (self.plan.agents, self.plan.known_peers);
        if known == 0 {
            return;
        }
        let mut peers: Vec<_> = self.hosts[agents..]
            .iter()
            .map(|origin| origin.info.clone())
            .collect();
        for _ in 0..known {
            let peer = self.rng.below(agents);
            if peer != host as usize {
                peers.push(self.hosts[peer].info.clone());
            }
        }
        self.feed(host, Input::Known { peers });
    }

    fn open(&mut self, host: u32, blob: u32) {
        let have = &self.hosts[host as usize].stores[blob as usize];
        if self.plan.metainfo_from_peers && have.count() == 0 {
            self.seek(host, blob);
        } else {
            self.join(host, blob);
        }
    }

    /// The host asks its peers what the blob consists of.
    pub(crate) fn seek(&mut self, host: u32, blob: u32) {
        let spec = &self.specs[blob as usize];
        let (namespace, digest) = (spec.namespace.clone(), spec.digest);
        self.feed(host, Input::Seek { namespace, digest });
    }

    /// The host takes part in the blob's swarm.
    pub(crate) fn join(&mut self, host: u32, blob: u32) {
        let spec = self.specs[blob as usize].clone();
        let have = self.hosts[host as usize].stores[blob as usize].clone();
        self.feed(host, Input::Open { spec, have });
        self.advance_reader(host, blob, true);
    }

    fn crash(&mut self, host: u32, silent: bool) {
        if self.hosts[host as usize].scheduler.is_none() {
            return;
        }
        self.trace.note(self.now, host, 0, 0, 0);
        self.hosts[host as usize].crash(silent);
        self.net.wipe(host);
        for (conn, side) in self.net.of_host(host) {
            let latency = self.net.get(conn).map_or(Duration::ZERO, |it| it.latency);
            self.net.set(conn, side, End::Closed);
            let notice = if silent { SILENCE } else { latency };
            let side = u8::from(side == 0);
            self.after(notice, What::Down { conn, side });
        }
    }

    fn pause(&mut self, host: u32) {
        let Some(pauses) = &self.plan.network.pauses else {
            return;
        };
        let (least, most) = (*pauses.length.start(), *pauses.length.end());
        let length = least + most.saturating_sub(least).mul_f64(self.rng.unit());
        self.hosts[host as usize].paused = self.now + length;
        if self.unfinished() > 0 {
            let wait = Duration::from_secs_f64(self.exponential(1.0 / pauses.per_second));
            self.after(length + wait, What::Pause { host });
        }
    }

    /// The cut begins, or has lasted for so long that the connections across it are given up, or
    /// heals.
    fn cut(&mut self, heals: Timestamp) {
        if self.now >= heals {
            self.cut = None;
        } else if self.cut.is_some() {
            self.part_across();
            self.agenda.add(heals, What::Cut { heals });
        } else {
            self.cut = Some(heals);
            let next = heals.min(self.now + SILENCE);
            self.agenda.add(next, What::Cut { heals });
        }
    }

    /// The first packet of a dial reaches the other side.
    fn knock(&mut self, from: u32, epoch: u32, to: u32) {
        if self.hosts[from as usize].epoch != epoch {
            return;
        }
        let latency = self.net.latency(from, to);
        let cut = self.cut_between(from, to).is_some();
        if self.hosts[to as usize].scheduler.is_some() && !cut {
            let conn = self.net.connect(from, to);
            self.after(latency, What::Up { conn, side: 0 });
            self.after(latency * 2, What::Up { conn, side: 1 });
        } else {
            let silent = cut || self.hosts[to as usize].silent;
            let wait = if silent { DIAL_TIMEOUT } else { latency };
            let peer = self.hosts[to as usize].info.id;
            self.tell(wait, from, Input::DialFailed { peer });
        }
    }

    fn up(&mut self, conn: ConnId, side: u8) {
        let index = usize::from(side);
        let Some(it) = self.net.get(conn) else {
            return;
        };
        if it.ends[index] != End::Coming {
            return;
        }
        let (host, other) = (it.hosts[index], it.hosts[1 - index]);
        self.net.set(conn, index, End::Open);
        let peer = self.hosts[other as usize].info.id;
        let dialled = side == 0;
        self.feed(
            host,
            Input::ConnUp {
                conn,
                peer,
                dialled,
            },
        );
    }

    pub(crate) fn down(&mut self, conn: ConnId, side: u8) {
        let Some(hosts) = self.net.get(conn).map(|conn| conn.hosts) else {
            return;
        };
        match self.net.set(conn, usize::from(side), End::Closed) {
            Some(End::Open) => self.feed(hosts[usize::from(side)], Input::ConnDown { conn }),
            Some(End::Coming) if side == 0 => {
                let peer = self.hosts[hosts[1] as usize].info.id;
                self.feed(hosts[0], Input::DialFailed { peer });
            }
            _ => {}
        }
    }

    fn deliver(&mut self, conn: ConnId, side: u8, message: Message) {
        let Some(it) = self.net.get(conn) else {
            return;
        };
        if it.ends[usize::from(side)] == End::Open {
            self.feed(
                it.hosts[usize::from(side)],
                Input::Message { conn, message },
            );
        }
    }

    /// A host's interface takes in what waits, when it is free.
    fn take_in(&mut self, host: u32) {
        if let Some(takes) = self.net.take_in(host) {
            let epoch = self.hosts[host as usize].epoch;
            self.after(takes, What::TakenIn { host, epoch });
        }
    }

    fn taken_in(&mut self, host: u32, epoch: u32) {
        if self.hosts[host as usize].epoch != epoch {
            return;
        }
        let part = self.net.taken_in(host);
        self.take_in(host);
        if let Some(last) = part.filter(|part| part.left == 0) {
            self.piece(&last);
        }
    }

    fn piece(&mut self, transfer: &Transfer) {
        let Transfer {
            conn,
            from,
            to,
            blob,
            piece,
            ..
        } = *transfer;
        let cut_off = self.hosts[from as usize].epoch != transfer.epoch;
        if cut_off || self.net.open_side(conn, to).is_none() {
            return;
        }
        let spec = &self.specs[blob as usize];
        let (digest, bytes) = (spec.digest, spec.piece_size(piece));
        let len = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.tally.arrived_bytes += bytes;
        let message = Message::Piece { digest, piece, len };
        self.feed(to, Input::Message { conn, message });
    }

    fn departed(&mut self, host: u32, epoch: u32) {
        if self.hosts[host as usize].epoch != epoch {
            return;
        }
        if let Some((transfer, whole)) = self.net.departed(host) {
            let Transfer {
                conn, blob, piece, ..
            } = transfer;
            let origin = self.hosts[host as usize].is_origin();
            self.tally.sent(self.now, origin, transfer.bytes);
            if whole {
                let digest = self.specs[blob as usize].digest;
                let sent = true;
                self.feed(
                    host,
                    Input::PieceSent {
                        digest,
                        piece,
                        conn,
                        sent,
                    },
                );
            }
        }
        self.pump(host);
    }

    fn at_tracker(&mut self, host: u32, epoch: u32, tracker: u32, request: &AnnounceRequest) {
        let digests: Vec<_> = request.blobs.iter().map(|blob| blob.digest).collect();
        let since_start = self.now.since(Timestamp::ZERO);
        let mut outages = self.plan.faults.outages.iter();
        let out = outages.any(|out| out.contains(&since_start));
        let out = out || (self.cut.is_some() && self.is_far(host));
        let back = self.net.latency(host, u32::MAX - tracker);
        if out {
            self.tell(back, host, Input::AnnounceFailed { digests });
            return;
        }
        self.tally.announces += 1;
        let (plan, hosts, blobs) = (self.plan, &self.hosts, &self.blobs);
        // The ring may lag: it names dead origins too.
        let owners = |digest: &Digest| {
            let owners = (0..plan.origins).filter(|it| plan.owns(*it, blobs[digest] as usize));
            owners
                .map(|it| hosts[plan.agents + it].info.clone())
                .collect()
        };
        let it = &mut self.trackers[tracker as usize];
        let answer = it.machine.announce(self.now, request, &owners);
        it.free = it.free.max(self.now) + TRACKER_PER_BLOB * index(digests.len());
        let wait = it.free.since(self.now) + TRACKER_ANSWERS + back;
        let input = match answer {
            Ok(reply) => Input::Announced { digests, reply },
            Err(_) => Input::AnnounceFailed { digests },
        };
        let input = Box::new(input);
        self.after(wait, What::Tell { host, epoch, input });
    }

    fn timer(&mut self, host: u32, at: Timestamp) {
        let it = &mut self.hosts[host as usize];
        if it.timer != Some(at) {
            return;
        }
        it.timer = None;
        let now = self.now;
        let Some(scheduler) = it.scheduler.as_mut() else {
            return;
        };
        if scheduler.poll_timeout(now).is_some_and(|at| at <= now) {
            scheduler.handle_timeout(now);
            let quiet = scheduler.poll_timeout(now).is_none_or(|at| at > now);
            self.checks
                .hold(now, quiet, || format!("{host} is due again at once"));
            self.trace.note(now, host, 1, 0, 0);
        }
        self.drain(host);
    }
}
