//! What happens to hosts, connections and the tracker.

use std::time::Duration;

use kraken_proto::rng::Rng;
use kraken_proto::{AnnounceRequest, ConnId, Digest, Input, Message, Timestamp};

use crate::net::{End, Transfer};
use crate::world::{What, World, owns};

/// After how long the other sides notice that a host is silently gone.
const SILENCE: Duration = Duration::from_secs(5);
/// After how long a dial to such a host is given up.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

impl World<'_> {
    pub(crate) fn start(&mut self, host: usize) {
        if self.hosts[host].scheduler.is_some() {
            return;
        }
        let life = u64::from(self.hosts[host].epoch) << 32 | host as u64;
        let seed =
            Rng::seeded(self.plan.seed ^ life.wrapping_mul(0x9e37_79b9_7f4a_7c15)).next_u64();
        self.hosts[host].start(self.now, self.plan, seed);
        if self.hosts[host].is_origin() {
            // It opens a blob when the first peer asks for it, as the product does.
            self.drain(host);
            return;
        }
        for blob in 0..self.specs.len() {
            let (spec, have) = (
                self.specs[blob].clone(),
                self.hosts[host].stores[blob].clone(),
            );
            self.feed(host, Input::Open { spec, have });
            self.advance_reader(host, blob, true);
        }
    }

    pub(crate) fn crash(&mut self, host: usize, silent: bool) {
        if self.hosts[host].scheduler.is_none() {
            return;
        }
        self.note(host, 0, 0, 0);
        self.hosts[host].crash(silent);
        let nic = &mut self.net.nics[host];
        nic.queue.clear();
        nic.sending = None;
        nic.ingress_free = self.now;
        for (conn, side) in self.net.of_host(host) {
            let latency = self
                .net
                .conns
                .get(&conn)
                .map_or(Duration::ZERO, |conn| conn.latency);
            self.net.set(conn, side, End::Closed);
            let notice = if silent { SILENCE } else { latency };
            self.after(
                notice,
                What::Down {
                    conn,
                    side: 1 - side,
                },
            );
        }
    }

    /// The first packet of a dial reaches the other side.
    pub(crate) fn knock(&mut self, from: usize, epoch: u32, to: usize) {
        if self.hosts[from].epoch != epoch {
            return;
        }
        let latency = self.net.latency(from, to);
        if self.hosts[to].scheduler.is_some() {
            let conn = self.net.connect(from, to);
            self.after(latency, What::Up { conn, side: 0 });
            self.after(latency * 2, What::Up { conn, side: 1 });
        } else {
            let wait = if self.hosts[to].silent {
                DIAL_TIMEOUT
            } else {
                latency
            };
            let peer = self.hosts[to].info.id;
            self.tell(wait, from, Input::DialFailed { peer });
        }
    }

    pub(crate) fn up(&mut self, conn: ConnId, side: usize) {
        let Some(it) = self.net.conns.get_mut(&conn) else {
            return;
        };
        if it.ends[side] != End::Coming {
            return;
        }
        it.ends[side] = End::Open;
        let (host, other) = (it.hosts[side], it.hosts[1 - side]);
        let peer = self.hosts[other].info.id;
        self.feed(
            host,
            Input::ConnUp {
                conn,
                peer,
                dialled: side == 0,
            },
        );
    }

    pub(crate) fn down(&mut self, conn: ConnId, side: usize) {
        let Some(hosts) = self.net.conns.get(&conn).map(|conn| conn.hosts) else {
            return;
        };
        match self.net.set(conn, side, End::Closed) {
            Some(End::Open) => self.feed(hosts[side], Input::ConnDown { conn }),
            Some(End::Coming) if side == 0 => {
                let peer = self.hosts[hosts[1]].info.id;
                self.feed(hosts[0], Input::DialFailed { peer });
            }
            _ => {}
        }
    }

    pub(crate) fn piece(&mut self, transfer: &Transfer) {
        let Transfer {
            conn,
            from,
            to,
            blob,
            piece,
            ..
        } = *transfer;
        let cut_off = self.hosts[from].epoch != transfer.epoch;
        if cut_off || self.net.open_side(conn, to).is_none() {
            return;
        }
        let digest = self.specs[blob].digest;
        let len = u32::try_from(transfer.bytes).unwrap_or(u32::MAX);
        self.feed(
            to,
            Input::Message {
                conn,
                message: Message::Piece { digest, piece, len },
            },
        );
    }

    pub(crate) fn egress_done(&mut self, host: usize, epoch: u32) {
        if self.hosts[host].epoch != epoch {
            return;
        }
        if let Some(Transfer {
            conn,
            blob,
            piece,
            bytes,
            ..
        }) = self.net.nics[host].sending.take()
        {
            self.wire_bytes[usize::from(self.hosts[host].is_origin())] += bytes;
            let digest = self.specs[blob].digest;
            self.feed(
                host,
                Input::PieceSent {
                    digest,
                    piece,
                    conn,
                    sent: true,
                },
            );
        }
        self.pump(host);
    }

    pub(crate) fn at_tracker(&mut self, host: usize, epoch: u32, request: &AnnounceRequest) {
        let digests: Vec<_> = request.blobs.iter().map(|blob| blob.digest).collect();
        let since_start = self.now.since(Timestamp::ZERO);
        let out = self
            .plan
            .faults
            .outage
            .as_ref()
            .is_some_and(|out| out.contains(&since_start));
        let (plan, hosts, blobs) = (self.plan, &self.hosts, &self.blobs);
        // The ring may lag: it names dead origins too.
        let owners = |digest: &Digest| {
            let owners = (0..plan.origins).filter(|it| owns(plan, *it, blobs[digest]));
            owners
                .map(|it| hosts[plan.agents + it].info.clone())
                .collect()
        };
        let answer = (!out).then(|| self.tracker.announce(self.now, request, &owners));
        let service = Duration::from_millis(1) + Duration::from_micros(20 * digests.len() as u64);
        let input = match answer.and_then(Result::ok) {
            Some(reply) => Input::Announced { digests, reply },
            None => Input::AnnounceFailed { digests },
        };
        let wait = service + self.net.latency(host, usize::MAX >> 32);
        self.after(wait, What::Tell { host, epoch, input });
    }

    pub(crate) fn timer(&mut self, host: usize, at: Timestamp) {
        if self.hosts[host].timer != Some(at) {
            return;
        }
        self.hosts[host].timer = None;
        let now = self.now;
        let Some(scheduler) = self.hosts[host].scheduler.as_mut() else {
            return;
        };
        if scheduler.poll_timeout(now).is_some_and(|at| at <= now) {
            scheduler.handle_timeout(now);
            let quiet = scheduler.poll_timeout(now).is_none_or(|at| at > now);
            self.checks
                .hold(now, quiet, || format!("{host} is due again at once"));
            self.note(host, 1, 0, 0);
        }
        self.drain(host);
    }
}
