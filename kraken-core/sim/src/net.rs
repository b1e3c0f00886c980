//! The network: connections, and what lies in front of each host's interface.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use kraken_proto::rng::Rng;
use kraken_proto::{ConnId, Timestamp};

/// A piece on its way.
#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    pub(crate) conn: ConnId,
    pub(crate) from: usize,
    /// The life of the sender: what it had not sent whole when it crashed never arrives.
    pub(crate) epoch: u32,
    pub(crate) to: usize,
    pub(crate) blob: usize,
    pub(crate) piece: u32,
    pub(crate) bytes: u64,
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
    pub(crate) hosts: [usize; 2],
    pub(crate) ends: [End; 2],
    /// Half a round trip.
    pub(crate) latency: Duration,
}

/// What waits in front of one host's interface.
#[derive(Debug, Default)]
pub(crate) struct Nic {
    pub(crate) queue: VecDeque<Transfer>,
    pub(crate) sending: Option<Transfer>,
    pub(crate) ingress_free: Timestamp,
}

/// All connections and interfaces.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) conns: BTreeMap<ConnId, Conn>,
    pub(crate) nics: Vec<Nic>,
    seed: u64,
    cap: u64,
    next_conn: u64,
}

impl Net {
    pub(crate) fn new(seed: u64, cap: u64, hosts: usize) -> Self {
        let nics = (0..hosts).map(|_| Nic::default()).collect();
        Self {
            conns: BTreeMap::new(),
            nics,
            seed,
            cap,
            next_conn: 1,
        }
    }

    /// Half of the round trip of a pair: 0.25 to 0.5 ms, the same each time.
    pub(crate) fn latency(&self, a: usize, b: usize) -> Duration {
        let pair = (a.min(b) as u64) << 32 | a.max(b) as u64;
        let share = Rng::seeded(self.seed ^ pair.wrapping_mul(0x9e37_79b9_7f4a_7c15)).unit();
        Duration::from_micros(250).mul_f64(1.0 + share)
    }

    /// How long `bytes` take through an interface.
    pub(crate) fn wire_time(&self, bytes: u64) -> Duration {
        span(bytes, self.cap)
    }

    /// A connection whose handshake has begun.
    pub(crate) fn connect(&mut self, from: usize, to: usize) -> ConnId {
        let id = ConnId(self.next_conn);
        self.next_conn += 1;
        let latency = self.latency(from, to);
        let conn = Conn {
            hosts: [from, to],
            ends: [End::Coming; 2],
            latency,
        };
        self.conns.insert(id, conn);
        id
    }

    /// The host's side of a connection that stands.
    pub(crate) fn open_side(&self, id: ConnId, host: usize) -> Option<(usize, &Conn)> {
        let conn = self.conns.get(&id)?;
        let side = conn.hosts.iter().position(|it| *it == host)?;
        (conn.ends[side] == End::Open).then_some((side, conn))
    }

    /// Changes one side and says what it was; forgets what is closed on both.
    pub(crate) fn set(&mut self, id: ConnId, side: usize, end: End) -> Option<End> {
        let conn = self.conns.get_mut(&id)?;
        let before = std::mem::replace(&mut conn.ends[side], end);
        if conn.ends == [End::Closed; 2] {
            self.conns.remove(&id);
        }
        Some(before)
    }

    /// The connections of a host that it has not closed, with its side.
    pub(crate) fn of_host(&self, host: usize) -> Vec<(ConnId, usize)> {
        let side = |conn: &Conn| {
            let side = conn.hosts.iter().position(|it| *it == host)?;
            (conn.ends[side] != End::Closed).then_some(side)
        };
        self.conns
            .iter()
            .filter_map(|(id, conn)| Some((*id, side(conn)?)))
            .collect()
    }

    /// The next piece that a host puts on the wire, when its interface is free.
    pub(crate) fn begin(&mut self, host: usize) -> Option<Transfer> {
        if self.nics[host].sending.is_some() {
            return None;
        }
        while let Some(next) = self.nics[host].queue.pop_front() {
            if self.open_side(next.conn, host).is_some() {
                self.nics[host].sending = Some(next.clone());
                return Some(next);
            }
        }
        None
    }

    /// When a piece whose first byte is here now will have arrived whole.
    pub(crate) fn receive(&mut self, now: Timestamp, transfer: &Transfer) -> Timestamp {
        let wire_time = self.wire_time(transfer.bytes);
        let nic = &mut self.nics[transfer.to];
        nic.ingress_free = nic.ingress_free.max(now) + wire_time;
        nic.ingress_free
    }
}

/// How long `bytes` take at a rate per second.
pub(crate) fn span(bytes: u64, rate: u64) -> Duration {
    Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate.max(1))
}
