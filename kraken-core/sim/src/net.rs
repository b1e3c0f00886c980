//! The network: connections, what lies in front of each host's interface, and what lies between.
//!
//! A host's caps are its limits: what waits for its turn is served by the queue that ships.

use std::num::NonZeroU64;
use std::time::Duration;

use kraken_proto::limits::fair::FairQueue;
use kraken_proto::limits::shaper;
use kraken_proto::rng::Rng;
use kraken_proto::{ConnId, Digest, Timestamp};

use crate::plan::{Network, Plan};

/// A piece, or a part of one, on its way.
#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    pub(crate) conn: ConnId,
    pub(crate) from: u32,
    /// The life of the sender: what it had not sent whole when it crashed never arrives.
    pub(crate) epoch: u32,
    pub(crate) to: u32,
    pub(crate) blob: u32,
    pub(crate) piece: u32,
    /// What this part has.
    pub(crate) bytes: u64,
    /// What is still to come after it.
    pub(crate) left: u64,
    /// Its place among those of its blob at the sender.
    pub(crate) rank: u64,
}

/// One side of a connection, as that side knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The handshake is under way.
    Coming,
    /// It stands.
    Open,
    /// It is gone.
    Closed,
}

/// A connection; side 0 dialled.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) hosts: [u32; 2],
    pub(crate) ends: [End; 2],
    /// Half a round trip.
    pub(crate) latency: Duration,
    /// When the last message of each side has arrived: none overtakes another.
    pub(crate) told: [Timestamp; 2],
    /// What gets through, in bytes per second, and until when each direction is busy.
    path: Option<(u64, [Timestamp; 2])>,
}

/// One direction of a host's interface.
#[derive(Debug)]
pub(crate) struct Lane {
    /// What gets through, in bytes per second.
    rate: u64,
    waiting: FairQueue<Transfer>,
    /// What is getting through.
    now: Option<Transfer>,
    /// How many parts have come; the order of service within a blob.
    count: u64,
}

impl Lane {
    fn new(rate: u64) -> Self {
        let mut lane = Self {
            rate,
            waiting: FairQueue::new(),
            now: None,
            count: 0,
        };
        lane.wipe();
        lane
    }

    fn wipe(&mut self) {
        self.waiting = FairQueue::new();
        let head_start = NonZeroU64::new(self.rate).map_or(0, shaper::head_start);
        self.waiting.set_head_start(head_start);
        self.now = None;
    }

    fn next_rank(&mut self) -> u64 {
        self.count += 1;
        self.count
    }
}

/// A host's interface.
#[derive(Debug)]
pub(crate) struct Nic {
    egress: Lane,
    ingress: Lane,
    rack: Option<u32>,
}

/// Ranks of pieces that do not go first.
const BEHIND: u64 = 1 << 63;

/// A rack's uplink, out and in: until when it is busy.
#[derive(Debug, Clone, Copy, Default)]
struct Uplink([Timestamp; 2]);

/// All connections and interfaces.
#[derive(Debug)]
pub(crate) struct Net {
    /// By number; the numbers begin with 1.
    conns: Vec<Option<Conn>>,
    pub(crate) nics: Vec<Nic>,
    uplinks: Vec<Uplink>,
    uplink_rate: u64,
    plan: Network,
    digests: Vec<Digest>,
    seed: u64,
    rng: Rng,
    /// Pieces longer than this take turns with those of other blobs.
    part: u64,
    /// Bytes that went from one rack to another, or out of or into one.
    pub(crate) across: u64,
}

/// Pieces of several blobs take turns in parts of this many bytes.
const PART: u64 = 1 << 20;

