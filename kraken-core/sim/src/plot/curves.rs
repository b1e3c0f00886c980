//! The points of a report that are drawn.

use std::time::Duration;

use crate::plan::Plan;
use crate::report::{Percentiles, Report};

/// Points in the order of their first coordinate.
pub(super) type Curve = Vec<(f64, f64)>;

/// The most points of a distribution: more than that are on the same pixel.
const POINTS: usize = 1000;

/// The classes of hosts that there are: a name with its percentiles, and the share of the hosts in
/// percent that took no longer than a ratio.
pub(super) fn distributions(report: &Report) -> Vec<(String, Curve)> {
    let ratios = &report.ratios;
    let classes = [
        ("ordinary", &ratios.ordinary),
        ("slow", &ratios.slow),
        ("restarted", &ratios.restarted),
    ];
    let some = classes.into_iter().filter(|(_, of)| !of.is_empty());
    some.map(|(name, of)| (legend(name, of), distribution(of)))
        .collect()
}

fn legend(name: &str, ratios: &[f64]) -> String {
    let Percentiles { p50, p99, max, .. } = Percentiles::of(ratios.to_vec());
    let hosts = ratios.len();
    format!("{hosts} {name}: p50 {p50:.3}, p99 {p99:.3}, max {max:.3}")
}

fn distribution(ratios: &[f64]) -> Curve {
    let len = ratios.len();
    let step = len.div_ceil(POINTS).max(1);
    let share = |index: usize| 100.0 * (index + 1) as f64 / len as f64;
    let mut curve: Vec<_> = (0..len)
        .step_by(step)
        .map(|at| (ratios[at], share(at)))
        .collect();
    curve.extend(ratios.first().map(|least| (*least, 0.0)));
    curve.extend(ratios.last().map(|most| (*most, 100.0)));
    curve.sort_by(|a, b| a.1.total_cmp(&b.1));
    curve
}

/// What somebody sent, and what they could have sent: gigabytes per second over seconds.
pub(super) struct Rates {
    pub(super) sent: Curve,
    pub(super) cap: Curve,
}

impl Rates {
    /// Of the agents; the cap is of those that have started.
    pub(super) fn of_agents(plan: &Plan, report: &Report) -> Self {
        let mut starts: Vec<_> = report.starts.iter().flatten().copied().collect();
        starts.sort_by(f64::total_cmp);
        let slow = plan.network.slow.as_ref();
        let (share, rate) = slow.map_or((0.0, 0), |slow| (slow.share, slow.up));
        let each = share * rate as f64 + (1.0 - share) * plan.network.up as f64;
        let started = |at: f64| starts.partition_point(|start| *start <= at) as f64;
        Self::new(report, 0, |at| started(at) * each)
    }

    /// Of the origins; the cap is of those that are alive.
    pub(super) fn of_origins(plan: &Plan, report: &Report) -> Self {
        let dead = |at: f64| {
            let at = Duration::from_secs_f64(at);
            let killed = plan.faults.killed_origins.iter();
            let mut dead: Vec<_> = killed
                .filter(|it| it.at <= at)
                .map(|it| it.origin)
                .collect();
            dead.sort_unstable();
            dead.dedup();
            dead.len()
        };
        let alive = |at: f64| plan.origins.saturating_sub(dead(at)) as f64;
        let each = plan.network.origin as f64;
        Self::new(report, 1, |at| alive(at) * each)
    }

    /// `who` is the column of [`Report::timeline`], `cap` gives bytes per second at a time.
    fn new(report: &Report, who: usize, cap: impl Fn(f64) -> f64) -> Self {
        let times = (0..report.timeline.len()).map(|tenth| (tenth as f64 + 0.5) / 10.0);
        let sent = report.timeline.iter().map(|bytes| bytes[who] as f64 * 10.0);
        Self {
            sent: times.clone().zip(sent.map(|it| it / GIGA)).collect(),
            cap: times.map(|at| (at, cap(at) / GIGA)).collect(),
        }
    }

    /// The highest point.
    pub(super) fn most(&self) -> f64 {
        let all = self.sent.iter().chain(&self.cap);
        all.map(|(_, rate)| *rate).fold(0.0, f64::max)
    }
}

const GIGA: f64 = 1e9;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Faults, KilledOrigin};
    use crate::world::run;

    #[test]
    fn a_distribution_goes_from_nobody_to_everybody_within_the_bound() {
        assert_eq!(distribution(&[]), Vec::new());
        let points = [(1.0, 0.0), (1.0, 50.0), (3.0, 100.0), (3.0, 100.0)];
        assert_eq!(distribution(&[1.0, 3.0]), points);
        let many: Vec<_> = (0..25_001).map(f64::from).collect();
        let curve = distribution(&many);
        assert!(curve.len() <= POINTS + 2);
        assert!(curve.is_sorted());
        assert_eq!(curve.last(), Some(&(25_000.0, 100.0)));
    }

    #[test]
    fn what_is_sent_adds_up_and_caps_follow_starts_and_deaths() {
        let killed = KilledOrigin {
            origin: 0,
            at: Duration::from_millis(100),
            silent: false,
            back_after: None,
        };
        let faults = Faults {
            killed_origins: vec![killed],
            ..Faults::default()
        };
        let plan = Plan {
            faults,
            ..Plan::swarm(1, 10)
        };
        let report = run(&plan);
        let (agents, origins) = (
            Rates::of_agents(&plan, &report),
            Rates::of_origins(&plan, &report),
        );
        let bytes = |rates: &Rates| rates.sent.iter().map(|it| it.1).sum::<f64>() * GIGA / 10.0;
        assert!((bytes(&agents) - report.agent_bytes as f64).abs() < 1.0);
        assert!((bytes(&origins) - report.origin_bytes as f64).abs() < 1.0);
        let cap = |rates: &Rates| [rates.cap[0].1, rates.cap.last().unwrap().1];
        let [first, last] = cap(&agents);
        assert!(first < last && (last - 3.0).abs() < 1e-9, "{first} {last}");
        let [first, last] = cap(&origins);
        assert!((first - 0.9).abs() < 1e-9 && (last - 0.6).abs() < 1e-9);
    }
}
