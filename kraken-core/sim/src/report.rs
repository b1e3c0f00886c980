//! What came of it.

use std::time::Duration;

use kraken_proto::Timestamp;

use crate::host::Host;
use crate::plan::Plan;
use crate::world::World;

/// What came of a [`Plan`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The plan's name.
    pub plan: String,
    /// How many agents there were.
    pub hosts: usize,
    /// What the slower of two bounds says that a host takes at least, in seconds: its own interface,
    /// and what all interfaces can send. For hosts that want everything and are not slow.
    pub floor_seconds: f64,
    /// The time of each ordinary host over its floor: those neither slow nor crashed.
    pub ratio: Percentiles,
    /// The same of the slow hosts, over their own floor.
    pub slow_ratio: Option<Percentiles>,
    /// The same of the hosts that crashed and came back, the time between included.
    pub restarted_ratio: Option<Percentiles>,
    /// What the three above are of.
    pub ratios: Ratios,
    /// Hosts that should have every blob that they want, and have not.
    pub unfinished: usize,
    /// When each agent started, in seconds.
    pub starts: Vec<Option<f64>>,
    /// How long each agent took from the moment that it asked for its first blob until it had all of
    /// them, in seconds.
    pub completions: Vec<Option<f64>>,
    /// How long each blob took from the moment that a host asked for it, in seconds.
    pub blobs: Vec<Percentiles>,
    /// Bytes of pieces that origins put on the wire.
    pub origin_bytes: u64,
    /// The same over the sum of the blobs' lengths.
    pub origin_bytes_ratio: f64,
    /// Bytes of pieces that agents put on the wire.
    pub agent_bytes: u64,
    /// Bytes of pieces that arrived and were not written, over those that were.
    pub duplicate_ratio: f64,
    /// Bytes that left or entered a rack, over all bytes; 0 without racks.
    pub across_ratio: f64,
    /// Messages between hosts, pieces left out.
    pub messages: u64,
    /// The same per agent.
    pub messages_per_host: f64,
    /// Bytes of these messages per agent.
    pub control_bytes_per_host: f64,
    /// Announces per second that trackers answered, until the last host completed.
    pub tracker_requests_per_second: f64,
    /// The longest time that a host which lacked pieces went without one, in seconds, crashes left
    /// out.
    pub longest_gap_seconds: f64,
    /// Bytes of pieces that agents and that origins put on the wire, per tenth of a second.
    pub timeline: Vec<[u64; 2]>,
    /// Which agent banned which, both by number, in order of time.
    pub bans: Vec<(usize, usize)>,
    /// SHA-256 over the time, the host and the content of everything that happened to a host.
    pub trace: String,
    /// The virtual time at the end, in seconds.
    pub ended: f64,
    /// Rules that were broken; empty when all is well.
    pub violations: Vec<String>,
}

/// The time of each host that completed over its floor, ascending.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Ratios {
    /// Of the hosts that were neither slow nor crashed.
    pub ordinary: Vec<f64>,
    /// Of the slow hosts.
    pub slow: Vec<f64>,
    /// Of the hosts that crashed and came back.
    pub restarted: Vec<f64>,
}

/// A distribution over the hosts. NaN when there are none.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Percentiles {
    /// Half of the hosts took no longer.
    pub p50: f64,
    /// 90 % of the hosts took no longer.
    pub p90: f64,
    /// 99 % of the hosts took no longer.
    pub p99: f64,
    /// 99.9 % of the hosts took no longer.
    pub p999: f64,
    /// No host took longer.
    pub max: f64,
}

impl Percentiles {
    /// By the nearest rank.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |per_mille: usize| {
            let rank = (values.len() * per_mille).div_ceil(1000).max(1) - 1;
            values.get(rank).copied().unwrap_or(f64::NAN)
        };
        Self {
            p50: at(500),
            p90: at(900),
            p99: at(990),
            p999: at(999),
            max: at(1000),
        }
    }
}