impl Net {
    pub(crate) fn new(plan: &Plan, slow: &[bool], digests: Vec<Digest>) -> Self {
        let network = plan.network.clone();
        let nic = |host: usize| {
            let agent = host < plan.agents;
            let (up, down) = match &network.slow {
                _ if !agent => (network.origin, network.origin),
                Some(it) if slow[host] => (it.up, it.down),
                _ => (network.up, network.down),
            };
            let rack = network.racks.as_ref().filter(|_| agent);
            Nic {
                egress: Lane::new(up),
                ingress: Lane::new(down),
                rack: rack.map(|rack| (host / rack.hosts.max(1)) as u32),
            }
        };
        let racks = network.racks.as_ref();
        Self {
            conns: vec![None],
            nics: (0..plan.agents + plan.origins).map(nic).collect(),
            uplinks: vec![
                Uplink::default();
                racks.map_or(0, |it| plan.agents.div_ceil(it.hosts.max(1)))
            ],
            uplink_rate: racks.map_or(u64::MAX, |it| {
                (it.hosts as f64 * network.up as f64 / it.oversubscription) as u64
            }),
            plan: network,
            digests,
            seed: plan.seed,
            rng: Rng::seeded(plan.seed ^ 0x6e65_7477_6f72_6b00),
            part: if plan.blobs.len() > 1 { PART } else { u64::MAX },
            across: 0,
        }
    }

    pub(crate) fn get(&self, id: ConnId) -> Option<&Conn> {
        self.conns.get(usize::try_from(id.0).ok()?)?.as_ref()
    }

    fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(usize::try_from(id.0).ok()?)?.as_mut()
    }

    /// All connections that are not closed on both sides.
    pub(crate) fn all(&self) -> impl Iterator<Item = (ConnId, &Conn)> {
        let named = |(id, conn)| Some((ConnId(id as u64), Option::as_ref(conn)?));
        self.conns.iter().enumerate().filter_map(named)
    }

    /// What chance says of a pair of hosts: the same each time.
    fn of_pair(&self, a: u32, b: u32, salt: u64) -> f64 {
        let pair = u64::from(a.min(b)) << 32 | u64::from(a.max(b));
        Rng::seeded(self.seed ^ salt ^ pair.wrapping_mul(0x9e37_79b9_7f4a_7c15)).unit()
    }

    /// Half of the round trip of a pair, the same each time.
    pub(crate) fn latency(&self, a: u32, b: u32) -> Duration {
        let (least, most) = (*self.plan.rtt.start(), *self.plan.rtt.end());
        let range = most.saturating_sub(least);
        (least + range.mul_f64(self.of_pair(a, b, 0))) / 2
    }

    fn path(&self, a: u32, b: u32) -> Option<u64> {
        let mut draw = self.of_pair(a, b, 0x7061_7468);
        self.plan.thin_paths.iter().find_map(|thin| {
            draw -= thin.share;
            (draw < 0.0).then_some(thin.rate)
        })
    }

    /// A connection whose handshake has begun.
    pub(crate) fn connect(&mut self, from: u32, to: u32) -> ConnId {
        let id = ConnId(self.conns.len() as u64);
        self.conns.push(Some(Conn {
            hosts: [from, to],
            ends: [End::Coming; 2],
            latency: self.latency(from, to),
            told: [Timestamp::ZERO; 2],
            path: self.path(from, to).map(|rate| (rate, [Timestamp::ZERO; 2])),
        }));
        id
    }

    /// The host's side of a connection that stands.
    pub(crate) fn open_side(&self, id: ConnId, host: u32) -> Option<(usize, &Conn)> {
        let conn = self.get(id)?;
        let side = usize::from(conn.hosts[0] != host);
        (conn.ends[side] == End::Open && conn.hosts[side] == host).then_some((side, conn))
    }

    /// Changes one side and says what it was; forgets what is closed on both.
    pub(crate) fn set(&mut self, id: ConnId, side: usize, end: End) -> Option<End> {
        let conn = self.get_mut(id)?;
        let before = std::mem::replace(&mut conn.ends[side], end);
        if conn.ends == [End::Closed; 2] {
            self.conns[usize::try_from(id.0).ok()?] = None;
        }
        Some(before)
    }

    /// The connections of a host that it has not closed, with its side.
    pub(crate) fn of_host(&self, host: u32) -> Vec<(ConnId, usize)> {
        let side = |conn: &Conn| {
            let side = conn.hosts.iter().position(|it| *it == host)?;
            (conn.ends[side] != End::Closed).then_some(side)
        };
        self.all()
            .filter_map(|(id, conn)| Some((id, side(conn)?)))
            .collect()
    }

    /// When a message that a host sends now has arrived.
    pub(crate) fn message(&mut self, now: Timestamp, id: ConnId, side: usize) -> Timestamp {
        let late = self.late(id, 1);
        let Some(conn) = self.get_mut(id) else {
            return now;
        };
        let at = (now + conn.latency + late).max(conn.told[side]);
        conn.told[side] = at;
        at
    }

    /// How much later than usual something of so many bytes is on this connection.
    fn late(&mut self, id: ConnId, bytes: u64) -> Duration {
        let mut late = Duration::ZERO;
        if !self.plan.jitter.is_zero() {
            late += self.plan.jitter.mul_f64(self.rng.unit());
        }
        if self.plan.loss > 0.0 {
            let packets = bytes.div_ceil(1400) as f64;
            let whole = (1.0 - self.plan.loss).powf(packets);
            if self.rng.unit() > whole {
                late += self.get(id).map_or(Duration::ZERO, |conn| conn.latency * 3);
            }
        }
        late
    }

    /// Queues a piece in front of a host's interface.
    pub(crate) fn queue(&mut self, transfer: Transfer, first: bool) {
        let digest = self.digests[transfer.blob as usize];
        let lane = &mut self.nics[transfer.from as usize].egress;
        let number = lane.next_rank();
        let rank = if first { number } else { number | BEHIND };
        let bytes = transfer.left.min(self.part);
        let transfer = Transfer { rank, ..transfer };
        lane.waiting.push(digest, rank, bytes, transfer);
    }

    /// Takes a piece out of the queue, unless it is on the wire already.
    pub(crate) fn cancel(&mut self, host: u32, conn: ConnId, blob: u32, piece: u32) -> bool {
        let waiting = &mut self.nics[host as usize].egress.waiting;
        let before = waiting.len();
        waiting.remove(|_, it| (it.conn, it.blob, it.piece) == (conn, blob, piece));
        waiting.len() < before
    }

    /// Nothing more goes out on this connection.
    pub(crate) fn cut_off(&mut self, host: u32, conn: ConnId) {
        let lane = &mut self.nics[host as usize].egress;
        lane.waiting.remove(|_, transfer| transfer.conn == conn);
    }

    /// The host is gone, and what waited in front of its interface with it.
    pub(crate) fn wipe(&mut self, host: u32) {
        let nic = &mut self.nics[host as usize];
        nic.egress.wipe();
        nic.ingress.wipe();
    }

    /// Puts the next part of a piece on the wire, when the interface is free. Says when the
    /// interface is free again, and when the part begins to arrive at `Net::cross` or
    /// `Net::receive`.
    pub(crate) fn begin(&mut self, now: Timestamp, host: u32) -> Option<Departure> {
        if self.nics[host as usize].egress.now.is_some() {
            return None;
        }
        let transfer = self.next(host)?;
        let id = transfer.conn;
        let late = self.late(id, transfer.bytes);
        let up = self.nics[host as usize].egress.rate;
        let free = now + self.noisy(span(transfer.bytes, up));
        let mut last = free;
        let (from, to) = (self.rack(transfer.from), self.rack(transfer.to));
        if let Some(rack) = from.filter(|_| from != to) {
            let rate = self.uplink_rate;
            let uplink = &mut self.uplinks[rack as usize].0[0];
            *uplink = (*uplink).max(now) + span(transfer.bytes, rate);
            last = last.max(*uplink);
        }
        if from != to {
            self.across += transfer.bytes;
        }
        let conn = self.get_mut(id)?;
        let side = usize::from(conn.hosts[0] != host);
        if let Some((rate, busy)) = &mut conn.path {
            busy[side] = busy[side].max(now) + span(transfer.bytes, *rate);
            last = last.max(busy[side]);
        }
        let there = last + conn.latency + late;
        let crosses = to.is_some() && from != to;
        let next = if crosses {
            self.uplink_rate
        } else {
            self.nics[transfer.to as usize].ingress.rate
        };
        let begins = (there - span(transfer.bytes, next)).max(now);
        self.nics[host as usize].egress.now = Some(transfer.clone());
        Some(Departure {
            transfer,
            free,
            begins,
            crosses,
        })
    }

    /// The next part of a piece whose receiver is still there.
    fn next(&mut self, host: u32) -> Option<Transfer> {
        while let Some((_, mut transfer)) = self.nics[host as usize].egress.waiting.pop() {
            if self.open_side(transfer.conn, host).is_some() {
                let part = transfer.left.min(self.part);
                (transfer.bytes, transfer.left) = (part, transfer.left - part);
                return Some(transfer);
            }
        }
        None
    }

    /// A part has left the interface; the rest of the piece waits for its next turn, before the
    /// pieces behind it. Says whether that was all.
    pub(crate) fn departed(&mut self, host: u32) -> Option<(Transfer, bool)> {
        let lane = &mut self.nics[host as usize].egress;
        let transfer = lane.now.take()?;
        let whole = transfer.left == 0;
        if !whole {
            let digest = self.digests[transfer.blob as usize];
            let bytes = transfer.left.min(self.part);
            let rest = transfer.clone();
            lane.waiting.push(digest, rest.rank, bytes, rest);
        }
        Some((transfer, whole))
    }

    fn rack(&self, host: u32) -> Option<u32> {
        self.nics[host as usize].rack
    }

    /// When a part whose first byte is at the receiver's rack now begins to arrive at the host.
    pub(crate) fn cross(&mut self, now: Timestamp, transfer: &Transfer) -> Timestamp {
        let (rate, down) = (
            self.uplink_rate,
            self.nics[transfer.to as usize].ingress.rate,
        );
        let Some(rack) = self.rack(transfer.to) else {
            return now;
        };
        let uplink = &mut self.uplinks[rack as usize].0[1];
        *uplink = (*uplink).max(now) + span(transfer.bytes, rate);
        (*uplink - span(transfer.bytes, down)).max(now)
    }

    /// The first byte of a part is at the receiver's interface.
    pub(crate) fn arrive(&mut self, transfer: Transfer) {
        let digest = self.digests[transfer.blob as usize];
        let lane = &mut self.nics[transfer.to as usize].ingress;
        let rank = lane.next_rank();
        lane.waiting.push(digest, rank, transfer.bytes, transfer);
    }

    /// Takes in the next part that waits, when the interface is free; says how long it takes.
    pub(crate) fn take_in(&mut self, host: u32) -> Option<Duration> {
        let lane = &mut self.nics[host as usize].ingress;
        if lane.now.is_some() {
            return None;
        }
        let (_, transfer) = lane.waiting.pop()?;
        let takes = span(transfer.bytes, lane.rate);
        lane.now = Some(transfer);
        Some(self.noisy(takes))
    }

    /// The part that was being taken in is here.
    pub(crate) fn taken_in(&mut self, host: u32) -> Option<Transfer> {
        self.nics[host as usize].ingress.now.take()
    }

    fn noisy(&mut self, takes: Duration) -> Duration {
        let noise = self.plan.noise;
        if noise <= 0.0 {
            return takes;
        }
        let exponential = -(1.0 - self.rng.unit()).ln();
        takes.mul_f64(1.0 - noise + noise * exponential)
    }
}

/// A part of a piece that is on the wire.
#[derive(Debug)]
pub(crate) struct Departure {
    pub(crate) transfer: Transfer,
    /// When the sender's interface is free again.
    pub(crate) free: Timestamp,
    /// When its first byte is at the receiver's rack or host.
    pub(crate) begins: Timestamp,
    /// Whether it has to pass the uplink of the receiver's rack.
    pub(crate) crosses: bool,
}

/// How long `bytes` take at a rate per second.
pub(crate) fn span(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
