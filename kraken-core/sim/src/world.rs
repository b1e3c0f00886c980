//! The run: what happens, in order of time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kraken_proto::rng::Rng;
use kraken_proto::tracker::handout::{Tracker, TrackerConfig};
use kraken_proto::{AnnounceRequest, Bitfield, BlobSpec, ConnId, Digest, Input, Message, PeerId};
use kraken_proto::{PeerRole, Timestamp};
use sha2::{Digest as _, Sha256};

use crate::host::{Host, specs};
use crate::invariants::Checks;
use crate::net::{End, Net, Transfer};
use crate::plan::Plan;
use crate::report::Report;

/// What a host takes to handle a message.
pub(crate) const HANDLING: Duration = Duration::from_micros(100);
/// On how many origins each blob is.
const OWNERS: usize = 3;

/// What will happen.
#[derive(Debug)]
pub(crate) enum What {
    Start {
        host: usize,
    },
    Crash {
        host: usize,
        silent: bool,
    },
    Knock {
        from: usize,
        epoch: u32,
        to: usize,
    },
    Up {
        conn: ConnId,
        side: usize,
    },
    Down {
        conn: ConnId,
        side: usize,
    },
    Deliver {
        conn: ConnId,
        side: usize,
        message: Message,
    },
    Arrive(Transfer),
    Piece(Transfer),
    EgressDone {
        host: usize,
        epoch: u32,
    },
    Tracker {
        host: usize,
        epoch: u32,
        request: AnnounceRequest,
    },
    Tell {
        host: usize,
        epoch: u32,
        input: Input,
    },
    Timer {
        host: usize,
        at: Timestamp,
    },
}

/// Everything there is.
pub(crate) struct World<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) now: Timestamp,
    pub(crate) net: Net,
    /// The agents, then the origins.
    pub(crate) hosts: Vec<Host>,
    pub(crate) by_id: BTreeMap<PeerId, usize>,
    pub(crate) specs: Vec<BlobSpec>,
    pub(crate) blobs: BTreeMap<Digest, usize>,
    pub(crate) checks: Checks,
    pub(crate) messages: u64,
    pub(crate) tracker: Tracker,
    queue: BTreeMap<(Timestamp, u64), What>,
    next: u64,
    /// Who is to complete and has not.
    waiting: BTreeSet<usize>,
    /// What was sent, by agents and by origins.
    pub(crate) wire_bytes: [u64; 2],
    trace: Sha256,
}

