//! The run: what happens, in order of time.

use std::collections::BTreeMap;
use std::time::Duration;

use kraken_proto::rng::Rng;
use kraken_proto::tracker::handout::Tracker;
use kraken_proto::{AnnounceRequest, Bitfield, BlobSpec, ConnId, Digest, Input, Message, PeerId};
use kraken_proto::{PeerRole, Timestamp};

use crate::agenda::Agenda;
use crate::host::{Host, specs};
use crate::invariants::Checks;
use crate::net::{End, Net, Transfer};
use crate::plan::{Crash, Plan};
use crate::report::Report;
use crate::trace::Trace;

/// What a host takes to handle a message.
pub(crate) const HANDLING: Duration = Duration::from_micros(100);

/// What will happen.
#[derive(Debug)]
pub(crate) enum What {
    Start {
        host: u32,
    },
    Open {
        host: u32,
        epoch: u32,
        blob: u32,
    },
    Leave {
        host: u32,
    },
    Crash {
        host: u32,
        silent: bool,
    },
    Pause {
        host: u32,
    },
    Cut {
        heals: Timestamp,
    },
    Knock {
        from: u32,
        epoch: u32,
        to: u32,
    },
    Up {
        conn: ConnId,
        side: u8,
    },
    Down {
        conn: ConnId,
        side: u8,
    },
    Deliver {
        conn: ConnId,
        side: u8,
        message: Message,
    },
    Cross(Transfer),
    Arrive(Transfer),
    TakenIn {
        host: u32,
        epoch: u32,
    },
    Departed {
        host: u32,
        epoch: u32,
    },
    Stored {
        host: u32,
        epoch: u32,
        conn: ConnId,
        blob: u32,
        piece: u32,
        good: bool,
    },
    Tracker {
        host: u32,
        epoch: u32,
        tracker: u32,
        request: Box<AnnounceRequest>,
    },
    Tell {
        host: u32,
        epoch: u32,
        input: Box<Input>,
    },
    Timer {
        host: u32,
        at: Timestamp,
    },
}

/// What was sent in all.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Bytes of pieces that agents put on the wire.
    pub(crate) agent_bytes: u64,
    /// Bytes of pieces that origins put on the wire.
    pub(crate) origin_bytes: u64,
    /// Bytes of pieces that arrived whole at agents.
    pub(crate) arrived_bytes: u64,
    /// Bytes of pieces that agents wrote.
    pub(crate) stored_bytes: u64,
    pub(crate) messages: u64,
    pub(crate) control_bytes: u64,
    pub(crate) announces: u64,
    /// Bytes of pieces that agents and that origins put on the wire, per tenth of a second.
    pub(crate) timeline: Vec<[u64; 2]>,
}

/// The resolution of [`Tally::timeline`] in nanoseconds.
const TENTH: u64 = 100_000_000;

impl Tally {
    /// A host put bytes of a piece on the wire.
    pub(crate) fn sent(&mut self, now: Timestamp, origin: bool, bytes: u64) {
        if origin {
            self.origin_bytes += bytes;
        } else {
            self.agent_bytes += bytes;
        }
        let tenth = usize::try_from(now.as_nanos() / TENTH).unwrap_or(usize::MAX);
        if self.timeline.len() <= tenth {
            self.timeline.resize(tenth + 1, [0; 2]);
        }
        self.timeline[tenth][usize::from(origin)] += bytes;
    }
}

/// Everything there is.
pub(crate) struct World<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) now: Timestamp,
    pub(crate) net: Net,
    /// The agents, then the origins.
    pub(crate) hosts: Vec<Host>,
    pub(crate) by_id: BTreeMap<PeerId, u32>,
    pub(crate) specs: Vec<BlobSpec>,
    pub(crate) blobs: BTreeMap<Digest, u32>,
    pub(crate) checks: Checks,
    pub(crate) trackers: Vec<TrackerHost>,
    pub(crate) tally: Tally,
    pub(crate) agenda: Agenda<What>,
    /// How many are to complete and have not.
    waiting: usize,
    /// When the cut through the network heals, while there is one.
    pub(crate) cut: Option<Timestamp>,
    pub(crate) rng: Rng,
    pub(crate) trace: Trace,
    /// When the last host completed.
    pub(crate) last_completion: Timestamp,
}