impl Report {
    pub(crate) fn of(mut world: World<'_>) -> Self {
        let (plan, now) = (world.plan, world.now);
        let unfinished = world.unfinished();
        let World {
            checks,
            hosts,
            net,
            specs,
            ..
        } = &mut world;
        checks.at_the_end(now, plan, hosts, net, specs);
        let agents = &world.hosts[..plan.agents];
        let class = |slow: bool, crashed: bool| {
            let of_class = |host: &&Host| host.slow == slow && host.crashed == crashed;
            let ratio = |host: &Host| Some(took(plan, host)? / floor(plan, host));
            let mut ratios: Vec<_> = agents.iter().filter(of_class).filter_map(ratio).collect();
            ratios.sort_by(f64::total_cmp);
            ratios
        };
        let ratios = Ratios {
            ordinary: class(false, false),
            slow: class(true, false),
            restarted: class(false, true),
        };
        let some = |of: &[f64]| (!of.is_empty()).then(|| Percentiles::of(of.to_vec()));
        let blob = |blob: usize| {
            let took = |host: &Host| {
                let asked = host.started? + plan.blobs[blob].after;
                Some(host.done[blob]?.since(asked).as_secs_f64())
            };
            Percentiles::of(agents.iter().filter_map(took).collect())
        };
        let tally = &world.tally;
        let all: u64 = plan.blobs.iter().map(|blob| blob.length).sum();
        let sent = tally.agent_bytes + tally.origin_bytes;
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let lasted = world.last_completion.since(Timestamp::ZERO).as_secs_f64();
        let gap = agents.iter().filter(|host| !host.crashed);
        Self {
            plan: plan.name.clone(),
            hosts: plan.agents,
            floor_seconds: plan_floor(plan, plan.network.down, all),
            ratio: Percentiles::of(ratios.ordinary.clone()),
            slow_ratio: some(&ratios.slow),
            restarted_ratio: some(&ratios.restarted),
            ratios,
            unfinished,
            starts: agents
                .iter()
                .map(|host| Some(host.started?.since(Timestamp::ZERO).as_secs_f64()))
                .collect(),
            completions: agents.iter().map(|host| took(plan, host)).collect(),
            blobs: (0..plan.blobs.len()).map(blob).collect(),
            origin_bytes: tally.origin_bytes,
            origin_bytes_ratio: share(tally.origin_bytes, all),
            agent_bytes: tally.agent_bytes,
            duplicate_ratio: share(
                tally.arrived_bytes.saturating_sub(tally.stored_bytes),
                tally.stored_bytes,
            ),
            across_ratio: share(world.net.across, sent),
            messages: tally.messages,
            messages_per_host: share(tally.messages, plan.agents as u64),
            control_bytes_per_host: share(tally.control_bytes, plan.agents as u64),
            tracker_requests_per_second: tally.announces as f64 / lasted.max(f64::MIN_POSITIVE),
            longest_gap_seconds: gap
                .map(|host| host.longest_gap)
                .max()
                .map_or(0.0, |it: Duration| it.as_secs_f64()),
            timeline: tally.timeline.clone(),
            bans: world.checks.bans,
            trace: world.trace.finish(),
            ended: now.since(Timestamp::ZERO).as_secs_f64(),
            violations: world.checks.violations,
        }
    }

    /// Whether every host that was to complete has.
    pub fn finished(&self) -> bool {
        self.unfinished == 0
    }

    /// How long the hosts that completed took, in seconds.
    pub fn percentiles(&self) -> Percentiles {
        Percentiles::of(self.completions.iter().flatten().copied().collect())
    }
}

/// From the moment that the host asked for its first blob.
fn took(plan: &Plan, host: &Host) -> Option<f64> {
    let wanted = plan.blobs.iter().zip(&host.wants);
    let waits = wanted
        .filter(|(_, wants)| **wants)
        .map(|(blob, _)| blob.after);
    let asked = host.started? + waits.min()?;
    Some(host.completed?.since(asked).as_secs_f64())
}

/// What a host takes at least: see [`Report::floor_seconds`].
fn floor(plan: &Plan, host: &Host) -> f64 {
    let wanted = plan.blobs.iter().zip(&host.wants);
    let own = wanted
        .filter(|(_, wants)| **wants)
        .map(|(blob, _)| blob.length);
    let down = match &plan.network.slow {
        Some(slow) if host.slow => slow.down,
        _ => plan.network.down,
    };
    plan_floor(plan, down, own.sum())
}

fn plan_floor(plan: &Plan, down: u64, bytes: u64) -> f64 {
    let network = &plan.network;
    let agents = plan.agents as f64;
    let slow = network.slow.as_ref();
    let slow_agents = slow.map_or(0.0, |it| (agents * it.share).round());
    let up = (agents - slow_agents) * network.up as f64
        + slow_agents * slow.map_or(0.0, |it| it.up as f64)
        + plan.origins as f64 * network.origin as f64;
    let wanted: f64 = plan
        .blobs
        .iter()
        .map(|blob| blob.length as f64 * (agents * blob.share).round())
        .sum();
    // Slow hosts take what they can within the time of the others.
    let own = bytes as f64 / down as f64;
    let all = if slow.is_some() { 0.0 } else { wanted / up };
    own.max(all)
}