/// Plays a plan to its end. The same plan always gives the same report.
pub fn run(plan: &Plan) -> Report {
    let mut world = World::new(plan);
    world.schedule();
    let mut end = Timestamp::ZERO + plan.limit;
    let mut settling = false;
    while let Some(((at, _), what)) = world.queue.pop_first().filter(|((at, _), _)| *at <= end) {
        world.now = at;
        world.happen(what);
        if !settling && world.waiting.is_empty() {
            settling = true;
            end = end.min(at + plan.settle);
        }
    }
    world.report()
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan) -> Self {
        let specs = specs(plan);
        let hosts = (0..plan.agents + plan.origins).map(|number| {
            let role = if number < plan.agents {
                PeerRole::Agent
            } else {
                PeerRole::Origin
            };
            let store = |(blob, spec): (usize, &BlobSpec)| match number.checked_sub(plan.agents) {
                Some(origin) if owns(plan, origin, blob) => Bitfield::full(spec.piece_count()),
                _ => Bitfield::empty(spec.piece_count()),
            };
            let mut host = Host::new(number, role, specs.iter().enumerate().map(store).collect());
            host.lies = plan.faults.liars.contains(&number);
            host
        });
        let hosts: Vec<_> = hosts.collect();
        Self {
            plan,
            now: Timestamp::ZERO,
            net: Net::new(plan.seed, plan.cap, hosts.len()),
            by_id: hosts
                .iter()
                .enumerate()
                .map(|(number, host)| (host.info.id, number))
                .collect(),
            hosts,
            blobs: specs
                .iter()
                .enumerate()
                .map(|(blob, spec)| (spec.digest, blob))
                .collect(),
            specs,
            checks: Checks::default(),
            messages: 0,
            tracker: Tracker::new(TrackerConfig::default(), plan.seed),
            queue: BTreeMap::new(),
            next: 0,
            waiting: BTreeSet::new(),
            wire_bytes: [0; 2],
            trace: Sha256::new(),
        }
    }

    /// Starts and faults.
    fn schedule(&mut self) {
        let plan = self.plan;
        let mut rng = Rng::seeded(plan.seed);
        for host in 0..self.hosts.len() {
            let origin = self.hosts[host].is_origin();
            let late = plan.latecomer.filter(|_| host + 1 == plan.agents);
            let start = if origin {
                Duration::ZERO
            } else {
                plan.spread.mul_f64(rng.unit())
            };
            self.after(late.unwrap_or(start), What::Start { host });
            if !origin && !self.hosts[host].lies {
                self.waiting.insert(host);
            }
        }
        for crash in &plan.faults.crashes {
            let host = crash.agent;
            self.after(
                crash.at,
                What::Crash {
                    host,
                    silent: crash.silent,
                },
            );
            match crash.back_after {
                Some(back) => self.after(crash.at + back, What::Start { host }),
                None => drop(self.waiting.remove(&host)),
            }
        }
        for (origin, at) in &plan.faults.killed_origins {
            let host = plan.agents + origin;
            self.after(
                *at,
                What::Crash {
                    host,
                    silent: origin % 2 == 0,
                },
            );
        }
    }

    /// Something will happen after a while; what is planned first happens first at equal times.
    pub(crate) fn after(&mut self, wait: Duration, what: What) {
        self.queue.insert((self.now + wait, self.next), what);
        self.next += 1;
    }

    /// A host will be told something, unless it crashes before.
    pub(crate) fn tell(&mut self, wait: Duration, host: usize, input: Input) {
        let epoch = self.hosts[host].epoch;
        self.after(wait, What::Tell { host, epoch, input });
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Start { host } => self.start(host),
            What::Crash { host, silent } => self.crash(host, silent),
            What::Knock { from, epoch, to } => self.knock(from, epoch, to),
            What::Up { conn, side } => self.up(conn, side),
            What::Down { conn, side } => self.down(conn, side),
            What::Deliver {
                conn,
                side,
                message,
            } => {
                let Some(it) = self.net.conns.get(&conn) else {
                    return;
                };
                if it.ends[side] == End::Open {
                    self.feed(it.hosts[side], Input::Message { conn, message });
                }
            }
            What::Arrive(transfer) => {
                let whole = self.net.receive(self.now, &transfer).since(self.now);
                self.after(whole + HANDLING, What::Piece(transfer));
            }
            What::Piece(transfer) => self.piece(&transfer),
            What::EgressDone { host, epoch } => self.egress_done(host, epoch),
            What::Tracker {
                host,
                epoch,
                request,
            } => self.at_tracker(host, epoch, &request),
            What::Tell { host, epoch, input } => {
                if self.hosts[host].epoch == epoch {
                    self.feed(host, input);
                }
            }
            What::Timer { host, at } => self.timer(host, at),
        }
    }

    /// A host has every blob.
    pub(crate) fn completed(&mut self, host: usize) {
        self.hosts[host].completed.get_or_insert(self.now);
        self.waiting.remove(&host);
    }

    /// Adds to the trace.
    pub(crate) fn note(&mut self, host: usize, tag: u8, a: u64, b: u64) {
        let mut line = [0; 33];
        line[..8].copy_from_slice(&self.now.as_nanos().to_be_bytes());
        line[8..16].copy_from_slice(&(host as u64).to_be_bytes());
        line[16] = tag;
        line[17..25].copy_from_slice(&a.to_be_bytes());
        line[25..].copy_from_slice(&b.to_be_bytes());
        self.trace.update(line);
    }

    fn report(mut self) -> Report {
        self.checks
            .at_the_end(self.now, &self.hosts, &self.net, &self.specs);
        let took = |host: &Host| Some(host.completed?.since(host.started?).as_secs_f64());
        Report {
            completions: self.hosts[..self.plan.agents].iter().map(took).collect(),
            origin_bytes: self.wire_bytes[1],
            agent_bytes: self.wire_bytes[0],
            messages: self.messages,
            bans: self.checks.bans,
            trace: hex::encode(self.trace.finalize()),
            finished: self.waiting.is_empty(),
            ended: self.now.since(Timestamp::ZERO).as_secs_f64(),
            violations: self.checks.violations,
        }
    }
}

/// Whether a blob is on an origin.
pub(crate) fn owns(plan: &Plan, origin: usize, blob: usize) -> bool {
    (0..OWNERS.min(plan.origins)).any(|place| (blob + place) % plan.origins == origin)
}