/// A tracker and when it is done with what it was asked.
#[derive(Debug)]
pub(crate) struct TrackerHost {
    pub(crate) machine: Tracker,
    pub(crate) free: Timestamp,
}

/// Plays a plan to its end. The same plan always gives the same report.
pub fn run(plan: &Plan) -> Report {
    let mut world = World::new(plan);
    world.schedule();
    let mut end = Timestamp::ZERO + plan.limit;
    let mut settling = false;
    while let Some((at, what)) = world.agenda.pop(end) {
        world.now = at;
        world.happen(what);
        if !settling && world.waiting == 0 {
            settling = true;
            end = end.min(at + plan.settle);
        }
    }
    Report::of(world)
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan) -> Self {
        let specs = specs(plan);
        let mut rng = Rng::seeded(plan.seed);
        let mut hosts: Vec<_> = (0..plan.agents + plan.origins)
            .map(|number| new_host(plan, &specs, number))
            .collect();
        let share = plan.network.slow.as_ref().map_or(0.0, |slow| slow.share);
        for agent in draw(plan.agents, share, &mut rng) {
            hosts[agent].slow = true;
        }
        for (blob, it) in plan.blobs.iter().enumerate() {
            for agent in draw(plan.agents, it.share, &mut rng) {
                hosts[agent].wants[blob] = true;
                hosts[agent].lacks += 1;
            }
        }
        let slow: Vec<_> = hosts.iter().map(|host| host.slow).collect();
        let number = |(number, host): (usize, &Host)| (host.info.id, index(number));
        let tracker = |number: usize| TrackerHost {
            machine: Tracker::new(plan.tracker.clone(), plan.seed.wrapping_add(number as u64)),
            free: Timestamp::ZERO,
        };
        Self {
            plan,
            now: Timestamp::ZERO,
            net: Net::new(plan, &slow, specs.iter().map(|spec| spec.digest).collect()),
            by_id: hosts.iter().enumerate().map(number).collect(),
            checks: Checks::new(hosts.len(), specs.len()),
            waiting: 0,
            hosts,
            blobs: (0..)
                .zip(&specs)
                .map(|(n, spec)| (spec.digest, n))
                .collect(),
            specs,
            trackers: (0..plan.trackers.max(1)).map(tracker).collect(),
            tally: Tally::default(),
            agenda: Agenda::new(),
            cut: None,
            rng,
            trace: Trace::new(),
            last_completion: Timestamp::ZERO,
        }
    }

    /// Starts and faults.
    fn schedule(&mut self) {
        let plan = self.plan;
        for host in 0..index(self.hosts.len()) {
            let agent = !self.hosts[host as usize].is_origin();
            let chance = plan.arrival.within.mul_f64(self.rng.unit());
            let late = plan.arrival.late.iter();
            let late = late.rev().find(|(it, _)| agent && *it == host as usize);
            let start = late.map_or(chance, |(_, at)| *at);
            let start = if agent { start } else { Duration::ZERO };
            self.after(start, What::Start { host });
            if let Some(pauses) = &plan.network.pauses {
                let wait = Duration::from_secs_f64(self.exponential(1.0 / pauses.per_second));
                self.after(wait, What::Pause { host });
            }
        }
        let mut gone: Vec<_> = plan.faults.liars.clone();
        for crash in self.crashes() {
            let (host, silent) = (index(crash.agent), crash.silent);
            if !crash.hand_over.is_zero() {
                let begins = crash.at.saturating_sub(crash.hand_over);
                self.after(begins, What::Leave { host });
            }
            self.after(crash.at, What::Crash { host, silent });
            match crash.back_after {
                Some(back) => self.after(crash.at + back, What::Start { host }),
                None => gone.push(crash.agent),
            }
        }
        for killed in &plan.faults.killed_origins {
            let host = index(plan.agents + killed.origin);
            let silent = killed.silent;
            self.after(killed.at, What::Crash { host, silent });
            if let Some(back) = killed.back_after {
                self.after(killed.at + back, What::Start { host });
            }
        }
        if let Some(partition) = &plan.faults.partition {
            let heals = Timestamp::ZERO + partition.during.end;
            self.after(partition.during.start, What::Cut { heals });
        }
        gone.sort_unstable();
        gone.dedup();
        let wanting = (0..plan.agents).filter(|agent| self.hosts[*agent].lacks > 0);
        self.waiting = wanting
            .filter(|agent| gone.binary_search(agent).is_err())
            .count();
        self.checks.gone = gone;
    }

    /// The crashes that the plan names and those it leaves to chance.
    fn crashes(&mut self) -> Vec<Crash> {
        let mut crashes = self.plan.faults.crashes.clone();
        if let Some(churn) = &self.plan.faults.churn {
            let span = churn.during.end.saturating_sub(churn.during.start);
            for agent in draw(self.plan.agents, churn.share, &mut self.rng) {
                crashes.push(Crash {
                    agent,
                    at: churn.during.start + span.mul_f64(self.rng.unit()),
                    silent: self.rng.unit() < churn.silent,
                    back_after: churn.back_after,
                    hand_over: churn.hand_over,
                });
            }
        }
        crashes
    }

    pub(crate) fn exponential(&mut self, mean: f64) -> f64 {
        -(1.0 - self.rng.unit()).ln() * mean
    }

    /// Something will happen after a while; what is planned first happens first at equal times.
    pub(crate) fn after(&mut self, wait: Duration, what: What) {
        self.agenda.add(self.now + wait, what);
    }

    /// A host will be told something, unless it crashes before.
    pub(crate) fn tell(&mut self, wait: Duration, host: u32, input: Input) {
        let (epoch, input) = (self.hosts[host as usize].epoch, Box::new(input));
        self.after(wait, What::Tell { host, epoch, input });
    }

    /// A host has every blob that it wants.
    pub(crate) fn completed(&mut self, host: u32) {
        let it = &mut self.hosts[host as usize];
        if it.completed.is_none() {
            it.completed = Some(self.now);
            if !self.checks.is_gone(host) {
                self.waiting -= 1;
                self.last_completion = self.now;
            }
        }
    }

    /// How many hosts are still to complete.
    pub(crate) fn unfinished(&self) -> usize {
        self.waiting
    }

    /// Whether two hosts are on different sides of a cut, and when it heals.
    pub(crate) fn cut_between(&self, a: u32, b: u32) -> Option<Timestamp> {
        let heals = self.cut?;
        (self.is_far(a) != self.is_far(b)).then_some(heals)
    }

    /// Whether a host is on the far side of the cut.
    pub(crate) fn is_far(&self, host: u32) -> bool {
        let partition = self.plan.faults.partition.as_ref();
        partition.is_some_and(|it| f64::from(host) < it.share * self.plan.agents as f64)
    }

    /// Closes every connection that crosses the cut, as the timeouts of both sides would.
    pub(crate) fn part_across(&mut self) {
        let across: Vec<_> = self
            .net
            .all()
            .filter(|(_, conn)| self.cut_between(conn.hosts[0], conn.hosts[1]).is_some())
            .flat_map(|(conn, it)| [0, 1].map(|side| (conn, side, it.ends[side as usize])))
            .filter(|(.., end)| *end != End::Closed)
            .collect();
        for (conn, side, _) in across {
            self.down(conn, side);
        }
    }
}

fn new_host(plan: &Plan, specs: &[BlobSpec], number: usize) -> Host {
    let origin = number.checked_sub(plan.agents);
    let store = |(blob, spec): (usize, &BlobSpec)| match origin {
        Some(origin) if plan.owns(origin, blob) => Bitfield::full(spec.piece_count()),
        _ => Bitfield::empty(spec.piece_count()),
    };
    let role = origin.map_or(PeerRole::Agent, |_| PeerRole::Origin);
    let racks = plan.network.racks.as_ref().filter(|racks| racks.known);
    let rack = racks.filter(|_| origin.is_none());
    let zone = rack.and_then(|it| format!("rack-{}", number / it.hosts.max(1)).parse().ok());
    let stores = specs.iter().enumerate().map(store).collect();
    let mut host = Host::new(number, role, zone, stores);
    host.lies = plan.faults.liars.contains(&number);
    host
}

/// A share of the numbers below `len`, by chance.
fn draw(len: usize, share: f64, rng: &mut Rng) -> Vec<usize> {
    let count = (len as f64 * share).round() as usize;
    let mut all: Vec<_> = (0..len).collect();
    if count < len {
        rng.shuffle(&mut all);
        all.truncate(count);
        all.sort_unstable();
    }
    all
}

pub(crate) fn index(number: usize) -> u32 {
    u32::try_from(number).expect("fewer than 2^32 hosts and blobs")
}
